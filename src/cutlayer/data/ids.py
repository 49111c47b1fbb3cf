"""The ids of a party's rows: one column, checked, in a form that is the same at all parties.

A whole number is the same id in every integer type, and never that of a text: `7` is not `"7"`. White space around a
text is cut off and its letters are composed (Unicode NFC); upper and lower case differ. A CSV file has no types: its
column is whole numbers if every cell is one, written plainly, and texts otherwise.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc
from pyarrow import csv, parquet

from cutlayer.data.cells import CsvFile, nearest
from cutlayer.errors import DataError

Kind = Literal["int", "text"]
Wanted = Literal["auto", "int", "text"]
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_PLAIN = r"^(0|-?[1-9][0-9]*)$"
_NUMBER = r"^-?[0-9]+$"
_MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none")
_CHOOSE = 'say --id-type text (then "007" and "7" differ) or --id-type int (then both are 7)'


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ids:
    """One id for each row, none twice. `texts` `[rows]` are decimal numbers where the kind is `int`."""

    texts: Any
    kind: Kind

    def __len__(self) -> int:
        return len(self.texts)

    def canonical(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The ids of these rows as bytes, their kind in front.

        >>> ids_of([7, 8]).canonical(np.array([0])), ids_of(["7"]).canonical(np.array([0]))
        ([b'int:7'], [b'text:7'])
        """
        return [f"{self.kind}:{text}".encode() for text in self.texts.take(pa.array(rows)).to_pylist()]

    def column(self, rows: NDArray[np.int64]) -> Any:
        """The ids of these rows as a column, null where the row is -1."""
        taken = self.texts.take(pa.array(rows, mask=rows < 0))
        return taken if self.kind == "text" else _numbers(taken)


def read_ids(path: Path, column: str, kind: Wanted = "auto") -> Ids:
    """The ids in a column of a CSV, TSV or Parquet file; no other column is read.

    Raises: DataError with the counts of all that is missing, double, or written in different ways.
    """
    name = str(path).lower()
    if not name.endswith(TABLES):
        raise DataError(f"{path} is no table whose ids can be read: name a file ending in {', '.join(TABLES)}.")
    where = f"{path}, column {column!r}"
    if name.endswith(".parquet"):
        return _ids(*_parquet_column(path, column, where), where, kind)
    cells = _csv_column(CsvFile(path, "\t" if name.endswith((".tsv", ".tsv.gz")) else ","), column)
    cells = pc.if_else(pc.is_in(pc.utf8_lower(cells), pa.array(_MISSING, pa.large_string())), None, cells)
    return _ids(cells, "cells", where, kind)


def ids_of(values: Sequence[int | str], kind: Wanted = "auto", *, where: str = "the ids") -> Ids:
    """The ids that are given. Raises: DataError as `read_ids`."""
    numbers = sum(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values)
    texts, missing = sum(isinstance(value, str) for value in values), sum(value is None for value in values)
    if other := len(values) - numbers - texts - missing:
        raise DataError(f"{where}: {_rows(other)} hold neither a whole number nor a text: convert them.")
    if numbers and texts and kind == "auto":
        raise DataError(
            f"{where}: {numbers:,} are whole numbers and {texts:,} are texts, and 7 is not '7': convert them to one "
            "type."
        )
    strings = pa.array([None if value is None else str(value) for value in values], pa.large_string())
    return _ids(strings, "text" if texts else "int", where, kind)


