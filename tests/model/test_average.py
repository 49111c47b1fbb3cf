"""Weighted sums and means by name: exact against a longhand in numpy, the same bits in the same order."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from cutlayer.model.average import WeightedSum

Added = Sequence[tuple[dict[str, Tensor], float]]


def additions(dtype: torch.dtype, count: int = 5) -> list[tuple[dict[str, Tensor], float]]:
    """Several parties' tensors with unequal weights; "odd" only at every second one."""
    random = torch.Generator().manual_seed(0)
    return [
        (
            {
                "w": torch.randn(3, 4, dtype=torch.float64, generator=random).to(dtype),
                "b": torch.randn((), dtype=torch.float64, generator=random).to(dtype),
                **({"odd": torch.randn(2, dtype=torch.float64, generator=random).to(dtype)} if i % 2 else {}),
            },
            float(3 * i + 1),
        )
        for i in range(count)
    ]


def summed(added: Added) -> WeightedSum:
    result = WeightedSum()
    for tensors, weight in added:
        result.add(tensors, weight)
    return result


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.reshape(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_sums_and_means_are_those_of_a_longhand_each_name_over_those_that_had_it(dtype: torch.dtype) -> None:
    added = additions(dtype)
    result = summed(added)
    assert result.weight == sum(weight for _, weight in added)
    for name in ("w", "b", "odd"):
        held = [(tensors[name].double().numpy(), weight) for tensors, weight in added if name in tensors]
        total = np.sum([weight * array for array, weight in held], axis=0)
        mean = total / sum(weight for _, weight in held)
        for found, wanted in ((result.total()[name], total), (result.mean()[name], mean)):
            assert found.dtype == dtype
            close = {"rtol": 1e-14, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(found, torch.tensor(wanted).to(dtype), **close)


def test_the_same_order_gives_the_same_bits_and_another_order_need_not() -> None:
    added = additions(torch.float64, 9)
    first = bits(summed(added).mean())
    assert bits(summed(added).mean()) == first
    orders = [Random(i).sample(added, len(added)) for i in range(20)]  # noqa: S311
    assert any(bits(summed(order).mean()) != first for order in orders)


@pytest.mark.parametrize("weight", [0.1, 3.0, 1e-7, 1 / 3, 12345.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_was_added_once_comes_back_bit_for_bit_whatever_its_weight(dtype: torch.dtype, weight: float) -> None:
    tensors = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(1)).to(dtype)}
    result = summed([(tensors, weight)])
    assert torch.equal(result.mean()["w"], tensors["w"])
    torch.testing.assert_close(result.total()["w"], (tensors["w"].double() * weight).to(dtype), rtol=0, atol=0)


def test_equal_single_precision_tensors_average_to_themselves() -> None:
    w = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(summed([({"w": w}, weight) for weight in (3.0, 7.0, 11.0)]).mean()["w"], w)


def test_many_small_parties_are_not_lost_beside_a_large_one() -> None:
    """Single precision would drop each of them."""
    added = [({"w": torch.full((1,), 2.0**25)}, 1.0)] + [({"w": torch.ones(1)}, 1.0)] * 64
    assert summed(added).total()["w"].item() == 2.0**25 + 64


def test_added_tensors_stay_the_callers_and_answers_stay_the_askers() -> None:
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    result = WeightedSum()
    result.add({"w": w}, 2.0)
    once = result.mean()["w"]
    once.fill_(9.0)
    result.add({"w": w * 4}, 1.0)
    assert w.tolist() == [1.0] * 3
    assert result.mean()["w"].tolist() == [2.0] * 3
    assert not result.total()["w"].requires_grad
    result.total()["w"].fill_(9.0)
    assert result.total()["w"].tolist() == [6.0] * 3


@pytest.mark.parametrize(
    ("tensors", "weight", "words"),
    [
        ({"w": torch.ones(2)}, 0.0, "weight 0.0 is not a positive"),
        ({"w": torch.ones(2)}, -1.0, "weight -1.0 is not a positive"),
        ({"w": torch.ones(2)}, float("nan"), "weight nan is not a positive"),
        ({"w": torch.ones(2)}, float("inf"), "weight inf is not a positive"),
        ({"n": torch.ones(2, dtype=torch.int64)}, 1.0, "'n' is torch.int64, and only floats have a mean"),
        ({"v": torch.ones(1), "w": torch.ones(1)}, 1.0, "'w' has another shape or dtype"),
        ({"w": torch.ones(2).double()}, 1.0, "'w' has another shape or dtype"),
    ],
)
def test_what_has_no_mean_is_refused_and_changes_nothing(
    tensors: dict[str, Tensor], weight: float, words: str
) -> None:  # fmt: skip
    result = summed([({"w": torch.ones(2)}, 1.0)])
    with pytest.raises(ValueError, match=words):
        result.add(tensors, weight)
    assert result.weight == 1.0
    assert list(result.mean()) == ["w"]
