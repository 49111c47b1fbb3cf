"""Distance correlation and CKA, against longhand and against what is known of them."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutlayer.defence.dependence import distance_correlation, linear_cka, root_cka

Statistic = Callable[[Tensor, Tensor], Tensor]
STATISTICS: list[Statistic] = [distance_correlation, linear_cka, root_cka]
every_statistic = pytest.mark.parametrize("statistic", STATISTICS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sides(rows: int = 12) -> tuple[Tensor, Tensor]:
    x = normal(rows, 3, 4)
    return x, x.flatten(1) @ normal(12, 5, seed=1) + normal(rows, 5, seed=2)


def longhand(x: Tensor, z: Tensor, power: int = 1) -> float:
    """Definition by definition, row by row; distances to the `power`."""
    centred = []
    for side in (x.flatten(1).numpy(), z.flatten(1).numpy()):
        rows = len(side)
        d = np.array([[math.dist(side[i], side[j]) ** power for j in range(rows)] for i in range(rows)])
        centred.append(np.array([[_centred(d, i, j) for j in range(rows)] for i in range(rows)]))
    a, b = centred
    return math.sqrt((a * b).mean() / math.sqrt((a * a).mean() * (b * b).mean()))


def _centred(d: NDArray[np.float64], i: int, j: int) -> float:
    return float(d[i, j] - d[i].mean() - d[:, j].mean() + d.mean())


def test_distance_correlation_is_its_definition() -> None:
    for rows in (2, 3, 12):
        x, z = sides(rows)
        assert float(distance_correlation(x, z)) == pytest.approx(longhand(x, z), rel=1e-12)


def test_cka_is_its_matrix_formula() -> None:
    x, z = sides()
    x_BF, z_BF = x.flatten(1) - x.flatten(1).mean(0), z - z.mean(0)  # noqa: N806
    due = torch.linalg.matrix_norm(x_BF.T @ z_BF) ** 2
    due = due / (torch.linalg.matrix_norm(x_BF.T @ x_BF) * torch.linalg.matrix_norm(z_BF.T @ z_BF))
    torch.testing.assert_close(linear_cka(x, z), due, rtol=1e-12, atol=0)


def test_distance_correlation_of_squared_distances_is_the_root_of_cka() -> None:
    x, z = sides()
    assert float(root_cka(x, z)) == pytest.approx(longhand(x, z, power=2), rel=1e-12)
    torch.testing.assert_close(root_cka(x, z).square(), linear_cka(x, z))


@every_statistic
def test_it_is_one_for_a_shifted_turned_and_scaled_copy(statistic: Statistic) -> None:
    x = normal(20, 6)
    turn = torch.linalg.qr(normal(6, 6, seed=3)).Q
    assert float(statistic(x, 3 * x @ turn - 7)) == pytest.approx(1, abs=1e-12)


@every_statistic
def test_shifts_turns_and_scales_of_either_side_change_nothing(statistic: Statistic) -> None:
    x, z = sides()
    turn = torch.linalg.qr(normal(5, 5, seed=3)).Q
    same = statistic(x * 1e-9 + 4e-9, -1e12 * z @ turn + 3e12)
    torch.testing.assert_close(same, statistic(x, z), rtol=1e-8, atol=0)
    torch.testing.assert_close(statistic(z, x), statistic(x, z))


@every_statistic
def test_it_falls_to_zero_with_the_rows_for_independent_sides(statistic: Statistic) -> None:
    told = [float(statistic(normal(rows, 1), normal(rows, 1, seed=1))) for rows in (20, 200, 2000)]
    assert told[2] < told[0]
    assert told[2] < 0.1


def test_distance_correlation_sees_what_is_not_linear_and_cka_does_not() -> None:
    x = torch.linspace(-1, 1, 401, dtype=torch.float64)[:, None]
    assert float(linear_cka(x, x.square())) < 1e-12
    assert 0.4 < float(distance_correlation(x, x.square())) < 0.6


def test_many_features_make_independent_rows_look_dependent() -> None:
    assert float(distance_correlation(normal(16, 2000), normal(16, 2000, seed=1))) > 0.95


@every_statistic
def test_its_gradient_is_that_of_differences(statistic: Statistic) -> None:
    x, z = (side[:6].clone().requires_grad_() for side in sides())
    assert torch.autograd.gradcheck(statistic, (x, z))


@every_statistic
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_equal_rows_have_a_finite_gradient(statistic: Statistic, dtype: torch.dtype) -> None:
    x = normal(8, 5)
    x[1] = x[0]
    z = x.to(dtype)[:, :3].clone().requires_grad_()
    statistic(x, z).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    assert bool(z.grad.any())


@every_statistic
@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_where_nothing_can_be_said_it_is_zero_and_so_is_its_gradient(statistic: Statistic, rows: int) -> None:
    z = torch.full((rows, 4), 0.1, requires_grad=True)
    value = statistic(normal(rows, 3), z)
    value.backward()  # type: ignore[no-untyped-call]
    assert (value.dtype, float(value.detach())) == (torch.float32, 0.0)
    assert z.grad is not None
    assert not bool(z.grad.any())


@every_statistic
def test_float32_says_what_float64_does(statistic: Statistic) -> None:
    x, z = sides()
    value = statistic(x, z.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), statistic(x, z), rtol=1e-6, atol=0)
    assert statistic(x, z.bfloat16()).dtype == torch.float32


@every_statistic
def test_whole_numbers_may_be_one_side(statistic: Statistic) -> None:
    pixels = torch.randint(0, 256, (9, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert float(statistic(pixels, pixels.double() / 255)) == pytest.approx(1, abs=1e-12)
