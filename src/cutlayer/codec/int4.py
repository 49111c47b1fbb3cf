"""Int4: each number as one of 16 levels between its group's lowest and highest.

Size: half a byte per element, and 8 per group (16 for float64). Error: half a level, (highest - lowest) / 30; a whole
one where rounding is random, as in QSGD (Alistarh et al. 2017, arXiv 1610.02132), which makes it right on average.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.codec import scales
from cutlayer.codec.bits import pack, packed_bytes, unpack
from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.rounding import ROUNDINGS, checked_rounding, round_
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
from cutlayer.errors import CodecError
from cutlayer.plan.tensors import TensorShape

LEVELS = 15


@dataclass(frozen=True, kw_only=True)
class Int4(Codec):
    """`scale`: of each `channel`, each `row`, or the `tensor`. `rounding`: to the `nearest`, or `random`."""

    scale: str = "channel"
    rounding: str = "nearest"
    word: ClassVar[str] = "int4"

    def __post_init__(self) -> None:
        scales.checked_scale(self.word, self.scale)
        checked_rounding(self.word, self.rounding)

    def fault(self, shape: TensorShape) -> str | None:
        return float_fault(self, shape)

    def most_bytes(self, shape: TensorShape) -> int:
        return self._range_bytes(shape) + packed_bytes(torch.Size(shape.shape).numel(), 4)

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel():
            return 0.0
        shape, (_, steps, sizes) = shape_of(tensor), self._levels(tensor.detach().cpu().contiguous())
        share = ROUNDINGS[self.rounding] + 1e-3
        return float(torch.where(steps > 0, share * steps, 2 * LEVELS * scales.LEAST).max()) + scales.slack(
            sizes, shape
        )

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        tensor = carried(self, tensor)
        shape = shape_of(tensor)
        if not tensor.numel():
            return Encoded(torch.empty(0, dtype=torch.uint8))
        low, steps, sizes = self._levels(tensor)
        refuse_if_not_finite(self, sizes, steps * LEVELS)
        numbers = working(tensor)
        codes = torch.empty(numbers.numel(), dtype=torch.uint8)
        generator = torch.Generator().manual_seed(seed)
        factors = (scales.inverse(steps), low)
        for part, code, inverse, least in scales.blocks(self._groups(shape), factors, numbers, codes):
            above = torch.sub(part, least).mul_(inverse)
            code.copy_(round_(above, self.rounding, LEVELS, generator).clamp_(0, LEVELS))
        return Encoded(joined(low, steps, pack(codes, 4)))

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        cut = self._range_bytes(shape)
        low, steps = as_dtype(payload[:cut], scales.scale_dtype(shape)).view(2, -1)
        largest = torch.finfo(getattr(torch, shape.dtype)).max
        half_top = low.double() / 2 + LEVELS * (steps.double() / 2)
        if not bool(((steps >= 0) & (low.abs() <= largest) & (half_top * (1 - 1e-5) <= largest / 2)).all()):
            raise CodecError(f"{self.name}: a range in the payload is not finite, or too large for {shape.dtype}")
        codes = unpack(payload[cut:], torch.Size(shape.shape).numel(), 4)
        numbers = torch.empty(codes.numel(), dtype=steps.dtype)
        if codes.numel():
            for part, code, step, least in scales.blocks(self._groups(shape), (steps, low), numbers, codes):
                part.copy_(code).mul_(step).add_(least).clamp_(-largest, largest)
        return numbers.to(getattr(torch, shape.dtype)).view(shape.shape)

    def _levels(self, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[G] each: the lowest number, the distance of two levels, and the largest |x|."""
        shape = shape_of(tensor)
        x_OGI = working(tensor).view(self._groups(shape))  # noqa: N806
        low, high = scales.ends(x_OGI)
        steps = high / LEVELS - low / LEVELS
        return low, torch.threshold_(steps, scales.LEAST, 0.0), torch.maximum(high.abs(), low.abs())

    def _groups(self, shape: TensorShape) -> tuple[int, int, int]:
        return scales.groups(shape.shape, self.scale)

    def _range_bytes(self, shape: TensorShape) -> int:
        return 2 * scales.scale_count(shape, self.scale) * scales.scale_dtype(shape).itemsize
