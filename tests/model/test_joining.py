"""Rows of several parties: joining and splitting are inverse, and averaging at the cut is a longhand over rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cutlayer.model.joining import averaged, join, split, unjoinable
from cutlayer.plan.tensors import Dim, TensorSpec

Tensors = tuple[Tensor, ...]


def spec(*shape: Dim) -> TensorSpec:
    return TensorSpec(dtype="float64", shape=shape)


SPECS = [spec("B", 3), spec("B"), spec("12*B", 2), spec(2, "B"), spec(2, "3*B", 2)]


def held(specs: list[TensorSpec], rows: list[int], seed: int = 0) -> list[Tensors]:
    """What each party has of an edge."""
    random = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(s.for_rows(count).shape, dtype=torch.float64, generator=random) for s in specs)
        for count in rows
    ]


def assert_same(found: list[Tensors], wanted: list[Tensors]) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


some_specs = st.lists(st.sampled_from(SPECS), min_size=1, max_size=3)
some_rows = st.lists(st.integers(0, 5), min_size=1, max_size=5)


@given(some_specs, some_rows)
def test_split_is_the_inverse_of_join(specs: list[TensorSpec], rows: list[int]) -> None:
    values = held(specs, rows)
    joined = join(values, specs)
    assert [tuple(t.shape) for t in joined] == [s.for_rows(sum(rows)).shape for s in specs]
    apart = split(joined, specs, rows)
    assert_same(apart, values)
    assert all(tensor.is_contiguous() for tensors in apart for tensor in tensors)


@given(some_specs, some_rows)
def test_join_is_the_inverse_of_split(specs: list[TensorSpec], rows: list[int]) -> None:
    (whole,) = held(specs, [sum(rows)])
    assert_same([join(split(whole, specs, rows), specs)], [whole])


def test_parties_are_joined_in_the_given_order() -> None:
    (joined,) = join([(torch.tensor([5.0]),), (torch.tensor([1.0, 2.0]),)], [spec("B")])
    assert joined.tolist() == [5.0, 1.0, 2.0]


def test_gradients_of_a_joined_forward_are_the_parties_own() -> None:
    module, rows = nn.Linear(3, 2).double(), [2, 0, 3]
    values = held([spec("B", 3)], rows)
    (joined,) = join(values, [spec("B", 3)])
    leaf = joined.requires_grad_()
    module(leaf).square().sum().backward()
    assert leaf.grad is not None
    for (value,), (grad,) in zip(values, split((leaf.grad,), [spec("B", 3)], rows), strict=True):
        own = value.clone().requires_grad_()
        module(own).square().sum().backward()
        torch.testing.assert_close(grad, own.grad, rtol=0, atol=1e-12)


def test_a_tensor_without_the_batch_or_with_it_twice_cannot_be_joined() -> None:
    specs = [spec("B", 3), spec(3, 2), spec("B", "B"), spec()]
    assert unjoinable(SPECS) == []
    assert unjoinable(specs) == ["tensor 1, float64[3, 2]", "tensor 2, float64[B, B]", "tensor 3, float64[]"]
    values = held(specs, [2, 2])
    with pytest.raises(ValueError, match="cannot be joined in tensor 1, float64"):
        join(values, specs)
    with pytest.raises(ValueError, match="cannot be joined in tensor 1, float64"):
        split(values[0], specs, [1, 1])
    with pytest.raises(ValueError, match="cannot be joined in tensor 1, float64"):
        averaged(values, specs, [2, 2], 0.5)


def test_rows_that_are_not_there_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="24 entries are not those of 3 rows of 12 each"):
        split((torch.zeros(24, 2),), [spec("12*B", 2)], [1, 2])


def longhand(grads: list[Tensors], specs: list[TensorSpec], rows: list[int], percent: int) -> list[Tensors]:
    """Row by row and party by party."""
    results = [tuple(grad.clone() for grad in tensors) for tensors in grads]
    for i, one in enumerate(specs):
        dim = next(d for d, size in enumerate(one.shape) if isinstance(size, str))
        factor = one.for_rows(1).shape[dim]
        for j in range(max(rows)):
            holders = [k for k, count in enumerate(rows) if 100 * j < percent * count]
            for entry in range(factor * j, factor * (j + 1)):
                for k in holders:
                    mean = sum(grads[h][i].select(dim, entry) for h in holders) / len(holders)
                    results[k][i].select(dim, entry).copy_(torch.as_tensor(mean))
    return results


@given(some_specs, some_rows, st.integers(1, 100))
def test_averaging_at_the_cut_is_the_longhand_over_rows(
    specs: list[TensorSpec], rows: list[int], percent: int
) -> None:  # fmt: skip
    grads = held(specs, rows)
    kept = [tuple(grad.clone() for grad in tensors) for tensors in grads]
    found = averaged(grads, specs, rows, percent / 100)
    torch.testing.assert_close(found, longhand(grads, specs, rows, percent), rtol=0, atol=1e-14)
    assert_same(grads, kept)


def test_with_the_fraction_0_gradients_are_the_very_same_objects() -> None:
    grads = held(SPECS, [3, 2])
    for found, given_ in zip(averaged(grads, SPECS, [3, 2], 0.0), grads, strict=True):
        assert found is given_


def test_one_party_averages_with_nobody() -> None:
    grads = held(SPECS, [4])
    assert_same(averaged(grads, SPECS, [4], 1.0), grads)


def test_averaging_keeps_each_rows_sum_over_equal_parties() -> None:
    grads = held([spec("B", 3)], [4, 4, 4])
    found = averaged(grads, [spec("B", 3)], [4, 4, 4], 1.0)
    assert torch.equal(found[0][0], found[1][0])
    total = sum((tensors[0] for tensors in grads), torch.zeros(4, 3).double())
    torch.testing.assert_close(found[0][0] * 3, total, rtol=0, atol=1e-14)


def test_a_fraction_means_what_it_says_in_decimals() -> None:
    assert math.ceil(0.07 * 100) == 8
    grads = [(torch.zeros(100),), (torch.ones(100),)]
    found = averaged(grads, [spec("B")], [100, 100], 0.07)
    assert found[0][0].tolist() == [0.5] * 7 + [0.0] * 93


def test_half_precision_gradients_are_averaged_without_overflow() -> None:
    grads = [(torch.full((2,), 60000.0, dtype=torch.float16),)] * 3
    found = averaged(grads, [spec("B")], [2, 2, 2], 1.0)
    assert found[0][0].dtype == torch.float16
    assert found[2][0].tolist() == [60000.0 - 60000.0 % 32] * 2
