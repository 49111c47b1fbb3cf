"""Adaptive quantisation (SplitFC): a tensor's features share a budget of bits by how far each one's values lie apart.

A feature's values become levels between its lowest and its highest, 2^b of them; a bit more for a feature whose range
is twice as wide, as the least sum of squared errors has it; with b = 0 its middle stands for all. The ends are sent in
8 bits each, as levels of the whole tensor's range. Source: Oh et al. 2023, SplitFC (arXiv 2307.10805), section V, with
the levels as powers of two and ends that lie outside of the values, never between them.
Size: `bits` per element on average, and 2.5 bytes per feature, and 8 in all (16 for float64).
Error: half a level of the feature, at most half of its range, a 127th of the tensor's range added to that.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.codec import scales
from cutlayer.codec.bits import pack, packed_bytes, unpack
from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.sections import (
    as_dtype,
    carried,
    exactly,
    float_fault,
    joined,
    refuse_if_not_finite,
    shape_of,
    working,
)
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape

MOST_BITS = 8
ENDS = 255


@dataclass(frozen=True, kw_only=True)
class Adaptive(Codec):
    """`bits`: of an element, on average over the features; from 0 to 8."""

    bits: float = 2.0
    word: ClassVar[str] = "adaptive"

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= MOST_BITS:
            raise PlanError(f"adaptive: bits = {self.bits!r} must be from 0 to {MOST_BITS}")

    def fault(self, shape: TensorShape) -> str | None:
        return float_fault(self, shape)

    def most_bytes(self, shape: TensorShape) -> int:
        rows, n = _size(shape)
        if not shape.nbytes:
            return 0
        return (
            2 * scales.scale_dtype(shape).itemsize
            + 2 * n
            + packed_bytes(n, 4)
            + packed_bytes(rows * self._budget(n), 1)
        )

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel():
            return 0.0
        shape = shape_of(tensor)
        x_BN = working(tensor.detach().cpu().contiguous()).view(_size(shape))  # noqa: N806
        ends = _Ends.of(x_BN)
        steps = ends.steps(_shared(ends, self._budget(x_BN.shape[1])))
        least = (1 << MOST_BITS) * scales.LEAST
        return float(steps.max()) * 0.501 + scales.slack(x_BN.abs(), shape) * 4 + least

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        tensor = carried(self, tensor)
        if not tensor.numel():
            return Encoded(torch.empty(0, dtype=torch.uint8))
        x_BN = working(tensor).view(_size(shape_of(tensor)))  # noqa: N806
        refuse_if_not_finite(self, x_BN, x_BN.max() - x_BN.min())
        rows, n = x_BN.shape
        ends = _Ends.of(x_BN)
        bits = _shared(ends, self._budget(n))
        codes = (x_BN - ends.low).mul_(scales.inverse(ends.steps(bits)))
        codes = torch.minimum(codes.round_().clamp_(min=0), (1 << bits) - 1).to(torch.int64)
        spare = torch.zeros(rows * (self._budget(n) - int(bits.sum())), dtype=torch.uint8)
        stream = [_spread(codes[:, bits == width], width) for width in range(1, MOST_BITS + 1)]
        return Encoded(joined(ends.range, ends.codes, pack(bits, 4), pack(torch.cat([*stream, spare]), 1)))

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        if not shape.nbytes:
            return torch.empty(shape.shape, dtype=getattr(torch, shape.dtype))
        rows, n = _size(shape)
        cuts = [2 * scales.scale_dtype(shape).itemsize, 2 * n, packed_bytes(n, 4)]
        span, codes, widths, stream = torch.split(payload, [*cuts, payload.numel() - sum(cuts)])
        ends = _Ends(range=as_dtype(span, scales.scale_dtype(shape)), codes=codes.view(2, n))
        bits = unpack(widths, n, 4).to(torch.int64)
        self._check(ends, bits, shape)
        levels = torch.zeros(rows, n, dtype=scales.scale_dtype(shape))
        flat = unpack(stream, rows * self._budget(n), 1)
        at = 0
        for width in range(1, MOST_BITS + 1):
            columns = int((bits == width).sum())
            size = rows * columns * width
            levels[:, bits == width] = _gathered(flat[at : at + size], width, levels.dtype).view(rows, columns)
            at += size
        largest = torch.finfo(getattr(torch, shape.dtype)).max
        middle = torch.where(bits == 0, 0.5, 0.0).to(levels.dtype)
        numbers = (levels + middle).mul_(ends.steps(bits)).add_(ends.low).clamp_(-largest, largest)
        return numbers.to(getattr(torch, shape.dtype)).view(shape.shape)

    def _budget(self, n: int) -> int:
        """Bits of one row."""
        return math.floor(self.bits * n + 1e-9)

    def _check(self, ends: "_Ends", bits: Tensor, shape: TensorShape) -> None:
        largest = torch.finfo(getattr(torch, shape.dtype)).max
        low, high = ends.range.tolist()
        if not -largest <= low <= high <= largest or not math.isfinite(high - low):
            raise CodecError(f"{self.name}: a range in the payload is not finite, or too large for {shape.dtype}")
        if not bool((ends.codes[0] <= ends.codes[1]).all()):
            raise CodecError(f"{self.name}: a feature's range in the payload is upside down")
        if int(bits.max()) > MOST_BITS or int(bits.sum()) > self._budget(len(bits)):
            raise CodecError(f"{self.name}: a payload spends more bits than it has")


def _size(shape: TensorShape) -> tuple[int, int]:
    """Rows and features; one row, where there are no two dimensions."""
    if len(shape.shape) < 2:
        return 1, math.prod(shape.shape)
    return shape.shape[0], math.prod(shape.shape[1:])


@dataclass(frozen=True, slots=True)
class _Ends:
    """The tensor's lowest and highest value, `range` [2]; those of each feature as levels of it, `codes` [2, N]."""

    range: Tensor
    codes: Tensor

    @classmethod
    def of(cls, x_BN: Tensor) -> "_Ends":  # noqa: N803
        low, high = x_BN.amin(0), x_BN.amax(0)
        span = torch.stack((low.min(), high.max()))
        step = (span[1] - span[0]) / ENDS
        inverse = scales.inverse(step)
        codes = torch.stack((((low - span[0]) * inverse - 1e-3).floor_(), ((high - span[0]) * inverse + 1e-3).ceil_()))
        return cls(range=span, codes=codes.clamp_(0, ENDS).to(torch.uint8))

    @property
    def low(self) -> Tensor:
        return self.codes[0] * ((self.range[1] - self.range[0]) / ENDS) + self.range[0]

    def steps(self, bits: Tensor) -> Tensor:
        """[N]: the distance of two levels; the whole range where there is one only."""
        widths = (self.codes[1].to(self.range.dtype) - self.codes[0]) * ((self.range[1] - self.range[0]) / ENDS)
        return widths / ((1 << bits) - 1).clamp(min=1)


def _shared(ends: _Ends, budget: int) -> Tensor:
    """[N]: each feature's bits, one more for twice the range; what is left over goes to those that just missed one."""
    widths = (ends.codes[1].double() - ends.codes[0]).clamp_(min=1e-3).log2_()
    low, high = float(widths.min()) - MOST_BITS - 1, float(widths.max()) + 1
    for _ in range(40):
        level = (low + high) / 2
        if int((widths - level).floor_().clamp_(0, MOST_BITS).sum()) > budget:
            low = level
        else:
            high = level
    bits = (widths - high).floor_().clamp_(0, MOST_BITS).to(torch.int64)
    missed = (widths - high - bits).masked_fill_(bits == MOST_BITS, -math.inf).argsort(descending=True)
    left = min(budget - int(bits.sum()), int((bits < MOST_BITS).sum()))
    bits[missed[:left]] += 1
    return bits


def _spread(codes: Tensor, width: int) -> Tensor:
    return (codes.reshape(-1, 1) >> torch.arange(width) & 1).to(torch.uint8).reshape(-1)


def _gathered(bits: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    return (bits.view(-1, width).to(torch.int64) << torch.arange(width)).sum(1).to(dtype)
