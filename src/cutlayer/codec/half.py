"""Half: each number in 16 bits, as fp16 (more digits) or bf16 (float32's range).

Size: 2 bytes per element. Error: |x|·2^-11 for fp16, down to 2^-25; |x|·2^-8 for bf16.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.sections import as_bytes, as_dtype, carried, exactly, finite, float_fault
from cutlayer.errors import CodecError, PlanError
from cutlayer.plan.tensors import TensorShape

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Half(Codec):
    """`kind`: fp16 refuses numbers beyond 65504, bf16 takes them."""

    kind: str = "fp16"
    word: ClassVar[str] = "half"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise PlanError(f"half: kind = {self.kind!r} is unknown; known are {', '.join(KINDS)}")

    def fault(self, shape: TensorShape) -> str | None:
        return float_fault(self, shape)

    def most_bytes(self, shape: TensorShape) -> int:
        return 2 * _count(shape)

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel():
            return 0.0
        kind = torch.finfo(KINDS[self.kind])
        return float(tensor.double().abs().max()) * kind.eps / 2 * 1.001 + kind.smallest_normal * kind.eps

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        halves = carried(self, tensor).to(KINDS[self.kind])
        if not finite(halves):
            mend = "say bf16, or raw" if self.kind == "fp16" else "say raw"
            raise CodecError(f"{self.name} cannot carry NaN or infinite values, nor such that become so: {mend}")
        return Encoded(as_bytes(halves))

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        halves = as_dtype(payload, KINDS[self.kind])
        tensor = halves.to(getattr(torch, shape.dtype)).view(shape.shape)
        if not finite(halves if tensor.element_size() > halves.element_size() else tensor):  # the smaller one to read
            raise CodecError(f"{self.name}: a payload has NaN or infinite values")
        return tensor


def _count(shape: TensorShape) -> int:
    return torch.Size(shape.shape).numel()
