"""Draws of noise, clipping, and the two defences that are both."""

import math
from collections.abc import Callable
from hashlib import shake_256

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from cutlayer.defence import noise, rows
from cutlayer.defence.defence import Context, Defence, Mechanism
from cutlayer.defence.gaussian import Gaussian
from cutlayer.defence.laplace import Laplace
from cutlayer.errors import Diverged, PlanError
from cutlayer.plan.tensors import TensorShape

NOISY: list[Defence] = [Gaussian(clip=1.0, sigma=0.5), Laplace(clip=1.0, b=0.5)]
FREE: list[Defence] = [Gaussian(clip=0.0, sigma=0.5), Laplace(clip=0.0, b=0.5)]
CLIPS: list[Defence] = [Gaussian(clip=1.0, sigma=0.0), Laplace(clip=1.0, b=0.0)]
NEUTRAL: list[Defence] = [Gaussian(clip=0.0, sigma=0.0), Laplace(clip=0.0, b=0.0)]


def every(defences: list[Defence]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("defence", defences, ids=lambda defence: defence.name)


def secret(number: int) -> torch.Generator:
    return noise.generator_of(number.to_bytes(32, "big"))


def released(defence: Defence, tensor: Tensor, number: int = 0) -> Tensor:
    return defence.release(tensor, Context(generator=secret(number)), {})


def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


# ---------------------------------------------------------------------------------------------------------- the draws

DRAWS: list[tuple[Callable[..., Tensor], str]] = [
    (noise.uniform, "uniform"),
    (noise.normal, "norm"),
    (noise.laplace, "laplace"),
]


@pytest.mark.parametrize(("draw", "law"), DRAWS)
def test_draws_follow_their_law(draw: Callable[..., Tensor], law: str) -> None:
    drawn = draw((200_000,), secret(1)).numpy()
    assert stats.kstest(drawn, law).pvalue > 0.01
    assert stats.kstest(np.sort(np.abs(drawn))[-1000:], law).pvalue < 1e-6, "the test would see a wrong law"
    for lag in (1, 2, 100_000):
        assert abs(np.corrcoef(drawn[:-lag], drawn[lag:])[0, 1]) < 4 / math.sqrt(200_000 - lag)


def test_squares_of_normal_draws_do_not_depend_on_each_other_within_a_pair() -> None:
    one, other = noise.normal((2, 200_000), secret(2)).square()
    assert abs(float(torch.corrcoef(torch.stack((one, other)))[0, 1])) < 4 / math.sqrt(200_000)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (0,), (0, 4), (3, 0, 2)])
def test_draws_have_any_shape(shape: tuple[int, ...]) -> None:
    for draw, _ in DRAWS:
        drawn = draw(shape, secret(3))
        assert (drawn.shape, drawn.dtype, drawn.device.type) == (shape, torch.float64, "cpu")
        assert bool(torch.isfinite(drawn).all())


def test_two_draws_of_one_generator_differ() -> None:
    generator = secret(4)
    one, other = noise.normal((10_000,), generator), noise.normal((10_000,), generator)
    assert abs(float(one @ other)) / 10_000 < 0.05


def test_all_of_a_generators_state_is_of_its_secret() -> None:
    """The oracle is numpy's Mersenne Twister with the same words of state."""
    words = np.frombuffer(shake_256(bytes(32)).digest(4 * 624), dtype="<u4")
    oracle = np.random.MT19937()
    oracle.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.randint(2**20, (2000,), generator=noise.generator_of(bytes(32)))
    assert drawn.tolist() == (oracle.random_raw(2000) & 0xFFFFF).tolist()


def test_seeds_alike_in_their_lower_32_bits_are_one_seed_to_torch() -> None:
    """Why a generator is not to be seeded with a number: 2³² of them can be tried out."""
    one, other = (torch.Generator().manual_seed(seed) for seed in (5, 5 + 2**32))
    assert torch.equal(noise.normal((9,), one), noise.normal((9,), other))
    assert not torch.equal(noise.normal((9,), secret(5)), noise.normal((9,), secret(5 + 2**32)))


# ------------------------------------------------------------------------------------------------------- the clipping


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 2, 3, 3)])
def test_a_clipped_row_has_at_most_the_norm_and_keeps_its_direction(order: int, shape: tuple[int, ...]) -> None:
    tensor = some(*shape) * torch.logspace(-2, 2, 6).view(6, *[1] * (len(shape) - 1))
    clipped = rows.clipped(tensor, 1.5, order)
    for before, after in zip(tensor.double(), clipped, strict=True):
        norm = float(before.abs().sum()) if order == 1 else math.sqrt(float(before.square().sum()))
        if norm <= 1.5:
            assert torch.equal(after, before)
        else:
            assert torch.allclose(after, before * 1.5 / norm, rtol=1e-14, atol=0)


