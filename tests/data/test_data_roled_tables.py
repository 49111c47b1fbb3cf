"""Claims about tables opened by roles: which rows and samples they have, and every refusal with place and mend."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader

from cutlayer.data import open_rows, tables
from cutlayer.data.blocks import blocks, table_file
from cutlayer.data.roles import ColumnRole, Date, Embedded, Number, OneHot, TableRoles
from cutlayer.data.tables import open_table
from cutlayer.errors import DataError
from data.opening import both, fitted, refusal, write_csv, write_parquet, x_of, y_of

AS_IT_STANDS = Number(scale=False)
TABLE: dict[str, list[Any]] = {
    "who": ["p1", "p2", "p3", "p4"],
    "age": [31, 62, 47, 50],
    "ward": ["A", "B", "A", "C"],
    "ill": [1, 0, 1, 0],
}


# ---------------------------------------------------------------------- rows and samples


def test_samples_are_what_the_table_has(tmp_path: Path) -> None:
    age: dict[str, ColumnRole] = {"age": AS_IT_STANDS}
    ward: dict[str, ColumnRole] = {"ward": Embedded(size=4)}
    for path in both(tmp_path, TABLE):
        x, y = fitted(path, age, label="ill")[1]
        assert (x.tolist(), y.tolist(), y.shape) == ([62], 0, ())
        assert fitted(path, age)[3].tolist() == [50]
        assert fitted(path, ward)[0].tolist() == [1]
        (x, codes), y = fitted(path, age | ward, label="ill")[-4]
        assert (x.tolist(), codes.tolist(), y.item()) == ([31], [1], 1)
        x, codes = fitted(path, age | ward)[2]
        assert (x.tolist(), codes.tolist()) == ([47], [1])
        assert fitted(path, {}, label="ill")[2].item() == 1


def test_samples_in_any_order_are_the_same_rows(tmp_path: Path) -> None:
    columns: dict[str, ColumnRole] = {"age": AS_IT_STANDS, "ward": OneHot(size=3)}
    table = fitted(write_parquet(tmp_path / "a.parquet", TABLE), columns, label="ill")
    assert [x.tolist() for x, _ in table.__getitems__([3, 0, 3])] == [[50, 0, 0, 1], [31, 1, 0, 0], [50, 0, 0, 1]]
    (x, y) = next(iter(DataLoader(table, batch_size=4)))
    assert torch.equal(x, x_of(table))
    assert torch.equal(y, y_of(table))
    assert len(list(table)) == 4  # type: ignore[call-overload]
    for row in (4, -5):
        with pytest.raises(IndexError):
            table[row]
    with pytest.raises(DataError, match="rows 2 to 4 were asked of the 4"):
        table.batch([2, 4])


def test_what_was_taken_may_be_written_to(tmp_path: Path) -> None:
    table = fitted(write_csv(tmp_path / "a.csv", TABLE), {"age": AS_IT_STANDS})
    x_of(table).zero_()
    assert x_of(table).flatten().tolist() == [31, 62, 47, 50]


def test_shapes_and_counts_are_known_before_the_fit_and_samples_after_it(tmp_path: Path) -> None:
    columns: dict[str, ColumnRole] = {"age": Number(missing="flag"), "ward": OneHot(size=8), "who": Embedded(size=5)}
    for path in both(tmp_path, TABLE):
        table = open_table(path, TableRoles(columns=columns, label="ill"))
        assert (len(table), table.has_features, table.has_label) == (4, True, True)
        assert table.specs == [("float32", (10,)), ("int64", (1,))]
        for ask in (table.__getitem__, lambda _, table=table: table.encoding):
            with pytest.raises(DataError, match=r"has not been fitted to training rows: call fit"):
                ask(0)
        table.fit(torch.tensor([0, 1]))
        assert [(str(t.dtype), tuple(t.shape)) for t in table[0][0]] == [
            ("torch.float32", (10,)),
            ("torch.int64", (1,)),
        ]


def test_labels_alone_need_no_fit(tmp_path: Path) -> None:
    for path in both(tmp_path, TABLE):
        table = open_table(path, TableRoles(columns={}, label="ill", id="who"))
        assert (table.specs, table.has_features, y_of(table).tolist()) == ([], False, [1, 0, 1, 0])
        assert table.batch([1])[0] == ()


def test_a_table_is_fitted_once(tmp_path: Path) -> None:
    table = fitted(write_csv(tmp_path / "a.csv", TABLE), {"age": Number()}, [0, 1])
    before = table.encoding
    table.fit(torch.tensor([1, 0]))
    assert table.encoding is before
    with pytest.raises(DataError, match="was fitted to other training rows: open it anew"):
        table.fit(torch.tensor([0, 2]))


def test_held_out_rows_of_another_file_are_encoded_as_the_training_rows_say(tmp_path: Path) -> None:
    train = fitted(write_csv(tmp_path / "a.csv", TABLE), {"age": Number()})
    other = open_table(write_csv(tmp_path / "b.csv", {"age": [47.5]}), TableRoles(columns={"age": Number()}))
    other.encode_with(train.encoding)
    assert x_of(other).tolist() == [[0.0]]
    other.fit(torch.tensor([0]))
    assert other.encoding == train.encoding


@pytest.mark.parametrize("piece", [999, 9999])
def test_many_blocks_make_one_table_whatever_the_files_own_seams(tmp_path: Path, monkeypatch: Any, piece: int) -> None:
    rows = np.random.default_rng(1).permutation(1000)
    columns = {"n": (rows / 7).tolist(), "w": [f"w{row % 7}" for row in rows], "y": (rows % 3).tolist()}
    roles: dict[str, ColumnRole] = {"n": Number(), "w": OneHot(size=5)}
    whole = fitted(write_csv(tmp_path / "a.csv", columns), roles, label="y")
    monkeypatch.setattr("cutlayer.data.blocks._BLOCK_ROWS", 64)
    monkeypatch.setattr("cutlayer.data.cells._PIECE_BYTES", piece)
    parts = [
        fitted(tmp_path / "a.csv", roles, label="y"),
        fitted(write_parquet(tmp_path / "b.parquet", columns, group=37), roles, label="y"),
        fitted(write_parquet(tmp_path / "c.parquet", columns, group=1000), roles, label="y"),
    ]
    for path in tmp_path.iterdir():
        sizes = [count for _, count in blocks(table_file(path), ["n", "w"], 64, np.ones(1000, np.bool_))]
        assert sizes == [64] * 15 + [40]
    for part in parts:
        assert part.encoding == parts[0].encoding
        torch.testing.assert_close(x_of(part), x_of(whole))
        assert torch.equal(y_of(part), y_of(whole))
        assert y_of(part).tolist() == columns["y"]


def test_marks_quotes_line_ends_and_compression_are_as_other_programs_write_them(tmp_path: Path) -> None:
    text = '\ufeff"a b",note,w\r\n 1 ,"x, ""y""\nz",u\r\n\r\n"2",,"v"\r\n'
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.csv", "a.csv.gz"):
        (x, codes), _ = fitted(tmp_path / name, {"a b": AS_IT_STANDS, "w": Embedded(size=3)}).batch([1, 0])
        assert (x.tolist(), codes.tolist()) == ([[2], [1]], [[2], [1]])
    (tmp_path / "a.csv").write_bytes("a,w\n1,gesünd\n".encode("latin-1"))
    assert "is not UTF-8 text" in refusal(tmp_path / "a.csv", {"w": Embedded(size=3)})


def test_columns_without_a_role_are_not_even_read(tmp_path: Path) -> None:
    columns = {"a.b": [1, 2], "a": [3, 4], "odd": [[1], [2]]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert x_of(fitted(path, {"a": AS_IT_STANDS})).tolist() == [[3], [4]]
    assert x_of(fitted(path, {"a.b": AS_IT_STANDS, "a": AS_IT_STANDS})).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("kind", ["int8", "uint16", "int64", "uint64", "float16", "float32", "float64"])
def test_every_type_of_number_is_one(tmp_path: Path, kind: str) -> None:
    values = pa.array(np.array([1, 3], kind))
    path = write_parquet(tmp_path / "a.parquet", {"a": values, "y": values})
    table = fitted(path, {"a": AS_IT_STANDS}, label="y")
    assert (x_of(table).tolist(), y_of(table).tolist()) == ([[1], [3]], [1, 3])


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["7", "8", None]),
        pa.array(["7", "8", None], pa.large_string()),
        pa.array(["7", " 8", ""]).dictionary_encode(),
        pa.array([7, 8, None], pa.int16()),
        pa.array([7, 8, None]).dictionary_encode(),
    ],
)
def test_texts_and_whole_numbers_are_the_same_categories(tmp_path: Path, values: pa.Array) -> None:
    table = fitted(write_parquet(tmp_path / "a.parquet", {"a": values}), {"a": Embedded(size=3)})
    assert x_of(table).flatten().tolist() == [1, 2, 0]


def test_a_number_that_a_parquet_file_calls_nan_is_missing(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"a": pa.array([1.0, float("nan"), 3.0])})
    assert x_of(fitted(path, {"a": AS_IT_STANDS})).flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("cell", ["", "NA", "n/a", "NaN", "null", "None", "-", "?"])
def test_words_for_nothing_are_missing_numbers_and_dates(tmp_path: Path, cell: str) -> None:
    path = write_csv(tmp_path / "a.csv", {"a": [1, cell, 3], "d": ["1970-01-02", f" {cell}", "1970-01-04"]})
    assert x_of(fitted(path, {"a": AS_IT_STANDS, "d": Date(scale=False)})).tolist() == [[1, 1], [2, 2], [3, 3]]


def test_a_category_may_be_called_na(tmp_path: Path) -> None:
    for path in both(tmp_path, {"land": ["NA", "NA", "DE", None]}):
        assert x_of(fitted(path, {"land": Embedded(size=3)})).flatten().tolist() == [1, 1, 2, 0]


# ---------------------------------------------------------------------- labels


def test_labels_are_classes_whole_numbers_or_floats(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"a": [1, 2], "w": ["sick", "well"], "f": [0.25, -3.5], "n": [5, 7]}
    for path in both(tmp_path, columns):
        y = y_of(fitted(path, {"a": Number()}, label="w", classes=("well", " sick")))
        assert (y.tolist(), y.dtype) == ([1, 0], torch.int64)
        y = y_of(fitted(path, {"a": Number()}, label="f", label_dtype="float32"))
        assert (y.tolist(), y.dtype) == ([0.25, -3.5], torch.float32)
        assert y_of(fitted(path, {"a": Number()}, label="n", classes=("7", "5"))).tolist() == [1, 0]
        assert "column 'f': '0.25' is not a whole number" in refusal(path, {"a": Number()}, label="f")


def test_missing_labels_are_refused_with_their_count_or_become_minus_100(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"a": [1, 2, 3, 4], "n": [0, None, 2, None], "w": ["x", None, "y", None]}
    for path in both(tmp_path, columns):
        row = "row 3" if path.suffix == ".csv" else "row 2"
        for terms in ({"label": "n"}, {"label": "w", "classes": ("x", "y")}):
            sentence = refusal(path, {"a": Number()}, **terms)
            assert f"the label is missing in 2 of 4 rows, the first in {row}: fill them in" in sentence
            assert "or say unlabelled = true" in sentence
            y = y_of(fitted(path, {"a": Number()}, **terms, unlabelled=True))
            assert y.tolist() == [0, -100, 1 + ("classes" not in terms), -100]
        assert "unlabelled" not in refusal(path, {"a": Number()}, label="n", label_dtype="float32")


def test_a_class_that_is_none_is_told_with_the_nearest(tmp_path: Path) -> None:
    for path in both(tmp_path, {"a": [1, 2], "w": ["healthy", "ills"]}):
        sentence = refusal(path, {"a": Number()}, label="w", classes=("healthy", "ill"))
        assert "column 'w': 'ills' is not one of the classes 'healthy', 'ill'" in sentence
        assert "'ill' perhaps" in sentence


# ---------------------------------------------------------------------- ids and alignments


def test_ids_name_the_rows_in_the_datasets_order(tmp_path: Path) -> None:
    for path in both(tmp_path, TABLE | {"number": [9, 8, 7, 6]}):
        ids = fitted(path, {"age": Number()}, id="who").ids
        assert ids is not None
        assert (list(ids), ids[1], ids[1:3], len(ids)) == (["p1", "p2", "p3", "p4"], "p2", ["p2", "p3"], 4)
        assert list(fitted(path, {"age": Number()}, id="number").ids or ()) == [9, 8, 7, 6]
        assert fitted(path, {"age": Number()}).ids is None


def test_ids_that_are_missing_or_double_are_refused_with_counts(tmp_path: Path) -> None:
    for path in both(tmp_path, {"i": ["a", None, "b", "a"], "a": [1, 2, 3, 4]}):
        sentence = refusal(path, {"a": Number()}, id="i")
        assert "1 row without an id: fill it in" in sentence
        assert "1 id in more than one row, 2 rows in all: keep one row for each id" in sentence


def aligned(folder: Path, ids: Any, rows: list[int]) -> Path:
    path = folder / "aligned.parquet"
    parquet.write_table(pa.table({"id": ids, "row": pa.array(rows, pa.int64())}), path)
    return path


def test_aligned_rows_are_those_in_that_order(tmp_path: Path) -> None:
    picked = aligned(tmp_path, ["p4", "p1", "p3"], [3, 0, 2])
    columns: dict[str, ColumnRole] = {"age": AS_IT_STANDS, "ward": Embedded(size=3)}
    for path in both(tmp_path, TABLE):
        table = fitted(path, columns, [0, 1], id="who", label="ill", aligned=picked)
        (x, codes), y = table.batch(slice(None))
        assert (x.flatten().tolist(), y.tolist()) == ([50, 31, 47], [0, 1, 1])  # type: ignore[union-attr]
        assert codes.flatten().tolist() == [2, 1, 1], "p4 and p1 were learned from: A before C, as equals go by name"
        assert (list(table.ids or ()), len(table), table.present.all().item()) == (["p4", "p1", "p3"], 3, True)
        assert table[0][0][0].tolist() == [50]


def test_rows_outside_an_alignment_are_not_looked_at(tmp_path: Path) -> None:
    picked = aligned(tmp_path, ["p1"], [0])
    path = write_csv(tmp_path / "a.csv", TABLE | {"age": [31, "x", "y", "z"], "ill": [1, None, None, None]})
    assert x_of(fitted(path, {"age": AS_IT_STANDS}, id="who", label="ill", aligned=picked)).tolist() == [[31]]


def test_rows_that_the_table_lacks_are_all_missing(tmp_path: Path) -> None:
    picked = aligned(tmp_path, ["p2", None, "p1"], [1, -1, 0])
    columns: dict[str, ColumnRole] = {
        "age": Number(scale=False, missing="flag"), "ward": OneHot(size=3), "who2": Embedded(size=3)
    }  # fmt: skip
    for path in both(tmp_path, TABLE | {"who2": TABLE["who"]}):
        table = fitted(path, columns, id="who", label="ill", aligned=picked, unlabelled=True)
        (x, codes), y = table.batch(slice(None))
        assert x.tolist() == [[62, 0, 0, 1, 0], [46.5, 1, 0, 0, 1], [31, 0, 1, 0, 0]]
        assert codes.flatten().tolist() == [2, 0, 1]
        assert y.tolist() == [0, -100, 1]  # type: ignore[union-attr]
        assert (table.present.tolist(), list(table.ids or ())) == ([True, False, True], ["p2", None, "p1"])
        sentence = refusal(path, columns, id="who", label="ill", aligned=picked)
        assert "the label is missing in 1 of 3 rows: fill them in" in sentence
        assert "takes no missing value" in refusal(path, {"age": Number(missing="refuse")}, id="who", aligned=picked)


def test_a_table_that_changed_since_it_was_aligned_is_refused(tmp_path: Path) -> None:
    columns: dict[str, ColumnRole] = {"age": Number()}
    cases: list[tuple[Any, list[int], str]] = [
        (["p1", "p3"], [0, 1], "1 of 2 rows have another id"),
        (["p1", "p5"], [0, 4], "it has 4 rows, and row 4 was aligned"),
        ([1, 2], [0, 1], "with an id that is no whole number"),
        (["p1", "p1"], [0, 0], "names a row"),
    ]
    for ids, rows, told in cases:
        picked = aligned(tmp_path, ids, rows)
        for path in both(tmp_path, TABLE):
            sentence = refusal(path, columns, id="who", aligned=picked)
            assert told in sentence
            assert ("run `cutlayer align` again" in sentence) or "whole number" in sentence


def test_what_is_no_alignment_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", TABLE)
    roles = {"columns": {"age": Number()}, "id": "who"}
    other, empty = write_parquet(tmp_path / "b.parquet", {"a": [1]}), tmp_path / "c.parquet"
    parquet.write_table(pa.table({"id": pa.array([], pa.string()), "row": pa.array([], pa.int64())}), empty)
    for picked, told in (
        (tmp_path / "none.parquet", "run `cutlayer align`, which writes it"),
        (path, "is no file that `cutlayer align` wrote"),
        (other, "lacks the columns id and row"),
        (empty, "the parties have none in common"),
    ):
        with pytest.raises(DataError, match=told):
            open_table(path, TableRoles(**roles, aligned=picked))  # type: ignore[arg-type]


# ---------------------------------------------------------------------- by reference


def test_tables_are_opened_by_reference_with_roles_and_their_options(tmp_path: Path) -> None:
    roles = TableRoles(columns={"age": AS_IT_STANDS}, label="ill")
    for path in both(tmp_path, TABLE):
        table = open_rows(path.name, folder=tmp_path, roles=roles, options={"label_dtype": "float32"})
        assert isinstance(table, tables.Table)
        table.fit(torch.arange(4))
        assert y_of(table).dtype is torch.float32
        again = open_rows(str(path), roles=roles, encoding=table.encoding)
        assert isinstance(again, tables.Table)
        assert torch.equal(x_of(again), x_of(table))
        for options, told in (
            ({"channels": "last"}, "'channels' is no option"),
            ({"label_dtype": "x"}, "cannot be 'x'"),
        ):
            with pytest.raises(DataError, match=told):
                open_rows(str(path), roles=roles, options=options)
    (tmp_path / "b.csv").write_text("age;ill\n1;0\n")
    assert len(open_rows(str(tmp_path / "b.csv"), roles=roles, options={"delimiter": ";"})) == 1  # type: ignore[arg-type]
    (tmp_path / "b.tsv").write_text("age\till\n1\t0\n")
    assert len(open_rows(str(tmp_path / "b.tsv"), roles=roles)) == 1  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"\[columns\] choose columns of a table, but 'a.npz' is an array file"):
        open_rows("a.npz", roles=roles)


def test_a_parquet_file_without_roles_is_read_as_csv_is(tmp_path: Path) -> None:
    columns = {"b": [1.5, 2.25, 3.0], "a": [3, 4, 5], "y": [1, 0, 2], "w": ["u", "v", "u"]}
    for terms in (
        {"features": ["a", "b"], "label": "y"},
        {"features": ["b"], "label": "w", "classes": ["v", "u"]},
        {"features": ["a"], "label": "b", "options": {"label_dtype": torch.float32}},
    ):
        one, other = (open_rows(str(path), **terms) for path in both(tmp_path, columns))
        for left, right in zip(one.tensors, other.tensors, strict=True):  # type: ignore[attr-defined]
            assert torch.equal(left, right)
            assert left.dtype is right.dtype
    del columns["w"]
    path = write_parquet(tmp_path / "b.parquet", columns)
    assert open_rows(str(path), label="y").tensors[0].tolist() == [[1.5, 3], [2.25, 4], [3, 5]]  # type: ignore[attr-defined]


def test_a_parquet_file_without_roles_refuses_what_csv_refuses(tmp_path: Path) -> None:
    def told(columns: dict[str, Any]) -> str:
        with pytest.raises(DataError) as caught:
            open_rows(str(write_parquet(tmp_path / "a.parquet", columns)), label="y")
        return str(caught.value)

    assert "row 2, column 'a': the cell is blank, where a number" in told({"a": [1, None], "y": [0, 1]})
    assert "row 2, column 'y': the cell is blank" in told({"a": [1, 2], "y": [0, None]})
    assert "row 2, column 'a': 'inf' is not a finite number" in told({"a": [1, float("inf")], "y": [0, 1]})
    assert "row 2, column 'a': '1e+300' is not a number" in told({"a": [1, 1e300], "y": [0, 1]})
    assert "column 'a', is of type string" in told({"a": ["x"], "y": [0]})
    assert "no features are left" in told({"y": [0]})
    assert "no column 'y'" in told({"a": [0]})
    assert "has columns but no rows" in told({"a": pa.array([], pa.int8()), "y": pa.array([], pa.int8())})
