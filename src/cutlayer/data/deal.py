"""Rows dealt to parties: evenly, or skewed by labels, by quantity, or by a column. Pure: numbers in, numbers out.

Every way of dealing names an owner for each row, so that no row can be dealt twice or lost. All chance comes from
numpy's PCG64 with the seed given: the same seed deals the same rows on any machine that has the same numpy release
(PCG64's stream never changes; how a `Generator` turns it into Dirichlet draws may, from one release to another).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import DataError

CLASSES_MOST = 1000
"""A label with more different values is no class but a measurement or a name."""
Integers = NDArray[np.int64]
ALPHA = 0.1
ALPHA_MOST = 1e6
"""Above it a Dirichlet draw is even to all its digits, and numpy's own soon is no number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deal:
    """Who owns which row.

    `owners` `[rows]` are party numbers from 0; `moved` rows were given to parties that would have gone without.
    """

    owners: Integers
    parties: int
    moved: int = 0

    def rows_of(self, party: int) -> Integers:
        """The places of a party's rows, in the order of the source."""
        return np.flatnonzero(self.owners == party)

    def counts(self, classes: Integers, width: int) -> Integers:
        """How many rows of each of `width` classes each party has `[parties, width]`; `classes` `[rows]` from 0."""
        flat = np.bincount(self.owners * width + classes, minlength=self.parties * width)
        return flat.reshape(self.parties, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """How to deal: to how many, by what.

    `classes` `[rows]` and `values` `[rows]` (of the column, if one was named) are numbers from 0 without gaps.
    """

    parties: int
    classes: Integers
    alpha: float
    values: Integers | None = None
    dice: np.random.Generator


def deal(
    how: str,
    classes: Integers,
    parties: int,
    *,
    alpha: float = ALPHA,
    values: Integers | None = None,
    seed: int = 0,
) -> Deal:
    """Deal rows to `parties`, each at least one, in one of the ways of `HOWS`.

    Draws of `dirichlet` and `quantity` may leave parties without a row: each of them then gets one row of the party
    that has the most, and `Deal.moved` counts such rows. No other way of dealing is ever mended.

    Args:
        how: a key of `HOWS`.
        classes: the class of each row `[rows]`, as a number.
        parties: how many.
        alpha: how even a Dirichlet draw is: near 0 one takes all, 100 is almost even.
        values: the value of each row in the column to deal by `[rows]`, as a number.
        seed: of all chance, 0 or more.

    Raises:
        DataError: fewer rows than parties, or a way of dealing that cannot give everyone a row.
    """
    if how not in HOWS:
        near = get_close_matches(how, HOWS, n=1, cutoff=0.0)[0]
        raise DataError(f"rows cannot be dealt by {how!r}: choose one of {', '.join(HOWS)}, {near!r} perhaps.")
    if not math.isfinite(alpha) or not 0 < alpha <= ALPHA_MOST:
        raise DataError(f"alpha cannot be {alpha}: give a number above 0 and up to {ALPHA_MOST:,.0f}, such as 0.1.")
    if parties < 1 or seed < 0:
        raise DataError(f"{parties} parties and seed {seed} will not do: give at least 1 party, and a seed from 0.")
    if len(classes) < parties:
        raise DataError(f"{len(classes)} rows do not go round {parties} parties: name fewer parties, or add rows.")
    dice = np.random.Generator(np.random.PCG64(seed))
    values = None if values is None else _without_gaps(values)
    wish = Wish(parties=parties, classes=_without_gaps(classes), alpha=alpha, values=values, dice=dice)
    owners, moved = _with_a_row_each(HOWS[how](wish), parties)
    return Deal(owners=owners, parties=parties, moved=moved)


def iid(wish: Wish) -> Integers:
    """Shuffled and dealt one by one: sizes differ by one row at most."""
    return _dealt_round(len(wish.classes), np.arange(wish.parties), wish.dice)


def dirichlet(wish: Wish) -> Integers:
    """Label skew: the rows of each class are shared out by a draw of Dirichlet(alpha) over the parties.

    Dirichlet skew is of Hsu, Qi, Brown 2019 (arXiv 1909.06335), who draw each party's mix of classes; sharing out
    each class instead, which deals every row exactly once, is of Yurochkin et al. 2019 (arXiv 1905.12022).
    """
    owners = np.empty(len(wish.classes), dtype=np.int64)
    for label in range(int(wish.classes.max()) + 1):
        rows = np.flatnonzero(wish.classes == label)
        owners[wish.dice.permutation(rows)] = _drawn(len(rows), wish)
    return owners


def quantity(wish: Wish) -> Integers:
    """Quantity skew: sizes by a draw of Dirichlet(alpha), rows at random, so that every party has the pool's mix.

    Li, Diao, Chen, He 2022 (arXiv 2102.02079), section IV.
    """
    owners = np.empty(len(wish.classes), dtype=np.int64)
    owners[wish.dice.permutation(len(owners))] = _drawn(len(owners), wish)
    return owners


def one_class(wish: Wish) -> Integers:
    """One class at each party: party k has class k modulo the number of classes.

    A class of several parties is divided evenly; with fewer parties than classes, class c goes to party c modulo
    the number of parties, so that no row is left over.
    """
    count = int(wish.classes.max()) + 1
    owners = np.empty(len(wish.classes), dtype=np.int64)
    for label in range(count):
        rows = np.flatnonzero(wish.classes == label)
        takers = np.arange(label, wish.parties, count) if label < wish.parties else np.array([label % wish.parties])
        if len(rows) < len(takers):
            raise DataError(
                f"a class has {len(rows)} rows for {len(takers)} parties, if each has one class only: "
                "name fewer parties, or deal by 'dirichlet'."
            )
        owners[rows] = _dealt_round(len(rows), takers, wish.dice)
    return owners


def by_column(wish: Wish) -> Integers:
    """Rows go by the value of a column: one value, one party; of more values than parties, several to a party.

    Values are grouped by size, the largest first, each to the party that has the fewest rows so far; parties are then
    numbered by their first value. There is no chance in it.
    """
    if wish.values is None:
        raise DataError("no column is named to deal by: name the one whose values tell parties apart.")
    sizes = np.bincount(wish.values)
    if len(sizes) < wish.parties:
        raise DataError(
            f"the column has {len(sizes)} different values for {wish.parties} parties: "
            f"deal to {len(sizes)} parties, or by another column."
        )
    loads = np.zeros(wish.parties, dtype=np.int64)
    group = np.empty(len(sizes), dtype=np.int64)
    for value in np.argsort(-sizes, kind="stable"):
        group[value] = loads.argmin()
        loads[group[value]] += sizes[value]
    first = [int(np.flatnonzero(group == party)[0]) for party in range(wish.parties)]
    return np.argsort(np.argsort(first))[group][wish.values]


HOWS: dict[str, Callable[[Wish], Integers]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "quantity": quantity,
    "classes": one_class,
    "column": by_column,
}
WITH_ALPHA = ("dirichlet", "quantity")


def set_aside(rows: int, share: float, seed: int) -> tuple[Integers, Integers]:
    """Places of the rows to deal and of those kept for a common test, at random, each in ascending order.

    With a share of 0 none are kept; else at least one of both. Raises: DataError.
    """
    if not share:
        return np.arange(rows), np.arange(0)
    if not 0 < share < 1:
        raise DataError(f"{share} of the rows cannot be set aside: give a share from 0 to below 1, such as 0.2.")
    if rows < 2:
        raise DataError("one row cannot be both dealt and set aside: give more rows, or set aside none.")
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(rows)
    kept = min(max(round(rows * share), 1), rows - 1)
    return np.sort(order[kept:]), np.sort(order[:kept])


def total_variation(counts: Integers) -> NDArray[np.float64]:
    """How far each party's mix of classes is from the pool's `[parties]`: 0 the same, towards 1 nothing in common.

    `counts` `[parties, classes]`; half the sum of absolute differences of the shares.

    >>> total_variation(np.array([[10, 0], [0, 10]])).tolist()
    [0.5, 0.5]
    """
    mixes = counts / counts.sum(axis=1, keepdims=True)
    pool = counts.sum(axis=0) / counts.sum()
    halves: NDArray[np.float64] = np.abs(mixes - pool).sum(axis=1) / 2
    return halves


def numbered(values: Sequence[Any], name: str, *, most: int | None = None) -> tuple[list[str], Integers]:
    """The different values as texts, numbers in their own order, and the place of each row among them `[rows]`.

    >>> numbered(["b", "a", "b"], "letters")
    (['a', 'b'], array([1, 0, 1]))

    Raises: DataError if a value is NaN, or there are more than `most` different ones; `name` is theirs in sentences.
    """
    different = set(values)
    if any(value != value for value in different):  # noqa: PLR0124 (true of NaN alone)
        raise DataError(f"{name} hold NaN, which stands for nothing: fill in or leave out such rows.")
    if most is not None and len(different) > most:
        raise DataError(
            f"{name} have {len(different):,} different values, so they are no classes: name a column of up to {most:,}."
        )
    try:
        ordered = sorted(different, key=lambda value: (_number(value), str(value)))
    except ValueError:
        ordered = sorted(different)
    place = {value: number for number, value in enumerate(ordered)}
    return [str(value) for value in ordered], np.array([place[value] for value in values], dtype=np.int64)


def _number(value: Any) -> float:
    """Raises: ValueError for a text that is none, `nan` included: it has no place in an order of numbers."""
    number = float(value)
    if math.isnan(number):
        raise ValueError(value)
    return number


def _without_gaps(numbers: Integers) -> Integers:
    """The rank of each number among the different ones `[rows]`."""
    return np.unique(numbers, return_inverse=True)[1].astype(np.int64)


def _dealt_round(rows: int, takers: Integers, dice: np.random.Generator) -> Integers:
    """Owners of `rows` at random, each of `takers` as often as any other, to one row `[rows]`."""
    return dice.permutation(np.resize(takers, rows))


def _drawn(rows: int, wish: Wish) -> Integers:
    """Owners of `rows` in ascending order, as many of each as a Dirichlet draw says `[rows]`."""
    shares = wish.dice.dirichlet(np.full(wish.parties, wish.alpha))
    ends = np.rint(np.cumsum(shares) * rows).astype(np.int64)
    ends[-1] = rows
    return np.repeat(np.arange(wish.parties), np.diff(ends, prepend=0))


def _with_a_row_each(owners: Integers, parties: int) -> tuple[Integers, int]:
    """Owners after each party without a row got the last one of whoever has the most, and how many such rows."""
    sizes = np.bincount(owners, minlength=parties)
    without = np.flatnonzero(sizes == 0)
    for party in without:
        giver = int(sizes.argmax())
        owners[np.flatnonzero(owners == giver)[-1]] = party
        sizes[giver] -= 1
        sizes[party] = 1
    return owners, len(without)
