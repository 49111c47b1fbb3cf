"""Array files: `x` and `y` in one `.npz` or `.safetensors`, read without pickle. Images stay uint8 on disk."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch.utils.data import Dataset, TensorDataset, default_collate

from cutlayer.errors import DataError

ENDINGS = (".npz", ".safetensors")
CHANNELS = ("first", "last", "none")

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrays:
    """Features `[rows, ...]` and labels `[rows, ...]`, in the dtypes of their file."""

    x: Array
    y: Array

    def __len__(self) -> int:
        return len(self.y)

    def classes(self, name: str) -> Array:
        """The one label of each row `[rows]`. Raises: DataError if there are several; `name` is for sentences."""
        if self.y.size != len(self.y):
            raise DataError(f"the labels y of {name} are {list(self.y.shape)}: give one for each row.")
        return self.y.reshape(-1)

    def take(self, rows: Array) -> "Arrays":
        """The rows at these places."""
        return Arrays(x=self.x[rows], y=self.y[rows])

    def write(self, path: Path) -> None:
        """As a compressed `.npz`."""
        with path.open("wb") as file:
            np.savez_compressed(file, x=self.x, y=self.y)


def open_arrays(path: str | Path, *, channels: str = "first") -> TensorDataset:
    """An array file, its arrays named `x` and `y`, as a dataset.

    Images are `x` of dtype uint8 with three or more dimensions. They become float32 from 0 to 1, and get the shape
    that a conv net takes. Any other `x` passes as it is. Whole `y` become int64.

    Args:
        path: the file, `.npz` or `.safetensors`.
        channels: where images have theirs. `first`: `[N, H, W]` becomes `[N, 1, H, W]`, `[N, C, H, W]` stays.
            `last`: `[N, H, W, C]` becomes `[N, C, H, W]`. `none`: all shapes stay.

    Raises:
        DataError: the file, and what to do.
    """
    if channels not in CHANNELS:
        raise DataError(f"images cannot have their channels {channels!r}: choose one of {', '.join(CHANNELS)}.")
    arrays, _ = split_arrays(read_arrays(path), str(path), train=False)
    y = _tensor(arrays.y)
    if not y.dtype.is_floating_point:
        y = y.to(torch.int64)
    return TensorDataset(_features(arrays.x, channels, str(path)), y)


def read_arrays(path: str | Path) -> dict[str, Array]:
    """All arrays of a file by name. Raises: DataError if it cannot be read, or not without running code (pickle)."""
    try:
        if str(path).lower().endswith(".safetensors"):
            return load_file(path)
        with Path(path).open("rb") as file:
            held = np.load(file, allow_pickle=False)
            if isinstance(held, np.ndarray):
                raise DataError(f"{path} holds one array without a name: save features and labels as x and y.")
            return {name: held[name] for name in held.files}
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}: correct the path, which is taken from {Path.cwd()}.") from error
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(
            f"{path} is not an array file that can be read ({error}): save it anew, with plain numbers only."
        ) from error


def split_arrays(held: Mapping[str, Array], name: str, *, train: bool = True) -> tuple[Arrays, Arrays | None]:
    """The rows of a file called `name`, and its test part if it has one; `x_train y_train` do only where `train`.

    Raises: DataError if they are not there, do not belong together, or hold no numbers.
    """
    if {"x", "y"} <= held.keys():
        return _checked(held["x"], held["y"], name), None
    if not train:
        hint = f"`cutlayer deal {name}`, or save" if {"x_train", "y_train"} <= held.keys() else "save"
        raise DataError(f"{name} has no arrays x and y but {_listed(held)}: {hint} the party's own rows as x and y.")
    if not {"x_train", "y_train"} <= held.keys():
        raise DataError(
            f"{name} has neither x and y nor x_train and y_train but {_listed(held)}: name its arrays so, features "
            "x and labels y."
        )
    rows = _checked(held["x_train"], held["y_train"], name)
    if not {"x_test", "y_test"} <= held.keys():
        return rows, None
    return rows, _checked(held["x_test"], held["y_test"], f"the test part of {name}")


def digits() -> dict[str, Array]:
    """scikit-learn's 8x8 digits, x `[1797, 1, 8, 8]` float32 from 0 to 1, y int64. Raises: DataError without it."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits come with scikit-learn: pip install 'cutlayer[demo]'.") from error
    held = load_digits()
    return {"x": (held.images[:, None] / 16).astype(np.float32), "y": held.target.astype(np.int64)}


def gathered(dataset: Dataset[Any], name: str) -> dict[str, Array]:
    """`x` and `y` of a map-style dataset of `(x, y)`; `name` is its own in sentences. Raises: DataError."""
    try:
        parts: Any = (
            dataset.tensors
            if type(dataset) is TensorDataset
            else default_collate([dataset[row] for row in range(len(dataset))])  # type: ignore[arg-type]
        )
    except Exception as error:
        raise DataError(
            f"the rows of {name} cannot be put together ({type(error).__name__}: {error}): let every sample be "
            "(x, y), of the same shapes, as Tensors, arrays or numbers."
        ) from error
    if len(parts) != 2 or not all(isinstance(part, torch.Tensor) for part in parts):
        raise DataError(f"a sample of {name} is no pair (x, y) of one tensor each: only such rows can be dealt.")
    return {key: part.detach().cpu().numpy() for key, part in zip("xy", parts, strict=True)}


def _checked(x: Array, y: Array, name: str) -> Arrays:
    for array, which in ((x, "features x"), (y, "labels y")):
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise DataError(
                f"the {which} of {name} are of dtype {array.dtype}: save them as numbers, classes numbered from 0."
            )
    if not (x.ndim and y.ndim) or not len(y) or len(x) != len(y):
        raise DataError(
            f"{name} has features {list(x.shape)} and labels {list(y.shape)}: give one label for each row, and at "
            "least one row."
        )
    return Arrays(x=x, y=y)


def _features(x: Array, channels: str, name: str) -> torch.Tensor:
    """`x` as `open_arrays` says."""
    if x.dtype != np.uint8 or x.ndim < 3:
        return _tensor(x)
    images = _tensor(x)
    if channels == "first" and images.ndim == 3:
        images = images[:, None]
    if channels == "last":
        if images.ndim != 4:
            raise DataError(
                f"images of {name} have the shape {list(x.shape)}, without channels at their end: leave out "
                'channels = "last".'
            )
        images = images.permute(0, 3, 1, 2).contiguous()
    return images.to(torch.float32).div_(255)


def _tensor(array: Array) -> torch.Tensor:
    """In the machine's byte order, and without the unsigned dtypes that torch can hardly compute with."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        return torch.tensor(array.astype(np.int64))
    return torch.tensor(array.astype(array.dtype.newbyteorder("=")))


def _listed(held: Mapping[str, Array]) -> str:
    return ", ".join(held) or "none at all"
