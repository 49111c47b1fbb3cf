"""Encoded rows in temporary files without a name, mapped: a batch of any rows is read without reading the others."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Store:
    """Columns `[rows, ...]`, each in a file of its own that nobody else can open and that is gone with it."""

    columns: tuple[Array, ...]

    @classmethod
    def write(cls, parts: Iterable[tuple[Array, ...]], like: tuple[Array, ...]) -> "Store":
        """Put the parts, some rows of each column, one after another; `like` has each column's dtype and row shape.

        Raises: DataError if there is no room.
        """
        files: list[Any] = []
        try:
            files += [tempfile.TemporaryFile() for _ in like]  # noqa: SIM115 (closed below, and mapped beyond that)
            rows = 0
            for part in parts:
                rows += len(part[0])
                for file, values in zip(files, part, strict=True):
                    file.write(np.ascontiguousarray(values).data)
            for file in files:
                file.flush()
            return cls(tuple(_mapped(file, rows, each) for file, each in zip(files, like, strict=True)))
        except OSError as error:
            raise DataError(
                f"the encoded rows cannot be written to {tempfile.gettempdir()} ({error.strerror}): make room there, "
                "or name another folder in TMPDIR."
            ) from error
        finally:
            for file in files:
                file.close()

    def take(self, rows: NDArray[np.int64]) -> tuple[Array, ...]:
        """These rows of each column, copied."""
        return tuple(column[rows] for column in self.columns)


def _mapped(file: Any, rows: int, like: Array) -> Array:
    shape = (rows, *like.shape[1:])
    if not np.prod(shape):
        return np.empty(shape, like.dtype)
    return np.memmap(file, dtype=like.dtype, mode="r", shape=shape).view(np.ndarray)
