"""What releases add up to: how many of them count for one row of a party's, and the ε that follows.

No disk, no tensors: `ledger` keeps the durable record, and replays it into an `Accountant`.
"""

import math
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cutlayer.defence.composition import Counts, epsilon
from cutlayer.defence.defence import Mechanism
from cutlayer.plan.terms import Channel

Places = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Release:
    """Something of a mini-batch of `rows` rows reaches another party by an edge; under `weights`, a segment steps.

    `mechanism`: what the release of one row tells; None: nothing bounds it. `places`: which rows of the party's
    `table` they are, int64 `[rows]`; None where that is not known. Rows have noise of their own, each; under `weights`
    it is one sum over them with one noise (DP-SGD).

    `trained`: whether what made the tensors (for gradients and steps: whatever gradients came through) has learnt from
    this party's rows, or mixes the rows of a mini-batch; apart from what it learnt by releases that are counted under
    the channels `through`, as a bottom does that DP-SGD trains: those compose with this channel's.
    """

    channel: Channel
    edge: str
    mechanism: Mechanism | None
    rows: int
    places: Places | None = None
    table: str = "train"
    trained: bool = False
    through: tuple[Channel, ...] = ()


class Accountant:
    """The releases of one party's rows, composed by channel and edge; rows are replaced one for one.

    Where what makes the released tensors is fixed, public or itself trained by DP-SGD, releases compose by row: each
    row's own count, and that of the row released most often is the party's. Otherwise (`Release.trained`) all releases
    of all rows compose, since each later release of any row j depends on row i through the weights: had row i been
    another one, row j's tensor could be any other that the mechanism takes, so that it tells of row i as much as
    row i's own release does. A step by DP-SGD is then shifted not by one row's clipped gradient but by all n, which
    Gaussian noise hides as well as it does n² releases of one row. Evaluation and prediction count as training does.

    A mechanism that releases a row as it did the first time (`once`) counts once a row. Where there is no mechanism
    nothing bounds what a row tells: ε = ∞.
    """

    def __init__(self) -> None:
        self._tallies: dict[tuple[Channel, str, Mechanism], _Tally] = {}
        self._unbounded: dict[Channel, set[str]] = {}
        self._trained: set[tuple[Channel, str]] = set()
        self._through: dict[Channel, set[Channel]] = {}

    def add(self, release: Release, times: int = 1) -> None:
        """It was made, so many times."""
        release = self.seen(release)
        if release.trained:
            self._trained.add((release.channel, release.edge))
        self._through.setdefault(release.channel, set()).update(release.through)
        if release.mechanism is None:
            self._unbounded.setdefault(release.channel, set()).add(release.edge)
            return
        key = release.channel, release.edge, release.mechanism
        self._tallies.setdefault(key, _Tally()).add(release, times)

    def composed(self, channel: Channel, *after: Release) -> frozenset[Channel]:
        """The channels whose releases compose with this one's, itself among them; as it would be `after` some more."""
        through = {each: set(others) for each, others in self._through.items()}
        for release in after:
            through.setdefault(release.channel, set()).update(release.through)
        found, new = {channel}, [channel]
        while new:
            more = through.get(new.pop(), set()) - found
            found |= more
            new.extend(more)
        return frozenset(found)

    def counts(self, channel: Channel, *after: Release, times: int = 1) -> Counts | None:
        """By mechanism, the most releases of one row; None if nothing bounds what one of the releases tells.

        `after`: as it would be if these were made, too, each so many times. With several mechanisms they need not be
        of the same row: the composition of the most of each is no less than that of any row.
        """
        channels = self.composed(channel, *after)
        learnt = {(release.channel, release.edge) for release in after if release.trained}
        told = [self.seen(release, learnt) for release in after if release.channel in channels]
        if channels & self._unbounded.keys() or any(release.mechanism is None for release in told):
            return None
        keys = {key for key in self._tallies if key[0] in channels}
        more: dict[tuple[Channel, str, Mechanism], list[Release]] = {}
        for release in told:
            assert release.mechanism is not None
            more.setdefault((release.channel, release.edge, release.mechanism), []).append(release)
        found = dict[Mechanism, int]()
        for key in keys | more.keys():
            tally = self._tallies.get(key) or _Tally()
            found[key[2]] = found.get(key[2], 0) + tally.after(more.get(key, ()), times)
        return found

    def epsilon(self, channel: Channel, delta: float) -> float:
        """What one row's releases by a channel tell: ε at δ; 0 before the first, ∞ if nothing bounds one of them."""
        return self.epsilon_after(channel, delta=delta)

    def epsilon_after(self, channel: Channel, *releases: Release, delta: float) -> float:
        """What it would be after some more releases, of this channel or others."""
        counts = self.counts(channel, *releases)
        return math.inf if counts is None else epsilon(counts, delta)

    def lines(self, delta: float) -> list[str]:
        """For people: by channel and edge, what is released how often under which relation, and what it adds up to."""
        found: list[str] = []
        for channel in sorted({key[0] for key in self._tallies} | self._unbounded.keys()):
            spent = self.epsilon(channel, delta)
            others = " and ".join(sorted(self.composed(channel) - {channel}))
            also = f", composed with its {others}" if others else ""
            told = f"{spent:.4g} at δ = {delta:g}" if spent < math.inf else "∞"
            found.append(f"{channel}: ε = {told}{also}")
            for edge in sorted(self._unbounded.get(channel, ())):
                found.append(f"  {edge}: heuristic: bounds nothing (ε = ∞)")
            for (of, edge, mechanism), tally in self._tallies.items():
                if of == channel:
                    why = self._why(channel, edge, mechanism)
                    found.append(f"  {edge}: {_words(mechanism)}: {tally.count:,} releases of a row count, {why}")
        return found

    def seen(self, release: Release, learnt: Collection[tuple[Channel, str]] = ()) -> Release:
        """As it counts: what once learnt from rows does not forget them."""
        at = release.channel, release.edge
        return replace(release, trained=True) if at in self._trained or at in learnt else release

    def _why(self, channel: Channel, edge: str, mechanism: Mechanism) -> str:
        if (channel, edge) in self._trained:
            return "those of all rows, since what makes them learns from rows"
        return "each row's first alone" if mechanism.once else "those of the row released most often"


