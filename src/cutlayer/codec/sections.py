"""Payloads as sections of bytes that lie one after another, and what every codec asks of tensors and payloads."""

import math
from typing import Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from cutlayer.errors import CodecError
from cutlayer.plan.tensors import DType, TensorShape

FLOATS = ("float64", "float32", "float16", "bfloat16")
_FP16_SIGN, _FP16_INFINITY = 0x8000, 0x7C00
_WORDS = {getattr(torch, word): word for word in get_args(DType)}


class Sized(Protocol):
    """What is asked of a codec here."""

    @property
    def name(self) -> str: ...
    def fault(self, shape: TensorShape) -> str | None: ...
    def most_bytes(self, shape: TensorShape) -> int: ...


def shape_of(tensor: Tensor) -> TensorShape:
    """Raises `CodecError` for a dtype that no plan knows."""
    if tensor.dtype not in _WORDS:
        raise CodecError(f"tensors of {tensor.dtype} cannot cross: cast them to one of {', '.join(_WORDS.values())}")
    return TensorShape(_WORDS[tensor.dtype], tuple(tensor.shape))


def float_fault(codec: Sized, shape: TensorShape) -> str | None:
    """What a codec of numbers says to token ids, labels and masks."""
    if shape.dtype in FLOATS:
        return None
    return f"{codec.name} carries floats, not {shape}: say raw, zstd or lz4 for it"


def carried(codec: Sized, tensor: Tensor) -> Tensor:
    """The tensor, contiguous, on the CPU, without a graph. Raises `CodecError` where the codec has a fault to find."""
    if (fault := codec.fault(shape_of(tensor))) is not None:
        raise CodecError(fault)
    return on_host(tensor).contiguous()


def on_host(tensor: Tensor) -> Tensor:
    """The tensor in the processor's memory, without a graph: itself, if it lies there.

    What a GPU has goes into page-locked memory, which it writes several times as fast; torch keeps and reuses that.
    """
    if not tensor.is_cuda:
        return tensor.detach().cpu()
    staged = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    staged.copy_(tensor.detach(), non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return staged


def working(tensor: Tensor) -> Tensor:
    """In the dtype that scales are worked out in: float32, or float64 for float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def refuse_if_not_finite(codec: Sized, *values: Tensor) -> None:
    """For a tensor to be sent. `values`: some of it, or numbers that are not finite if one of it is not."""
    if not all(finite(value) for value in values):
        raise CodecError(
            f"{codec.name} cannot carry NaN, infinite values or ranges, and the tensor has some: say raw, or mend it"
        )


def finite(values: Tensor) -> bool:
    """Whether all are. A sum that is finite has only finite terms; else each one is looked at.

    The sum of sound fp16 numbers is often beyond fp16: of those the largest of either sign is found, by their bits.
    """
    if values.dtype == torch.float16 and values.numel():
        bits = values.contiguous().view(torch.int16).numpy()
        return int(bits.max()) < _FP16_INFINITY and int(bits.view(np.uint16).max()) < _FP16_SIGN + _FP16_INFINITY
    return math.isfinite(values.sum().item()) or bool(torch.isfinite(values).all())


def exactly(codec: Sized, payload: Tensor, shape: TensorShape) -> None:
    """Raises `CodecError` unless the payload has just the bytes that a tensor like this becomes."""
    if (fault := codec.fault(shape)) is not None:
        raise CodecError(fault)
    if payload.numel() != (bytes_due := codec.most_bytes(shape)):
        raise CodecError(f"{codec.name}: a payload of {payload.numel()} bytes cannot be {shape}, which has {bytes_due}")


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, flat: its own memory, where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def as_dtype(payload: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes as numbers, flat: the same memory, where it is aligned."""
    size = dtype.itemsize
    if payload.storage_offset() % size or payload.data_ptr() % size:
        payload = payload.clone()
    return payload.view(dtype)


def joined(*sections: Tensor) -> Tensor:
    """One payload of several tensors' bytes."""
    parts = [as_bytes(section) for section in sections if section.numel()]
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint8)
