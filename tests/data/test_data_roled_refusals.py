"""Claims about tables that are refused by their roles: one sentence with file, row and column, and a mend."""

import datetime as dt
import gc
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from cutlayer.data.roles import ColumnRole, Date, Embedded, Number, OneHot, TableRoles
from cutlayer.data.tables import open_table
from cutlayer.errors import DataError
from data.opening import both, fitted, refusal, write_csv, write_parquet, x_of

TABLE: dict[str, list[Any]] = {"who": ["p1", "p2", "p3", "p4"], "age": [31, 62, 47, 50], "ill": [1, 0, 1, 0]}


def test_columns_that_are_not_there_are_told_with_the_nearest(tmp_path: Path) -> None:
    for path in both(tmp_path, TABLE):
        sentence = refusal(path, {"agee": Number(), "age": Number()}, label="il", id="wh")
        for told in ("'agee' (nearest: 'age')", "'il' (nearest: 'ill')", "'wh' (nearest: 'who')", "correct the name."):
            assert told in sentence


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,a\n1,2,3\n")
    assert "several columns of the same name ('a')" in refusal(tmp_path / "a.csv", {"b": Number()})
    parquet.write_table(pa.table([[1], [2], [3]], names=["a", "b", "a"]), tmp_path / "a.parquet")
    assert "several columns of the same name ('a')" in refusal(tmp_path / "a.parquet", {"b": Number()})


@pytest.mark.parametrize(("cell", "role"), [("x", Number()), ("1_0", Number()), ("2024-02-31", Date()), ("x", Date())])
def test_a_cell_that_is_not_what_its_role_says(tmp_path: Path, cell: str, role: ColumnRole) -> None:
    good = "1" if isinstance(role, Number) else "2024-01-01"
    path = write_csv(tmp_path / "a.csv", {"a": [good, good, cell, good]})
    wanted = "a number" if isinstance(role, Number) else "a date such as 2024-12-31"
    assert f"row 4, column 'a': {cell!r} is not {wanted}" in refusal(path, {"a": role})


def test_dates_of_another_form_or_with_a_zone(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", {"a": ["2024-01-01", "2024-01-01T10:00:00Z"], "b": ["1.2.2024", "31.2.2024"]})
    assert "row 3, column 'a': '2024-01-01T10:00:00Z' is not a date" in refusal(path, {"a": Date()})
    sentence = refusal(path, {"b": Date(format="%d.%m.%Y")})
    assert "row 3, column 'b': '31.2.2024' is not a date of the form '%d.%m.%Y'" in sentence
    path = write_parquet(tmp_path / "a.parquet", {"a": ["2024-01-01", "soon"]})
    assert "row 2, column 'a': 'soon' is not a date" in refusal(path, {"a": Date()})


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e400"])
def test_infinite_numbers(tmp_path: Path, value: str) -> None:
    path = write_csv(tmp_path / "a.csv", {"a": ["1", value]})
    assert f"row 3, column 'a': '{value}' is not a finite number" in refusal(path, {"a": Number()})
    path = write_parquet(tmp_path / "a.parquet", {"a": [1.0, float(value)]})
    assert "row 2, column 'a'" in refusal(path, {"a": Number()})


def test_a_column_that_takes_no_missing_value(tmp_path: Path) -> None:
    for path in both(tmp_path, {"a": [1, None], "d": [dt.date(2024, 1, 1), None]}):
        row = "row 3" if path.suffix == ".csv" else "row 2"
        assert f"{row}, column 'a': the cell is blank, where a number" in refusal(path, {"a": Number(missing="refuse")})
        assert f"{row}, column 'd': the cell is blank, where a date" in refusal(path, {"d": Date(missing="refuse")})


TYPED: list[tuple[Any, ColumnRole, str, str]] = [
    (["1"], Number(), "string", "give it the kind one_hot or embedded"),
    ([True], Number(), "bool", "save it as 0 and 1"),
    ([True], OneHot(size=2), "bool", "save it as 0 and 1"),
    ([Decimal("1.5")], Number(), "decimal128", "save it as float64"),
    (pa.array(["a"]).dictionary_encode(), Number(), "dictionary", "save its values themselves"),
    ([{"x": 1}], Number(), "struct", "give each of its parts a column of its own"),
    ([[1, 2]], Embedded(size=2), "list", "give each of its parts a column of its own"),
    ([dt.datetime(2024, 1, 1, tzinfo=dt.UTC)], Date(), "timestamp", "convert it to one zone, and save it without"),
    ([dt.date(2024, 1, 1)], Number(), "date32", "give it the kind date"),
    ([dt.time(1)], Date(), "time64", "save it as another type, or leave it out"),
    ([1.5], OneHot(size=2), "double", "give it the kind number"),
    ([1], Date(), "int64", "give it the kind number"),
    ([b"a"], OneHot(size=2), "binary", "save it as another type, or leave it out"),
]


@pytest.mark.parametrize(("values", "role", "kind", "mend"), TYPED)
def test_types_that_no_role_takes_are_named_before_a_row_is_read(
    tmp_path: Path, values: Any, role: ColumnRole, kind: str, mend: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"a": values})
    with pytest.raises(DataError, match=f"column 'a', is of type {kind}.*{mend}") as caught:
        open_table(path, TableRoles(columns={"a": role}))
    assert str(path) in str(caught.value)
    if isinstance(role, Number):
        with pytest.raises(DataError, match=f"is of type {kind}"):
            open_table(path, TableRoles(columns={}, label="a"))


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert "is empty" in refusal(tmp_path / "a.csv", {"a": Number()})
    (tmp_path / "a.csv").write_text("a,b\n")
    assert "has a header but no rows" in refusal(tmp_path / "a.csv", {"a": Number()})
    parquet.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "a.parquet")
    assert "has columns but no rows" in refusal(tmp_path / "a.parquet", {"a": Number()})


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.parquet", {"a": Number()})
    assert "there is no file" in refusal(tmp_path / "none.csv", {"a": Number()})
    (tmp_path / "a.parquet").write_text("a\n1\n")
    assert "is not a Parquet file that can be read" in refusal(tmp_path / "a.parquet", {"a": Number()})
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3\n")
    assert "row 3, has 1 cell where the header has 2 columns" in refusal(tmp_path / "a.csv", {"a": Number()})


