"""NoPeek and decorrelation: what they add to the loss, and that learning by them does what they are for."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cutlayer.defence.decorrelation import Decorrelation, mean_squared_correlation
from cutlayer.defence.dependence import distance_correlation, linear_cka, root_cka
from cutlayer.defence.nopeek import NoPeek
from cutlayer.errors import PlanError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def longhand(z: Tensor) -> float:
    """The mean of r² over pairs of different features, a pair at a time."""
    features = z.flatten(1).T.numpy()
    ridge = 1e-6 * features.var(1).mean()
    squares = []
    for i, one in enumerate(features):
        for j, other in enumerate(features):
            if i != j:
                covariance = ((one - one.mean()) * (other - other.mean())).mean()
                squares.append(covariance**2 / ((one.var() + ridge) * (other.var() + ridge)))
    return float(np.mean(squares))


def test_nopeek_is_alpha_times_its_statistic() -> None:
    x, z = normal(8, 3, 4), normal(8, 5, seed=1)
    by_name = {"distance_correlation": distance_correlation, "cka": linear_cka, "root_cka": root_cka}
    for name, statistic in by_name.items():
        torch.testing.assert_close(NoPeek(alpha=0.3, statistic=name).penalty([x], z), 0.3 * statistic(x, z))
    torch.testing.assert_close(NoPeek(alpha=2).penalty([x], z), 2 * distance_correlation(x, z))


def test_several_inputs_count_as_one_row() -> None:
    one, two, z = normal(8, 3), normal(8, 2, 2, seed=1), normal(8, 5, seed=2)
    joined = torch.cat((one, two.flatten(1)), 1)
    torch.testing.assert_close(NoPeek(alpha=1).penalty([one, two], z), distance_correlation(joined, z))
    words = torch.arange(16).view(8, 2)
    assert bool(NoPeek(alpha=1).penalty([words], z).isfinite())


def test_nopeek_asks_no_gradient_of_the_inputs() -> None:
    x = normal(8, 3).requires_grad_()
    z = (x * 2).detach().requires_grad_()
    NoPeek(alpha=1).penalty([x], z).backward()  # type: ignore[no-untyped-call]
    assert x.grad is None
    assert z.grad is not None


@pytest.mark.parametrize("statistic", ["distance_correlation", "cka", "root_cka"])
def test_learning_by_nopeek_lowers_the_dependence(statistic: str) -> None:
    x = normal(40, 6)
    weights = normal(6, 4, seed=1).requires_grad_()
    defence = NoPeek(alpha=1.0, statistic=statistic)
    optimizer = torch.optim.Adam([weights], lr=0.05)
    told = []
    for _ in range(60):
        optimizer.zero_grad()
        penalty = defence.penalty([x], (x @ weights).tanh())
        penalty.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        told.append(float(penalty.detach()))
    assert told[-1] < 0.8 * told[0]


@pytest.mark.parametrize(("rows", "features"), [(12, 4), (4, 12), (5, 5), (2, 2)])
def test_decorrelation_is_the_mean_squared_correlation(rows: int, features: int) -> None:
    z = normal(rows, features) @ normal(features, features, seed=1)
    assert float(Decorrelation(weight=0.7).penalty([], z)) == pytest.approx(0.7 * longhand(z), rel=1e-10)


def test_copies_of_a_feature_correlate_fully_and_independent_features_hardly() -> None:
    one = normal(5000, 1)
    assert float(mean_squared_correlation(torch.cat((one, -3 * one + 2), 1))) == pytest.approx(1, abs=1e-5)
    assert float(mean_squared_correlation(normal(5000, 4))) < 1e-3


def test_shrinking_or_shifting_the_features_does_not_help() -> None:
    z = normal(20, 4) @ normal(4, 4, seed=1)
    torch.testing.assert_close(mean_squared_correlation(1e-9 * z + 1e-8), mean_squared_correlation(z))


def test_a_dead_feature_correlates_with_nothing_and_has_no_gradient() -> None:
    z = normal(20, 3)
    dead = torch.cat((z, torch.zeros(20, 1, dtype=torch.float64)), 1).requires_grad_()
    value = mean_squared_correlation(dead)
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == pytest.approx(float(mean_squared_correlation(z)) * 6 / 12, rel=1e-5)
    assert dead.grad is not None
    assert bool(dead.grad.isfinite().all())


def test_their_gradients_are_those_of_differences() -> None:
    x = normal(6, 3)
    wide, narrow = normal(6, 8, seed=1).requires_grad_(), normal(6, 3, seed=1).requires_grad_()
    for z in (wide, narrow):
        assert torch.autograd.gradcheck(lambda cut: NoPeek(alpha=0.5).penalty([x], cut), (z,))
        assert torch.autograd.gradcheck(lambda cut: Decorrelation(weight=0.5).penalty([], cut), (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_or_equal_rows_give_zero_and_a_finite_gradient(dtype: torch.dtype, rows: int) -> None:
    for defence in (NoPeek(alpha=1), Decorrelation(weight=1)):
        z = torch.full((rows, 3, 2), 0.1, dtype=dtype, requires_grad=True)
        value = defence.penalty([normal(rows, 4)], z)
        value.backward()  # type: ignore[no-untyped-call]
        assert (value.dtype, float(value.detach())) == (torch.float32, 0.0)
        assert z.grad is not None
        assert not bool(z.grad.any())


def test_learning_by_decorrelation_lowers_the_correlation() -> None:
    x = normal(60, 6)
    weights = (normal(6, 1, seed=1) + 0.1 * normal(6, 4, seed=2)).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        Decorrelation(weight=1.0).penalty([x], x @ weights).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert float(mean_squared_correlation(x @ weights.detach())) < 0.05


def test_zero_is_neutral_and_nonsense_is_refused() -> None:
    assert NoPeek(alpha=0).neutral
    assert Decorrelation(weight=0).neutral
    assert not NoPeek(alpha=0.1).neutral
    assert not Decorrelation(weight=0.1).neutral
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(PlanError, match="alpha"):
            NoPeek(alpha=bad)
        with pytest.raises(PlanError, match="weight"):
            Decorrelation(weight=bad)
    with pytest.raises(PlanError, match="statistic = 'cca' is unknown"):
        NoPeek(alpha=1, statistic="cca")
