"""Small numbers, packed: `width` bits each, the lowest first, without gaps; the last byte is filled up with zeros."""

import torch
from torch import Tensor

from cutlayer.errors import CodecError

_GATHER = 0x0102040810204080
"""Multiplied with eight bytes of one bit each it brings all of them into the highest byte."""
_SPREAD = torch.tensor(
    [sum((byte >> at & 1) << 8 * at for at in range(8)) for byte in range(256)], dtype=torch.int64
)  # fmt: skip


def packed_bytes(count: int, width: int) -> int:
    """Bytes of `count` numbers.

    >>> packed_bytes(3, 3)
    2
    """
    return -(-count * width // 8)


def width_of(count: int) -> int:
    """Bits of a number below `count`.

    >>> [width_of(count) for count in (1, 2, 3, 256, 257)]
    [0, 1, 2, 8, 9]
    """
    return max(count - 1, 0).bit_length()


def pack(numbers: Tensor, width: int) -> Tensor:
    """The bytes of whole numbers (any shape, any integer dtype) below 2^width, flat."""
    flat = numbers.reshape(-1)
    if width == 8:
        return flat.to(torch.uint8)
    if width == 4:
        return _nibbles(flat.to(torch.uint8))
    if width != 1:
        flat = flat.to(torch.int64)[:, None] >> torch.arange(width) & 1
    return _bits(flat.to(torch.uint8).reshape(-1))


def unpack(payload: Tensor, count: int, width: int) -> Tensor:
    """`count` numbers: uint8 up to a width of 8, else int64. Raises `CodecError` if what fills up is not zero."""
    if width == 0:
        return torch.zeros(count, dtype=torch.uint8)
    if width == 8:
        return payload
    if (spare := packed_bytes(count, width) * 8 - count * width) and int(payload[-1]) >> 8 - spare:
        raise CodecError("packed numbers end in bits that belong to none")
    if width == 4:
        return torch.stack((payload & 15, payload >> 4), 1).reshape(-1)[:count]
    bits = _SPREAD[payload.int()].view(torch.uint8)[: count * width]
    if width == 1:
        return bits
    dtype = torch.uint8 if width < 8 else torch.int64
    numbers = torch.zeros(count, dtype=dtype)
    for at in range(width):
        numbers |= bits[at::width].to(dtype) << at
    return numbers


def _nibbles(flat: Tensor) -> Tensor:
    if flat.numel() % 2:
        flat = torch.cat((flat, flat.new_zeros(1)))
    pairs = flat.view(torch.int16)
    return (pairs | pairs >> 4).to(torch.uint8)


def _bits(flat: Tensor) -> Tensor:
    if short := -flat.numel() % 8:
        flat = torch.cat((flat, flat.new_zeros(short)))
    return (flat.view(torch.int64) * _GATHER >> 56).to(torch.uint8)