@pytest.mark.parametrize("order", [1, 2])
def test_the_gradient_goes_through_the_clip(order: int) -> None:
    tensor = some(4, 3, 2, dtype=torch.float64)
    tensor[0] *= 0.01
    tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rows.clipped(x, 1.0, order), tensor)
    row, up = tensor[1].detach().reshape(-1), some(6, dtype=torch.float64)
    norm = float(torch.linalg.vector_norm(row, ord=order))
    unit = row.sign() if order == 1 else row / norm
    (back,) = torch.autograd.grad(rows.clipped(tensor, 1.0, order)[1].reshape(-1) @ up, tensor)
    assert torch.allclose(back[1].reshape(-1), (up - unit * (row @ up) / norm) / norm, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_a_row_of_zeros_stays_and_passes_the_gradient_on(order: int) -> None:
    tensor = torch.zeros(2, 3, requires_grad=True)
    clipped = rows.clipped(tensor, 1.0, order)
    (back,) = torch.autograd.grad(clipped.sum(), tensor)
    assert torch.equal(clipped, torch.zeros(2, 3).double())
    assert torch.equal(back, torch.ones(2, 3))


@every(NOISY + CLIPS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_without_a_norm_is_not_released(defence: Defence, value: float) -> None:
    tensor = torch.ones(3, 4)
    tensor[1, 2] = value
    with pytest.raises(Diverged, match="was not sent"):
        released(defence, tensor)


# ------------------------------------------------------------------------------------------------------- the defences


@every(NOISY)
def test_noise_has_its_law_about_the_clipped_rows(defence: Defence) -> None:
    tensor = some(1000, 20, dtype=torch.float64) * 3
    order, law = (2, "norm") if isinstance(defence, Gaussian) else (1, "laplace")
    added = released(defence, tensor) - rows.clipped(tensor, 1.0, order)
    assert stats.kstest(added.reshape(-1).numpy() / 0.5, law).pvalue > 0.01
    assert float(added.std()) == pytest.approx(0.5 * (1 if order == 2 else math.sqrt(2)), rel=0.02)
    assert float(added.mean(1).std()) == pytest.approx(float(added.std()) / math.sqrt(20), rel=0.1), "apart in a row"


@every(FREE)
def test_without_a_clip_noise_is_added_to_the_rows_as_they_are(defence: Defence) -> None:
    tensor = some(1000, 20, dtype=torch.float64) * 3
    added = released(defence, tensor) - tensor
    law = "norm" if isinstance(defence, Gaussian) else "laplace"
    assert stats.kstest(added.reshape(-1).numpy() / 0.5, law).pvalue > 0.01
    assert torch.equal(added, released(defence, torch.zeros_like(tensor)) + tensor - tensor)


@every(NOISY + FREE)
def test_a_secret_gives_one_noise_and_another_secret_independent_noise(defence: Defence) -> None:
    tensor = torch.zeros(100, 100)
    one, again, other = (released(defence, tensor, number) for number in (1, 1, 2))
    assert torch.equal(one, again)
    assert abs(float(torch.corrcoef(torch.stack((one.reshape(-1), other.reshape(-1))))[0, 1])) < 0.04


@every(NOISY + FREE + CLIPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_shape_and_dtype_stay_and_the_tensor_is_not_changed(defence: Defence, dtype: torch.dtype) -> None:
    for shape in ((5,), (5, 4), (2, 3, 4, 4), (0, 4), (3, 0), (0,)):
        tensor = some(*shape, dtype=dtype)
        before = tensor.clone()
        safer = released(defence, tensor)
        assert (safer.shape, safer.dtype) == (tensor.shape, dtype)
        assert torch.equal(tensor, before)


@every(NOISY)
def test_what_crosses_in_half_precision_is_the_wide_release_rounded_once(defence: Defence) -> None:
    tensor = some(50, 8, dtype=torch.bfloat16)
    assert torch.equal(released(defence, tensor), released(defence, tensor.double()).bfloat16())


@every(NOISY)
def test_the_order_in_memory_changes_nothing(defence: Defence) -> None:
    tensor = some(4, 3, 5, 5)
    assert torch.equal(released(defence, tensor), released(defence, tensor.to(memory_format=torch.channels_last)))


@every(NOISY + CLIPS)
def test_the_gradient_of_what_was_released_is_that_of_the_clipped_rows(defence: Defence) -> None:
    tensor = some(6, 5, dtype=torch.float64).requires_grad_()
    order = 2 if isinstance(defence, Gaussian) else 1
    up = some(6, 5, dtype=torch.float64)
    (back,) = torch.autograd.grad((released(defence, tensor) * up).sum(), tensor)
    (oracle,) = torch.autograd.grad((rows.clipped(tensor, 1.0, order) * up).sum(), tensor)
    assert torch.equal(back, oracle)


@every(NEUTRAL)
def test_zero_strength_is_the_very_same_tensor(defence: Defence) -> None:
    tensor = some(3, 4)
    assert defence.neutral
    assert released(defence, tensor) is tensor


@every(NOISY + FREE + CLIPS)
def test_any_strength_is_not_neutral(defence: Defence) -> None:
    assert not defence.neutral


SHAPE = TensorShape("float32", (8, 4))


def test_the_sensitivity_is_twice_the_clip() -> None:
    assert Gaussian(clip=2.0, sigma=6.0).mechanism(SHAPE) == Mechanism(kind="gaussian", scale=1.5, sensitivity=4.0)
    assert Laplace(clip=2.0, b=6.0).mechanism(SHAPE) == Mechanism(kind="laplace", scale=1.5, sensitivity=4.0)


@every(FREE + CLIPS + NEUTRAL)
def test_noise_alone_and_clipping_alone_are_heuristics(defence: Defence) -> None:
    assert defence.mechanism(SHAPE) is None


@every(NOISY)
def test_what_has_no_rows_of_floats_is_refused(defence: Defence) -> None:
    assert defence.fault(SHAPE) is None
    assert defence.fault(TensorShape("bfloat16", (8, 2, 3))) is None
    assert "defends floats" in str(defence.fault(TensorShape("int64", (8,))))
    assert "defends rows" in str(defence.fault(TensorShape("float32", ())))


@pytest.mark.parametrize("kind", [Gaussian, Laplace])
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_strengths_that_are_none_are_refused_by_name(kind: type[Gaussian | Laplace], bad: float) -> None:
    other = "sigma" if kind is Gaussian else "b"
    with pytest.raises(PlanError, match="clip"):
        kind(**{"clip": bad, other: 1.0})
    with pytest.raises(PlanError, match=other):
        kind(**{"clip": 1.0, other: bad})
