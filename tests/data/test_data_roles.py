"""Claims about the roles of a table's columns: widths from the party's file alone, and every fault in one go."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from cutlayer.data.roles import Date, Embedded, Number, OneHot, TableRoles, read_roles, widths


def faults_of(tables: Any) -> list[str]:
    faults: list[str] = []
    read_roles(tables, faults)
    return faults


def test_roles_are_read_in_the_order_of_the_file_short_or_long() -> None:
    faults: list[str] = []
    roles = read_roles(
        {
            "b": {"kind": "number", "scale": False, "missing": "flag"},
            "a": "number",
            "c": {"kind": "one_hot", "size": 8},
            "d": {"kind": "embedded", "size": 16},
            "e": {"kind": "date", "unit": "month", "since": "2000-01-01", "format": "%d.%m.%Y"},
            "f": {"kind": "date", "since": dt.date(2001, 2, 3)},
        },
        faults,
    )
    assert faults == []
    assert list(roles.items()) == [
        ("b", Number(scale=False, missing="flag")),
        ("a", Number()),
        ("c", OneHot(size=8)),
        ("d", Embedded(size=16)),
        ("e", Date(unit="month", since=dt.date(2000, 1, 1), format="%d.%m.%Y")),
        ("f", Date(since=dt.date(2001, 2, 3))),
    ]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, (0, 0)),
        ({"a": Number(), "b": Date(missing="flag"), "c": OneHot(size=5)}, (8, 0)),
        ({"a": Embedded(size=3), "b": Embedded(size=900)}, (0, 2)),
        ({"a": Number(missing="refuse"), "b": Embedded(size=3)}, (1, 1)),
    ],
)
def test_widths_follow_from_the_roles_alone(columns: Any, expected: tuple[int, int]) -> None:
    assert widths(columns) == expected


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"kind": "numbr"}, "columns.a: 'numbr' is no kind of column: did you mean 'number'?"),
        ({"kind": 3}, "columns.a must say of what kind it is"),
        ({"scale": True}, "columns.a must say of what kind it is"),
        (7, "columns.a must say of what kind it is"),
        ({"kind": "number", "scal": False}, "columns.a.scal is no key of 'number': did you mean 'scale'?"),
        ({"kind": "number", "size": 8}, "columns.a.size is no key of 'number'"),
        ({"kind": "number", "missing": "men"}, "columns.a.missing = 'men' is unknown: did you mean 'mean'?"),
        ({"kind": "number", "scale": "no"}, "columns.a.scale = 'no': expected `bool`"),
        ({"kind": "one_hot"}, "columns.a.size is missing"),
        ("embedded", "columns.a.size is missing"),
        ({"kind": "one_hot", "size": 1}, "columns.a.size = 1: expected `int` >= 2"),
        ({"kind": "embedded", "size": 8.0}, "columns.a.size = 8.0: expected `int`"),
        ({"kind": "embedded", "size": True}, "columns.a.size = True: expected `int`"),
        ({"kind": "date", "unit": "week"}, "columns.a.unit = 'week' is unknown"),
        ({"kind": "date", "since": "1.2.2003"}, "columns.a.since = '1.2.2003': invalid"),
        ({"kind": "date", "format": "dd.mm.yyyy"}, "columns.a.format = 'dd.mm.yyyy': write it as strptime does"),
        ({"kind": "date", "format": "%Y%z"}, "without a zone"),
    ],
)
def test_what_is_no_role_is_told_with_the_nearest_known_word(table: Any, sentence: str) -> None:
    (fault,) = faults_of({"a": table})
    assert sentence in fault


def test_all_faults_of_the_columns_are_told_at_once() -> None:
    assert (
        len(faults_of({"a": "numbr", "b": {"kind": "date", "unit": "wek", "sise": 3}, "c": {"kind": "one_hot"}})) == 4
    )
    assert "[columns] must be a table" in faults_of([1])[0]


@pytest.mark.parametrize(
    ("terms", "sentence"),
    [
        ({"label": "a"}, "column 'a' is the label, and has a role in [columns] too"),
        ({"id": "a"}, "column 'a' is the id, and has a role in [columns] too"),
        ({"id": "i", "label": "i"}, "column 'i' is the id and the label: name two"),
        ({"aligned": Path("x.parquet")}, "aligned rows are found by their id"),
        ({"classes": ("a", "b")}, "classes and unlabelled belong to a label"),
        ({"unlabelled": True}, "classes and unlabelled belong to a label"),
        ({"label": "y", "classes": ()}, "classes must be at least one"),
        ({"label": "y", "classes": ("a", "a ")}, "each named once"),
        ({"label": "y", "unlabelled": True, "label_dtype": "float32"}, "only class numbers may be unlabelled"),
        ({"columns": {}, "id": "i"}, "neither a feature nor a label is named"),
    ],
)
def test_columns_that_contradict_each_other(terms: dict[str, Any], sentence: str) -> None:
    (fault,) = TableRoles(**({"columns": {"a": Number()}} | terms)).faults()
    assert sentence in fault


def test_a_partys_features_or_labels_alone_make_a_table() -> None:
    assert TableRoles(columns={"a": Number()}).faults() == []
    assert TableRoles(columns={}, id="i", label="y", aligned=Path("x"), unlabelled=True).faults() == []
