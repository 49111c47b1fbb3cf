"""Three hospitals, and the rows of a data set dealt unevenly among them."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cutlayer.data.arrays import Arrays

HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
HELD_OUT = 0.4
"""The part of each hospital's rows, of every class, that is kept for evaluation."""
DEAL_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ward:
    """What one hospital has."""

    train: Arrays
    held_out: Arrays

    def rows_of(self, classes: Collection[int]) -> int:
        """How many of all its rows are of these classes."""
        return sum(int(np.isin(rows.y, list(classes)).sum()) for rows in (self.train, self.held_out))


def deal(rows: Arrays, shares: Mapping[str, Sequence[int]]) -> dict[str, Ward]:
    """Each hospital's own rows, so many of each class as its share says: the same at every call."""
    dice = random.Random(DEAL_SEED)  # noqa: S311 (a deal, no secret)
    piles = [np.flatnonzero(rows.y == label).tolist() for label in range(int(rows.y.max()) + 1)]
    for pile in piles:
        dice.shuffle(pile)
    return {name: _ward(rows, piles, counts, dice) for name, counts in shares.items()}


def _ward(rows: Arrays, piles: list[list[int]], counts: Sequence[int], dice: random.Random) -> Ward:
    train: list[int] = []
    held_out: list[int] = []
    for pile, count in zip(piles, counts, strict=True):
        kept = round(HELD_OUT * count)
        held_out += pile[:kept]
        train += pile[kept:count]
        del pile[:count]
    dice.shuffle(train)
    return Ward(train=rows.take(np.array(train)), held_out=rows.take(np.array(held_out)))
