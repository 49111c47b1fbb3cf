"""Claims about CSV files: the numbers that are in them, or one sentence with file, row, column and mend."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cutlayer.data import read_table
from cutlayer.errors import DataError

GOOD = "age,dose,ward,ill\n31,0.5,A,1\n62,1.25,B,0\n47,-2e-3,A,1\n"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "rows.csv"
        path.write_text(text, encoding="utf-8", newline="")
        return path

    return write


def refusal(path: Path, features: list[str] | None, label: str = "ill", **options: Any) -> str:
    """The sentence with which `read_table` refuses the file; it names the file and ends with a mend."""
    with pytest.raises(DataError) as caught:
        read_table(path, features, label, **options)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert ": " in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def test_features_come_in_the_order_asked_for(write: Write) -> None:
    x, y = read_table(write(GOOD), ["dose", "age"], "ill").tensors
    assert torch.equal(x, torch.tensor([[0.5, 31], [1.25, 62], [-2e-3, 47]]))
    assert torch.equal(y, torch.tensor([1, 0, 1]))
    assert (x.dtype, y.dtype, x.shape, y.shape) == (torch.float32, torch.int64, (3, 2), (3,))


def test_without_features_all_columns_but_the_label_are_taken(write: Write) -> None:
    x, y = read_table(write("ill,b,a\n1,2,3\n0,5,6\n"), None, "ill").tensors
    assert x.tolist() == [[2, 3], [5, 6]]
    assert y.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_number_is_the_nearest_of_its_dtype(write: Write, dtype: torch.dtype) -> None:
    values = np.random.default_rng(0).standard_normal(200) * 10.0 ** np.arange(-20, 20).repeat(5)
    text = "a,ill\n" + "".join(f"{value!r},0\n" for value in values.tolist())
    (x, _) = read_table(write(text), ["a"], "ill", dtype=dtype).tensors
    assert torch.equal(x[:, 0], torch.from_numpy(values).to(dtype))


def test_text_classes_become_their_places(write: Write) -> None:
    _, y = read_table(write(GOOD), ["age"], "ward", classes=["B", "C", "A"]).tensors
    assert y.dtype is torch.int64
    assert y.tolist() == [2, 0, 2]


def test_labels_may_be_whole_numbers_written_as_floats_and_floats_for_a_regression(write: Write) -> None:
    text = "a,ill\n1,1.0\n1,0.0\n1,2e1\n"
    assert read_table(write(text), ["a"], "ill").tensors[1].tolist() == [1, 0, 20]
    (_, y) = read_table(write("a,ill\n1,0.5\n"), ["a"], "ill", label_dtype=torch.float32).tensors
    assert (y.dtype, y.tolist()) == (torch.float32, [0.5])


def test_quotes_blanks_marks_and_line_ends_are_as_other_programs_write_them(write: Write, tmp_path: Path) -> None:
    text = '\ufeff"a b",note,ill\r\n 1 ,"x, ""y""\nz",1\r\n\r\n"2",,0\r\n\r\n'
    x, y = read_table(write(text), ["a b"], "ill").tensors
    assert (x.tolist(), y.tolist()) == ([[1], [2]], [1, 0])
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(GOOD.encode()))
    assert len(read_table(packed, ["age"], "ill")) == 3
    assert len(read_table(write(GOOD.replace(",", ";")), ["age"], "ill", delimiter=";")) == 3


def test_a_quoted_text_of_many_lines_is_one_cell_however_long_the_file(write: Write) -> None:
    note = "a line, of many\n" * 100
    text = "age,note,ill\n" + "".join(f'{row},"{note}",1\n' for row in range(1500))
    (x, _) = read_table(write(text), ["age"], "ill").tensors
    assert x.flatten().tolist() == list(range(1500))


def test_a_missing_file(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "none.csv", None)
    assert "check that it is a file you may read" in refusal(tmp_path, None)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file(write: Write, text: str) -> None:
    assert "is empty: its first row must name the columns" in refusal(write(text), None)


@pytest.mark.parametrize("text", ["age,ill", "age,ill\n", "age,ill\n\n\n"])
def test_a_header_without_rows(write: Write, text: str) -> None:
    assert "has a header but no rows: add one row" in refusal(write(text), None)


def test_all_missing_columns_are_named_each_with_the_nearest(write: Write) -> None:
    sentence = refusal(write(GOOD), ["agee", "age", "dosis"], "il")
    assert "'agee' (nearest: 'age')" in sentence
    assert "'dosis' (nearest: 'dose')" in sentence
    assert "'il' (nearest: 'ill')" in sentence
    assert sentence.endswith("correct the name.")


def test_another_delimiter_is_suggested(write: Write) -> None:
    assert "parted by ';', pass that as the delimiter" in refusal(write(GOOD.replace(",", ";")), ["age"])
    assert "give one character" in refusal(write(GOOD), ["age"], delimiter="::")


def test_columns_of_the_same_name(write: Write) -> None:
    sentence = refusal(write("a,b,a,ill,b\n1,2,3,4,5\n"), ["a"])
    assert "several columns of the same name ('a', 'b'): rename" in sentence


def test_features_that_make_no_sense(write: Write) -> None:
    assert "the label 'ill' is also a feature" in refusal(write(GOOD), ["age", "ill"])
    assert "twice ('age'): name it once" in refusal(write(GOOD), ["age", "dose", "age"])
    assert "no features are left" in refusal(write(GOOD), [])
    assert "no features are left" in refusal(write("ill\n1\n"), None)


@pytest.mark.parametrize("cell", ["twelve", "1_000", "0x10", "1,5"])
@pytest.mark.parametrize("bad", [0, 1, 63, 99])
def test_a_cell_that_is_no_number(write: Write, cell: str, bad: int) -> None:
    rows = [f'"{cell}",1\n' if row in {bad, 99} else f"{row},1\n" for row in range(100)]
    sentence = refusal(write("age,ill\n" + "".join(rows)), ["age"])
    assert f"rows.csv, row {bad + 2}, column 'age': {cell!r} is not a number: correct the cell" in sentence


def test_rows_are_counted_as_a_spreadsheet_does_with_blank_rows_and_quoted_line_ends(write: Write) -> None:
    text = '\nage,note,ill\n1,"two\nlines",1\n\n2,,0\nx,,1\n'
    assert "row 6, column 'age': 'x'" in refusal(write(text), ["age"])


@pytest.mark.parametrize("cell", ["", "  ", "NA", "nan", "NULL"])
def test_a_missing_value(write: Write, cell: str) -> None:
    sentence = refusal(write(f"age,dose,ill\n1,2,0\n3,{cell},1\n"), ["age", "dose"])
    assert "row 3, column 'dose': the " in sentence
    assert ("is missing" if cell.strip() else "is blank") in sentence
    assert "where a number is expected: fill it in, or leave the row or the column out" in sentence
    sentence = refusal(write(f"age,ill\n1,0\n3,{cell}\n"), ["age"], classes=["0", "1"])
    assert "row 3, column 'ill': the " in sentence


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e400"])
def test_a_number_that_is_not_finite(write: Write, cell: str) -> None:
    assert f"row 3, column 'age': '{cell}' is not a number" in refusal(write(f"age,ill\n1,0\n{cell},1\n"), ["age"])


@pytest.mark.parametrize("cell", ["0.5", "yes", "1e300", "12345678901234567890"])
def test_a_label_that_is_no_whole_number(write: Write, cell: str) -> None:
    sentence = refusal(write(f"age,ill\n1,0\n2,1.0\n3,{cell}\n"), ["age"])
    assert f"row 4, column 'ill': '{cell}' is not a whole number: correct the cell" in sentence


def test_a_label_that_is_none_of_the_classes(write: Write) -> None:
    sentence = refusal(write("age,ill\n1,healthy\n2,ills\n"), ["age"], classes=["healthy", "ill"])
    assert "row 3, column 'ill': 'ills' is not one of the classes 'healthy', 'ill'" in sentence
    assert "'ill' perhaps" in sentence


@pytest.mark.parametrize("classes", [[], ["a", "b", "a"]])
def test_classes_must_be_named_once_each(write: Write, classes: list[str]) -> None:
    with pytest.raises(DataError, match="at least one, each named once"):
        read_table(write(GOOD), ["age"], "ward", classes=classes)


@pytest.mark.parametrize(("row", "count"), [("3", "1 cell"), ("3,4,5", "3 cells")])
def test_a_row_with_another_number_of_cells(write: Write, row: str, count: str) -> None:
    sentence = refusal(write(f"age,ill\n1,0\n\n{row}\n2,1\n"), ["age"])
    assert f"row 4, has {count} where the header has 2 columns: add or remove cells" in sentence


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("age,ill\n1,krank\n2,gesünd\n".encode("latin-1"))
    assert "is not UTF-8 text: save it anew" in refusal(path, ["age"], classes=["krank"])


def test_a_long_cell_is_not_quoted_whole(write: Write) -> None:
    assert len(refusal(write(f"age,ill\n{'x' * 5000},1\n"), ["age"])) < 400
