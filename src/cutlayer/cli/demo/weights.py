"""How far the weights trained through the cut are from those of the pooled model: rounding, or more."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from cutlayer.model.merge import merge

ROUNDING_PER_STEP = 16 * 2**-24
"""How far apart a step may bring a tensor, as a part of its largest number, and this still be rounding of float32.

One rounding is 2^-24; it accumulates, and Adam, which divides by what gradients usually are, enlarges it where they
are next to nothing. Measured for either data set and topology, after 220 to 660 steps: up to 7e-6 in all, where this
allows 2e-4 to 6e-4. Where nothing is handed on, 20 steps make more than 1e-2.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The largest between any two numbers of the same place, and the largest as a part of its tensor's largest."""

    largest: float
    relative: float
    steps: int

    @property
    def rounding(self) -> bool:
        """Whether it can be rounding alone, after so many steps."""
        return self.relative <= self.steps * ROUNDING_PER_STEP

    def __str__(self) -> str:
        """`1.2e-07 (rounding)`."""
        if self.largest == 0:
            return "0 (bit for bit)"
        return f"{self.largest:.1e} ({'rounding' if self.rounding else 'MORE THAN ROUNDING'})"


def difference(pooled: nn.Module, lab: Path, hospitals: Iterable[Path], steps: int) -> Difference:
    """Over all parameters and buffers of each hospital's whole model: its own file of weights, and the lab's.

    Raises `CutError` if two files do not make a model.
    """
    middle, wanted = load_file(lab), pooled.state_dict()
    largest = relative = torch.zeros((), dtype=torch.float64)
    for path in hospitals:
        for name, tensor in merge(pooled, [middle, load_file(path)]).state_dict().items():
            gap = (tensor.double() - wanted[name].double()).abs().max()
            largest = torch.maximum(largest, gap)  # which, unlike max(), lets no NaN pass
            relative = torch.maximum(relative, gap / wanted[name].double().abs().max().clamp(min=1e-30))
    return Difference(largest=float(largest), relative=float(relative), steps=steps)
