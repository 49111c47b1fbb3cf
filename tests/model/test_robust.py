"""Robust averages: a longhand in numpy, the range of the good shares, and what a bad share does to the plain mean."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cutlayer.errors import PlanError
from cutlayer.model.average import WeightedSum
from cutlayer.model.robust import METHODS, RobustMean, averager
from cutlayer.plan.safety import AVERAGING
from cutlayer.plan.terms import Method

Array = npt.NDArray[np.float64]
Shares = Sequence[dict[str, Tensor]]
ALL = [
    Method(name="median"),
    Method(name="trimmed_mean", options={"trim": 0.3}),
    Method(name="norm_bound", options={"factor": 1.5}),
]
NAMES = [method.name for method in ALL]
NORM_BOUND = ALL[2]


def shares(count: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> list[dict[str, Tensor]]:
    """Several clients' tensors; "odd" only at every second one."""
    random = torch.Generator().manual_seed(seed)
    return [
        {
            "w": torch.randn(3, 4, dtype=torch.float64, generator=random).to(dtype),
            "b": torch.randn((), dtype=torch.float64, generator=random).to(dtype),
            **({"odd": torch.randn(2, dtype=torch.float64, generator=random).to(dtype)} if i % 2 else {}),
        }
        for i in range(count)
    ]


def option(method: Method, name: str) -> float:
    value = method.options[name]
    assert isinstance(value, float)
    return value


def mean(method: Method | None, added: Shares, weights: Sequence[float] = ()) -> dict[str, Tensor]:
    result = averager(method)
    for at, tensors in enumerate(added):
        result.add(tensors, weights[at] if weights else 1.0)
    return result.mean()


