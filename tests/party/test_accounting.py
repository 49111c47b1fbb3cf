"""What a run's releases add up to, against the accounting library itself; and what a budget stops, and when."""

from typing import Any

import dp_accounting
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import BudgetSpent, PlanError
from cutlayer.observe.tap import Seen
from cutlayer.plan.terms import BudgetTerms, DefenceTerms, Method

ROWS, BATCH, ROUNDS, DELTA = 24, 8, 3, 1e-5
CLIP, SIGMA = 1.0, 40.0


def network(*, frozen: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    for parameter in model[:1].parameters():
        parameter.requires_grad_(not frozen)
    return model


def rows() -> TensorDataset:
    x = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, (x[:, 0] > 0).long())


NOISY = DefenceTerms(forward=(Method(name="gaussian", options={"clip": CLIP, "sigma": SIGMA}),))


def run(model: nn.Module, **terms: Any) -> Result:
    settings: dict[str, Any] = {"cut": "1", "data": {"a": rows()}, "lr": 0.1, "batch_size": BATCH, "rounds": ROUNDS}
    return simulate(model, **settings | {"held_out": 0.0, "defence": NOISY} | terms)


def gaussians(count: int) -> float:
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(dp_accounting.GaussianDpEvent(SIGMA / (2 * CLIP)), count)
    return float(accountant.get_epsilon(DELTA))


def epsilon(result: Result, channel: Any = "activations") -> float:
    return result.parties["a"].accounting.ledger.accountant.epsilon(channel, DELTA)


def test_releases_of_a_bottom_that_learns_compose_over_all_rows() -> None:
    assert epsilon(run(network())) == pytest.approx(gaussians(ROWS * ROUNDS), rel=1e-3)


def test_releases_of_a_frozen_bottom_compose_by_row() -> None:
    assert epsilon(run(network(frozen=True))) == pytest.approx(gaussians(ROUNDS), rel=1e-3)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("tracked", [False, True])
def test_releases_of_a_frozen_bottom_that_normalises_over_a_batch_compose_over_all_rows(
    affine: bool, tracked: bool
) -> None:
    """Each row has a part in what is released of the others, with running statistics or without."""
    bottom = (nn.Linear(5, 8), nn.BatchNorm1d(8, affine=affine, track_running_stats=tracked))
    torch.manual_seed(0)
    model = nn.Sequential(*bottom, nn.Linear(8, 3))
    for parameter in model[:2].parameters():
        parameter.requires_grad_(False)
    assert epsilon(run(model)) == pytest.approx(gaussians(ROWS * ROUNDS), rel=1e-3)


def test_evaluation_counts_as_training_does() -> None:
    held_out = {"a": rows()}
    result = run(network(), held_out=held_out)
    assert epsilon(result) == pytest.approx(gaussians(2 * ROWS * ROUNDS), rel=1e-3)


def test_a_heuristic_bounds_nothing_and_says_so() -> None:
    result = run(network(), defence=DefenceTerms(forward=(Method(name="shredder", options={"scale": 1.0}),)))
    assert epsilon(result) == float("inf")
    assert any("heuristic" in line for line in result.parties["a"].accounting.lines())


def test_labels_answered_at_random_cost_their_epsilon_once_in_all_epochs() -> None:
    labels = DefenceTerms(edge="y->top", forward=(Method(name="label_dp", options={"epsilon": 1.5}),))
    assert epsilon(run(network(), defence=labels), "labels") == pytest.approx(1.5, rel=1e-3)


def test_a_budget_stops_the_party_before_the_release_that_would_exceed_it() -> None:
    sent: list[Seen] = []
    limit = gaussians(4 * BATCH) * 1.001
    budget = BudgetTerms(party="a", epsilon=limit, delta=DELTA)
    with pytest.raises(BudgetSpent, match="activations"):
        run(network(), budget=budget, taps=(lambda seen: sent.append(seen) if seen.party == "server" else None,))
    activations = [
        seen for seen in sent if seen.edge.endswith("->top") and seen.way == "forward" and seen.tensor.dim() > 1
    ]
    assert len(activations) == 4


def test_a_budget_for_what_no_epsilon_can_be_said_of_is_refused() -> None:
    with pytest.raises(PlanError, match="no ε can be said"):
        run(network(), defence=(), budget=BudgetTerms(party="a", epsilon=1.0))
