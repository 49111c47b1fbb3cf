"""The picture of an attack: where it goes, what it holds, and that matplotlib's own state stays."""

import builtins
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import pytest
import torch
from matplotlib import pyplot
from torch import Tensor

from cutlayer.attack import picture
from cutlayer.attack.picture import grid
from cutlayer.errors import DataError, PlanError


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "shape", [(5, 1, 28, 28), (1, 3, 32, 32), (40, 1, 8, 12), (7, 6)], ids=["grey", "rgb", "many", "tables"]
)
def test_a_png_is_written_and_nothing_of_matplotlibs_is_changed(shape: tuple[int, ...], tmp_path: Path) -> None:
    settings, backend, open_figures = dict(mpl.rcParams), mpl.get_backend(), pyplot.get_fignums()
    grid((images(*shape), images(*shape)), tmp_path / "seen.png", "an attack that costs $5 or $6")
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert matplotlib.image.imread(tmp_path / "seen.png").std() > 0.01
    assert (dict(mpl.rcParams), mpl.get_backend(), pyplot.get_fignums()) == (settings, backend, open_figures)


def test_values_are_rescaled_by_the_pixel_range_and_clipped() -> None:
    original = torch.tensor([[-1.0, 0.0], [1.0, 3.0]]).repeat(4, 1, 4, 4)
    (first, *_), (second, *_) = picture._panels((original, original * float("nan")), (-1.0, 1.0))
    assert first[:2, :2].tolist() == [[0.0, 0.5], [1.0, 1.0]]
    assert not second.any()


def test_colours_come_last_and_tables_are_scaled_by_the_originals_columns() -> None:
    (first, *_), _ = picture._panels((images(2, 3, 8, 9), images(2, 3, 8, 9)), (0.0, 1.0))
    assert first.shape == (8, 9, 3)
    table = torch.tensor([[0.0, 7.0], [10.0, 7.0]])
    (original,), (rebuilt,) = picture._panels((table, table + 5), (0.0, 1.0))
    assert original.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert rebuilt.tolist() == [[0.5, 1.0], [1.0, 1.0]]


def test_what_cannot_be_drawn_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pair in ((images(2, 5, 8, 8), images(2, 5, 8, 8)), (images(2, 1, 8, 8), images(2, 1, 8, 9))):
        with pytest.raises(DataError, match="no picture of"):
            grid(pair, tmp_path / "a.png", "title")
    with pytest.raises(PlanError, match="cannot be written"):
        grid((images(2, 6), images(2, 6)), tmp_path / "nowhere" / "a.png", "title")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PlanError, match=r"pip install 'cutlayer\[plots\]'"):
        grid((images(2, 6), images(2, 6)), tmp_path / "a.png", "title")