def longhand(method: Method, arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Each method as it is written in the papers, in numpy, one coordinate or one share after another."""
    columns = np.stack(arrays).reshape(len(arrays), -1)
    if method.name == "median":
        return np.array([np.median(column) for column in columns.T]).reshape(arrays[0].shape)
    if method.name == "trimmed_mean":
        cut = int(option(method, "trim") * len(arrays))
        kept = [sorted(column)[cut : len(arrays) - cut] for column in columns.T]
        return np.array([np.mean(each) for each in kept]).reshape(arrays[0].shape)
    centre = np.median(columns, axis=0)
    distances = [float(np.sqrt(np.sum((row - centre) ** 2))) for row in columns]
    bound = option(method, "factor") * float(np.median(distances))
    drawn = [
        centre + (row - centre) * min(1.0, bound / max(distance, 1e-300))
        for row, distance in zip(columns, distances, strict=True)
    ]
    return np.average(drawn, axis=0, weights=weights).reshape(arrays[0].shape)


def spoiled(good: Shares, bad: int, how: str) -> list[dict[str, Tensor]]:
    """Good shares with bad ones among them: at both ends of the order of addition."""
    random = torch.Generator().manual_seed(9)
    values = {"huge": 1e9, "minus": -1e9, "endless": float("inf"), "no number": float("nan")}
    made = []
    for number in range(bad):
        value = values[how] if how != "apart" else (1e6 if number % 2 else -1e6)
        made.append(
            {name: torch.full_like(t, value) * torch.rand(1, generator=random).item() for name, t in good[1].items()}
        )
    return [*made[::2], *good, *made[1::2]]


# ---------------------------------------------------------------------- what they compute


@pytest.mark.parametrize("count", [2, 3, 4, 7, 10])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_each_name_is_averaged_as_by_a_longhand_over_those_that_had_it(
    method: Method, dtype: torch.dtype, count: int
) -> None:
    added, weights = shares(count, dtype=dtype), [float(3 * i + 1) for i in range(count)]
    found = mean(method, added, weights)
    for name in ("w", "b", "odd"):
        held = [
            (each[name].double().numpy(), weight) for each, weight in zip(added, weights, strict=True) if name in each
        ]
        wanted = longhand(method, [array for array, _ in held], [weight for _, weight in held])
        assert found[name].dtype == dtype
        close = {"rtol": 1e-13, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(found[name], torch.tensor(wanted).to(dtype), **close)


@pytest.mark.parametrize(
    ("trim", "count", "cut"), [(0.3, 10, 3), (0.2, 9, 1), (0.1, 9, 0), (0.49, 3, 1), (0.29, 100, 29)]
)
def test_the_trimmed_mean_leaves_out_the_floor_of_trim_times_the_shares_at_each_end(
    trim: float, count: int, cut: int
) -> None:  # fmt: skip
    added = [{"w": torch.tensor(float(2**i), dtype=torch.float64)} for i in range(count)]
    found = mean(Method(name="trimmed_mean", options={"trim": trim}), added)["w"].item()
    assert found == pytest.approx(np.mean([2.0**i for i in range(cut, count - cut)]), rel=1e-14)


def test_the_median_and_the_trimmed_mean_count_each_share_once_and_the_norm_bound_by_its_weight() -> None:
    added = shares(5)
    for method in ALL:
        same = torch.equal(mean(method, added)["w"], mean(method, added, [100.0, 1.0, 1.0, 1.0, 1.0])["w"])
        assert same == (method.name != "norm_bound")


def test_a_norm_bound_that_binds_nobody_is_the_weighted_mean_bit_for_bit() -> None:
    added, weights = shares(7, dtype=torch.float32), [3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0]
    found, plain = mean(Method(name="norm_bound", options={"factor": 1e6}), added, weights), mean(None, added, weights)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_one_share_comes_back_bit_for_bit_minus_zero_and_all(method: Method, dtype: torch.dtype) -> None:
    share = torch.randn(100, generator=torch.Generator().manual_seed(1)).to(dtype)
    share[:2] = torch.tensor([-0.0, 1e-30])
    found = mean(method, [{"w": share}], [0.1])["w"]
    assert torch.equal(found.view(torch.uint8), share.view(torch.uint8))


@pytest.mark.parametrize("count", [2, 3, 5, 10, 49])
@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_equal_shares_average_to_themselves(method: Method, count: int) -> None:
    w = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mean(method, [{"w": w}] * count)["w"], w)
    if method is not NORM_BOUND:  # in double precision its weights round
        assert torch.equal(mean(method, [{"w": w.double() / 3}] * count)["w"], w.double() / 3)


@pytest.mark.parametrize("method", ALL, ids=NAMES)
def test_infinities_that_all_have_in_common_stay(method: Method) -> None:
    """A mask among the buffers."""
    mask = torch.tensor([0.0, float("-inf"), 1.0])
    assert torch.equal(mean(method, [{"mask": mask}] * 4)["mask"], mask)


def test_a_norm_bound_looks_past_infinities_that_all_have_in_common() -> None:
    masked = [{"w": torch.cat([share["w"], torch.full((1, 4), -torch.inf)])} for share in shares(5)]
    assert torch.equal(mean(NORM_BOUND, masked)["w"][:3], mean(NORM_BOUND, shares(5))["w"])


# ---------------------------------------------------------------------- what bad shares can do

BAD = [(count, bad) for count in (3, 4, 7, 10) for bad in range(1, (count + 1) // 2)]


@pytest.mark.parametrize("how", ["huge", "minus", "apart", "endless", "no number"])
@pytest.mark.parametrize(("count", "bad"), BAD)
def test_fewer_than_half_bad_shares_leave_each_coordinate_in_the_good_ones_range(
    count: int, bad: int, how: str
) -> None:  # fmt: skip
    good = [{"w": share["w"]} for share in shares(count - bad + 2)][: count - bad]
    good = good if len(good) > 1 else good * 2
    count = len(good) + bad
    trimmed = Method(name="trimmed_mean", options={"trim": bad / count})
    low, high = torch.stack([share["w"] for share in good]).aminmax(dim=0)
    for method in (Method(name="median"), trimmed):
        found = mean(method, spoiled(good, bad, how))["w"]
        assert ((low <= found) & (found <= high)).all(), method.name
    plain = mean(None, spoiled(good, bad, how))["w"]
    assert not ((low <= plain) & (plain <= high)).any()


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("how", ["huge", "apart", "endless", "no number"])
@pytest.mark.parametrize(("count", "bad"), BAD)
def test_the_norm_bound_keeps_its_word_whatever_weight_a_bad_share_claims(
    count: int, bad: int, how: str, factor: float
) -> None:
    """No farther than factor · m from the median, where m is no more than the greatest distance of a good share."""
    good = [{"w": share["w"]} for share in shares(count - bad, seed=3)]
    added = spoiled(good * 2 if len(good) == 1 else good, bad, how)
    weights = [1.0 if tensors["w"].abs().max() < 100 else 1e12 for tensors in added]
    centre = mean(Method(name="median"), added)["w"]
    m = np.median(np.nan_to_num([float((t["w"] - centre).norm()) for t in added], nan=np.inf, posinf=np.inf))
    found = mean(Method(name="norm_bound", options={"factor": factor}), added, weights)["w"]
    assert float((found - centre).norm()) <= factor * m * (1 + 1e-12)
    assert m <= max(float((share["w"] - centre).norm()) for share in good) * (1 + 1e-12)
    plain = mean(None, added, weights)["w"]
    assert not float((plain - centre).norm()) <= 100 * factor * m


def test_a_large_tensor_does_not_hide_what_is_done_to_a_small_one() -> None:
    """A running variance varies by thousands; over all tensors together, a weight's factor would be lost in it."""
    added = [{"var": torch.full((4,), 1e4 * i).double(), "w": torch.full((4,), 0.1 * i).double()} for i in range(5)]
    added[2]["w"] = torch.full((4,), 1e3).double()
    assert mean(NORM_BOUND, added)["w"].max().item() < 1.0


def test_half_of_the_shares_bad_is_the_breakdown_point_of_the_median() -> None:
    good = shares(3)
    found = mean(Method(name="median"), spoiled(good, 3, "huge"))["w"]
    assert found.abs().max() > 1e6


def test_more_bad_shares_than_are_trimmed_lead_a_trimmed_mean_astray() -> None:
    found = mean(Method(name="trimmed_mean", options={"trim": 0.2}), spoiled(shares(6), 3, "huge"))["w"]
    assert found.abs().max() > 1e6


# ---------------------------------------------------------------------- as `WeightedSum`


def test_added_tensors_stay_the_callers_and_answers_stay_the_askers() -> None:
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    result = averager(Method(name="median"))
    result.add({"w": w}, 2.0)
    result.mean()["w"].fill_(9.0)
    with torch.no_grad():
        w.mul_(5.0)
    result.add({"w": torch.ones(3).double() * 3}, 1.0)
    assert result.mean()["w"].tolist() == [2.0] * 3
    result.mean()["w"].fill_(9.0)
    assert result.mean()["w"].tolist() == [2.0] * 3
    assert not result.mean()["w"].requires_grad


@pytest.mark.parametrize(
    ("tensors", "weight", "words"),
    [
        ({"w": torch.ones(2)}, 0.0, "weight 0.0 is not a positive"),
        ({"w": torch.ones(2)}, float("nan"), "weight nan is not a positive"),
        ({"n": torch.ones(2, dtype=torch.int64)}, 1.0, "'n' is torch.int64, and only floats have a mean"),
        ({"v": torch.ones(1), "w": torch.ones(1)}, 1.0, "'w' has another shape or dtype"),
        ({"w": torch.ones(2).double()}, 1.0, "'w' has another shape or dtype"),
    ],
)
def test_what_has_no_mean_is_refused_and_changes_nothing(
    tensors: dict[str, Tensor], weight: float, words: str
) -> None:  # fmt: skip
    result = averager(Method(name="median"))
    result.add({"w": torch.ones(2)}, 1.0)
    with pytest.raises(ValueError, match=words):
        result.add(tensors, weight)
    assert list(result.mean()) == ["w"]
    assert result.mean()["w"].tolist() == [1.0, 1.0]


def test_the_plans_methods_are_these_with_these_options() -> None:
    assert set(METHODS) == set(AVERAGING)
    assert {method.name: set(method.options) for method in ALL} == {n: set(o) for n, o in AVERAGING.items()}
    assert isinstance(averager(None), WeightedSum)
    assert isinstance(averager(NORM_BOUND), RobustMean)
    with pytest.raises(PlanError, match="'krum' is unknown: known are median"):
        averager(Method(name="krum"))
