"""Int8: each number as a whole multiple, -127 to 127, of its group's step.

Size: 1 byte per element, and 4 per scale (8 for float64). Error: half a step, max|x| of the group / 254; a whole step
where rounding is random, as in QSGD (Alistarh et al. 2017, arXiv 1610.02132), which makes it right on average.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.codec import scales
from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.rounding import ROUNDINGS, checked_rounding, round_
from cutlayer.codec.sections import as_dtype, carried, exactly, float_fault, refuse_if_not_finite, shape_of, working
from cutlayer.errors import CodecError
from cutlayer.plan.tensors import TensorShape

LEVELS = 127


@dataclass(frozen=True, kw_only=True)
class Int8(Codec):
    """`scale`: of each `channel`, each `row`, or the `tensor`. `rounding`: to the `nearest`, or `random`."""

    scale: str = "channel"
    rounding: str = "nearest"
    word: ClassVar[str] = "int8"

    def __post_init__(self) -> None:
        scales.checked_scale(self.word, self.scale)
        checked_rounding(self.word, self.rounding)

    def fault(self, shape: TensorShape) -> str | None:
        return float_fault(self, shape)

    def most_bytes(self, shape: TensorShape) -> int:
        return self._scale_bytes(shape) + torch.Size(shape.shape).numel()

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel():
            return 0.0
        shape, (sizes, steps) = shape_of(tensor), self._steps(tensor.detach().cpu().contiguous())
        share = ROUNDINGS[self.rounding] + 1e-3
        return float(torch.where(steps > 0, share * steps, sizes).max()) + scales.slack(sizes, shape)

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        numbers = working(carried(self, tensor))
        if not numbers.numel():
            return Encoded(torch.empty(0, dtype=torch.uint8))
        grouping = scales.groups(tuple(tensor.shape), self.scale)
        sizes = scales.magnitude(numbers.view(grouping))
        refuse_if_not_finite(self, sizes)
        steps = scales.steps_of(sizes, LEVELS, shape_of(tensor))
        payload = torch.empty(steps.nbytes + numbers.numel(), dtype=torch.uint8)
        payload[: steps.nbytes].view(steps.dtype).copy_(steps)
        codes = payload[steps.nbytes :].view(torch.int8)
        generator = torch.Generator().manual_seed(seed)
        scratch = numbers.new_empty(0)
        for part, code, inverse in scales.blocks(grouping, (scales.inverse(steps),), numbers, codes):
            scratch = torch.mul(part, inverse, out=scratch.resize_(part.shape))
            code.copy_(round_(scratch, self.rounding, LEVELS, generator))
        return Encoded(payload)

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        cut = self._scale_bytes(shape)
        steps = as_dtype(payload[:cut], scales.scale_dtype(shape))
        scales.checked_steps(self.name, steps, LEVELS, shape)
        codes = payload[cut:].view(torch.int8)
        numbers = torch.empty(codes.numel(), dtype=steps.dtype)
        if codes.numel():
            if int(codes.amin()) < -LEVELS:
                raise CodecError(f"{self.name}: a payload has the number -128, which none is encoded as")
            for part, code, step in scales.blocks(self._groups(shape), (steps,), numbers, codes):
                part.copy_(code).mul_(step)
        return numbers.to(getattr(torch, shape.dtype)).view(shape.shape)

    def _steps(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        shape = shape_of(tensor)
        sizes = scales.magnitude(working(tensor).view(self._groups(shape)))
        return sizes, scales.steps_of(sizes, LEVELS, shape)

    def _groups(self, shape: TensorShape) -> tuple[int, int, int]:
        return scales.groups(shape.shape, self.scale)

    def _scale_bytes(self, shape: TensorShape) -> int:
        return scales.scale_count(shape, self.scale) * scales.scale_dtype(shape).itemsize
