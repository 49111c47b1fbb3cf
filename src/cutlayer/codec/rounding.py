"""Numbers to whole ones: the nearest, or at random so that the mean is right."""

import torch
from torch import Generator, Tensor

from cutlayer.errors import PlanError

ROUNDINGS = {"nearest": 0.5, "random": 1.0}
"""By how much of a step a number may be moved."""


def checked_rounding(word: str, rounding: str) -> None:
    """Raises `PlanError` for a word that is none of the two."""
    if rounding not in ROUNDINGS:
        raise PlanError(f"{word}: rounding = {rounding!r} is unknown; known are {', '.join(ROUNDINGS)}")


def round_(numbers: Tensor, rounding: str, levels: int, generator: Generator) -> Tensor:
    """In place. Random: up with the probability of what is cut off; never beyond `levels`."""
    if rounding == "nearest":
        return numbers.round_()
    chance = torch.rand(numbers.shape, dtype=numbers.dtype, generator=generator)
    return numbers.add_(chance).floor_().clamp_(-levels, levels)
