"""The demo's rows: scikit-learn's Wisconsin breast cancer set, dealt unevenly to three hospitals.

Source: Wolberg, Mangasarian, Street, Street 1993, "Breast Cancer Wisconsin (Diagnostic)", UCI Machine Learning
Repository.
"""

import csv
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cutlayer.errors import DataError

DIAGNOSES = ("malignant", "benign")
SHARES = {"hospital-a": (120, 222), "hospital-b": (40, 118), "hospital-c": (52, 17)}
"""Malignant and benign samples of each hospital, 569 in all: 60, 28 and 12 % of them; 35, 25 and 75 % malignant."""
HELD_OUT = 0.4
"""The part of each hospital's samples, of either diagnosis, that is kept for evaluation."""
DEAL_SEED = 0

Row = tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ward:
    """What one hospital has: rows of measurements, the last column the diagnosis (0 malignant, 1 benign)."""

    train: Sequence[Row]
    held_out: Sequence[Row]

    @property
    def malignant(self) -> int:
        """How many of all rows."""
        return sum(row[-1] == DIAGNOSES.index("malignant") for row in (*self.train, *self.held_out))


def deal() -> tuple[list[str], dict[str, Ward]]:
    """The names of the columns, and each hospital's own rows: the same at every call. Raises `DataError`."""
    columns, rows = _load()
    dice = random.Random(DEAL_SEED)  # noqa: S311 (a deal, no secret)
    piles = [[row for row in rows if row[-1] == place] for place in range(len(DIAGNOSES))]
    for pile in piles:
        dice.shuffle(pile)
    return columns, {name: _ward(piles, counts, dice) for name, counts in SHARES.items()}


def _ward(piles: list[list[Row]], counts: tuple[int, ...], dice: random.Random) -> Ward:
    train: list[Row] = []
    held_out: list[Row] = []
    for pile, count in zip(piles, counts, strict=True):
        kept = round(HELD_OUT * count)
        held_out += pile[:kept]
        train += pile[kept:count]
        del pile[:count]
    dice.shuffle(train)
    return Ward(train=train, held_out=held_out)


def _load() -> tuple[list[str], list[Row]]:
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise DataError("the demo's rows come with scikit-learn: pip install 'cutlayer[demo]'") from error
    samples = load_breast_cancer()
    rows = [(*x, y) for x, y in zip(samples.data.tolist(), samples.target.tolist(), strict=True)]
    return [*map(str, samples.feature_names), "diagnosis"], rows


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    """A table with named columns, the diagnosis in words."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows([*row[:-1], DIAGNOSES[int(row[-1])]] for row in rows)
