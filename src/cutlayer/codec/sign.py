"""Sign: one bit per element; its group's mean |x| stands for the size of each.

Size: 1 bit per element, and 4 bytes per scale (8 for float64). Error: max|x|. Sources: Seide et al. 2014 (1-bit SGD);
Karimireddy et al. 2019 (arXiv 1901.09847), who show that it wants error feedback.
"""

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
from cutlayer.plan.tensors import TensorShape


@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    """`scale`: of each `channel`, each `row`, or the `tensor`."""

    scale: str = "channel"
    word: ClassVar[str] = "sign"

    def __post_init__(self) -> None:
        scales.checked_scale(self.word, self.scale)

    def fault(self, shape: TensorShape) -> str | None:
        return float_fault(self, shape)

    def most_bytes(self, shape: TensorShape) -> int:
        return self._scale_bytes(shape) + packed_bytes(torch.Size(shape.shape).numel(), 1)

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel():
            return 0.0
        sizes = tensor.detach().cpu().double().abs().reshape(-1)
        return float(sizes.max()) + scales.slack(sizes, shape_of(tensor))

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        tensor = carried(self, tensor)
        if not tensor.numel():
            return Encoded(torch.empty(0, dtype=torch.uint8))
        shape = shape_of(tensor)
        x_OGI = working(tensor).view(scales.groups(shape.shape, self.scale))  # noqa: N806
        outer, _, inner = x_OGI.shape
        means = x_OGI.abs().mul_(1 / (outer * inner)).sum((0, 2), dtype=torch.float64)
        refuse_if_not_finite(self, means)
        largest = torch.finfo(tensor.dtype).max
        return Encoded(joined(means.clamp_(max=largest).to(x_OGI.dtype), pack(x_OGI < 0, 1)))

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        cut = self._scale_bytes(shape)
        means = as_dtype(payload[:cut], scales.scale_dtype(shape))
        scales.checked_steps(self.name, means, 1, shape)
        numbers = unpack(payload[cut:], torch.Size(shape.shape).numel(), 1).to(means.dtype).mul_(-2).add_(1)
        if numbers.numel():
            numbers.view(scales.groups(shape.shape, self.scale)).mul_(means[:, None])
        return numbers.to(getattr(torch, shape.dtype)).view(shape.shape)

    def _scale_bytes(self, shape: TensorShape) -> int:
        return scales.scale_count(shape, self.scale) * scales.scale_dtype(shape).itemsize
