"""Max-norm and isotropic noise: their moments, their directions, what they hide and what they are not."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cutlayer.defence.defence import Context, Defence
from cutlayer.defence.isotropic import Isotropic
from cutlayer.defence.marvell import Marvell
from cutlayer.defence.max_norm import MaxNorm
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape

NOISES: list[Defence] = [MaxNorm(), MaxNorm(strength=0.5), Isotropic(ratio=1.0), Marvell(s=1.0)]
every_noise = pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.name)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def released(noise: Defence, gradients: Tensor, seed: int = 0, labels: Tensor | None = None) -> Tensor:
    if labels is None:
        labels = torch.arange(len(gradients)) % 2
    state = noise.init(TensorShape("float32", tuple(gradients.shape)), seeded(0))
    return noise.release(gradients, Context(generator=seeded(seed), labels=labels, classes=2), state)


def some(rows: int, *row: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gradients whose norms differ by three orders of magnitude."""
    sizes = torch.logspace(-3, 0, rows, dtype=torch.float64).view(-1, *[1] * len(row))
    return (torch.randn(rows, *row, dtype=torch.float64, generator=seeded(1)) * sizes).to(dtype)


def many_times(noise: Defence, gradients: Tensor, times: int) -> Tensor:
    """[T, B, D], drawn at once: copies of all rows leave the largest one what it was."""
    return noise.release(gradients.repeat(times, 1), Context(generator=seeded(3)), {}).view(times, *gradients.shape)


