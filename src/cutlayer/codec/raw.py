"""Raw: a tensor's own bytes. Lossless; the payload is the tensor's memory, not a copy of it, wherever it can be.

Size: elements times bytes per element. Error: none.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.codec.codec import Codec, Encoded
from cutlayer.codec.sections import as_bytes, as_dtype, exactly, on_host
from cutlayer.errors import CodecError
from cutlayer.plan.tensors import TensorShape


def encode(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any shape, row by row. Copies only what is not contiguous, or not on the CPU."""
    flat = on_host(tensor).contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def decode(payload: memoryview, shape: TensorShape) -> Tensor:
    """A tensor over the payload's own memory, which it keeps alive."""
    dtype = getattr(torch, shape.dtype)
    if not payload.nbytes:
        return torch.empty(shape.shape, dtype=dtype)
    return torch.frombuffer(payload, dtype=dtype).view(shape.shape)


@dataclass(frozen=True, kw_only=True)
class Raw(Codec):
    """The same as a codec among others; what a chain ends in where no quantiser is named."""

    word: ClassVar[str] = "raw"

    @property
    def lossless(self) -> bool:
        return True

    def fault(self, shape: TensorShape) -> str | None:
        return None

    def most_bytes(self, shape: TensorShape) -> int:
        return shape.nbytes

    def error_bound(self, tensor: Tensor) -> float:
        return 0.0

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        return Encoded(as_bytes(on_host(tensor)))

    def decode(self, payload: Tensor, shape: TensorShape) -> Tensor:
        exactly(self, payload, shape)
        if shape.dtype == "bool" and payload.numel() and int(payload.max()) > 1:
            raise CodecError("raw: a payload of truth values has bytes that are neither 0 nor 1")
        return as_dtype(payload, getattr(torch, shape.dtype)).view(shape.shape)


RAW = Raw()
