"""What an attack rebuilt, as a picture: originals above, rebuilt below."""

from pathlib import Path

import torch
from torch import Tensor

from cutlayer.errors import DataError, PlanError

ACROSS_MOST = 16
SMALLEST_PIXELS = 4
"""Of an image's side; anything smaller is a table to the eye."""


def grid(shown: tuple[Tensor, Tensor], path: Path, title: str, *, pixels: tuple[float, float] = (0.0, 1.0)) -> None:
    """Write a PNG of at most 16 pairs `[M, C, H, W]`, grey (C = 1) or RGB (3); values outside `pixels` are clipped.

    Rows of tables `[M, F]` are drawn as two heat maps, a row a line, each column in its original's range. Needs
    matplotlib (the extra `plots`). Raises `PlanError` where that is missing or the file cannot be written, `DataError`
    for what is neither images nor tables.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlanError("pictures need matplotlib: pip install 'cutlayer[plots]'") from error
    panels = _panels(shown, pixels)
    across = len(panels[0])
    figure = Figure(figsize=(max(3.0, 0.9 * across), 2.4 if across > 1 else 5.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, across, squeeze=False)
    for row, (name, images) in enumerate(zip(("original", "rebuilt"), panels, strict=True)):
        for place, image in enumerate(images):
            axes[row][place].imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            axes[row][place].set(xticks=[], yticks=[])
        axes[row][0].set_ylabel(name, fontsize=8)
    figure.suptitle(title.replace("$", r"\$"), fontsize=9)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise PlanError(f"{path} cannot be written ({error}): name a file in a folder that is there") from error


def _panels(shown: tuple[Tensor, Tensor], pixels: tuple[float, float]) -> tuple[list[Tensor], list[Tensor]]:
    """Originals and what was made of them, each image `[H, W]` or `[H, W, 3]` from 0 to 1."""
    original, rebuilt = (part[:ACROSS_MOST].detach().cpu().float() for part in shown)
    if original.shape != rebuilt.shape or not len(original):
        raise DataError(
            f"no picture of {list(original.shape)} beside {list(rebuilt.shape)}: both must be [M, ...] alike"
        )
    if original.dim() == 2:
        low, high = original.amin(0), original.amax(0)
        original, rebuilt = (_scaled(part, low, high) for part in (original, rebuilt))
        return [original], [rebuilt]
    if original.dim() != 4 or original.shape[1] not in (1, 3) or min(original.shape[2:]) < SMALLEST_PIXELS:
        raise DataError(
            f"no picture of rows {list(original.shape[1:])}: images are [1 or 3, height, width], tables [columns]"
        )
    low, high = (torch.tensor(float(end)) for end in pixels)
    return _images(_scaled(original, low, high)), _images(_scaled(rebuilt, low, high))


def _images(images: Tensor) -> list[Tensor]:
    return [image[0] if len(image) == 1 else image.permute(1, 2, 0) for image in images]


def _scaled(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """From 0 at `low` to 1 at `high`; NaN as 0."""
    size = torch.where(high > low, high - low, 1.0)
    return ((values - low) / size).nan_to_num(0.0).clamp(0, 1)
