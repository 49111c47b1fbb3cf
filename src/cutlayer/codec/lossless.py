"""What the lossless last stages share: a payload packed smaller, or as it is, after one byte that says which."""

from collections.abc import Callable

import torch
from torch import Tensor

from cutlayer.codec.codec import Codec
from cutlayer.errors import CodecError
from cutlayer.plan.tensors import TensorShape

AS_IT_IS, PACKED = 0, 1


def squeezed(payload: Tensor, compress: Callable[[memoryview], bytes]) -> Tensor:
    """The smaller one of the two. An empty payload stays empty."""
    if not payload.numel():
        return payload
    packed = compress(payload.numpy().data)
    if len(packed) < payload.numel():
        return torch.frombuffer(bytearray((PACKED,)) + packed, dtype=torch.uint8)
    return torch.cat((torch.tensor([AS_IT_IS], dtype=torch.uint8), payload))


def restored(
    codec: Codec, inner: Codec, payload: Tensor, shape: TensorShape, expand: Callable[[memoryview, int], bytes]
) -> Tensor:
    """The inner codec's payload. `expand` gets the bytes, and how many they must become, beyond which it must not go.

    Raises `CodecError`.
    """
    due = inner.most_bytes(shape)
    if not due and not payload.numel():
        return payload
    if not due or not payload.numel() or payload.numel() > due + 1:
        raise CodecError(f"{codec.name}: a payload of {payload.numel()} bytes cannot be {shape}")
    how, body = int(payload[0]), payload[1:]
    if how not in (AS_IT_IS, PACKED):
        raise CodecError(f"{codec.name}: a payload begins with {how}, not with 0 or 1")
    if how == PACKED:
        data = expand(body.contiguous().numpy().data, due)
        body = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else body[:0]
    if body.numel() != due:
        raise CodecError(f"{codec.name}: a payload becomes {body.numel()} bytes, and {shape} has {due}")
    return body


def most_bytes(inner: Codec, shape: TensorShape) -> int:
    """As it is, and the byte that says so."""
    due = inner.most_bytes(shape)
    return due + 1 if due else 0
