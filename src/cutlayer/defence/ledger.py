"""The durable record of what a party has released: it grows, and is never rolled back, not even where the run is.

A line (see `entries`) is flushed to the disk before `record` returns, and
the release is made after that; under a reservation, which was flushed, it need not be. After a crash whatever of a
reservation is not seen to be used counts as released, and so does a torn line: as one more release of each kind.
"""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np
from blake3 import blake3

from cutlayer.defence.accountant import Accountant, Release, grown
from cutlayer.defence.composition import Allowance
from cutlayer.defence.entries import Done, Entry, Kind, Lost, Made, Opened, Recovered, Reserved, packed, unpacked
from cutlayer.defence.ledger_file import LedgerFile
from cutlayer.errors import BudgetSpent
from cutlayer.plan.terms import BudgetTerms

MARKS: Final = 65_536
"""So many of the latest releases are known again (about 8 MiB); an older one counts anew if it is sent again."""


class Ledger:
    """The record of `party` under the plan with this digest, replayed into `accountant`; open until `close`.

    `path` is the file. None: in memory alone, for simulations. `budgets`: of the plan; those
    of other parties are left out. One process has the file at a time, and one thread uses the ledger.
    """

    def __init__(self, path: str | Path | None, *, party: str, plan: str, budgets: Iterable[BudgetTerms] = ()) -> None:
        """Raises `RunError`: the file is in use, another party's or plan's, damaged, or cannot be written."""
        self.party, self.accountant = party, Accountant()
        own = [budget for budget in budgets if budget.party == party]
        self._budgets = [(budget, Allowance(budget.epsilon, budget.delta)) for budget in own]
        self._kinds: list[Kind] = []
        self._numbers: dict[Kind, int] = {}
        self._largest: list[int] = []
        """By kind: the most rows of one of its releases so far, or reserved for it."""
        self._marks: OrderedDict[bytes, None] = OrderedDict()
        self._reserved: dict[int, _Reservation] = {}
        self._log = None if path is None else LedgerFile(Path(path), Opened(party=party, plan=plan))
        if self._log is not None:
            try:
                self._replay(self._log)
            except BaseException:
                self._log.close()
                raise

    # ------------------------------------------------------------------ releases

    def check(self, release: Release, times: int = 1) -> None:
        """Raises `BudgetSpent` if it would exceed a budget, made so many times; nothing is recorded."""
        for budget, allowance in self._budgets:
            if release.channel in self.accountant.composed(budget.channel, release):
                counts = self.accountant.counts(budget.channel, release, times=times)
                if counts is None or not allowance.holds(counts):
                    raise self._spent(budget, release)

    def record(self, release: Release, digest: str) -> bool:
        """The release is durable, and may be made now; False: it is known already, since the same bits went before.

        `digest`: of what is released and of its place in the run (a ticket). Of its bits alone is not enough: a label
        may come out the same twice, and tells more the second time. What is known again costs nothing.

        Raises:
            BudgetSpent: it would exceed a budget; it is not recorded.
            RunError: it cannot be written. Neither it nor any other may be made then.
        """
        kind = Kind.of(release)
        number = self._number_of(kind)
        mark = _mark(number, release, digest)
        if mark in self._marks:
            return False
        self.check(release)
        reservation = self._reserved.get(number)
        reserved = reservation is not None and reservation.takes(release, apart=self._apart(number))
        places = packed(release.places) if release.places is not None and kind.by_rows else None
        made = Made(kind=number, rows=release.rows, mark=mark, places=places, reserved=reserved)
        self._write(made, flushed=not reserved)
        self._made(number, release, mark)
        return True

    def reserve(self, like: Release, releases: int) -> bool:
        """So many releases like this one, of at most as many rows each, may follow without a flush each.

        After a crash those that are not seen to be made count as made. Where each row's releases count by themselves
        that is one of each row, however many are reserved: no row is in two of them (a release with a row that was in
        an earlier one is flushed). So reserve a pass over rows, or a part of one. What was reserved for this kind
        before is done. False, and nothing is reserved: a budget does not allow for so much.
        """
        kind = Kind.of(like)
        number = self._number_of(kind)
        lost = self._lost(number, releases, like.rows)
        try:
            self.check(kind.release(like.rows), lost.times)
        except BudgetSpent:
            return False
        reserved = Reserved(kind=number, releases=releases, rows=like.rows)
        self._write(reserved)
        self._apply(reserved)
        return True

    @property
    def lasts(self) -> bool:
        """Whether there is a file."""
        return self._log is not None

    def close(self) -> None:
        """What was reserved and not used is free again. A second time it does nothing."""
        if self._log is None or not self._log.is_open:
            return
        try:
            for number, reservation in self._reserved.items():
                if reservation.left:
                    self._log.write(Done(kind=number))
        finally:
            self._log.close()

    def _number_of(self, kind: Kind) -> int:
        if kind not in self._numbers:
            self._write(kind)
            self._apply(kind)
        return self._numbers[kind]

    def _spent(self, budget: BudgetTerms, release: Release) -> BudgetSpent:
        return BudgetSpent(
            self.party,
            budget.channel,
            spent=self.accountant.epsilon(budget.channel, budget.delta),
            after=self.accountant.epsilon_after(budget.channel, release, delta=budget.delta),
            budget=budget.epsilon,
            delta=budget.delta,
        )

    # ------------------------------------------------------------------ what lines mean

    def _apply(self, entry: Entry) -> None:
        """As `record` and `reserve` do, and whoever opens the file later."""
        match entry:
            case Kind():
                self._numbers[entry] = len(self._kinds)
                self._kinds.append(entry)
                self._largest.append(0)
            case Made():
                places = None if entry.places is None else unpacked(entry.places, entry.rows)
                if entry.reserved:
                    self._reserved[entry.kind].left -= 1
                self._made(entry.kind, self._kinds[entry.kind].release(entry.rows, places), entry.mark)
            case Reserved():
                self._reserved[entry.kind] = _Reservation(entry.releases, entry.rows)
                self._largest[entry.kind] = max(self._largest[entry.kind], entry.rows)
            case Done():
                del self._reserved[entry.kind]
            case Recovered():
                self._reserved.clear()
                for lost in entry.lost:
                    self.accountant.add(self._kinds[lost.kind].release(lost.rows), lost.times)

    def _made(self, number: int, release: Release, mark: bytes) -> None:
        self.accountant.add(release)
        self._largest[number] = max(self._largest[number], release.rows)
        self._marks[mark] = None
        if len(self._marks) > MARKS:
            self._marks.popitem(last=False)

    def _lost(self, number: int, releases: int, rows: int) -> Lost:
        """What of a reservation may have been released: where rows count apart, each of them once."""
        return Lost(kind=number, rows=rows, times=min(releases, 1) if self._apart(number) else releases)

    def _apart(self, number: int) -> bool:
        """Whether each row's releases of this kind count by themselves, and it is known whose they are."""
        kind = self._kinds[number]
        return kind.placed and not self.accountant.seen(kind.release(0)).trained

    def _replay(self, log: LedgerFile) -> None:
        try:
            for entry in log.entries():
                self._apply(entry)
        except LookupError as error:
            raise log.damaged("where it speaks of what is not there") from error
        lost = [
            self._lost(number, reservation.left, reservation.rows)
            for number, reservation in self._reserved.items()
            if reservation.left
        ]
        if log.torn:
            lost += [Lost(kind=number, rows=rows, times=1) for number, rows in enumerate(self._largest)]
        if lost or log.torn:
            recovered = Recovered(torn=log.torn, lost=tuple(lost))
            log.write(recovered)
            self._apply(recovered)

    def _write(self, entry: Entry, *, flushed: bool = True) -> None:
        if self._log is not None:
            self._log.write(entry, flushed=flushed)


class _Reservation:
    """So many releases are left of those that may follow, of at most so many rows each."""

    def __init__(self, left: int, rows: int) -> None:
        self.left, self.rows = left, rows
        self._of = np.zeros(0, np.int64)
        """By place: whether a release had that row."""

    def takes(self, release: Release, *, apart: bool) -> bool:
        """Whether this is one of them, and one less is left; where rows count `apart`, if none of its rows was in one
        before."""
        if not self.left or release.rows > self.rows:
            return False
        if apart and release.places is not None and len(release.places):
            self._of = grown(self._of, release.places)
            if self._of[release.places].any() or len(np.unique(release.places)) < len(release.places):
                return False
            self._of[release.places] = 1
        self.left -= 1
        return True


def _mark(number: int, release: Release, digest: str) -> bytes:
    hashed = blake3(f"{number} {release.rows} {digest} ".encode())
    if release.places is not None:
        hashed.update(release.places.tobytes())
    return hashed.digest(16)
