"""The cells of one column, for some rows of a file, as numbers, dates, texts or labels; what is none is said where."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from cutlayer.data.cells import MISSING, TableFile, fault_in, nearest
from cutlayer.data.roles import Date, Embedded, Number, OneHot
from cutlayer.errors import DataError

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]
Role = type[Number | Date | OneHot | Embedded]

UNLABELLED = -100
_EXACT = 2.0**53
_ISO = "a date such as 2024-12-31 (say with format = … how other dates are written)"
_WANTED: dict[Role, str] = {
    Number: "numbers are expected",
    Date: "dates are expected",
    OneHot: "categories are expected",
    Embedded: "categories are expected",
}


@dataclass(frozen=True, slots=True)
class Cells:
    """A column's cells `[rows]`, and which rows of the file they are, counted from 0."""

    file: TableFile
    column: str
    values: Any
    rows: Whole

    def fault(self, place: int, wanted: str, *, near: str | None = None) -> DataError:
        """The cell at a place is not what is `wanted`."""
        held = self.values[place].as_py()
        text = "" if held is None else str(held)
        return fault_in(self.file, int(self.rows[place]), self.column, text.strip(), wanted, near=near)

    def refuse(self, bad: NDArray[np.bool_], wanted: str) -> None:
        """Raises: DataError at the first place of `bad` `[rows]`, if there is one."""
        if bad.any():
            raise self.fault(int(bad.argmax()), wanted)


def check_type(file: TableFile, column: str, kind: pa.DataType, role: Role) -> None:
    """Raises: DataError if a column of a typed file can have no such role, before any row is read."""
    types = pa.types
    if types.is_null(kind):
        return
    whole = types.is_integer(kind)
    fits = {
        Number: whole or types.is_floating(kind),
        Date: types.is_date(kind) or _is_text(kind) or (types.is_timestamp(kind) and kind.tz is None),
    }
    inner = kind.value_type if types.is_dictionary(kind) else kind
    if fits.get(role, types.is_integer(inner) or _is_text(inner)):
        return
    raise DataError(f"{file}, column {column!r}, is of type {kind}, where {_WANTED[role]}: {_mend(kind, role)}.")


def numbers(cells: Cells) -> Floats:
    """The cells as float64 `[rows]`, NaN where one is missing. Raises: DataError for a text, and for infinity."""
    held = _present(cells.values)
    try:
        found: Floats = _numpy(compute.cast(held, pa.float64(), safe=_is_text(held.type)))
    except pa.ArrowInvalid:
        raise cells.fault(first_uncastable(held, pa.float64()), "a number") from None
    cells.refuse(np.isinf(found), "a finite number")
    return found


def dates(cells: Cells, role: Date) -> Floats:
    """Whole days, months or years since `role.since` `[rows]`, NaN where a date is missing. Raises: DataError."""
    held = _present(cells.values)
    if pa.types.is_null(held.type):
        return np.full(len(held), np.nan)
    if _is_text(held.type):
        found = _parsed(cells, held, role.format) if role.format else _iso(cells, held)
    else:
        found = _numpy(held)
    unit = {"day": "M8[D]", "month": "M8[M]", "year": "M8[Y]"}[role.unit]
    passed: Floats = (found.astype(unit) - np.datetime64(role.since).astype(unit)).astype(np.int64).astype(np.float64)
    passed[np.isnat(found)] = np.nan
    return passed


def texts(cells: Cells) -> pa.Array:
    """The cells as texts without the blanks around them `[rows]`, null where none is left. Whole numbers are texts."""
    held = _whole(cells.values)
    if pa.types.is_dictionary(held.type):
        held = held.cast(held.type.value_type)
    held = compute.utf8_trim_whitespace(held.cast(pa.string()))
    return compute.if_else(compute.equal(held, ""), None, held)


