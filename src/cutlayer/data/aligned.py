"""Which rows of a table make the dataset, in which order, and what they are called: by its ids and an alignment."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from cutlayer.data.ids import Ids, read_ids
from cutlayer.errors import DataError

Order = NDArray[np.int64]
_PIECE = 4096
_AGAIN = "run `cutlayer align` again"


class RowIds(Sequence[int | str | None]):
    """The ids of a dataset's rows, in its order, kept as compactly as in their file. None where the table lacks a row.

    >>> list(RowIds(pa.array(["b", "a"])))
    ['b', 'a']
    """

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, at: int) -> int | str | None: ...

    @overload
    def __getitem__(self, at: slice) -> list[int | str | None]: ...

    def __getitem__(self, at: int | slice) -> Any:
        return self._column[at].to_pylist() if isinstance(at, slice) else self._column[at].as_py()

    def __iter__(self) -> Iterator[int | str | None]:
        for start in range(0, len(self), _PIECE):
            yield from self._column.slice(start, _PIECE).to_pylist()


def own_rows(path: Path, column: str) -> RowIds:
    """The ids of all rows. Raises: DataError with counts if some are missing, or in several rows."""
    ids = read_ids(path, column)
    return RowIds(ids.column(np.arange(len(ids), dtype=np.int64)))


def aligned_rows(path: Path, column: str, aligned: Path) -> tuple[Order, RowIds, int]:
    """The rows that an alignment picked, -1 where the table lacks one, their ids, and how many the table has.

    Raises: DataError.
    """
    held, rows = _read(aligned)
    ids = read_ids(path, column, "int" if pa.types.is_integer(held.type) else "text")
    _check(path, aligned, ids, held, rows)
    return rows, RowIds(held), len(ids)


def _read(aligned: Path) -> tuple[Any, Order]:
    """The columns `id` and `row`."""
    try:
        table = parquet.read_table(aligned, memory_map=True)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {aligned}: run `cutlayer align`, which writes it.") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{aligned} is no file that `cutlayer align` wrote: run it again.") from error
    if not {"id", "row"} <= set(table.column_names) or not pa.types.is_integer(table.schema.field("row").type):
        raise DataError(f"{aligned} lacks the columns id and row that `cutlayer align` writes: {_AGAIN}.")
    if not table.num_rows:
        raise DataError(f"{aligned} has no rows, so the parties have none in common: compare how they write their ids.")
    rows = table["row"].cast(pa.int64())
    if rows.null_count:
        raise DataError(f"{aligned} names no row in {rows.null_count:,} of its rows: {_AGAIN}.")
    return table["id"].combine_chunks(), np.array(rows.to_numpy())


def _check(path: Path, aligned: Path, ids: Ids, held: Any, rows: Order) -> None:
    """The table must still have these ids at these rows."""
    there = rows[rows >= 0]
    changed = f"{path} has changed since it was aligned in {aligned}"
    if len(there) and int(there.max()) >= len(ids):
        raise DataError(f"{changed}: it has {len(ids):,} rows, and row {int(there.max()):,} was aligned: {_AGAIN}.")
    if len(np.unique(there)) < len(there):
        raise DataError(f"{aligned} names a row of {path} twice: {_AGAIN}.")
    now = ids.column(rows).cast(pa.large_string())
    was = held.cast(pa.large_string())
    same = compute.or_(
        compute.fill_null(compute.equal(now, was), False), compute.and_(compute.is_null(now), compute.is_null(was))
    )
    if differ := len(same) - same.true_count:
        raise DataError(f"{changed}: {differ:,} of {len(rows):,} rows have another id: {_AGAIN}.")
