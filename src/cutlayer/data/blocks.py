"""Tables, a block of rows at a time: how much is in memory depends on no file's length."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cutlayer.data.cells import CsvFile, TableFile
from cutlayer.data.parquet import ParquetFile
from cutlayer.data.values import Cells
from cutlayer.errors import DataError

PARQUET_ENDING = ".parquet"
_BLOCK_ROWS = 2**16
_BLOCK_VALUES = 2**21


def table_file(path: Path, delimiter: str = ",") -> CsvFile | ParquetFile:
    """The file, by its ending. Raises: DataError for a delimiter that is none."""
    if len(delimiter) != 1:
        raise DataError(f"{delimiter!r} cannot part the cells of {path}: give one character, such as ',' or ';'.")
    return ParquetFile(path) if str(path).lower().endswith(PARQUET_ENDING) else CsvFile(path, delimiter)


def block_rows(width: int) -> int:
    """How many rows of so many columns make a block. It depends on nothing else: sums go by blocks."""
    return max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // max(1, width)))


def blocks(
    file: TableFile, names: Sequence[str], rows: int, chosen: NDArray[np.bool_]
) -> Iterator[tuple[dict[str, Cells], int]]:
    """The cells of the `chosen` `[rows of the file]` by column, and how many, for each block of `rows` of the file.

    Raises: DataError if the file has no longer as many rows.
    """
    start = 0
    for table in _even(file.batches(names, rows), rows):
        stop = start + table.num_rows
        places = np.flatnonzero(chosen[start:stop])
        if stop > len(chosen):
            break
        if len(places):
            kept = table if len(places) == table.num_rows else table.take(pa.array(places))
            yield {name: Cells(file, name, kept[name].combine_chunks(), places + start) for name in names}, len(places)
        start = stop
    if start != len(chosen):
        raise DataError(f"{file} had {len(chosen):,} rows, and now has others: leave it as it is while it is read.")


def _even(batches: Iterator[Any], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of so many, the last one shorter, wherever the file has its own seams."""
    held: list[Any] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows)
            held, count = table.slice(rows).to_batches(), count - rows
    if count:
        yield pa.Table.from_batches(held)