def write_rows(path: Path, ids: Ids, rows: NDArray[np.int64], metadata: Mapping[str, str]) -> None:
    """A Parquet file with the columns `id` and `row`, for its owner alone, whole or not at all. Raises: DataError."""
    table = pa.table({"id": ids.column(rows), "row": pa.array(rows)})
    descriptor, draft = -1, ""
    try:
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with open(descriptor, "wb") as file:
            parquet.write_table(table.replace_schema_metadata(dict(metadata)), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(draft)
        raise DataError(f"{path} cannot be written ({error.strerror}): name another with --out.") from error


# ---------------------------------------------------------------------- a column


def _csv_column(file: CsvFile, column: str) -> Any:
    """The cells of a column, without the white space around them."""
    _check_name(str(file), file.header(), column)
    options = csv.ConvertOptions(column_types={column: pa.large_string()}, include_columns=[column])
    parse = csv.ParseOptions(delimiter=file.delimiter, newlines_in_values=True)
    try:
        with csv.open_csv(file.path, parse_options=parse, convert_options=options) as batches:
            return _trimmed(pa.chunked_array([batch.column(0) for batch in batches], pa.large_string()))
    except pa.ArrowInvalid as error:
        raise file.fault(error) from error
    except OSError as error:
        raise file.unreadable(error) from error


def _parquet_column(path: Path, column: str, where: str) -> tuple[Any, Kind]:
    try:
        with parquet.ParquetFile(path) as file:
            _check_name(str(path), file.schema_arrow.names, column)
            values = pa.chunked_array(
                [batch.column(0) for batch in file.iter_batches(columns=[column])],
                file.schema_arrow.field(column).type,
            )
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: correct the path, which is taken from {Path.cwd()}.") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is no Parquet file that can be read: write it anew.") from error
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_integer(kind):
        return values.cast(kind).cast(pa.large_string()), "int"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return values.cast(pa.large_string()), "text"
    raise DataError(f"{where} is of type {kind}: write ids as whole numbers or as texts.")


def _check_name(file: str, columns: list[str], name: str) -> None:
    if name not in columns:
        raise DataError(f"{file} has no column {name!r}: correct the name, {nearest(name, columns)!r} perhaps.")
    if columns.count(name) > 1:
        raise DataError(f"{file} has {columns.count(name)} columns {name!r}: rename all but one.")


def _trimmed(texts: Any) -> Any:
    return pc.utf8_normalize(pc.utf8_trim_whitespace(texts), form="NFC")


# ---------------------------------------------------------------------- what is wrong with it


def _ids(column: Any, found: Literal["int", "text", "cells"], where: str, wanted: Wanted) -> Ids:
    """The column's ids, or all that is wrong with them in one error."""
    texts = _trimmed(column)
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    present = texts.filter(pc.fill_null(pc.not_equal(texts, ""), False))
    faults = []
    if missing := len(texts) - len(present):
        faults.append(f"{_rows(missing)} without an id: fill it in, or leave the row out")
    kind: Kind = "text"
    if wanted == "int" or (wanted == "auto" and found != "text"):
        kind, fault = _kind(present, found, wanted)
        faults += fault
    if kind == "int" and not faults:
        present = _numbers(present, where).cast(pa.large_string())
    double = pc.value_counts(present).field("counts").to_numpy(zero_copy_only=False)
    if repeated := double[double > 1].tolist():
        faults.append(
            f"{len(repeated):,} id{'s' * (len(repeated) != 1)} in more than one row, {sum(repeated):,} rows in all: "
            "keep one row for each id"
        )
    if not len(texts):
        faults.append("no rows: give a table with one row for each id")
    if faults:
        raise DataError(f"{where} has {'; '.join(faults)}.")
    return Ids(texts=present, kind=kind)


def _kind(present: Any, found: Literal["int", "text", "cells"], wanted: Wanted) -> tuple[Kind, list[str]]:
    """Whether all are whole numbers, and what speaks against it."""
    if wanted == "auto" and found == "int":
        return "int", []
    numbers, plain = _count(present, _NUMBER), _count(present, _PLAIN)
    if wanted == "int":
        others = len(present) - numbers
        return "int", [f"{_rows(others)} with an id that is no whole number: say --id-type text"] if others else []
    if plain == len(present):
        return "int", []
    lengths = pc.min_max(pc.utf8_length(present)).as_py()
    if numbers == len(present) and lengths["min"] != lengths["max"]:
        zeros = numbers - plain
        return "text", [f"{_rows(zeros)} with leading zeros in the id and {plain:,} without: {_CHOOSE}"]
    return "text", []


def _count(texts: Any, pattern: str) -> int:
    return pc.sum(pc.match_substring_regex(texts, pattern)).as_py() or 0


def _numbers(texts: Any, where: str = "") -> Any:
    """Decimal texts as whole numbers, of 64 bits. Raises: DataError."""
    for kind in (pa.int64(), pa.uint64()):
        with suppress(pa.ArrowInvalid):
            return texts.cast(kind)
    raise DataError(f"{where} has whole numbers of more than 64 bits: say --id-type text.")


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"
