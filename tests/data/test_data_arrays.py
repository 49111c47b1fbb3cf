"""Claims about array files: images as a conv net takes them, everything else as it is, and no code is ever run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch.utils.data import Dataset, TensorDataset

from cutlayer.data import Loader, open_rows
from cutlayer.data.factory import open_pool
from cutlayer.errors import DataError
from cutlayer.plan.batches import Batch
from cutlayer.plan.tensors import TensorSpec

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client-1.npz"


def opened(path: Path, **arrays: Any) -> tuple[torch.Tensor, torch.Tensor]:
    options = arrays.pop("options", {})
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    rows = open_rows(path.name, folder=path.parent, options=options)
    assert type(rows) is TensorDataset, "the Loader takes only these whole"
    x, y = rows.tensors
    return x, y


@pytest.mark.parametrize("name", ["rows.npz", "rows.safetensors"])
def test_images_become_float32_from_0_to_1_with_a_channel_and_labels_int64(tmp_path: Path, name: str) -> None:
    x, y = opened(tmp_path / name, x=IMAGES, y=LABELS)
    assert (x.dtype, tuple(x.shape), y.dtype) == (torch.float32, (6, 1, 5, 4), torch.int64)
    assert torch.equal(x[:, 0], torch.from_numpy(IMAGES.astype(np.float32)) / 255)
    assert y.tolist() == LABELS.tolist()


def test_channels_are_where_the_options_say(path: Path) -> None:
    coloured = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    last, _ = opened(path, x=coloured, y=LABELS, options={"channels": "last"})
    assert torch.equal(last, torch.from_numpy(coloured.transpose(0, 3, 1, 2).astype(np.float32)) / 255)
    assert opened(path, x=coloured, y=LABELS)[0].shape == (6, 5, 4, 3)
    assert opened(path, x=IMAGES, y=LABELS, options={"channels": "none"})[0].shape == (6, 5, 4)
    with pytest.raises(DataError, match="without channels at their end: leave out"):
        opened(path, x=IMAGES, y=LABELS, options={"channels": "last"})
    with pytest.raises(DataError, match="channels 'lasts': choose one of first, last, none"):
        opened(path, x=IMAGES, y=LABELS, options={"channels": "lasts"})
    with pytest.raises(DataError, match=r"'chanels' is no option for .*: an array file has only 'channels'"):
        opened(path, x=IMAGES, y=LABELS, options={"chanels": "last"})


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "i8", ">i4", "?"])
def test_arrays_that_are_no_images_pass_as_they_are(path: Path, dtype: str) -> None:
    held = np.arange(24).reshape(6, 4).astype(dtype)
    x, _ = opened(path, x=held, y=LABELS)
    assert x.numpy().tolist() == held.tolist()
    assert x.numpy().dtype == held.dtype.newbyteorder("=")


def test_small_numbers_in_uint8_columns_are_no_images(path: Path) -> None:
    x, _ = opened(path, x=np.array([[7, 9]] * 6, dtype=np.uint8), y=LABELS)
    assert x.tolist() == [[7, 9]] * 6


def test_labels_of_a_regression_stay_floats_and_large_unsigned_numbers_become_int64(path: Path) -> None:
    assert opened(path, x=IMAGES, y=np.linspace(0, 1, 6, dtype=np.float32))[1].dtype is torch.float32
    x, y = opened(path, x=np.full((6, 2), 60000, dtype=np.uint16), y=LABELS.astype(np.uint32))
    assert (x.dtype, y.dtype, x[0, 0].item()) == (torch.int64, torch.int64, 60000)


def test_the_loader_takes_the_rows_as_the_plan_wants_them(path: Path) -> None:
    np.savez(path, x=IMAGES, y=LABELS)
    loader = Loader(
        open_rows(str(path)),
        inputs=[TensorSpec(dtype="float32", shape=("B", 1, 5, 4), differentiable=False)],
        labels=TensorSpec(dtype="int64", shape=("B",), differentiable=False),
        secret=b"s",
        shuffle=False,
        classes=3,
    )
    batch = Batch(epoch=0, start=0, stop=4, held_out=False)
    assert loader.load("x", batch)[0].shape == (4, 1, 5, 4)
    assert loader.load("y", batch)[0].tolist() == [0, 1, 2, 0]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_rows(str(path))
    sentence = str(caught.value)
    assert str(path) in sentence
    assert sentence.endswith(".")
    return sentence


class Evil:
    def __reduce__(self) -> Any:
        return pytest.fail, ("code of a data file was run",)


def test_a_pickle_in_the_file_is_refused_and_not_run(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.array([Evil()] * 2, dtype=object), y=LABELS)
    assert "cannot be loaded when allow_pickle=False" in refusal(path)


def test_files_that_are_none(path: Path) -> None:
    assert "there is no file" in refusal(path)
    path.write_bytes(b"PK\x03\x04 no archive")
    assert "is not an array file that can be read" in refusal(path)
    path.write_bytes(b"")
    assert "is not an array file that can be read" in refusal(path)
    with path.open("wb") as file:
        np.save(file, IMAGES)
    assert "one array without a name: save features and labels as x and y" in refusal(path)
    broken = path.with_suffix(".safetensors")
    broken.write_bytes(b"\x00" * 20)
    assert "is not an array file that can be read" in refusal(broken)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": IMAGES}, "has no arrays x and y but a: save the party's own rows as x and y"),
        ({"x_train": IMAGES, "y_train": LABELS}, "`cutlayer deal "),
        ({"x": IMAGES, "y": LABELS[:5]}, "features [6, 5, 4] and labels [5]: give one label for each row"),
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "at least one row"),
        ({"x": np.float32(1), "y": LABELS}, "give one label for each row"),
        ({"x": IMAGES, "y": np.array(["a"] * 6)}, "the labels y of"),
        ({"x": IMAGES.astype("c8"), "y": LABELS}, "the features x of"),
    ],
)
def test_arrays_that_do_not_belong_together(path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(path, **arrays)
    assert words in refusal(path)


def test_columns_are_not_chosen_of_an_array_file(path: Path) -> None:
    np.savez(path, x=IMAGES, y=LABELS)
    with pytest.raises(DataError, match="is an array file: leave them out, and choose"):
        open_rows(str(path), label="y")


class Squares(Dataset[Any]):
    """Samples that are made one by one."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.full((2,), row**2, dtype=torch.uint8), row % 2


def test_the_rows_of_any_factory_can_be_dealt(tmp_path: Path) -> None:
    pool = open_pool(f"{__name__}:Squares")
    assert list(pool.labels) == [0, 1, 0, 1, 0]
    pool.write(tmp_path / "one.npz", np.array([1, 3]))
    x, y = (np.load(tmp_path / "one.npz")[name] for name in "xy")
    assert (x.tolist(), y.tolist(), x.dtype) == ([[1, 1], [9, 9]], [1, 1], np.uint8)
    assert pool.write_test is None


def test_digits_are_an_example_that_needs_no_file(tmp_path: Path) -> None:
    pool = open_pool("digits")
    assert len(pool.labels) == 1797
    pool.write(tmp_path / "one.npz", np.arange(3))
    rows = open_rows(str(tmp_path / "one.npz"))
    assert isinstance(rows, TensorDataset)
    assert (rows.tensors[0].shape, rows.tensors[0].max().item()) == ((3, 1, 8, 8), 1.0)
