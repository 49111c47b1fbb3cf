"""Tables by the roles of their columns: CSV or Parquet, larger than memory, fitted to a party's own training rows.

A table is read in three streaming passes at most: its ids (or how many rows it has), what is learned from the training
rows, and the encoded rows, which go to temporary files and are taken from there in any order.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cutlayer.data.aligned import RowIds, aligned_rows, own_rows
from cutlayer.data.blocks import block_rows, blocks, table_file
from cutlayer.data.cells import CsvFile, check_names
from cutlayer.data.encoding import Encoding, FittedColumn, learner
from cutlayer.data.parquet import ParquetFile
from cutlayer.data.plain import read_table
from cutlayer.data.roles import Number, OneHot, TableRoles, widths
from cutlayer.data.store import Store
from cutlayer.data.values import UNLABELLED, Cells, check_type, labels
from cutlayer.errors import DataError

__all__ = ["Table", "open_table", "read_table"]

Places = NDArray[np.int64]
Mask = NDArray[np.bool_]


def open_table(
    path: str | Path, roles: TableRoles, *, encoding: Encoding | None = None, delimiter: str = ","
) -> "Table":
    """A CSV or Parquet file as a dataset, by the roles of its columns.

    Args:
        path: the file, `.parquet` or else CSV, its first row the column names.
        roles: what its columns are for. Columns without a role are not read.
        encoding: learned at training; then the table may lack the label, and `fit` has nothing to do.
        delimiter: what parts the cells of a CSV file.

    Raises:
        DataError: the file, column and row, and what to do.
    """
    if faults := roles.faults():
        raise DataError("; ".join(faults) + ".")
    file = table_file(Path(path), delimiter)
    table = Table(file, roles, has_label=_check_header(file, roles, may_lack=encoding is not None))
    if encoding is not None or not roles.columns:
        table.encode_with(encoding or Encoding(columns=()))
    return table


class Table(Dataset[Any]):
    """Rows of one party: samples `x`, `(x, y)` or `y`, by what the table has.

    x is float32 `[n]`, or int64 codes `[e]` if all columns are embedded, or a pair of both; y is one number `[]`.
    Samples are there after `fit` or `encode_with`; `len`, `ids` and `specs` before.
    """

    def __init__(self, file: CsvFile | ParquetFile, roles: TableRoles, *, has_label: bool) -> None:
        self._file, self._roles, self.has_label = file, roles, has_label
        self._names = [*roles.columns, *([roles.label] if has_label and roles.label else [])]
        self._order: Places | None = None
        self._ids: RowIds | None = None
        if roles.id and roles.aligned:
            self._order, self._ids, self._file_rows = aligned_rows(file.path, roles.id, roles.aligned)
        elif roles.id:
            self._ids = own_rows(file.path, roles.id)
            self._file_rows = len(self._ids)
        else:
            self._file_rows = file.count(self._names[:1])
        if not self._file_rows:
            raise file.rowless()
        self._rows = self._file_rows if self._order is None else len(self._order)
        self._where = _where(self._order, self._file_rows)
        self._encoding: Encoding | None = None
        self._store: Store | None = None
        self._fitted_to: Mask | None = None

    def __len__(self) -> int:
        return self._rows

    @property
    def has_features(self) -> bool:
        return bool(self._roles.columns)

    @property
    def ids(self) -> Sequence[int | str | None] | None:
        """The ids in the dataset's order, None if no column is one; an id is None where the table lacks the row."""
        return self._ids

    @property
    def present(self) -> Tensor:
        """Which rows the table has `[rows]`: all, or those that an alignment found in it. Others are all missing."""
        return torch.from_numpy(np.ones(self._rows, np.bool_) if self._order is None else self._order >= 0)

    @property
    def specs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Of each tensor of x: its dtype and the shape of one row."""
        n, e = widths(self._roles.columns)
        return [(dtype, (size,)) for dtype, size in (("float32", n), ("int64", e)) if size]

    @property
    def encoding(self) -> Encoding:
        """What was learned. Raises: DataError before `fit`."""
        if self._encoding is None:
            raise DataError(f"{self._file} has not been fitted to training rows: call fit(rows) first.")
        return self._encoding

    def fit(self, rows: Tensor) -> None:
        """Learn from these rows of the dataset, and encode all. A table that has its encoding already keeps it.

        Raises: DataError for cells that fit no role, and for another fit to other rows.
        """
        train = np.zeros(self._rows, np.bool_)
        train[self._checked(rows)] = True
        if self._fitted_to is not None and not np.array_equal(train, self._fitted_to):
            raise DataError(f"{self._file} was fitted to other training rows: open it anew to fit it to these.")
        if self._encoding is None:
            self.encode_with(self._learned(self._chosen(train)))
            self._fitted_to = train

    def encode_with(self, encoding: Encoding) -> None:
        """Encode all rows as a table of the same columns was, held-out rows as the training rows say."""
        encoding.check(self._roles.columns, str(self._file))
        self._store = Store.write(self._encoded(encoding), self._like())
        self._encoding = encoding

    def batch(self, rows: slice | Tensor | Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The tensors of x, rows first, and of y if there are labels. Raises: DataError before `fit`."""
        encoding = self.encoding
        assert self._store is not None
        places = np.arange(self._rows)[rows] if isinstance(rows, slice) else self._checked(rows)
        taken = [torch.from_numpy(values) for values in self._store.take(self._stored(places))]
        y = taken.pop() if self.has_label else None
        x = tuple(values for values in taken if values.shape[1]) if encoding.columns else ()
        return x, y

    def __getitem__(self, row: int) -> Any:
        if not -self._rows <= row < self._rows:
            raise IndexError(f"row {row} of {self._rows} rows")
        return self.__getitems__([row % self._rows])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """Samples of these rows; torch's loaders ask for them so."""
        x, y = self.batch(rows)
        features: list[Any] = list(x[0]) if len(x) == 1 else list(zip(*x, strict=True))
        if y is None:
            return features
        return list(zip(features, y, strict=True)) if x else list(y)

    def _checked(self, rows: Tensor | Sequence[int]) -> Places:
        places = np.asarray(rows, np.int64).reshape(-1)
        if len(places) and (places.min() < 0 or places.max() >= self._rows):
            raise DataError(f"rows {places.min()} to {places.max()} were asked of the {self._rows} of {self._file}.")
        return places

    def _chosen(self, wanted: Mask) -> Mask:
        """Which rows of the file `[rows of the file]` these rows of the dataset are; those it lacks are none."""
        if self._order is None:
            return wanted
        rows = self._order[wanted]
        chosen = np.zeros(self._file_rows, np.bool_)
        chosen[rows[rows >= 0]] = True
        return chosen

    def _stored(self, places: Places) -> Places:
        """Where these rows lie in the store, which keeps the file's order and, last, the row that is all missing."""
        return places if self._where is None else self._where[places]

    def _blocks(self, names: Sequence[str], chosen: Mask) -> Iterator[tuple[dict[str, Cells], int]]:
        return blocks(self._file, names, block_rows(sum(widths(self._roles.columns)) + len(names)), chosen)

    def _learned(self, chosen: Mask) -> Encoding:
        if not chosen.any():
            raise DataError(f"no training rows of {self._file} are left to fit its columns to: give it more rows.")
        learners = {name: learner(role) for name, role in self._roles.columns.items()}
        for cells, _ in self._blocks(list(learners), chosen):
            for name, each in learners.items():
                each.add(cells[name])
        fits = {name: each.fit(f"{self._file}, column {name!r},") for name, each in learners.items()}
        roles = self._roles.columns
        return Encoding(columns=tuple(FittedColumn(name=name, role=roles[name], fit=fits[name]) for name in roles))

    def _encoded(self, encoding: Encoding) -> Iterator[tuple[NDArray[Any], ...]]:
        """x, codes, and y if there are labels, of the dataset's rows in the file's order; then the missing one."""
        chosen = self._chosen(np.ones(self._rows, np.bool_))
        lacking, first = 0, -1
        for cells, count in self._blocks(self._names, chosen):
            columns = encoding.encode(cells, count)
            if not self.has_label:
                yield columns
                continue
            y, lacks = labels(cells[self._names[-1]], self._roles.classes, self._roles.label_dtype)
            if lacks.any() and not self._roles.unlabelled:
                first = first if lacking else int(cells[self._names[-1]].rows[lacks.argmax()])
                lacking += int(lacks.sum())
            yield *columns, y
        lost = self._rows - int(chosen.sum())
        if self.has_label and not self._roles.unlabelled and lacking + lost:
            raise self._unlabelled(lacking + lost, first)
        if lost:
            absent = encoding.absent(self._file)
            yield (*absent, np.full(1, UNLABELLED, np.int64)) if self.has_label else absent

    def _like(self) -> tuple[NDArray[Any], ...]:
        """No rows of what `_encoded` yields."""
        n, e = widths(self._roles.columns)
        columns = (np.empty((0, n), np.float32), np.empty((0, e), np.int64))
        dtype = np.int64 if self._roles.classes is not None else np.dtype(self._roles.label_dtype)
        return (*columns, np.empty(0, dtype)) if self.has_label else columns

    def _unlabelled(self, lacking: int, first: int) -> DataError:
        at = f", the first in row {self._file.row_of(first)}" if first >= 0 else ""
        mend = "fill them in, leave the rows out"
        if self._roles.label_dtype == "int64":
            mend += ", or say unlabelled = true"
        return DataError(
            f"{self._file}, column {self._roles.label!r}: the label is missing in {lacking:,} of {self._rows:,} "
            f"rows{at}: {mend}."
        )


def _check_header(file: CsvFile | ParquetFile, roles: TableRoles, *, may_lack: bool) -> bool:
    """Whether there is the label; every other column must be, and have a type that suits. Raises: DataError."""
    header = file.header()
    has_label = roles.label is not None and (roles.label in header or not may_lack)
    named = [*roles.columns, *([roles.id] if roles.id else []), *([roles.label] if has_label and roles.label else [])]
    check_names(file, header, named)
    if not roles.columns and not has_label:
        raise DataError(f"{file} has no column that is wanted: it has neither features nor the label {roles.label!r}.")
    if isinstance(file, ParquetFile):
        types = file.types()
        for name, role in roles.columns.items():
            check_type(file, name, types[name], type(role))
        if has_label and roles.label:
            check_type(file, roles.label, types[roles.label], Number if roles.classes is None else OneHot)
    return has_label


def _where(order: Places | None, file_rows: int) -> Places | None:
    """For each row of the dataset its place among the file's rows that are in it; None if all are, in order."""
    if order is None:
        return None
    there = np.zeros(file_rows, np.bool_)
    there[order[order >= 0]] = True
    return np.where(order < 0, there.sum(), (np.cumsum(there) - 1)[order])
