"""Which elements of a tensor share a scale: all of them, those of a row (dim 0) or those of a channel (dim 1)."""

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat

import torch
from torch import Tensor

from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape

SCALES = ("tensor", "row", "channel")


def groups(shape: tuple[int, ...], scale: str) -> tuple[int, int, int]:
    """(outer, groups, inner): a contiguous tensor viewed so has group g at [:, g, :].

    A tensor without a second dimension has no channels, and one without any no rows: they have one group.

    >>> groups((64, 32, 7, 7), "channel"), groups((64, 32), "row"), groups((8,), "channel")
    ((64, 32, 49), (1, 64, 32), (1, 1, 8))
    """
    if scale == "row" and len(shape) > 1:
        return 1, shape[0], math.prod(shape[1:])
    if scale == "channel" and len(shape) > 1:
        return shape[0], shape[1], math.prod(shape[2:])
    return 1, 1, math.prod(shape)


BLOCK = 2**18
"""Elements that are worked on at a time, so that what lies between two steps stays in the processor's cache."""


def blocks(
    grouping: tuple[int, int, int], factors: tuple[Tensor, ...], *tensors: Tensor
) -> Iterator[tuple[Tensor, ...]]:  # fmt: skip
    """Parts of contiguous tensors that lie over each other, and beside them each group's factors, fit to broadcast."""
    outer, count, inner = grouping
    size: tuple[int, ...]
    if count == 1:
        height, size, per_row = BLOCK, (outer * inner,), False
    elif outer == 1:
        height, size, per_row = max(1, BLOCK // max(inner, 1)), (count, inner), True
        factors = tuple(factor[:, None] for factor in factors)
    else:
        height, size, per_row = max(1, BLOCK // max(count * inner, 1)), (outer, count * inner), False
        factors = tuple(factor[:, None].expand(count, inner).reshape(-1) for factor in factors)
    views = [tensor.view(torch.Size(size)) for tensor in tensors]
    if size[0] <= height:
        return iter([(*views, *factors)])
    spread = [torch.split(factor, height) if per_row else repeat(factor) for factor in factors]
    return zip(*(torch.split(view, height) for view in views), *spread, strict=False)


def slack(sizes: Tensor, shape: TensorShape) -> float:
    """By what rounding, in working out and in the tensor's own dtype, may add to a method's error."""
    own, inner = torch.finfo(getattr(torch, shape.dtype)), torch.finfo(scale_dtype(shape))
    return float(sizes.max()) * (0.51 * own.eps + 8 * inner.eps) + own.smallest_normal


def checked_scale(word: str, scale: str) -> None:
    """Raises `PlanError` for a word that is none of the three."""
    if scale not in SCALES:
        raise PlanError(f"{word}: scale = {scale!r} is unknown; known are {', '.join(SCALES)}")


def scale_count(shape: TensorShape, scale: str) -> int:
    """How many scales a tensor has; an empty one has none."""
    return groups(shape.shape, scale)[1] if shape.nbytes else 0


def scale_dtype(shape: TensorShape) -> torch.dtype:
    """What scales are worked out and sent in."""
    return torch.float64 if shape.dtype == "float64" else torch.float32


def ends(x_OGI: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """[G] each: the smallest and the largest element of each group; NaN where it has one."""
    if x_OGI.shape[0] == 1:
        return x_OGI[0].amin(1), x_OGI[0].amax(1)
    rows, size = x_OGI.flatten(1).numpy(), x_OGI.shape[1:]  # numpy goes over the rows as they lie in memory
    low, high = torch.from_numpy(rows.min(0)), torch.from_numpy(rows.max(0))
    return low.view(size).amin(1), high.view(size).amax(1)


def magnitude(x_OGI: Tensor) -> Tensor:  # noqa: N803
    """[G]: the largest |x| of each group; NaN where it has one."""
    low, high = ends(x_OGI)
    return torch.maximum(high, low.neg_())


def steps_of(sizes: Tensor, levels: float, shape: TensorShape) -> Tensor:
    """What a level is worth, so that `levels` of them span a group of this size and stay finite in the tensor's dtype.

    0 where that would be less than `LEAST`: all of the group becomes 0.
    """
    steps = (sizes / levels).clamp_(max=_largest_step(levels, shape.dtype))
    return torch.threshold_(steps, LEAST, 0.0)


def inverse(steps: Tensor) -> Tensor:
    """1 / step; finite for a step of 0, whose numbers it leaves no larger than others."""
    return steps.clamp(min=LEAST).reciprocal_()


LEAST = 1e-32
"""The smallest step: quotients by it are exact enough, and its inverse is finite in float32."""


@lru_cache(maxsize=64)
def _largest_step(levels: float, dtype: str) -> float:
    """So that `levels` of it do not round to infinity; itself a float32, unless for float64."""
    largest = torch.finfo(getattr(torch, dtype)).max / levels
    if dtype == "float64":
        return math.nextafter(largest, 0)
    near = torch.tensor(largest, dtype=torch.float32)
    return float(torch.nextafter(near, near.new_zeros(())))


def checked_steps(name: str, steps: Tensor, levels: float, shape: TensorShape) -> Tensor:
    """Steps as they came. Raises `CodecError` unless all are finite, not negative, and small enough for the dtype."""
    largest = torch.finfo(getattr(torch, shape.dtype)).max / levels
    if steps.numel() and not (float(steps.amin()) >= 0 and float(steps.amax()) <= largest):
        raise CodecError(f"{name}: a scale in the payload is not finite, or negative, or too large for {shape.dtype}")
    return steps
