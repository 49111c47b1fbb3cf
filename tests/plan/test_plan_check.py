"""Claims about what must hold between the terms of a plan: each fault has its sentence, and a sound plan has none."""

import math
from dataclasses import replace
from typing import Any

import pytest

from cutlayer.plan.check import faults
from cutlayer.plan.limits import Limits
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training

CLIENT, SERVER = PartyTerms(role="client"), PartyTerms(role="server")
TRAINING = Training(loss=Method(name="mse_loss"), optimizer=Method(name="SGD"), batch_size=4, rounds=1)
SOUND = Terms(
    topology="vanilla",
    schedule="alternating",
    model=ModelTerms(cut=("layer1",)),
    input=InputTerms(shape=(3,)),
    training=TRAINING,
    parties={"hospital-a": CLIENT, "lab": SERVER},
)


def parties(**more: PartyTerms) -> dict[str, Any]:
    return {"parties": SOUND.parties | more}


def named(name: str, **terms: Any) -> dict[str, Any]:
    return {"parties": SOUND.parties | {name: PartyTerms(role="client", **terms)}}


def training(**terms: Any) -> dict[str, Any]:
    return {"training": replace(TRAINING, **terms)}


def optimizer(**options: Any) -> dict[str, Any]:
    return training(optimizer=Method(name="SGD", options=options))


FAULTY: dict[str, dict[str, Any]] = {
    "format = 2: this cutlayer reads plans of format 6": {"format": 2},
    "input.shape = [3, 0]: sizes of one row are at least 1 (without": {"input": InputTerms(shape=(3, 0))},
    "topology = 'vanila' is unknown: did you mean 'vanilla'?": {"topology": "vanila"},
    "topology = 'x' is unknown; known are bottleneck, decoupled, extended_vanilla, multi_hop, multi_task, o": {
        "topology": "x"
    },
    "schedule = 'Alternate' is unknown: did you mean 'alternating'?": {"schedule": "Alternate"},
    "model.cut names 2 layer(s), but vanilla has 2 segments (bottom, top): name 1": {
        "model": ModelTerms(cut=("a", "b"))
    },
    "model.cut names 1 layer(s), but u_shaped has 3 segments (bottom, middle, head): name 2": {"topology": "u_shaped"},
    "parties.Hospital_B: a party's name is a DNS label": named("Hospital_B"),
    "parties.-b: a party's name is a DNS label": named("-b"),
    f"parties.{'b' * 64}: a party's name is a DNS label": named("b" * 64),
    "parties.b.key: 64 hexadecimal digits": named("b", key="0x12"),
    "parties.b.address = 'lab': host:port, such as": named("b", address="lab"),
    "parties.b.role = 'clinet' is no role of vanilla: did you mean 'client'?": parties(b=PartyTerms(role="clinet")),
    'no party has role = "client": at least one must bring rows': {"parties": {"lab": SERVER}},
    '0 parties have role = "server"; vanilla has exactly one': {"parties": {"hospital-a": CLIENT}},
    '2 parties have role = "server"; vanilla has exactly one': parties(lab2=SERVER),
    "conductor = 'hospital-a': the conductor must be 'lab'": {"conductor": "hospital-a"},
    "training.batch_size = 0: at least 1": training(batch_size=0),
    "training.rounds = -1: at least 0": training(rounds=-1),
    "training.held_out = 1.0: a part of each party's rows": training(held_out=1.0),
    "training.held_out = -0.1: a part of each party's rows": training(held_out=-0.1),
    "training.held_out = nan: a part of each party's rows": training(held_out=math.nan),
    'training.micro_batches = 0: "auto", or at least 1': training(micro_batches=0),
    'training.micro_batches = 65: "auto", or at least 1 and at most limits.live_tickets (64)': training(
        micro_batches=65
    ),
    "training.in_flight = -1: 0 for all parts of a step": training(in_flight=-1),
    "training.staleness = 64: at least 0, and below limits.live_tickets": training(staleness=64),
    'training.lr_schedule.every = \'week\': "round" or "step"': training(
        lr_schedule=Method(name="StepLR", options={"every": "week"})
    ),
    "training.optimizer.lr = nan: numbers are finite": optimizer(lr=math.nan),
    "training.optimizer.betas = [0.9, inf]: numbers are finite": optimizer(betas=[0.9, math.inf]),
    "training.loss.beta = inf: numbers are finite": training(
        loss=Method(name="huber_loss", options={"beta": math.inf})
    ),
    "limits.turns_ahead = 0: a finite number above 0": {"limits": Limits(turns_ahead=0)},
    "limits.join_timeout_s = nan: a finite number above 0": {"limits": Limits(join_timeout_s=math.nan)},
    "limits.join_timeout_s = inf: a finite number above 0": {"limits": Limits(join_timeout_s=math.inf)},
    "limits.header_bytes = 60: to name 2 parties and their rows takes 101": {"limits": Limits(header_bytes=60)},
}


@pytest.mark.parametrize(("sentence", "change"), FAULTY.items(), ids=FAULTY.keys())
def test_each_fault_has_its_sentence(sentence: str, change: dict[str, Any]) -> None:
    assert [fault[: len(sentence)] for fault in faults(replace(SOUND, **change))] == [sentence]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"conductor": "lab"},
        {"model": ModelTerms()},
        {"topology": "u_shaped", "model": ModelTerms(cut=("a", "b"))},
        named("b", key="0f" * 32, address="[::1]:7443"),
        optimizer(lr=0.1, betas=[0.9, 0.99], nesterov=True, foreach="no"),
        training(rounds=0, held_out=0.0, lr_schedule=Method(name="StepLR", options={"every": "step"})),
    ],
)
def test_a_sound_plan_has_no_fault(change: dict[str, Any]) -> None:
    assert faults(replace(SOUND, **change)) == []


def test_all_faults_are_found_at_once() -> None:
    terms = replace(SOUND, topology="x", schedule="y", format=0, **training(batch_size=0, rounds=-1))
    assert len(faults(terms)) == 5


def test_no_topology_goes_with_a_schedule_that_is_not_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutlayer.plan.casting.LEGAL", {"vanilla": frozenset({"relay", "parallel"})})
    told = "the topology vanilla does not go with the schedule alternating; it goes with parallel, relay"
    assert faults(SOUND) == [told]


def test_heartbeats_come_four_times_in_the_silence_that_is_allowed() -> None:
    assert Limits(silence_timeout_s=30).heartbeat_s == 7.5
