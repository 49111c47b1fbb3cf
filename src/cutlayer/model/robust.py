"""Averages that a few bad shares cannot lead astray: coordinate median, trimmed mean, norm bound.

Each tensor is treated on its own, and every share of it is kept until the mean is asked for: K shares take K times the
memory of one. Whoever averages so has to see each share, so it does not go with secure aggregation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from cutlayer.errors import PlanError
from cutlayer.model.average import WeightedSum, check_added
from cutlayer.plan.terms import Method

Shares = Sequence[Tensor]
"""Of one tensor, in float64, in the order of addition; not to be changed."""
Centre = Callable[[Shares, Sequence[float]], Tensor]
"""Shares and their weights become one tensor, in float64."""


class Averager(Protocol):
    """What becomes of shares that are added one after another: `WeightedSum`, or `RobustMean`."""

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add a share."""

    def mean(self) -> dict[str, Tensor]:
        """Of each name, over the shares that had it, in the dtype they came in."""


class RobustMean:
    """A mean by name over the shares that had that name, by one of the methods below; the same bits in any process.

    What was added once comes back from `mean` bit for bit.
    """

    def __init__(self, centre: Centre) -> None:
        self._centre = centre
        self._shares: dict[str, list[tuple[Tensor, float]]] = {}

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Add a share; its tensors stay the caller's.

        Raises:
            ValueError: a weight that is not positive and finite, a tensor of whole numbers, or one of another shape
                or dtype than before; nothing was added.
        """
        check_added(tensors, weight, {n: (added[0][0].shape, added[0][0].dtype) for n, added in self._shares.items()})
        for name, tensor in tensors.items():
            self._shares.setdefault(name, []).append((tensor.detach().clone(), weight))

    def mean(self) -> dict[str, Tensor]:
        """The robust mean of each name, in the dtype it was added in."""
        return {name: self._mean(added) for name, added in self._shares.items()}

    def _mean(self, added: Sequence[tuple[Tensor, float]]) -> Tensor:
        shares = [tensor.to(torch.float64) for tensor, _ in added]
        return self._centre(shares, [weight for _, weight in added]).to(added[0][0].dtype)


def median(shares: Shares, weights: Sequence[float] = ()) -> Tensor:
    """The coordinate-wise median, of an even number of shares the mean of the two in the middle; weights do not count.

    With fewer than half of the shares bad, each coordinate lies within the range of the good ones. Yin et al. 2018
    (arXiv 1803.01498), definition 1. A share that is not a number counts as the greatest.
    """
    return _mean_of_the_middle(shares, (len(shares) - 1) // 2)


def trimmed_mean(shares: Shares, weights: Sequence[float] = (), *, trim: float) -> Tensor:
    """The coordinate-wise mean without the ⌊trim · K⌋ smallest and as many greatest of K shares; weights do not count.

    With at most ⌊trim · K⌋ bad shares, each coordinate lies within the range of the good ones. Yin et al. 2018
    (arXiv 1803.01498), definition 2.
    """
    # trim = 0.3 of 10 shares is 3 of them, though 0.3 · 10 in floats may fall short of it
    return _mean_of_the_middle(shares, math.floor(trim * len(shares) + 1e-9))


def norm_bound(shares: Shares, weights: Sequence[float], *, factor: float) -> Tensor:
    """The weighted mean of shares drawn in towards their coordinate-wise median v, to at most factor · m from it.

    m is the median of the distances ‖x - v‖₂; a share farther away becomes v + (x - v) · factor · m / ‖x - v‖₂. So the
    mean is never farther than factor · m from v, and with fewer than half of the shares bad m is no more than the
    greatest distance of a good one. The clip of Sun et al. 2019 (arXiv 1911.07963) about a robust centre: one iteration
    of the centred clipping of Karimireddy et al. 2021 (arXiv 2012.10333), begun at v. A share with an infinite distance
    counts as v. Where no share is too far away this is the weighted mean, bit for bit.
    """
    centre = median(shares)
    apart = [torch.where(share == centre, 0.0, share - centre) for share in shares]  # a mask's infinities are equal
    distances = torch.stack([torch.linalg.vector_norm(each) for each in apart])
    bound = factor * median(list(distances)).item()
    total = WeightedSum()
    for share, each, distance, weight in zip(shares, apart, distances.tolist(), weights, strict=True):
        if not math.isfinite(distance):
            total.add({"": centre}, weight)
        else:
            total.add({"": share if distance <= bound else centre + each * (bound / distance)}, weight)
    return total.mean()[""]


METHODS: dict[str, Callable[..., Tensor]] = {
    "median": median,
    "trimmed_mean": trimmed_mean,
    "norm_bound": norm_bound,
}
"""By their names in `training.averaging`; options are keyword arguments."""


def averager(method: Method | None) -> Averager:
    """What a plan's `training.averaging` asks for; None is the weighted mean. Raises `PlanError` if it is unknown."""
    if method is None:
        return WeightedSum()
    if method.name not in METHODS:
        raise PlanError([f"training.averaging = {method.name!r} is unknown: known are {', '.join(METHODS)}"])
    centre, options = METHODS[method.name], dict(method.options)
    return RobustMean(lambda shares, weights: centre(shares, weights, **options))


def _mean_of_the_middle(shares: Shares, cut: int) -> Tensor:
    """Of the sorted shares without `cut` at each end; within their range whatever the rounding."""
    ordered = torch.sort(torch.stack(list(shares)), dim=0).values
    kept = ordered[cut : len(shares) - cut]
    total = kept[0].clone()
    for share in kept[1:]:
        total.add_(share)
    return (total / len(kept)).clamp_(kept[0], kept[-1])
