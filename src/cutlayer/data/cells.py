"""Where in a CSV file a fault is, as a person sees it there. Walks the file only for its header and for a fault."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from io import TextIOWrapper
from itertools import islice
from pathlib import Path

import pyarrow as pa

from cutlayer.errors import DataError

_MISSING = frozenset({"", "na", "n/a", "#n/a", "nan", "null", "none", "-", "?"})


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


def fault_in(file: CsvFile, sample: int, column: str, cell: str, wanted: str, *, near: str | None = None) -> DataError:
    """The cell of a sample (counted from 0) is not what is `wanted`."""
    place = f"{file}, row {file.row_of(sample)}, column {column!r}"
    if cell.lower() in _MISSING:
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
