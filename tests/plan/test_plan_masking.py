"""What a plan may not ask for together with sums under masks; each fault says what to change."""

import re
from dataclasses import replace
from typing import Any

import pytest

from cutlayer.plan.masking import faults, own_masks
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, SaveTerms, Terms, Training


def terms(clients: int = 3, training: dict[str, Any] | None = None, **others: Any) -> Terms:
    parties = {f"hospital-{place}": PartyTerms(role="client") for place in range(clients)}
    return Terms(
        topology="vanilla",
        model=ModelTerms(cut=("0",)),
        input=InputTerms(shape=(2,)),
        training=Training(
            loss=Method(name="cross_entropy"), optimizer=Method(name="SGD"), batch_size=4, rounds=1, **(training or {})
        ),
        parties={**parties, "lab": PartyTerms(role="server"), "sums": PartyTerms(role="aggregator")},
        **{"secure_aggregation": True, "schedule": "splitfed_v1", **others},
    )


def test_a_sound_plan_has_no_fault_and_one_without_masks_none_either() -> None:
    assert [*faults(terms(), summed=True)] == []
    assert [*faults(terms(clients=1, quorum=1, secure_aggregation=False), summed=False)] == []
    for choice in (2, 0.67, 1.0, "all"):
        assert [*faults(terms(training={"clients_per_round": choice}), summed=True)] == []
    assert [*faults(terms(quorum=2), summed=True)] == []
    assert [*faults(terms(quorum=2, schedule="parallel", training={"local_steps": 1}), summed=True)] == []
    assert [*faults(terms(quorum=2, saves=SaveTerms(every_steps=3)), summed=True)] == []


def test_clients_have_own_masks_where_a_sum_may_have_to_be_made_without_one_of_them() -> None:
    assert own_masks(terms(quorum=2))
    assert not own_masks(terms())
    assert not own_masks(terms(quorum=2, secure_aggregation=False))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (terms(clients=1), "secure_aggregation with 1 client: the sum is what it sent; at least 2"),
        (terms(training={"clients_per_round": 1}), "training.clients_per_round = 1: the sum of a round with one"),
        (terms(training={"clients_per_round": 0.34}), "training.clients_per_round = 0.34: the sum of a round with one"),
        (terms(quorum=1), "quorum = 1: the sum of one client is what it sent; let at least 2 be enough"),
        (terms(4, {"clients_per_round": 0.7}, quorum=2), "quorum = 2: the sum of one client .* and in each round"),
        (
            terms(quorum=2, saves=SaveTerms(every_rounds=3)),
            "quorum = 2 and saves.every_rounds = 3: .* each round needs its save",
        ),
        (
            terms(quorum=2, schedule="parallel"),
            "quorum = 2 under parallel: once one step's sum was opened .* say training.local_steps = 1",
        ),
        (
            terms(quorum=2, training={"averaged_optimizer": "keep"}),
            'quorum = 2 and training.averaged_optimizer = "keep": .* handed the segments of another.* say "reset"',
        ),
        (terms(training={"averaging": Method(name="median")}), "training.averaging = 'median': that looks at each"),
        (terms(training={"averaged_optimizer": "average"}), 'averaged_optimizer = "average": .* say "reset" or "keep"'),
    ],
)
def test_what_masks_do_not_go_with_is_refused(given: Terms, sentence: str) -> None:
    (fault,) = faults(given, summed=True)
    assert re.search(sentence, fault)


def test_different_cuts_are_refused() -> None:
    base = terms()
    parties = base.parties | {"hospital-1": PartyTerms(role="client", cut=("1",))}
    (fault,) = faults(replace(base, parties=parties), summed=True)
    assert "parties.hospital-1.cut: masks cancel only where all clients send the same layers" in fault


def test_where_nothing_is_summed_masks_mean_nothing() -> None:
    (fault,) = faults(replace(terms(), schedule="relay"), summed=False)
    assert fault.startswith("secure_aggregation means nothing under relay")
