"""Claims about what schedules ask of a plan: somebody to sum what clients send, and no term that says nothing."""

from dataclasses import replace
from typing import Any

import pytest

from cutlayer.plan.check import faults, moves_state, needs_aggregator, sealing_parties
from cutlayer.plan.terms import PartyTerms, Terms
from plan.test_plan_check import CLIENT, SOUND, TRAINING, named, training

OWN = {"parties": SOUND.parties | {"aggregator": PartyTerms(role="aggregator")}}
ADAM = {"averaged_optimizer": "keep"}
MEANS_NOTHING = "means nothing under the schedule"

FAULTY: dict[str, tuple[str, dict[str, Any]]] = {
    'under splitfed_v1 what clients send is summed: add a party with role = "aggregator", or say': ("splitfed_v1", {}),
    "under splitfed_v2 what clients send is summed": ("splitfed_v2", {}),
    "under parallel what clients send is summed": ("parallel", {}),
    "under splitfed_v3 nothing of the clients' is summed": ("splitfed_v3", OWN),
    "under relay nothing of the clients' is summed": ("relay", {"aggregator_sees_weights": True}),
    "aggregator_sees_weights = true is for plans without an aggregator, but aggregator is one": (
        "splitfed_v1", OWN | {"aggregator_sees_weights": True},
    ),
    '2 parties have role = "aggregator"; one sums for all': (
        "splitfed_v1", {"parties": SOUND.parties | dict.fromkeys(("sums", "adds"), PartyTerms(role="aggregator"))},
    ),
    f"training.averaged_optimizer {MEANS_NOTHING} relay: it is for": ("relay", training(averaged_optimizer="keep")),
    f"training.proximal {MEANS_NOTHING} alternating": ("alternating", training(proximal=0.1)),
    f"training.client_segments {MEANS_NOTHING} relay": ("relay", training(client_segments="own")),
    f"training.cut_average {MEANS_NOTHING} relay": ("relay", training(cut_average=0.5)),
    f"turn {MEANS_NOTHING} splitfed_v3: it is for alternating and relay": ("splitfed_v3", {"turn": "batch"}),
    f"training.personal {MEANS_NOTHING} alternating: no weights": ("alternating", training(personal=("*.bn*",))),
    f"parties.….cut {MEANS_NOTHING} relay": ("relay", named("b", cut=("layer2",))),
    f"parties.….lr_scale {MEANS_NOTHING} parallel": (
        "parallel", named("b", lr_scale=0.5) | training(client_segments="own"),
    ),
    "parties.lab: cut and lr_scale are said of clients": (
        "relay", {"parties": {"hospital-a": CLIENT, "lab": PartyTerms(role="server", lr_scale=2.0)}},
    ),
    "parties.b.lr_scale = 0: a finite number above 0": ("relay", named("b", lr_scale=0)),
    "parties.b.cut names 2 layer(s), but vanilla has 2 segments": (
        "splitfed_v1", {"parties": OWN["parties"] | {"b": PartyTerms(role="client", cut=("x", "y"))}},
    ),
    "parties.b.signing_key: 64 hexadecimal digits, as `cutlayer keys pin`": ("relay", named("b", signing_key="0x1")),
    "parties.b.sealing_key: 64 hexadecimal digits, as `cutlayer keys pin`": ("relay", named("b", sealing_key="1")),
    "training.cut_average: clients whose segments are equal": ("parallel", OWN | training(cut_average=0.5)),
    "training.cut_average = 1.5: a part of each batch": (
        "parallel", training(cut_average=1.5, client_segments="own"),
    ),
    "training.clients_per_round = 0: a number of clients, at least 1": ("relay", training(clients_per_round=0)),
    "training.clients_per_round = 1.5: as a part of all clients": ("relay", training(clients_per_round=1.5)),
    "training.local_epochs = 0: at least 1": ("relay", training(local_epochs=0)),
    "training.local_steps = -1: at least 1, or 0": ("relay", training(local_steps=-1)),
    "training.local_epochs and training.local_steps are both given": ("relay", training(local_steps=2, local_epochs=2)),
    "training.proximal = -1.0: a finite number, at least 0": ("splitfed_v3", training(proximal=-1.0)),
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "case"), FAULTY.items(), ids=FAULTY.keys())
def test_each_fault_has_its_sentence(sentence: str, case: tuple[str, dict[str, Any]]) -> None:
    schedule, change = case
    found = faults(replace(SOUND, schedule=schedule, **change))
    assert [fault[: len(sentence)] for fault in found] == [sentence], found


SOUND_CASES: list[tuple[str, dict[str, Any]]] = [
    ("relay", {"turn": "batch"} | training(personal=("*.bn*",), clients_per_round=0.5)),
    ("parallel", OWN),
    ("parallel", training(client_segments="own", cut_average=1.0)),
    ("parallel", {"aggregator_sees_weights": True}),
    ("splitfed_v1", OWN | training(averaged_optimizer="average", proximal=0.1, local_steps=5)),
    ("splitfed_v1", {"parties": OWN["parties"] | {"b": PartyTerms(role="client", cut=("layer2",), lr_scale=2.0)}}),
    ("splitfed_v2", {"aggregator_sees_weights": True} | training(clients_per_round=1)),
    ("splitfed_v3", training(personal=("type:BatchNorm2d",), local_epochs=3)),
    ("alternating", named("b", lr_scale=0.1)),
]


@pytest.mark.parametrize(("schedule", "change"), SOUND_CASES)
def test_a_sound_plan_has_no_fault(schedule: str, change: dict[str, Any]) -> None:
    assert faults(replace(SOUND, schedule=schedule, **change)) == []


def terms(schedule: str, **change: Any) -> Terms:
    return replace(SOUND, schedule=schedule, **change)


def test_who_seals_is_who_sends_or_gets_what_the_server_forwards() -> None:
    assert sealing_parties(terms("alternating")) == ()
    assert sealing_parties(terms("splitfed_v3")) == ()
    assert sealing_parties(terms("relay")) == ("hospital-a",)
    assert sealing_parties(terms("splitfed_v2", **OWN)) == ("hospital-a", "aggregator")
    assert sealing_parties(terms("splitfed_v2", aggregator_sees_weights=True)) == ()


def test_which_schedules_move_states_and_which_need_somebody_to_sum() -> None:
    moving = {"relay": False, "parallel": True, "splitfed_v1": True, "splitfed_v2": True, "splitfed_v3": False}
    for schedule, sums in moving.items():
        assert moves_state(terms(schedule))
        assert needs_aggregator(terms(schedule)) == sums
    assert not moves_state(terms("alternating"))
    own = replace(TRAINING, client_segments="own")
    assert not moves_state(terms("parallel", training=own))
