"""Parties that mean other rows by the same place find out before anything is trained: every time, whoever it is."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from cutlayer import simulate
from cutlayer.errors import CutlayerError, DataError, Misaligned, RunError
from cutlayer.observe.facts import Spent
from cutlayer.party.agreement import Agreement, draft
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.protocol.resuming import Standing
from cutlayer.simulation import runs
from equivalence.longhand_topologies import (
    CLASSES,
    ROWS,
    SECRETS,
    assert_identical,
    classes,
    linear,
    normal,
    parts,
    table,
    tanh,
)

Ids = Sequence[int | str]
IDS: list[int | str] = [f"patient {number}" for number in range(ROWS)]
NUMBERS: list[int | str] = list(range(100, 100 + ROWS))


class Named(TensorDataset):
    """Rows with ids."""

    def __init__(self, *tensors: Tensor, ids: Ids | None) -> None:
        super().__init__(*tensors)
        if ids is not None:
            self.ids = ids


def shifted(ids: Ids) -> Ids:
    return [*ids[1:], ids[0]]


def shuffled(ids: Ids) -> Ids:
    return random.Random(1).sample(list(ids), len(ids))  # noqa: S311


def last_two_turned(ids: Ids) -> Ids:
    return [*ids[:-2], ids[-1], ids[-2]]


def one_twice(ids: Ids) -> Ids:
    return [*ids[:-1], ids[-2]]


def one_other(ids: Ids) -> Ids:
    return [*ids[:-1], "somebody else" if isinstance(ids[0], str) else 7]


def as_words(ids: Ids) -> Ids:
    return [str(each) for each in ids]


def places(ids: Ids) -> None:
    return None


ODD: dict[str, tuple[Ids, Callable[[Ids], Ids | None]]] = {
    "shifted by one": (IDS, shifted),
    "shuffled": (IDS, shuffled),
    "two rows turned": (NUMBERS, last_two_turned),
    "one row twice": (IDS, one_twice),
    "one other row": (NUMBERS, one_other),
    "words for numbers": (NUMBERS, as_words),
    "places alone": (IDS, places),
    "places alone, against their numbers": (list(range(ROWS)), places),
}
"""What the others' ids are, and what becomes of them at one party."""

COLUMNS = {"a": (normal(ROWS, 3),), "b": (normal(ROWS, 4),), "c": (classes(),)}
Setup = tuple[str, dict[str, str], bool]
SETUPS: dict[str, Setup] = {
    "vertical": ("top", {"c": "labels"}, True),
    "vertical_u_shaped": ("head", {"c": "labels"}, False),
    "extended_vanilla": ("top", {"c": "labels", "mid": "middle"}, True),
    "multi_task": ("top", {"c": "server"}, False),
}


def agreement(topology: str, **training: Any) -> Agreement:
    """Parties a and b have features, c has the labels."""
    _, roles, labels_leave = SETUPS[topology]
    above: dict[str, Any] = {
        "vertical": {"top": linear(8, CLASSES)},
        "vertical_u_shaped": {"middle": tanh(8, 4), "head": linear(4, CLASSES)},
        "extended_vanilla": {"middle": tanh(8, 4), "top": linear(4, CLASSES)},
        "multi_task": {"top_c": linear(8, CLASSES)},
    }
    parties = {name: PartyTerms(role=roles.get(name, "client")) for name in COLUMNS}
    parties |= {name: PartyTerms(role=role) for name, role in roles.items() if name not in parties}
    if topology != "multi_task":
        parties["server"] = PartyTerms(role="server")
    for name, width in {"a": 3, "b": 4}.items():
        parties[name] = PartyTerms(role="client", input=(InputTerms(shape=(width,), dtype="float64"),))
    terms = Terms(
        topology=topology,
        schedule="joint",
        model=ModelTerms(),
        labels_leave=labels_leave,
        parties=parties,
        training=Training(
            loss=Method(name="cross_entropy"),
            optimizer=Method(name="Adam", options={"lr": 0.1}),
            **{"batch_size": 5, "rounds": 2, "held_out": 0.2} | training,
        ),
    )
    return draft(terms, parts(bottom_a=tanh(3, 4), bottom_b=tanh(4, 4), **above[topology]))


def rows(ids: Ids, odd: str, change: Callable[[Ids], Ids | None]) -> dict[str, Named]:
    return {name: Named(*x, ids=change(ids) if name == odd else ids) for name, x in COLUMNS.items()}


def run(agreed: Agreement, data: Any, seed: int = 0) -> tuple[dict[str, Any], list[Any]]:
    """The parties of a run and all facts, whatever came of it."""
    facts: list[Any] = []
    delivery = random.Random(seed)  # noqa: S311
    local = runs.Local(secrets=SECRETS, observers=dict.fromkeys(agreed.plan.terms.parties, (facts.append,)))
    parties = runs._Crew(agreed, data, local).parties(Standing())
    with suppress(CutlayerError):
        runs._drive(parties, delivery)
    return parties, facts


