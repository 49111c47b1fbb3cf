"""Private set intersection by Diffie-Hellman over ristretto255 (RFC 9496): the arithmetic of an alignment. Pure.

Ids are hashed to the group and multiplied by secret scalars: the result is the same in whatever order parties do it,
and shows nothing of the id to whoever lacks one of the scalars. The curve is libsodium's (`rbcl`), never our own.
Lists are `[ids, 32]` arrays of bytes. Meadows 1986; Huberman, Franklin and Hogg 1999, section 3.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from hashlib import sha512
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import DataError
from cutlayer.protocol.aligning import CODE_BYTES, POINT_BYTES

Bytes2d = NDArray[np.uint8]
Places = NDArray[np.int64]

_DOMAIN = b"cutlayer align 1: id to ristretto255"
_PIECE = 512


def hash_ids(ids: Iterable[bytes], run: str) -> bytes:
    """The ids as points, 32 bytes each, different in each run."""
    to_point = _curve().crypto_core_ristretto255_from_hash
    start = sha512(len(_DOMAIN).to_bytes(1, "big") + _DOMAIN + len(run).to_bytes(1, "big") + run.encode())

    def digest(each: bytes) -> bytes:
        hashed = start.copy()
        hashed.update(each)
        return hashed.digest()

    return b"".join([to_point(digest(each)) for each in ids])


def new_key() -> bytes:
    """A secret scalar."""
    key: bytes = _curve().crypto_core_ristretto255_scalar_random()
    return key


def mask(points: bytes | memoryview, key: bytes, threads: int = 1) -> Bytes2d:
    """Each point times the key, `[points, 32]`. Raises: DataError if one is no point, or the group's identity."""
    multiply = _curve().crypto_scalarmult_ristretto255

    def masked(piece: Sequence[bytes]) -> bytes:
        return b"".join([multiply(key, point) for point in piece])

    try:
        return as_rows(_each(masked, points, threads), POINT_BYTES)
    except RuntimeError as error:  # all that libsodium says of either
        raise DataError("a point is no element of the group, or its identity") from error


def check_points(points: bytes | memoryview, threads: int = 1) -> None:
    """Raises: DataError if one is no point, or the group's identity."""
    valid = _curve().crypto_core_ristretto255_is_valid_point

    def checked(piece: Sequence[bytes]) -> bytes:
        return b"" if all(valid(point) and any(point) for point in piece) else b"0"

    if _each(checked, points, threads):
        raise DataError("a point is no element of the group, or its identity")


def shuffled(count: int) -> Places:
    """A secret order of `count` things, drawn from the operating system's generator."""
    return np.argsort(np.frombuffer(os.urandom(8 * count), np.uint64), kind="stable").astype(np.int64)


def as_rows(data: bytes | memoryview, width: int) -> Bytes2d:
    """Bytes as an array `[rows, width]`, over the same memory."""
    return np.frombuffer(data, np.uint8).reshape(-1, width)


# ---------------------------------------------------------------------- comparing


def common_places(lists: Mapping[str, Bytes2d], *, labels: str = "", at_least: int = 0) -> dict[str, Places]:
    """Where the common points lie in each list, in the order of the points themselves; -1 where a list lacks one.

    Common is what all lists hold; with `at_least`, what the list of `labels` and so many others hold.
    Raises: DataError naming an owner whose list repeats a point.
    """
    points = np.concatenate(list(lists.values()))
    distinct, numbers = np.unique(_comparable(points), return_inverse=True)
    del points
    places, start = {}, 0
    for owner, points in lists.items():
        where = np.full(len(distinct), -1, np.int64)
        where[numbers[start : start + len(points)]] = np.arange(len(points))
        if np.count_nonzero(where >= 0) < len(points):
            raise DataError(f"the list of {owner} repeats a point")
        places[owner], start = where, start + len(points)
    others = sum((where >= 0).astype(np.int64) for owner, where in places.items() if owner != labels)
    held = np.asarray(others)
    chosen = (places[labels] >= 0) & (held >= at_least) if at_least else held == len(lists)
    return {owner: where[chosen] for owner, where in places.items()}


def draw_codes(count: int) -> Bytes2d:
    """Random codes `[count, 16]`: who does not know what they stand for learns nothing from them."""
    return as_rows(os.urandom(CODE_BYTES * count), CODE_BYTES).copy()


def rows_of_codes(order: Bytes2d, codes: Bytes2d) -> Places:
    """For each code of `order` `[common, 16]` the row that has it in `codes` `[rows, 16]`; -1 for a code of zeros.

    Raises: DataError if a code is no row's, or comes twice.
    """
    wanted, held = _comparable(order), _comparable(codes)
    sorting = np.argsort(held, kind="stable")
    at = np.minimum(np.searchsorted(held, wanted, sorter=sorting), len(held) - 1)
    missing = wanted == b""
    rows = np.where(missing, -1, sorting[at]).astype(np.int64)
    taken = rows[~missing]
    if not np.array_equal(held[taken], wanted[~missing]) or len(np.unique(taken)) < len(taken):
        raise DataError("a code is no row's, or comes twice")
    return rows


def _comparable(rows: Bytes2d) -> NDArray[np.bytes_]:
    """Each row as one value. numpy drops zeros at a value's end, which tells nothing apart: all have one width."""
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").reshape(-1)


# ---------------------------------------------------------------------- libsodium


@cache
def _curve() -> Any:
    """libsodium's ristretto255. `rbcl` writes its library to a temporary file and leaves it there; we do not."""
    import rbcl  # type: ignore[import-untyped]

    with suppress(OSError, AttributeError, KeyError):
        os.unlink(sys.modules["rbcl._sodium"].lib_path)
    return rbcl


def _each(work: Callable[[Sequence[bytes]], bytes], points: bytes | memoryview, threads: int) -> bytes:
    """What `work` makes of pieces of the points, joined. libsodium works outside the interpreter's lock."""
    data = bytes(points)
    pieces = [
        [data[at : at + POINT_BYTES] for at in range(start, min(start + _PIECE * POINT_BYTES, len(data)), POINT_BYTES)]
        for start in range(0, len(data), _PIECE * POINT_BYTES)
    ]
    if threads <= 1:
        return b"".join(map(work, pieces))
    with ThreadPoolExecutor(threads) as pool:
        return b"".join(pool.map(work, pieces))
