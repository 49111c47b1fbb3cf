"""What is learned from a party's own training rows, so that its table becomes numbers: means, deviations, categories.

It holds values of the rows, and never leaves the party. It is saved as JSON with the party's replica.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray
from pyarrow import compute

from cutlayer.data.cells import TableFile
from cutlayer.data.roles import ColumnRole, Date, Embedded, Number, OneHot, floats, widths
from cutlayer.data.values import Cells, Floats, Whole, dates, numbers, texts
from cutlayer.errors import DataError

CATEGORIES_MOST = 2**20
"""A column of more different values names its rows rather than their kinds."""


class NumberFit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="number"):
    """The mean of the training rows that have a number, and their deviation; 1 where they are all the same."""

    mean: float
    std: float


class CategoryFit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="categories"):
    """The values that have a place of their own, the most frequent first, equals by name."""

    values: tuple[str, ...]


Fit = NumberFit | CategoryFit


class FittedColumn(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column, its role, and what was learned of it."""

    name: str
    role: ColumnRole
    fit: Fit


class Encoding(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a table's columns become x, in their order. Private: it names columns and categories."""

    columns: tuple[FittedColumn, ...]
    version: Literal[1] = 1

    def to_json(self) -> bytes:
        """The same bytes for the same encoding."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)

    @classmethod
    def from_json(cls, data: bytes) -> "Encoding":
        """What `to_json` wrote. Raises: DataError."""
        try:
            encoding = msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise DataError(
                f"this is no encoding that this cutlayer reads ({error}): take the file that was saved with the "
                "weights, and the cutlayer that wrote it."
            ) from error
        for column in encoding.columns:
            if not _belongs(column):
                raise DataError(
                    f"the encoding of column {column.name!r} does not belong to its role: take the file that was "
                    "saved with the weights."
                )
        return encoding

    def check(self, columns: Mapping[str, ColumnRole], file: str) -> None:
        """Raises: DataError if it was learned for other columns or roles than these."""
        learned = {column.name: column.role for column in self.columns}
        if list(learned.items()) == list(columns.items()):
            return
        names = [*columns, *learned]
        odd = next((name for name in names if columns.get(name) != learned.get(name)), "")
        what = f"column {odd!r} had another role" if odd else "the columns had another order"
        raise DataError(
            f"the encoding does not fit {file}: {what} when the model was trained: write [columns] as it was then."
        )

    def encode(self, cells: Mapping[str, Cells], rows: int) -> tuple[NDArray[np.float32], Whole]:
        """The floats `[rows, n]` and the codes `[rows, e]`. Raises: DataError for a cell that has no number."""
        n, e = widths({column.name: column.role for column in self.columns})
        x, codes = np.zeros((rows, n), np.float32), np.zeros((rows, e), np.int64)
        at = code = 0
        for column in self.columns:
            width = floats(column.role)
            if isinstance(column.fit, NumberFit):
                assert not isinstance(column.role, OneHot | Embedded)
                _put_numbers(x[:, at : at + width], cells[column.name], column.role, column.fit)
            elif isinstance(column.role, OneHot):
                places = _places(cells[column.name], column.fit, column.role.size - 1)
                x[np.arange(rows), at + places] = 1
            else:
                codes[:, code] = _places(cells[column.name], column.fit, -1) + 1
                code += 1
            at += width
        return x, codes

    def absent(self, file: TableFile) -> tuple[NDArray[np.float32], Whole]:
        """A row of which everything is missing, `[1, n]` and `[1, e]`. Raises: DataError where nothing may be."""
        for column in self.columns:
            if isinstance(column.role, Number | Date) and column.role.missing == "refuse":
                raise DataError(
                    f"the aligned rows have some that {file} lacks, but column {column.name!r} takes no missing "
                    'value: write missing = "mean" or "flag".'
                )
        names = [column.name for column in self.columns]
        return self.encode({name: Cells(file, name, pa.nulls(1), np.zeros(1, np.int64)) for name in names}, 1)


class Learner(Protocol):
    """Learns of a column, some of its cells at a time."""

    def add(self, cells: Cells) -> None:
        """Learn of these cells."""

    def fit(self, where: str) -> Fit:
        """What was learned. Raises: DataError if that is nothing; `where` is for sentences."""


def learner(role: ColumnRole) -> Learner:
    """Of a column that has had no cells yet."""
    return _Frequencies(role) if isinstance(role, OneHot | Embedded) else _Moments(role)


class _Moments:
    """Mean and deviation, joined by Chan, Golub and LeVeque's formula (1983, equations 2.1)."""

    def __init__(self, role: Number | Date) -> None:
        self._role = role
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._low, self._high = math.inf, -math.inf

    def add(self, cells: Cells) -> None:
        values = _numbers(cells, self._role)
        values = values[~np.isnan(values)]
        if not len(values):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(values.mean())
            squares, apart = float(np.square(values - mean).sum()), mean - self._mean
            total = self._count + len(values)
            self._squares += squares + apart * apart * self._count * len(values) / total
            self._mean += apart * len(values) / total
        self._count = total
        self._low, self._high = min(self._low, float(values.min())), max(self._high, float(values.max()))

    def fit(self, where: str) -> NumberFit:
        if not self._count:
            raise DataError(f"{where} has no value in the training rows: leave the column out, or fill it in.")
        if self._low == self._high:
            return NumberFit(mean=self._low, std=1.0)
        std = math.sqrt(self._squares / self._count) if math.isfinite(self._squares) else math.inf
        if not (math.isfinite(self._mean) and math.isfinite(std)):
            raise DataError(f"{where} has numbers too large to take their mean: save them in another unit.")
        return NumberFit(mean=self._mean, std=std or 1.0)


class _Frequencies:
    """How often each value comes."""

    def __init__(self, role: OneHot | Embedded) -> None:
        self._size = role.size
        self._counts: Counter[str] = Counter()

    def add(self, cells: Cells) -> None:
        for entry in compute.value_counts(texts(cells).drop_null()).to_pylist():
            self._counts[entry["values"]] += entry["counts"]
        if len(self._counts) > CATEGORIES_MOST:
            raise DataError(
                f"{cells.file}, column {cells.column!r}, has more than {CATEGORIES_MOST:,} different values, so it "
                "seems to name its rows rather than their kinds: leave it out."
            )

    def fit(self, where: str) -> CategoryFit:
        if not self._counts:
            raise DataError(f"{where} has no value in the training rows: leave the column out, or fill it in.")
        ordered = sorted(self._counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return CategoryFit(values=tuple(value for value, _ in ordered[: self._size - 1]))


def _numbers(cells: Cells, role: Number | Date) -> Floats:
    """The numbers or passed days of a column `[rows]`, NaN where they are missing, if they may be."""
    values = dates(cells, role) if isinstance(role, Date) else numbers(cells)
    if role.missing == "refuse":
        cells.refuse(np.isnan(values), "a date" if isinstance(role, Date) else "a number")
    return values


def _put_numbers(out: NDArray[np.float32], cells: Cells, role: Number | Date, fit: NumberFit) -> None:
    """A column's floats into `out` `[rows, 1 or 2]`."""
    values = _numbers(cells, role)
    lacks = np.isnan(values)
    values = np.where(lacks, fit.mean, values)
    with np.errstate(over="ignore"):
        out[:, 0] = (values - fit.mean) / fit.std if role.scale else values
    cells.refuse(~np.isfinite(out[:, 0]), "a number that a float32 can hold")
    if role.missing == "flag":
        out[:, 1] = lacks


def _places(cells: Cells, fit: CategoryFit, other: int) -> Whole:
    """Each value's place among those that were learned `[rows]`, or `other`."""
    places = compute.index_in(texts(cells), value_set=pa.array(fit.values, pa.string()))
    return np.array(compute.fill_null(places, other).to_numpy(zero_copy_only=False), np.int64)


def _belongs(column: FittedColumn) -> bool:
    role, fit = column.role, column.fit
    if isinstance(fit, CategoryFit):
        fits = isinstance(role, OneHot | Embedded) and len(fit.values) < role.size
        return fits and len(set(fit.values)) == len(fit.values)
    return isinstance(role, Number | Date) and math.isfinite(fit.mean) and 0 < fit.std < math.inf