def logistic(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gradients `[B, 32]` at the last layer of a logistic model of which 5% of the rows are positive, and labels.

    Those of positives, (σ(z) − 1) w, are larger than those of negatives, σ(z) w, since positives are rare.
    """
    generator = seeded(seed)
    labels = (torch.rand(rows, generator=generator) < 0.05).long()
    labels[:2] = torch.tensor([0, 1])
    weights = torch.randn(32, generator=generator)
    spread = torch.where(labels == 1, 1.0, 0.5)
    logits = torch.where(labels == 1, -0.3, -5.0) + spread * torch.randn(rows, generator=generator)
    turned = weights + 0.2 * torch.randn(rows, 32, generator=generator)
    return (logits.sigmoid() - labels)[:, None] * turned, labels


def norm_leak(noise: Defence | None, batches: int = 25) -> float:
    """The mean over mini-batches of 600 of how well norms tell the labels: AUC or 1 − AUC, whichever is more."""
    leaks = []
    for seed in range(batches):
        gradients, labels = logistic(600, seed)
        seen = gradients if noise is None else released(noise, gradients, seed=1000 + seed, labels=labels)
        leaks.append(roc_auc_score(labels.numpy(), seen.norm(dim=1).numpy()))
    leak = float(np.mean(leaks))
    return max(leak, 1 - leak)


def test_max_norm_makes_every_expected_squared_norm_the_largest() -> None:
    gradients = some(12, 5)
    times = 40_000
    squares = many_times(MaxNorm(), gradients, times).square().sum(2)
    largest = float(gradients.norm(dim=1).max()) ** 2
    error = squares.std(0) / math.sqrt(times)
    assert bool(((squares.mean(0) - largest).abs() <= 5 * error + 1e-12).all())


def test_max_norm_leaves_the_mean_and_the_line_of_each_row_and_all_of_the_largest() -> None:
    gradients = some(12, 5)
    times = 20_000
    noisy = many_times(MaxNorm(), gradients, times)
    error = noisy.std(0) / math.sqrt(times)
    assert bool(((noisy.mean(0) - gradients).abs() <= 5 * error + 1e-12).all())
    cosines = torch.nn.functional.cosine_similarity(noisy[0], gradients)
    torch.testing.assert_close(cosines.abs(), torch.ones_like(cosines))
    largest = int(gradients.norm(dim=1).argmax())
    assert torch.equal(noisy[:, largest], gradients[largest].expand(times, 5))


def test_half_of_max_norm_has_half_of_its_noise() -> None:
    gradients = some(12, 5)
    whole = released(MaxNorm(), gradients) - gradients
    half = released(MaxNorm(strength=0.5), gradients) - gradients
    torch.testing.assert_close(half, whole / 2)


def test_a_row_of_zeros_does_not_stand_out_under_max_norm() -> None:
    gradients = some(6, 5)
    gradients[2] = 0
    times = 20_000
    noisy = many_times(MaxNorm(), gradients, times)[:, 2]
    assert float(noisy.square().sum(1).mean()) == pytest.approx(float(gradients[5].square().sum()), rel=0.05)
    assert torch.equal(released(MaxNorm(), torch.zeros(4, 3)), torch.zeros(4, 3))


def test_isotropic_noise_has_its_covariance() -> None:
    gradients = some(6, 4)
    times = 40_000
    noise = (many_times(Isotropic(ratio=1.5), gradients, times) - gradients).reshape(-1, 4)
    due = (1.5 * float(gradients.norm(dim=1).max())) ** 2 / 4
    covariance = noise.T @ noise / len(noise)
    torch.testing.assert_close(covariance, due * torch.eye(4, dtype=torch.float64), rtol=0, atol=0.02 * due)


def test_norms_tell_labels_bare_and_hardly_under_noise() -> None:
    assert norm_leak(None) >= 0.99
    assert norm_leak(MaxNorm()) <= 0.62
    assert norm_leak(Marvell(s=4.0)) <= 0.65
    assert norm_leak(Marvell(s=0.1)) > norm_leak(Marvell(s=1.0)) > norm_leak(Marvell(s=8.0))


@every_noise
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("row", [(), (5,), (3, 2, 2)])
def test_shape_and_dtype_stay_and_the_tensor_is_not_touched(
    noise: Defence, dtype: torch.dtype, row: tuple[int, ...]
) -> None:
    gradients = some(8, *row, dtype=dtype)
    before = gradients.clone()
    safer = released(noise, gradients)
    assert (safer.shape, safer.dtype) == (gradients.shape, dtype)
    assert torch.equal(gradients, before)
    assert not torch.equal(safer, gradients)
    assert bool(safer.isfinite().all())


@every_noise
def test_the_generator_alone_decides_the_noise(noise: Defence) -> None:
    gradients = some(8, 5)
    assert torch.equal(released(noise, gradients, seed=1), released(noise, gradients.clone(), seed=1))
    assert not torch.equal(released(noise, gradients, seed=1), released(noise, gradients, seed=2))


@every_noise
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_noise_grows_with_the_gradients_however_small(noise: Defence, scale: float) -> None:
    gradients = some(8, 5)
    torch.testing.assert_close(released(noise, gradients * scale) / scale, released(noise, gradients))


@every_noise
def test_rows_that_are_not_finite_make_nothing_bare(noise: Defence) -> None:
    gradients = some(8, 5)
    gradients[3, 1] = math.nan
    assert not bool(released(noise, gradients).isfinite().any())


@every_noise
def test_no_rows_stay_no_rows(noise: Defence) -> None:
    assert released(noise, torch.zeros(0, 3)).shape == (0, 3)


def test_zero_strength_is_neutral_and_other_strengths_are_not() -> None:
    assert all(noise.neutral for noise in (MaxNorm(strength=0), Isotropic(ratio=0), Marvell(s=0)))
    assert not any(noise.neutral for noise in NOISES)


def test_they_bound_nothing_and_say_so() -> None:
    assert all(noise.mechanism(TensorShape("float32", (4, 3))) is None for noise in NOISES)


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_strengths_that_are_none_are_refused(bad: float) -> None:
    for kind, option in ((MaxNorm, "strength"), (Isotropic, "ratio"), (Marvell, "s")):
        with pytest.raises(PlanError, match=f"{option} = .* at least 0"):
            kind(**{option: bad})