class _Tally:
    """How often a row was released by one mechanism on one edge."""

    def __init__(self) -> None:
        self._whole, self._most = 0, 0
        """Releases that count for every row; and the most of one row's own ones beside those."""
        self._own: dict[str, Places] = {}
        """A row's own releases, by table and place."""

    @property
    def count(self) -> int:
        return self._whole + self._most

    def after(self, releases: Sequence[Release], times: int = 1) -> int:
        """The count if these were made, each so many times."""
        if len(releases) > 1:
            copied = deepcopy(self)
            for release in releases:
                copied.add(release, times)
            return copied.count
        return sum(self._weighed(releases[0], times)[:2]) if releases else self.count

    def add(self, release: Release, times: int = 1) -> None:
        self._whole, self._most, own = self._weighed(release, times)
        if own is not None:
            rows, counts = own
            self._own[release.table] = kept = grown(self._own.get(release.table), rows)
            kept[rows] = counts

    def _weighed(self, release: Release, times: int) -> tuple[int, int, tuple[Places, Places] | None]:
        """What counts for every row and the most beside it, after a release; and its rows with their own counts."""
        assert release.mechanism is not None
        once = release.mechanism.once
        if release.places is None or (release.trained and not once):
            return self._whole + times * _all_of(release), self._most, None
        if not len(release.places):
            return self._whole, self._most, None
        rows, again = np.unique(release.places, return_counts=True)
        before = grown(self._own.get(release.table), rows)[rows]
        if once:
            new = int((before == 0).sum()) if release.trained else 0
            return self._whole + new, max(self._most, int(not release.trained)), (rows, np.ones_like(rows))
        counts = before + times * (again**2 if release.channel == "weights" else again)
        return self._whole, max(self._most, int(counts.max())), (rows, counts)


def grown(counts: Places | None, rows: Places) -> Places:
    """Counts by place that have a place for each of these rows, in the same memory where they have one already."""
    held = np.zeros(0, np.int64) if counts is None else counts
    missing = int(rows.max()) + 1 - len(held)
    return held if missing <= 0 else np.pad(held, (0, max(missing, len(held) // 2)))


def _all_of(release: Release) -> int:
    """How many releases of any single row it counts as, whichever rows it has."""
    if not release.trained:
        return 1
    return release.rows**2 if release.channel == "weights" else release.rows


def _words(mechanism: Mechanism) -> str:
    told = {
        "gaussian": f"Gaussian noise, its deviation {mechanism.scale:g} times the sensitivity",
        "laplace": f"Laplace noise, its scale {mechanism.scale:g} times the sensitivity",
        "pure": f"ε = {mechanism.scale:g} a release",
    }
    return f"{told[mechanism.kind]} {mechanism.sensitivity:g} ({mechanism.relation})"
