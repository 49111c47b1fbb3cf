"""Fixed point: exact sums in any order, within the stated error of the plain mean; what does not fit is refused."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutlayer.errors import RunError
from cutlayer.model.average import WeightedSum
from cutlayer.model.fixed import ERROR, LIMIT, decode, encode, word_count

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EPS64 = torch.finfo(torch.float64).eps


def summed(shares: list[np.ndarray]) -> np.ndarray:
    return sum(shares, start=np.zeros(len(shares[0]), dtype=np.uint64))


def half_a_step(values: Tensor) -> Tensor:
    """How far two numbers may lie apart that were rounded to the dtype of `values` from almost the same one."""
    info = torch.finfo(values.dtype)
    return torch.maximum(values.double().abs() * info.eps, torch.tensor(info.tiny * info.eps, dtype=torch.float64))


@st.composite
def parties(draw: st.DrawFn) -> tuple[list[dict[str, Tensor]], list[float]]:
    """Tensors of the same names, shapes and dtypes at each of some parties, and the parties' weights."""
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in shapes]
    count, seed = draw(st.integers(2, 7)), draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from((1e-9, 1e-3, 1.0, 3e4)))
    random = torch.Generator().manual_seed(seed)
    tensors = [
        {
            f"model.{place}": (scale * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype)
            for place, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        }
        for _ in range(count)
    ]
    finite = all(bool(torch.isfinite(tensor).all()) for own in tensors for tensor in own.values())
    weights = [float(draw(st.integers(1, 5000))) for _ in range(count)]
    return (tensors, weights) if finite else ([{"model.0": torch.zeros(1)}] * count, weights)


@settings(deadline=None, max_examples=150)
@given(parties())
def test_the_sum_equals_the_plain_mean_to_the_stated_precision(
    given: tuple[list[dict[str, Tensor]], list[float]],
) -> None:
    tensors, weights = given
    plain, whole = WeightedSum(), sum(weights)
    for own, weight in zip(tensors, weights, strict=True):
        plain.add(own, weight)
    shares = [
        encode(own, tensors[0], coefficient=w / whole, part=w / whole) for own, w in zip(tensors, weights, strict=True)
    ]
    masked = decode(summed(shares), tensors[0], parties=len(tensors))
    assert masked.keys() == plain.mean().keys()
    for name, mean in plain.mean().items():
        assert (masked[name].dtype, masked[name].shape) == (mean.dtype, mean.shape)
        largest = max((float(own[name].double().abs().max()) for own in tensors if own[name].numel()), default=0.0)
        allowed = len(tensors) * (ERROR + 4 * EPS64 * largest) + half_a_step(mean)
        assert bool(((masked[name].double() - mean.double()).abs() <= allowed).all())


@settings(deadline=None, max_examples=80)
@given(parties())
def test_the_sum_of_gradients_equals_the_plain_sum_to_the_stated_precision(
    given: tuple[list[dict[str, Tensor]], list[float]],
) -> None:
    tensors, _ = given
    plain, count = WeightedSum(), len(given[0])
    for own in tensors:
        plain.add(own, 1.0)
    shares = [encode(own, tensors[0], coefficient=1.0, part=1 / count) for own in tensors]
    masked = decode(summed(shares), tensors[0], parties=count)
    for name, total in plain.total().items():
        if not bool(torch.isfinite(total).all()):
            continue  # a sum in float16 may overflow where its parts do not
        largest = max((float(own[name].double().abs().max()) for own in tensors if own[name].numel()), default=0.0)
        allowed = count * (ERROR + 4 * EPS64 * largest) + half_a_step(total)
        assert bool(((masked[name].double() - total.double()).abs() <= allowed).all())


def test_sums_have_the_same_bits_in_any_order() -> None:
    random = torch.Generator().manual_seed(0)
    tensors = [{"model.w": torch.randn(50, generator=random)} for _ in range(4)]
    shares = [
        encode(own, tensors[0], coefficient=w, part=w) for own, w in zip(tensors, (0.1, 0.2, 0.3, 0.4), strict=True)
    ]
    sums = [decode(summed(list(order)), tensors[0], parties=4)["model.w"] for order in permutations(shares)]
    assert all(torch.equal(each, sums[0]) for each in sums)


def test_the_largest_values_that_fit_come_through_and_larger_ones_are_refused() -> None:
    like = {"model.w": torch.zeros(2, dtype=torch.float64)}
    full = {"model.w": torch.tensor([LIMIT, -LIMIT], dtype=torch.float64)}
    shares = [encode(full, like, coefficient=1 / 3, part=1 / 3) for _ in range(3)]
    torch.testing.assert_close(decode(summed(shares), like, parties=3)["model.w"], full["model.w"], rtol=1e-15, atol=0)
    with pytest.raises(RunError, match=r"'model.w' has a value of 1.68e\+07, and at most 1.68e\+07 fits.*scale"):
        encode({"model.w": full["model.w"] * 1.001}, like, coefficient=1 / 3, part=1 / 3)
    with pytest.raises(RunError, match=r"has a value of 1.68e\+07, and at most 5.59e\+06 fits"):
        encode(full, like, coefficient=1.0, part=1 / 3)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    like = {"model.mask": torch.zeros(3)}
    with pytest.raises(RunError, match=r"'model.mask' has values that are not finite.*training.personal"):
        encode({"model.mask": torch.tensor([0.0, value, 0.0])}, like, coefficient=0.5, part=0.5)


def test_a_name_that_nobody_has_is_left_out_and_one_that_somebody_has_is_there() -> None:
    like: dict[str, Any] = {"model.a": torch.zeros(2), "model.b": torch.zeros(()), "model.c": torch.zeros(1)}
    one = encode({"model.a": torch.ones(2), "model.b": torch.tensor(0.0)}, like, coefficient=1.0, part=0.5)
    other = encode({"model.a": torch.ones(2)}, like, coefficient=1.0, part=0.5)
    sums = decode(one + other, like, parties=2)
    assert sums.keys() == {"model.a", "model.b"}
    assert sums["model.a"].tolist() == [2.0, 2.0]
    assert sums["model.b"].item() == 0.0


@pytest.mark.parametrize(
    "tensors", [{"model.z": torch.zeros(2)}, {"model.a": torch.zeros(3)}, {"model.a": torch.zeros(2, 1)}]
)
def test_a_strange_name_or_shape_is_refused(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(RunError, match="under masks"):
        encode(tensors, {"model.a": torch.zeros(2)}, coefficient=1.0, part=1.0)


def test_what_is_no_sum_is_refused() -> None:
    """Garbage, since each name's count would have to be small by chance; a count too many; a value too large."""
    like = {"model.a": torch.zeros(1)}
    for seed in range(200):
        garbage = np.random.default_rng(seed).integers(0, 2**64, word_count(like), dtype=np.uint64)
        with pytest.raises(RunError, match="the masks did not cancel"):
            decode(garbage, like, parties=1000)
    sound = encode({"model.a": torch.ones(1)}, like, coefficient=1.0, part=1.0)
    for changed in (np.array([2, 0], dtype=np.uint64), np.array([0, 1 << 61], dtype=np.uint64)):
        with pytest.raises(RunError, match="the masks did not cancel"):
            decode(sound + changed, like, parties=2 if changed[1] else 1)