def test_a_file_that_changes_between_its_passes(tmp_path: Path) -> None:
    for path, write in ((tmp_path / "a.csv", write_csv), (tmp_path / "a.parquet", write_parquet)):
        for rows in (2, 5):
            write(path, TABLE)
            table = open_table(path, TableRoles(columns={"age": Number()}))
            write(path, {"age": list(range(rows))})
            with pytest.raises(DataError, match="had 4 rows, and now has others"):
                table.fit(torch.arange(4))


def test_no_row_to_learn_from(tmp_path: Path) -> None:
    table = open_table(write_csv(tmp_path / "a.csv", TABLE), TableRoles(columns={"age": Number()}))
    with pytest.raises(DataError, match="no training rows of"):
        table.fit(torch.tensor([], dtype=torch.int64))


def test_roles_that_contradict_each_other_are_refused_as_the_table_is_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is the label, and has a role in"):
        open_table(tmp_path / "a.csv", TableRoles(columns={"a": Number()}, label="a"))


def test_a_category_that_names_its_rows(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("cutlayer.data.encoding.CATEGORIES_MOST", 3)
    path = write_csv(tmp_path / "a.csv", TABLE)
    assert "has more than 3 different values" in refusal(path, {"who": OneHot(size=2)})


def test_a_full_disk_is_said_and_no_file_stays(tmp_path: Path, monkeypatch: Any) -> None:
    path = write_csv(tmp_path / "a.csv", TABLE)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"cannot be written to .*nowhere .*make room there"):
        fitted(path, {"age": Number()})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    table = fitted(path, {"age": Number(scale=False)})
    assert list(scratch.iterdir()) == [], "the encoded rows have no name that others could open"
    assert len(x_of(table)) == 4
    del table
    gc.collect()


def test_a_fault_in_a_later_block_is_told_with_its_row_in_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("cutlayer.data.blocks._BLOCK_ROWS", 16)
    values = [float(row) for row in range(99)]
    values[50] = float("inf")
    for path in both(tmp_path, {"a": values}):
        assert f"row {52 if path.suffix == '.csv' else 51}, column 'a'" in refusal(path, {"a": Number()})