def assert_nothing_was_trained(agreed: Agreement, parties: dict[str, Any], facts: list[Any]) -> None:
    initial = agreed.model.state_dict()
    for party in parties.values():
        found = party.weights()
        assert_identical(found, {name: initial[name] for name in found})
    assert sorted(name for party in parties.values() for name in party.weights()) == sorted(initial)
    assert not any(isinstance(fact, Spent) and fact.on in ("step", "backward") for fact in facts)


@pytest.mark.parametrize("topology", SETUPS)
@pytest.mark.parametrize("odd", COLUMNS)
@pytest.mark.parametrize("kind", ODD)
def test_rows_that_do_not_belong_together_are_found_before_anything_is_trained(
    kind: str, odd: str, topology: str
) -> None:
    ids, change = ODD[kind]
    agreed = agreement(topology)
    parties, facts = run(agreed, rows(ids, odd, change), seed=len(kind))
    errors = {name: party.error for name, party in parties.items()}
    assert all(errors.values())
    found = [error for error in errors.values() if isinstance(error, Misaligned)]
    assert found, errors
    for error in found:
        assert "do not have the same rows" in str(error)
        assert "align their tables anew with `cutlayer align`" in str(error)
    told = [error.told if isinstance(error, Misaligned) else str(error) for error in errors.values()]
    assert not any(str(each) in sentence for sentence in told for each in ids if isinstance(each, str))
    assert_nothing_was_trained(agreed, parties, facts)


def test_all_of_a_row_beyond_the_first_batch_counts_from_the_first_ticket_on() -> None:
    """Even where only rows are turned that come last, and no row is shuffled."""
    agreed = agreement("vertical", shuffle=False, held_out=0.0)
    parties, facts = run(agreed, rows(IDS, "b", last_two_turned))
    error = next(party.error for party in parties.values() if isinstance(party.error, Misaligned))
    assert error.batch.start == 0
    assert_nothing_was_trained(agreed, parties, facts)


def test_held_out_rows_are_compared_too() -> None:
    agreed = agreement("vertical", held_out=0.0)
    others = {name: Named(*(each[:6] for each in x), ids=IDS[:6]) for name, x in COLUMNS.items()}
    others["a"].ids = shifted(IDS[:6])
    with pytest.raises(Misaligned):
        runs.simulate_plan(agreed, rows(IDS, "", shifted), held_out=others, secrets=SECRETS)


def test_parties_with_the_same_ids_in_the_same_order_train() -> None:
    for ids in (IDS, NUMBERS):
        agreed = agreement("vertical")
        parties, facts = run(agreed, rows(ids, "", shifted))
        assert not any(party.error for party in parties.values())
        assert any(isinstance(fact, Spent) and fact.on == "step" for fact in facts)
    tensors = agreement("vertical")
    mixed = rows(NUMBERS, "a", lambda ids: torch.tensor(ids))  # type: ignore[arg-type, return-value]
    parties, _ = run(tensors, mixed)
    assert not any(party.error for party in parties.values())


@pytest.mark.parametrize("odd", COLUMNS)
@pytest.mark.parametrize("count", [ROWS - 1, ROWS + 1, 3])
def test_another_number_of_rows_is_found_before_the_first_turn(count: int, odd: str) -> None:
    agreed = agreement("vertical")
    data = rows(IDS, "", shifted)
    data[odd] = Named(*(each.repeat(2, *[1] * (each.ndim - 1))[:count] for each in COLUMNS[odd]), ids=(IDS * 2)[:count])
    parties, facts = run(agreed, data)
    errors = [party.error for party in parties.values()]
    assert all(isinstance(error, RunError | DataError) for error in errors)
    assert any("bring different numbers of them" in str(error) for error in errors)
    assert_nothing_was_trained(agreed, parties, facts)


def test_a_user_of_simulate_is_told_who_and_where() -> None:
    data = {"a": Named(*COLUMNS["a"], ids=IDS), "b": Named(*COLUMNS["b"], ids=shifted(IDS)), "server": table(classes())}
    model = parts(bottom_a=tanh(3, 4), bottom_b=tanh(4, 4), top=linear(8, CLASSES))
    with pytest.raises(Misaligned, match=r"at rows 0 to 4 and \w+ at rows 0 to 4 of their common order"):
        simulate(model, data=data, topology="vertical", batch_size=5, held_out=0.0)


def test_predictions_on_other_rows_are_refused_too() -> None:
    data = {name: Named(*x, ids=IDS) for name, x in COLUMNS.items()}
    result = runs.simulate_plan(agreement("vertical"), data, secrets=SECRETS)
    fresh = {"a": Named(*COLUMNS["a"], ids=IDS), "b": Named(*COLUMNS["b"], ids=shifted(IDS))}
    with pytest.raises(Misaligned):
        result.predict(fresh)