def labels(cells: Cells, classes: Sequence[str] | None, dtype: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Each label in `dtype`, or its place among the `classes`, and which are missing. Raises: DataError for others."""
    if classes is not None:
        return _class_numbers(cells, [text.strip() for text in classes])
    found = numbers(cells)
    lacks = np.isnan(found)
    if dtype != "int64":
        with np.errstate(over="ignore"):
            narrowed = found.astype(dtype)
        cells.refuse(np.isinf(narrowed), f"a number that a {dtype} can hold")
        return narrowed, lacks
    cells.refuse(~lacks & ((np.abs(found) > _EXACT) | (found != np.floor(found))), "a whole number")
    return np.where(lacks, UNLABELLED, found).astype(np.int64), lacks


def first_uncastable(cells: Any, kind: pa.DataType) -> int:
    """The first cell that is not of this kind, found by halving, since pyarrow does not say which it was."""
    low, high = 0, len(cells)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            compute.cast(cells[low:middle], kind)
        except pa.ArrowInvalid:
            high = middle
        else:
            low = middle
    return low


def _present(values: Any) -> Any:
    """Texts are trimmed, and null where they stand for nothing; what has a type stays."""
    held = _whole(values)
    if not _is_text(held.type):
        return held
    held = compute.utf8_trim_whitespace(held.cast(pa.string()))
    return compute.if_else(compute.is_in(compute.utf8_lower(held), value_set=pa.array(MISSING)), None, held)


def _iso(cells: Cells, held: pa.Array) -> NDArray[Any]:
    kind = pa.timestamp("us")
    try:
        return _numpy(compute.cast(held, kind))
    except pa.ArrowInvalid:
        raise cells.fault(first_uncastable(held, kind), _ISO) from None


def _parsed(cells: Cells, held: pa.Array, form: str) -> NDArray[Any]:
    """By Python's strptime, each text once: pyarrow's takes the 31st of February."""
    coded = compute.dictionary_encode(held)
    found = np.full(len(coded.dictionary) + 1, np.datetime64("NaT"), "M8[us]")
    places = _numpy(compute.fill_null(coded.indices, len(coded.dictionary)))
    for at, text in enumerate(coded.dictionary.to_pylist()):
        try:
            found[at] = dt.datetime.strptime(text, form)
        except ValueError:
            raise cells.fault(int((places == at).argmax()), f"a date of the form {form!r}") from None
    parsed: NDArray[Any] = found[places]
    return parsed


def _class_numbers(cells: Cells, names: Sequence[str]) -> tuple[Whole, NDArray[np.bool_]]:
    held = texts(cells)
    places = compute.index_in(held, value_set=pa.array(names))
    blank = compute.is_in(compute.utf8_lower(compute.fill_null(held, "")), value_set=pa.array(MISSING))
    lost, blanks = _numpy(compute.is_null(places)), _numpy(blank)
    if (wrong := lost & ~blanks).any():
        at = int(wrong.argmax())
        listed, near = ", ".join(map(repr, names)), nearest(held[at].as_py(), list(names))
        raise cells.fault(at, f"one of the classes {listed}", near=near)
    return _numpy(compute.fill_null(places, UNLABELLED)).astype(np.int64), lost


def _mend(kind: pa.DataType, role: Role) -> str:
    types, category = pa.types, role in (OneHot, Embedded)
    mends = {
        "give it the kind one_hot or embedded, or save it as numbers": _is_text(kind),
        "save it as texts or whole numbers": types.is_dictionary(kind) and category,
        "save its values themselves": types.is_dictionary(kind),
        "give each of its parts a column of its own": types.is_nested(kind),
        "save it as 0 and 1": types.is_boolean(kind),
        "save it as float64": types.is_decimal(kind) and role is Number,
        "convert it to one zone, and save it without": types.is_timestamp(kind) and role is Date,
        "give it the kind date": types.is_date(kind) or types.is_timestamp(kind),
        "give it the kind number": types.is_floating(kind) or types.is_integer(kind),
    }
    return next((mend for mend, holds in mends.items() if holds), "save it as another type, or leave it out")


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _whole(values: Any) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values


def _numpy(values: Any) -> NDArray[Any]:
    """A copy that may be written to."""
    return np.array(values.to_numpy(zero_copy_only=False))
