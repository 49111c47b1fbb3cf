"""A model's answers as a table: every row once, in its order, with classes, ids and names where a party has them."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet
from torch import Tensor

from cutlayer.data.answers import write_answers
from cutlayer.errors import DataError

OUTPUTS = torch.tensor([[0.1, 0.7, 0.2], [3.0, -1.0, 2.0], [-2.0, -3.0, -1.0]])


def columns(path: Path) -> dict[str, list[Any]]:
    table = csv.read_csv(path) if path.suffix == ".csv" else parquet.read_table(path)
    return table.to_pydict()  # type: ignore[no-any-return]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_classes_are_answered_by_number_beside_all_outputs(tmp_path: Path, ending: str) -> None:
    path = write_answers(tmp_path / f"answers{ending}", {"top": {"all": OUTPUTS}}, classes={"top": 3})
    found = columns(path)
    assert list(found) == ["row", "answer", "output_0", "output_1", "output_2"]
    assert found["row"] == [0, 1, 2]
    assert found["answer"] == [1, 0, 2]
    assert [found[f"output_{place}"] for place in range(3)] == OUTPUTS.double().T.tolist()


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_keep_every_bit(tmp_path: Path, ending: str, dtype: torch.dtype) -> None:
    outputs = torch.randn(50, 1, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 1e-30
    found = columns(write_answers(tmp_path / f"answers{ending}", {"top": {"all": outputs}}, classes={"top": 0}))
    assert list(found) == ["row", "output_0"]
    assert torch.equal(torch.tensor(found["output_0"], dtype=torch.float64).to(dtype), outputs[:, 0])


def test_names_stand_for_classes_and_ids_for_rows(tmp_path: Path) -> None:
    names, ids = ["no", "yes", "perhaps, who knows"], ["c-7", None, "c-9"]
    path = write_answers(
        tmp_path / "answers.csv", {"head": {"all": OUTPUTS}}, classes={"head": 3}, ids=ids, names=names
    )
    found = columns(path)
    assert list(found)[:3] == ["row", "id", "answer"]
    assert found["id"] == ["c-7", "", "c-9"]
    assert found["answer"] == ["yes", "no", "perhaps, who knows"]


def test_whole_numbers_as_ids_stay_whole(tmp_path: Path) -> None:
    ids = [2**62 + 1, 7, -3]
    found = parquet.read_table(
        write_answers(tmp_path / "answers.parquet", {"head": {"all": OUTPUTS}}, classes={}, ids=ids)
    )
    assert found.schema.field("id").type == pa.int64()
    assert found["id"].to_pylist() == ids
    assert "answer" not in found.column_names


def test_several_owners_are_named_and_their_rows_counted_apart(tmp_path: Path) -> None:
    answers = {"top": {"hospital-a": OUTPUTS, "hospital-b": OUTPUTS[:2] * -1}}
    found = columns(write_answers(tmp_path / "answers.csv", answers, classes={"top": 3}, ids=[1, 2, 3]))
    assert "id" not in found
    assert found["owner"] == ["hospital-a"] * 3 + ["hospital-b"] * 2
    assert found["row"] == [0, 1, 2, 0, 1]
    assert found["answer"] == [1, 0, 2, 0, 1]


def test_several_tasks_have_columns_of_their_own(tmp_path: Path) -> None:
    numbers = torch.tensor([[0.5], [1.5], [-2.0]])
    answers = {"top_a": {"all": OUTPUTS}, "top_b": {"all": numbers}}
    found = columns(write_answers(tmp_path / "answers.csv", answers, classes={"top_a": 3, "top_b": 0}, names=["x"]))
    assert list(found) == ["row", "top_a.answer", *(f"top_a.output_{n}" for n in range(3)), "top_b.output_0"]
    assert found["top_a.answer"] == [1, 0, 2]  # the names are of one task's classes: of which, nobody says
    assert found["top_b.output_0"] == [0.5, 1.5, -2.0]


@pytest.mark.parametrize(("outputs", "width"), [(torch.zeros(4), 1), (torch.zeros(4, 2, 3), 6)])
def test_outputs_of_any_shape_are_laid_out_by_row(tmp_path: Path, outputs: Tensor, width: int) -> None:
    found = columns(write_answers(tmp_path / "answers.csv", {"top": {"all": outputs}}, classes={}))
    assert list(found) == ["row", *(f"output_{place}" for place in range(width))]
    assert len(found["row"]) == 4


def test_what_is_not_a_number_is_written_as_it_is(tmp_path: Path) -> None:
    outputs = torch.tensor([[math.nan], [math.inf]])
    found = parquet.read_table(write_answers(tmp_path / "a.parquet", {"top": {"all": outputs}}, classes={}))
    assert math.isnan(found["output_0"][0].as_py())
    assert found["output_0"][1].as_py() == math.inf


def test_the_folder_is_made_and_nothing_half_written_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "answers.csv"
    for outputs in (OUTPUTS, OUTPUTS[:1]):
        assert write_answers(path, {"top": {"all": outputs}}, classes={}) == path
        assert len(columns(path)["row"]) == len(outputs)
        assert [file.name for file in path.parent.iterdir()] == ["answers.csv"]


@pytest.mark.parametrize("name", ["answers", "answers.txt", "answers.csv.gz"])
def test_another_ending_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"is neither .csv nor .parquet: end its name so"):
        write_answers(tmp_path / name, {"top": {"all": OUTPUTS}}, classes={})
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"taken.*answers.csv cannot be written \(.+\): name another file"):
        write_answers(tmp_path / "taken" / "answers.csv", {"top": {"all": OUTPUTS}}, classes={})
