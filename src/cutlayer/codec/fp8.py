"""Fp8: each number in 8 bits, as e4m3 (more digits) or e5m2 (more range), after its group is scaled to fill the range.

Size: 1 byte per element, and 4 per scale (8 for float64). Error: |x|·2^-4 for e4m3 and |x|·2^-3 for e5m2, down to the
scale times 2^-10 and 2^-17. Source of the formats: Micikevicius et al. 2022 (arXiv 2209.05433).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.codec import scales
from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.sections import (
    as_dtype,
    carried,
    exactly,
    finite,
    float_fault,
    joined,
    refuse_if_not_finite,
    shape_of,
    working,
)
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape

KINDS = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@dataclass(frozen=True, kw_only=True)
class Fp8(Codec):
    """`scale`: of each `channel`, each `row`, or the `tensor`."""

    kind: str = "e4m3"
    scale: str = "tensor"
    word: ClassVar[str] = "fp8"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PlanError(f"fp8: kind = {self.kind!r} is unknown; known are {', '.join(KINDS)}")
        scales.checked_scale(self.word, self.scale)

    def fault(self, shape: TensorShape) -> str | None:
        return float_fault(self, shape)

    def most_bytes(self, shape: TensorShape) -> int:
        return self._scale_bytes(shape) + torch.Size(shape.shape).numel()

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel():
            return 0.0
        shape, (sizes, steps) = shape_of(tensor), self._steps(tensor.detach().cpu().contiguous())
        kind = torch.finfo(KINDS[self.kind])
        error = sizes * (kind.eps / 2) + steps * (kind.smallest_normal * kind.eps)
        return float(torch.where(steps > 0, error * 1.001, sizes).max()) + scales.slack(sizes, shape)

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        tensor = carried(self, tensor)
        if not tensor.numel():
            return Encoded(torch.empty(0, dtype=torch.uint8))
        shape = shape_of(tensor)
        sizes, steps = self._steps(tensor)
        refuse_if_not_finite(self, sizes)
        numbers = working(tensor)
        codes = torch.empty(numbers.numel(), dtype=KINDS[self.kind])
        for part, code, inverse in scales.blocks(self._groups(shape), (scales.inverse(steps),), numbers, codes):
            code.copy_((part * inverse).float())
        return Encoded(joined(steps, codes))

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        cut = self._scale_bytes(shape)
        steps = as_dtype(payload[:cut], scales.scale_dtype(shape))
        scales.checked_steps(self.name, steps, self._levels, shape)
        numbers = _values(self.kind).to(steps.dtype)[payload[cut:].int()]
        if not finite(numbers):
            raise CodecError(f"{self.name}: a payload has NaN or infinite values")
        if numbers.numel():
            for part, step in scales.blocks(self._groups(shape), (steps,), numbers):
                part.mul_(step)
        return numbers.to(getattr(torch, shape.dtype)).view(shape.shape)

    @property
    def _levels(self) -> float:
        return float(torch.finfo(KINDS[self.kind]).max)

    def _steps(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        shape = shape_of(tensor)
        sizes = scales.magnitude(working(tensor).view(self._groups(shape)))
        return sizes, scales.steps_of(sizes, self._levels, shape)

    def _groups(self, shape: TensorShape) -> tuple[int, int, int]:
        return scales.groups(shape.shape, self.scale)

    def _scale_bytes(self, shape: TensorShape) -> int:
        return scales.scale_count(shape, self.scale) * scales.scale_dtype(shape).itemsize


@lru_cache
def _values(kind: str) -> Tensor:
    """[256]: the number of each code; looking it up is quicker than torch's own conversion."""
    return torch.arange(256, dtype=torch.uint8).view(KINDS[kind]).float()
