"""Micro-batches by measuring: whatever the conductor decides, the model is that of whole mini-batches."""

import random
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import PlanError
from cutlayer.party.pace import Pace
from cutlayer.plan.course import TRIES
from cutlayer.plan.schedule import AS_DECIDED, SCHEDULES, Train, works
from cutlayer.protocol.events import Lap
from cutlayer.simulation import simulate_plan
from equivalence.longhand import SECRETS
from equivalence.longhand_topologies import assert_close, assert_identical, assert_same_bits
from party.test_party import looped

ROWS, BATCH = 320, 8
DATA = {
    "a": TensorDataset(torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(0)), torch.arange(ROWS) % 3),
    "b": TensorDataset(torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), torch.arange(9) % 3),
}
TERMS: dict[str, Any] = {"batch_size": BATCH, "rounds": 2, "lr": 0.1, "held_out": 0.0, "secrets": SECRETS}


def network(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 6), *extra, nn.Tanh(), nn.Linear(6, 3))


@cache
def as_told(micro_batches: Any) -> Result:
    """A run that no test changes."""
    return run(micro_batches)


def run(micro_batches: Any, model: nn.Module | None = None, **terms: Any) -> Result:
    return simulate(model or network().double(), cut="1", data=double(), micro_batches=micro_batches, **TERMS | terms)


def double() -> dict[str, TensorDataset]:
    return {name: TensorDataset(rows.tensors[0].double(), rows.tensors[1]) for name, rows in DATA.items()}


@pytest.mark.parametrize("decided", TRIES)
def test_whatever_is_decided_the_model_is_that_of_whole_mini_batches(decided: int) -> None:
    wanted, tried = as_told(1), as_told("auto")
    found = simulate_plan(tried.agreement, double(), secrets=SECRETS, micro_batches=decided)
    for name in DATA:
        assert_close(found.model_for(name), wanted.model_for(name), 1e-10)
    assert found.meters["server"].paced is not None
    assert found.meters["server"].paced.micro_batches == decided
    assert found.meters["a"].paced is None
    other = simulate_plan(
        tried.agreement,
        double(),
        secrets=SECRETS,
        micro_batches=decided,
        delivery=random.Random(3),  # noqa: S311
    )
    assert_same_bits(found, other)


def test_over_a_network_the_conductor_measures_and_all_follow() -> None:
    base = simulate(network(), cut="1", data=DATA, micro_batches="auto", **TERMS)
    parties, meters = looped(base, DATA, base.agreement.plan.terms.limits)
    paced = meters["server"].paced
    assert paced is not None
    assert paced.micro_batches in TRIES
    assert set(paced.seconds) == set(TRIES)
    assert all(seconds > 0 for seconds in paced.seconds.values())
    wanted = simulate_plan(base.agreement, DATA, secrets=SECRETS, micro_batches=paced.micro_batches)
    for name, party in parties.items():
        assert_identical(party.weights(), wanted.weights_of(name))


def test_trials_are_turns_of_the_first_client_with_enough_rows_and_nothing_is_left_out() -> None:
    tried, whole = run("auto", clients_per_round=1.0), run(1)
    turns = {
        name: [work for work in works(_course(result), SCHEDULES["alternating"]) if isinstance(work, Train)]
        for name, result in (("tried", tried), ("whole", whole))
    }
    assert sum(turn.steps for turn in turns["tried"]) == sum(turn.steps for turn in turns["whole"])
    trials = [turn for turn in turns["tried"] if turn.tried]
    assert [turn.parts for turn in trials] == [1, *TRIES, *reversed(TRIES)]
    assert {turn.parties for turn in trials} == {("a",)}
    assert all(turn.parts == AS_DECIDED for turn in turns["tried"][len(trials) :])


def _course(result: Result) -> Any:
    (agenda,) = {id(p.session._works.agenda): p.session._works.agenda for p in result.parties.values()}.values()
    assert agenda is not None
    return agenda.course


def test_too_few_rows_to_try_anything_leave_the_batches_whole() -> None:
    few = simulate(network(), cut="1", data={"b": DATA["b"]}, micro_batches="auto", **TERMS)
    assert few.meters["server"].paced is None
    assert few.meters["b"].crossings["server", "bottom->top", "forward", True, "train"].frames == 4


def test_layers_that_normalise_over_a_batch_are_refused_with_all_choices() -> None:
    normed = network(nn.BatchNorm1d(6))
    for parts in (2, "auto"):
        with pytest.raises(PlanError, match=r"GroupNorm, or micro_batches = 1, or say statistics_of_parts = true"):
            simulate(normed, cut="2", data=DATA, micro_batches=parts, **TERMS)
    accepted = simulate(normed, cut="2", data={"a": DATA["a"]}, micro_batches=2, statistics_of_parts=True, **TERMS)
    seen = accepted.model_for("a").get_buffer("1.num_batches_tracked")
    assert int(seen) == 2 * 2 * -(-ROWS // BATCH)


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [({1: 1.0, 2: 0.99}, 1), ({1: 1.0, 2: 0.5, 4: 0.6}, 2), ({1: 1.0, 2: 1.2, 4: 0.8}, 4), ({2: 1.0}, 1), ({}, 1)],
)
def test_more_parts_are_kept_only_where_they_pay(
    seconds: dict[int, float], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("cutlayer.party.pace.time.perf_counter", lambda: now[0])
    pace = Pace("lab")
    for turn, (parts, each) in enumerate([(1, 9.0), *seconds.items(), *reversed(seconds.items())]):
        now[0] += 100
        for _ in range(4):
            now[0] += each
            pace.lap(Lap(turn, parts))
    decided, paced = pace.decide()
    assert decided.micro_batches == paced.micro_batches == kept
    assert paced.seconds == pytest.approx(seconds)
