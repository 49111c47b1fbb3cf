"""Tables of plain numbers, taken as they stand into memory; what is wrong is said with file, row and column."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import compute, csv
from torch import Tensor
from torch.utils.data import TensorDataset

from cutlayer.data.blocks import block_rows, blocks, table_file
from cutlayer.data.cells import CsvFile, TableFile, check_names, fault_in, nearest
from cutlayer.data.parquet import ParquetFile
from cutlayer.data.roles import Number, OneHot
from cutlayer.data.values import check_type, first_uncastable, labels, numbers
from cutlayer.errors import DataError


def read_table(
    path: str | Path,
    features: Sequence[str] | None,
    label: str | None,
    *,
    classes: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    label_dtype: torch.dtype = torch.int64,
    delimiter: str = ",",
    labelled: bool = True,
) -> TensorDataset:
    """A CSV or Parquet file as a dataset of `(x [features], y [])`. A CSV file's first row are the column names.

    Args:
        path: the file, `.parquet` or else CSV; compressed CSV is recognised by its ending (`.gz`).
        features: the columns of x, in this order; None takes all but the label, as the file orders them.
        label: the column of y.
        classes: the label's texts; y is a text's place among them. None reads the label as a number.
        dtype: of x.
        label_dtype: of a label that is a number; a float dtype for a regression.
        delimiter: what parts the cells.
        labelled: if not, no label is read, be it there or not, and samples are `(x,)`.

    Raises:
        DataError: the file, row and column, and what to do.
    """
    file = table_file(Path(path), delimiter)
    names = file.header()
    chosen = _chosen(file, names, features, label, labelled=labelled)
    target = [label] if labelled and label is not None else []
    if isinstance(file, ParquetFile):
        return _read_typed(file, chosen, target, classes, (dtype, label_dtype))
    columns = _read(file, [*chosen, *target])
    rows = len(columns[chosen[0]])
    if not rows:
        raise file.rowless()
    x = torch.empty((rows, len(chosen)), dtype=dtype)
    for place, name in enumerate(chosen):
        x[:, place] = _numbers(file, name, columns[name], dtype)
    if classes is not None:
        return TensorDataset(x, *(_class_numbers(file, name, columns[name], classes) for name in target))
    return TensorDataset(x, *(_numbers(file, name, columns[name], label_dtype) for name in target))


def _read_typed(
    file: ParquetFile,
    chosen: list[str],
    target: list[str],
    classes: Sequence[str] | None,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> TensorDataset:
    """As `read_table`, of a file whose columns have types; `target` is the label, if it is read. Raises: DataError."""
    types = file.types()
    for name in chosen:
        check_type(file, name, types[name], Number)
    for name in target:
        check_type(file, name, types[name], Number if classes is None else OneHot)
    rows = file.count(chosen)
    if not rows:
        raise file.rowless()
    x = torch.empty((rows, len(chosen)), dtype=dtypes[0])
    y = torch.empty(rows, dtype=torch.int64 if classes is not None else dtypes[1])
    dtype = "float64" if y.dtype.is_floating_point else "int64"
    for cells, count in blocks(file, [*chosen, *target], block_rows(len(chosen)), np.ones(rows, np.bool_)):
        at = int(cells[chosen[0]].rows[0])
        for place, name in enumerate(chosen):
            values = torch.from_numpy(numbers(cells[name])).to(dtypes[0])
            cells[name].refuse((~values.isfinite()).numpy(), "a number")
            x[at : at + count, place] = values
        for name in target:
            found, lacks = labels(cells[name], classes, dtype)
            cells[name].refuse(lacks, "a label")
            y[at : at + count] = torch.from_numpy(found)
    return TensorDataset(x, *([y] if target else []))


def _chosen(
    file: TableFile, names: list[str], features: Sequence[str] | None, label: str | None, *, labelled: bool
) -> list[str]:
    """The feature columns, after all faults of the names. Raises: DataError."""
    chosen = [name for name in names if name != label] if features is None else list(features)
    check_names(file, names, [*chosen, *([label] if labelled and label is not None else [])])
    if label in chosen:
        raise DataError(f"{file}: the label {label!r} is also a feature, so the model would see it: leave it out.")
    if twice := sorted({name for name in chosen if chosen.count(name) > 1}):
        raise DataError(f"the features name a column of {file} twice ({_listed(twice)}): name it once.")
    if not chosen:
        raise DataError(f"no features are left of {file}: name at least one column besides the label {label!r}.")
    return chosen


def _read(file: CsvFile, names: list[str]) -> dict[str, pa.ChunkedArray]:
    """The columns as text, without the blanks around it. Raises: DataError."""
    try:
        table = csv.read_csv(
            file.path,
            parse_options=csv.ParseOptions(delimiter=file.delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=names),
        )
    except pa.ArrowInvalid as error:
        raise file.fault(error) from error
    except OSError as error:
        raise file.unreadable(error) from error
    return {name: compute.utf8_trim_whitespace(table[name]) for name in names}


def _numbers(file: CsvFile, column: str, cells: pa.ChunkedArray, dtype: torch.dtype) -> Tensor:
    """`cells` as a tensor `[rows]` of finite numbers. Raises: DataError."""
    if dtype.is_floating_point:
        kind = pa.float64() if dtype is torch.float64 else pa.float32()
        return _tensor(_cast(file, column, cells, kind, "a number")).to(dtype)
    try:
        return _tensor(compute.cast(cells, pa.int64())).to(dtype)
    except pa.ArrowInvalid:
        numbers = _cast(file, column, cells, pa.float64(), "a whole number")
        too_large = compute.greater(compute.abs(numbers), 2.0**53)
        broken = compute.or_(too_large, compute.not_equal(numbers, compute.floor(numbers)))
        if (row := compute.index(broken, True).as_py()) >= 0:
            raise fault_in(file, row, column, cells[row].as_py(), "a whole number") from None
        return _tensor(compute.cast(numbers, pa.int64())).to(dtype)


def _cast(file: CsvFile, column: str, cells: pa.ChunkedArray, kind: pa.DataType, wanted: str) -> pa.ChunkedArray:
    try:
        numbers = compute.cast(cells, kind)
    except pa.ArrowInvalid:
        row = first_uncastable(cells, kind)
        raise fault_in(file, row, column, cells[row].as_py(), wanted) from None
    if (row := compute.index(compute.is_finite(numbers), False).as_py()) >= 0:
        raise fault_in(file, row, column, cells[row].as_py(), wanted)
    return numbers


def _class_numbers(file: CsvFile, column: str, cells: pa.ChunkedArray, classes: Sequence[str]) -> Tensor:
    """Each cell's place among `classes` `[rows]`, int64. Raises: DataError."""
    texts = [text.strip() for text in classes]
    if len(set(texts)) < len(texts) or not texts:
        raise DataError(f"the classes of column {column!r} ({_listed(texts)}) must be at least one, each named once.")
    places = compute.index_in(cells, value_set=pa.array(texts))
    if places.null_count:
        row = compute.index(compute.is_null(places), True).as_py()
        cell = cells[row].as_py()
        raise fault_in(file, row, column, cell, f"one of the classes {_listed(texts)}", near=nearest(cell, texts))
    return _tensor(places).to(torch.int64)


def _tensor(numbers: pa.ChunkedArray) -> Tensor:
    return torch.from_numpy(np.array(numbers.to_numpy()))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
