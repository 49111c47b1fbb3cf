"""What each column of a party's table is for. It stands in the party's own file: others learn the widths, no name."""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from cutlayer.plan.document import nearest

LabelDtype = Literal["int64", "float32"]
LABEL_DTYPES: tuple[LabelDtype, ...] = get_args(LabelDtype)
Missing = Literal["mean", "flag", "refuse"]
Size = Annotated[int, Meta(ge=2, le=2**20)]


class Number(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="number"):
    """One float: the number, less the mean and divided by the standard deviation if `scale`.

    A missing one is the mean; with `"flag"` a second float says 1 where it was missing; `"refuse"` takes none.
    """

    scale: bool = True
    missing: Missing = "mean"


class Date(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="date"):
    """As a number: whole days, months or years since a date. Texts are ISO 8601, or as `format` says (strptime)."""

    unit: Literal["day", "month", "year"] = "day"
    since: dt.date = dt.date(1970, 1, 1)
    format: str = ""
    scale: bool = True
    missing: Missing = "mean"


class OneHot(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="one_hot"):
    """`size` floats: one for each of the `size - 1` most frequent values, the last for all others and for none."""

    size: Size


class Embedded(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="embedded"):
    """One code for an embedding of `size`: 1 is the most frequent value, and so on; 0 all others and none."""

    size: Size


ColumnRole = Number | Date | OneHot | Embedded
KINDS: dict[str, type[ColumnRole]] = {"number": Number, "date": Date, "one_hot": OneHot, "embedded": Embedded}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRoles:
    """All columns that a table is read for. `label_dtype` is of a label that is a number.

    `id` names the rows; `aligned` is a file of `cutlayer align`, which picks rows by it. With `unlabelled` a missing
    label is the class -100, which losses leave out.
    """

    columns: Mapping[str, ColumnRole]
    id: str | None = None
    label: str | None = None
    classes: tuple[str, ...] | None = None
    aligned: Path | None = None
    unlabelled: bool = False
    label_dtype: LabelDtype = "int64"

    def faults(self) -> list[str]:
        """What contradicts itself, one sentence each."""
        clashes = [(what, name) for what, name in (("id", self.id), ("label", self.label)) if name in self.columns]
        texts = [text.strip() for text in self.classes or ()]
        checks = {
            f"column {self.id!r} is the id and the label: name two columns": bool(self.id) and self.id == self.label,
            "aligned rows are found by their id: name its column with id = …": self.aligned and not self.id,
            "classes and unlabelled belong to a label: name its column with label = …": not self.label
            and (self.classes is not None or self.unlabelled),
            "only class numbers may be unlabelled: leave out unlabelled, or label_dtype": self.unlabelled
            and self.label_dtype != "int64",
            "classes must be at least one, each named once": self.classes is not None
            and (not texts or len(set(texts)) < len(texts)),
            "neither a feature nor a label is named: give a table [columns], label = …, or both": not self.columns
            and not self.label,
        }
        return [
            f"column {name!r} is the {what}, and has a role in [columns] too: leave it out there"
            for what, name in clashes
        ] + [fault for fault, holds in checks.items() if holds]


def floats(role: ColumnRole) -> int:
    """How many float columns of x a column becomes."""
    if isinstance(role, OneHot):
        return role.size
    return 0 if isinstance(role, Embedded) else 1 + (role.missing == "flag")


def widths(columns: Mapping[str, ColumnRole]) -> tuple[int, int]:
    """The float columns and the embedded codes of x. No row is read for it.

    >>> widths({"age": Number(missing="flag"), "ward": OneHot(size=8), "town": Embedded(size=16)})
    (10, 1)
    """
    return sum(map(floats, columns.values())), sum(isinstance(role, Embedded) for role in columns.values())


def plain_numbers(names: Iterable[str]) -> dict[str, ColumnRole]:
    """Columns that are taken as they stand: numbers, unscaled, none missing."""
    return {name: Number(scale=False, missing="refuse") for name in names}


def read_roles(tables: Any, faults: list[str]) -> dict[str, ColumnRole]:
    """`[columns]` of a party's file: `age = "number"`, or `age = { kind = "number", scale = false }`; adds faults."""
    if not isinstance(tables, dict):
        faults.append('[columns] must be a table of columns, such as age = { kind = "number" }')
        return {}
    read = {name: _role(f"columns.{name}", table, faults) for name, table in tables.items()}
    return {name: role for name, role in read.items() if role is not None}


def _role(path: str, table: Any, faults: list[str]) -> ColumnRole | None:
    table = {"kind": table} if isinstance(table, str) else table
    kind = table.get("kind") if isinstance(table, dict) else None
    if not isinstance(kind, str):
        faults.append(f'{path} must say of what kind it is, such as {path} = {{ kind = "number" }}')
        return None
    if kind not in KINDS:
        faults.append(f"{path}: {kind!r} is no kind of column{nearest(kind, KINDS)}")
        return None
    struct, before = KINDS[kind], len(faults)
    hints = {name: hint for name, hint in get_type_hints(struct, include_extras=True).items() if name != "kind"}
    given = {key: value for key, value in table.items() if key != "kind"}
    faults += [f"{path}.{key} is no key of {kind!r}{nearest(key, hints)}" for key in given if key not in hints]
    values = {key: _value(f"{path}.{key}", given[key], hints[key], faults) for key in hints if key in given}
    if "size" in hints.keys() - given.keys():
        faults.append(f"{path}.size is missing: say how wide it is, which others see in the plan")
    if "%z" in (text := str(given.get("format", ""))).lower() or (text and "%" not in text):
        faults.append(f"{path}.format = {text!r}: write it as strptime does, without a zone, such as '%d.%m.%Y'")
    return struct(**values) if len(faults) == before else None


def _value(path: str, value: Any, hint: Any, faults: list[str]) -> Any:
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        if get_origin(hint) is Literal and isinstance(value, str):
            faults.append(f"{path} = {value!r} is unknown{nearest(value, get_args(hint))}")
        else:
            faults.append(f"{path} = {value!r}: {str(error)[:1].lower()}{str(error)[1:]}")
        return None
