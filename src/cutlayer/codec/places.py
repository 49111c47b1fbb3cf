"""Which k of n places, for each row, in few bits: a bitmap, or Elias and Fano's code where that is smaller.

Elias-Fano (Elias 1974, Fano 1971): of the rising places of a row the lower `l` bits lie side by side, and the rest as a
bitmap that has a one at (place >> l) + i for the i-th of them: k·(l + 1) + ((n - 1) >> l) bits, at most half a bit per
place above what any code needs. With k = n there is nothing to say.
"""

import torch
from torch import Tensor

from cutlayer.codec.bits import pack, packed_bytes, unpack
from cutlayer.errors import CodecError


def place_bytes(rows: int, k: int, n: int) -> int:
    """Bytes of k places among n, for so many rows.

    >>> place_bytes(1, 5, 1568), place_bytes(1, 800, 1568), place_bytes(64, 9, 9)
    (7, 196, 0)
    """
    if k in (0, n):
        return 0
    low = _low_bits(k, n)
    return packed_bytes(rows * _high_bits(k, n, low), 1) + packed_bytes(rows * k, low or 0)


def pack_places(places: Tensor, n: int) -> Tensor:
    """Bytes of `places` [rows, k], each row rising, below n."""
    rows, k = places.shape
    if not rows or k in (0, n):
        return torch.empty(0, dtype=torch.uint8)
    low = _low_bits(k, n)
    high = torch.zeros(rows, _high_bits(k, n, low), dtype=torch.uint8)
    if low is None:
        return pack(high.scatter_(1, places, 1), 1)
    high.scatter_(1, (places >> low) + torch.arange(k), 1)
    return torch.cat((pack(high, 1), pack(places & (1 << low) - 1, low))) if low else pack(high, 1)


def unpack_places(payload: Tensor, rows: int, k: int, n: int) -> Tensor:
    """[rows, k], each row rising, below n. Raises `CodecError` where the bytes say anything else."""
    if not rows or k in (0, n):
        return torch.arange(k).expand(rows, k)
    low = _low_bits(k, n)
    width = _high_bits(k, n, low)
    cut = packed_bytes(rows * width, 1)
    bitmap = unpack(payload[:cut], rows * width, 1).view(rows, width)
    if not bool((bitmap.sum(1) == k).all()):
        raise CodecError(f"a row of a sparse tensor does not name {k} places")
    places = bitmap.nonzero()[:, 1].view(rows, k)
    if low is None:
        return places
    places = (places - torch.arange(k) << low) | unpack(payload[cut:], rows * k, low).view(rows, k)
    if int(places.max()) >= n or (k > 1 and not bool((places.diff(dim=1) > 0).all())):
        raise CodecError(f"places in a sparse tensor are not rising, or not below {n}")
    return places


def _low_bits(k: int, n: int) -> int | None:
    """l; None for a bitmap."""
    low = max((n // k).bit_length() - 1, 0)
    return low if k * low + _high_bits(k, n, low) < n else None


def _high_bits(k: int, n: int, low: int | None) -> int:
    return n if low is None else k + (n - 1 >> low)
