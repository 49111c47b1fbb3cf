"""A CSV file, and where in it a fault is, as a person sees it there. Its header and its faults are found in Python."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyarrow import csv as arrow_csv

from cutlayer.errors import DataError

MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none", "-", "?")
"""Cells that stand for no number and no date, in small letters."""
_PIECE_BYTES = 2**22
"""Of a CSV file, parsed at once; no single row may be longer."""


class TableFile(Protocol):
    """A table that is read a batch of rows at a time; `str()` names it in sentences."""

    def header(self) -> list[str]: ...

    def count(self, names: Sequence[str]) -> int: ...

    def batches(self, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]: ...

    def row_of(self, sample: int) -> int: ...

    def rowless(self) -> DataError: ...


@dataclass(frozen=True, slots=True)
class CsvFile:
    """A CSV file; `str()` names it in sentences."""

    path: Path
    delimiter: str = ","

    def __str__(self) -> str:
        return str(self.path)

    def header(self) -> list[str]:
        """The column names. Raises: DataError if there is no file, or nothing in it."""
        for _, cells in self._rows():
            return cells
        raise DataError(f"{self} is empty: its first row must name the columns, the others hold the samples.")

    def count(self, names: Sequence[str]) -> int:
        """How many rows there are: the file is read through."""
        return sum(batch.num_rows for batch in self.batches(names, 0))

    def batches(self, names: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """The columns as texts, a piece of the file at a time, however many rows that is. Raises: DataError."""
        chosen = list(names)
        types = dict.fromkeys(chosen, pa.string())
        try:
            with arrow_csv.open_csv(
                self.path,
                read_options=arrow_csv.ReadOptions(block_size=_PIECE_BYTES),
                parse_options=arrow_csv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(column_types=types, include_columns=chosen),
            ) as pieces:
                yield from pieces
        except pa.ArrowInvalid as error:
            raise self.fault(error) from error
        except OSError as error:
            raise self.unreadable(error) from error

    def row_of(self, sample: int) -> int:
        """The row of a sample, counted from 1 with the header and with blank rows, as a spreadsheet counts."""
        for place, (row, _) in enumerate(self._rows()):
            if place == sample + 1:
                return row
        return sample + 2

    def fault(self, error: pa.ArrowInvalid) -> DataError:
        """Why pyarrow could not read the file."""
        if "UTF8" in str(error):
            return DataError(f"{self} is not UTF-8 text: save it anew as CSV in UTF-8.")
        if next(islice(self._rows(), 1, None), None) is None:
            return self.rowless()
        columns = len(self.header())
        for row, cells in self._rows():
            if len(cells) != columns:
                return DataError(
                    f"{self}, row {row}, has {_counted(len(cells), 'cell')} where the header has "
                    f"{_counted(columns, 'column')}: add or remove cells, or put texts that hold a "
                    f"{self.delimiter!r} in quotes."
                )
        return DataError(f"{self} is not a table that can be read ({error}): save it anew as CSV.")

    def rowless(self) -> DataError:
        """There is a header, and nothing else."""
        return DataError(f"{self} has a header but no rows: add one row for each sample.")

    def unreadable(self, error: OSError) -> DataError:
        """Why the file could not be opened or read."""
        if isinstance(error, FileNotFoundError):
            return DataError(f"there is no file {self}: correct the path, which is taken from {Path.cwd()}.")
        return DataError(f"{self} cannot be read ({error}): check that it is a file you may read.")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row that is not blank, and its number from 1."""
        try:
            with (
                pa.input_stream(str(self.path), compression="detect") as stream,
                TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text,
            ):
                for row, cells in enumerate(csv.reader(text, delimiter=self.delimiter), start=1):
                    if cells:
                        yield row, cells
        except OSError as error:
            raise self.unreadable(error) from error
        except csv.Error as error:
            raise DataError(f"{self} is not a table that can be read ({error}): save it anew as CSV.") from error


def check_names(file: TableFile, header: list[str], wanted: Sequence[str]) -> None:
    """Raises: DataError if a column is missing, with the nearest name, or if two have the same."""
    if twice := sorted({name for name in header if header.count(name) > 1}):
        listed = ", ".join(map(repr, twice))
        raise DataError(f"{file} has several columns of the same name ({listed}): rename all but one of each.")
    if missing := [name for name in dict.fromkeys(wanted) if name not in header]:
        listed = ", ".join(f"{name!r} (nearest: {nearest(name, header)!r})" for name in missing)
        hint = ""
        if len(header) == 1 and (others := [mark for mark in (";", "\t", ",", "|") if mark in header[0]]):
            hint = f" or, as the cells seem to be parted by {others[0]!r}, pass that as the delimiter"
        raise DataError(f"{file} has no column {listed}: correct the name{hint}.")


def fault_in(
    file: TableFile, sample: int, column: str, cell: str, wanted: str, *, near: str | None = None
) -> DataError:
    """The cell of a sample (counted from 0) is not what is `wanted`."""
    place = f"{file}, row {file.row_of(sample)}, column {column!r}"
    if cell.lower() in MISSING:
        held = f": the value is missing ({cell!r})" if cell else ": the cell is blank"
        return DataError(f"{place}{held}, where {wanted} is expected: fill it in, or leave the row or the column out.")
    shortened = cell if len(cell) <= 40 else f"{cell[:37]}..."
    hint = "" if near is None else f", {near!r} perhaps"
    return DataError(
        f"{place}: {shortened!r} is not {wanted}: correct the cell{hint}, or leave the row or the column out."
    )


def nearest(name: str, names: list[str]) -> str:
    """The most similar of `names`.

    >>> nearest("agee", ["sex", "age"])
    'age'
    """
    return get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
