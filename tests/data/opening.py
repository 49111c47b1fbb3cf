"""Tables of a few columns, written as CSV and as Parquet, and opened by their roles."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from cutlayer.data.roles import ColumnRole, TableRoles
from cutlayer.data.tables import Table, open_table
from cutlayer.errors import DataError

Columns = Mapping[str, Any]


def write_csv(path: Path, columns: Columns) -> Path:
    """None is a blank cell; floats are written with all their digits. The last, nameless column keeps no row blank."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "rest"])
        writer.writerows([*("" if cell is None else cell for cell in row), "-"] for row in rows_of(columns))
    return path


def write_parquet(path: Path, columns: Columns, *, group: int = 3) -> Path:
    """Arrow finds the types, or they are arrays already; rows lie in groups of a few."""
    parquet.write_table(pa.table(dict(columns)), path, row_group_size=group)
    return path


def rows_of(columns: Columns) -> list[tuple[Any, ...]]:
    return list(zip(*(list(values) for values in columns.values()), strict=True))


def both(folder: Path, columns: Columns) -> tuple[Path, Path]:
    """The same table, twice."""
    return write_csv(folder / "rows.csv", columns), write_parquet(folder / "rows.parquet", columns)


def fitted(path: Path, columns: Mapping[str, ColumnRole], rows: Sequence[int] | None = None, **terms: Any) -> Table:
    """A table fitted to these rows, or to all."""
    table = open_table(path, TableRoles(columns=columns, **terms))
    table.fit(torch.arange(len(table)) if rows is None else torch.tensor(rows))
    return table


def x_of(table: Table) -> Tensor:
    """The only tensor of all features."""
    (x,), _ = table.batch(slice(None))
    return x


def y_of(table: Table) -> Tensor:
    _, y = table.batch(slice(None))
    assert y is not None
    return y


def refusal(path: Path, columns: Mapping[str, ColumnRole], **terms: Any) -> str:
    """The sentence with which a table is refused, as it is opened or fitted: it names the file and a mend."""
    with pytest.raises(DataError) as caught:
        fitted(path, columns, **terms)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert ": " in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence
