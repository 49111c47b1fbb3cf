"""Claims about a party's own code and tables, opened by the reference that the party wrote."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from cutlayer.data import load_factory, open_rows
from cutlayer.errors import DataError

CODE = """
import torch
from torch.utils.data import TensorDataset
from ward_shapes import WIDTH

number = 3

def make_rows(rows=4):
    import ward_late
    return TensorDataset(torch.zeros(rows, WIDTH), torch.zeros(rows, dtype=torch.int64))

def fails():
    raise ValueError("no scans on this disk")

def returns_a_list():
    return [1, 2]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A project folder with modules that only this test knows; they are forgotten afterwards."""
    known = set(sys.modules)
    (tmp_path / "ward_rows.py").write_text(CODE)
    (tmp_path / "ward_shapes.py").write_text("WIDTH = 7\n")
    (tmp_path / "ward_late.py").write_text("")
    (tmp_path / "ward_broken.py").write_text("import a_module_that_is_nowhere\n")
    (tmp_path / "ward_raises.py").write_text("raise RuntimeError('half written')\n")
    (tmp_path / "wards").mkdir()
    (tmp_path / "wards" / "__init__.py").write_text("")
    (tmp_path / "wards" / "north.py").write_text(CODE)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("ward"):
            del sys.modules[name]


def refusal(reference: str, folder: Path | None = None) -> str:
    path = list(sys.path)
    with pytest.raises(DataError) as caught:
        load_factory(reference, folder)
    assert sys.path == path
    sentence = str(caught.value)
    assert reference in sentence
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize("reference", ["ward_rows:make_rows", "wards.north:make_rows"])
def test_a_factory_in_the_partys_folder_is_found_and_called_with_its_options(folder: Path, reference: str) -> None:
    path = list(sys.path)
    dataset, more = load_factory(reference, folder), load_factory(reference, folder, rows=9)
    assert isinstance(dataset, TensorDataset)
    assert isinstance(more, TensorDataset)
    assert (len(dataset), len(more), dataset.tensors[0].shape[1]) == (4, 9, 7)
    assert sys.path == path, "the folder was importable only meanwhile"


def test_an_installed_module_needs_no_folder() -> None:
    dataset = load_factory("torch.utils.data:StackDataset", None, x=torch.zeros(2), y=torch.zeros(2))
    assert len(dataset) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", ["ward_rows", "ward_rows:", ":make_rows"])
def test_a_reference_without_module_or_factory(reference: str, folder: Path) -> None:
    assert "write package.module:factory" in refusal(reference, folder)


def test_a_module_that_is_not_there(folder: Path) -> None:
    sentence = refusal("ward_row:make_rows", folder)
    assert f"there is no module 'ward_row' in {folder}" in sentence
    assert "correct its name, 'ward_rows' perhaps" in sentence
    assert "there is no module 'wards.south'" in refusal("wards.south:make_rows", folder)
    assert "without .py" in refusal("ward_rows.py:make_rows", folder)
    assert "in the installed packages" in refusal("ward_late:make_rows")


def test_a_module_that_cannot_be_imported(folder: Path) -> None:
    sentence = refusal("ward_broken:make_rows", folder)
    assert "No module named 'a_module_that_is_nowhere': install that module" in sentence
    assert "it raised RuntimeError: half written: mend the module" in refusal("ward_raises:make_rows", folder)


def test_a_factory_that_is_not_there_or_is_none(folder: Path) -> None:
    assert "ward_rows has no 'make_row': correct the name ('make_rows' perhaps)" in refusal(
        "ward_rows:make_row", folder
    )
    assert "is no function but of type int" in refusal("ward_rows:number", folder)


def test_a_factory_that_raises_or_returns_something_else(folder: Path) -> None:
    assert "raised ValueError: no scans on this disk: mend the factory" in refusal("ward_rows:fails", folder)
    sentence = refusal("ward_rows:returns_a_list", folder)
    assert "returned list, not a torch Dataset: return a torch.utils.data.Dataset" in sentence
    with pytest.raises(DataError, match="unexpected keyword argument 'row'"):
        load_factory("ward_rows:make_rows", folder, row=3)


def test_a_namesake_from_elsewhere_is_refused_not_silently_used(folder: Path, tmp_path: Path) -> None:
    load_factory("ward_rows:make_rows", folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "ward_rows.py").write_text(CODE)
    sentence = refusal("ward_rows:make_rows", other)
    assert f"the name 'ward_rows' is already taken by {folder / 'ward_rows.py'}: rename" in sentence


def test_rows_are_opened_by_what_the_reference_is(folder: Path) -> None:
    (folder / "rows.csv").write_text("age,ill\n1,no\n2,yes\n")
    (folder / "rows.tsv").write_text("age\till\n1\t0\n")
    table = open_rows("rows.csv", features=["age"], label="ill", classes=["no", "yes"], folder=folder)
    assert isinstance(table, TensorDataset)
    assert table.tensors[1].tolist() == [0, 1]
    wide = open_rows(str(folder / "rows.csv"), label="ill", classes=["no", "yes"], options={"dtype": torch.float64})
    assert isinstance(wide, TensorDataset)
    assert wide.tensors[0].dtype is torch.float64
    assert len(open_rows("rows.tsv", label="ill", folder=folder)) == 1  # type: ignore[arg-type]
    made = open_rows("ward_rows:make_rows", folder=folder, options={"rows": 5})
    assert isinstance(made, TensorDataset)
    assert len(made) == 5


def test_references_and_terms_that_do_not_fit_together(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no label column is named for rows\.csv: name the column"):
        open_rows("rows.csv")
    with pytest.raises(DataError, match=r"'rows\.xlsx' names neither a table .* nor a factory: write"):
        open_rows("rows.xlsx", label="ill")
    with pytest.raises(DataError, match=r"'ward_rows:make_rows' is a factory: leave them out"):
        open_rows("ward_rows:make_rows", label="ill", folder=folder)


def test_a_file_is_closed_again_after_a_refusal(folder: Path) -> None:
    (folder / "rows.csv").write_text("age,ill\nx,0\n")
    with pytest.raises(DataError, match="row 2"):
        open_rows("rows.csv", label="ill", folder=folder)
    gc.collect()
    (folder / "rows.csv").unlink()
