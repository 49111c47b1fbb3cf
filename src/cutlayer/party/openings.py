"""Of which clients' sum this party has opened its part, round by round: it opens none of others for the same round.

Two sums of one round, of which one lacks a client, have that client's share as their difference. A sum cannot be read
before all its clients have told the keys of their own masks. So it is enough that each tells one for one sum of a round
only, and knows that again after a crash: the line is on the disk before the key leaves.
"""

import os
from pathlib import Path
from typing import NoReturn

import msgspec
from filelock import FileLock, Timeout

from cutlayer.errors import RunError
from cutlayer.plan.membership import NEVER
from cutlayer.plan.schedule import Kind

VERSION = 1


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line: whose openings these are, and under which plan."""

    version: int
    party: str
    plan: str


class Opened(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sum: what was summed, in which round, of whom with which weights; and which clients took part in the run."""

    of: Kind
    round: int
    among: dict[str, float]
    present: tuple[str, ...]


class Openings:
    """What party `party` has opened under the plan with this digest.

    `path`: the file in which it lasts, one process' own until `close`; None: it lasts as long as this object.
    """

    def __init__(self, path: Path | None, *, party: str, plan: str) -> None:
        """Raises `RunError`: another process has the file, it is damaged, or it is another party's or plan's."""
        self._path, self._owner = path, Owner(VERSION, party, plan)
        self._opened: dict[tuple[Kind, int], Opened] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = FileLock(f"{path}.lock", timeout=0)
            try:
                self._lock.acquire()
            except Timeout as error:
                raise RunError(f"another process writes {path}: stop it first, or name another file") from error
            try:
                self._read(path)
            except RunError:
                self._lock.release()
                raise

    @property
    def newest(self) -> tuple[int, tuple[str, ...]]:
        """The last round of which a sum was opened, and the clients of the run then; `NEVER`, nobody: there is none."""
        if not self._opened:
            return NEVER, ()
        last = max(self._opened.values(), key=lambda each: each.round)
        return last.round, last.present

    def check(self, sum_of: Opened) -> None:
        """Whether this sum may still be opened in its round. Raises `RunError`."""
        before = self._opened.get((sum_of.of, sum_of.round))
        if before is None or before.among == sum_of.among:
            return
        if lost := [name for name in before.present if name not in sum_of.present]:
            mend = f"start {', '.join(lost)} again, without which this round cannot be done again"
        elif more := [name for name in sum_of.present if name not in before.present]:
            mend = f"begin without {', '.join(more)}, which can come back in the round after"
        else:
            mend = "let all clients bring as many rows as then"
        raise RunError(
            f"{self._owner.party} has opened the sum of {', '.join(before.among)} in round {before.round + 1}, and "
            f"opens no other one of that round, from whose difference a single share would follow: {mend}, or agree on "
            "a new plan"
        )

    def bind(self, sum_of: Opened) -> None:
        """From now on this is the sum of its round; returns when that would outlive a power cut. Raises `RunError`."""
        self.check(sum_of)
        if (sum_of.of, sum_of.round) not in self._opened:
            if self._path is not None:
                self._append(self._path, msgspec.json.encode(sum_of) + b"\n")
            self._opened[sum_of.of, sum_of.round] = sum_of

    def close(self) -> None:
        """Another process may have the file from now on."""
        if self._path is not None:
            self._lock.release()

    # ------------------------------------------------------------------ the file

    def _read(self, path: Path) -> None:
        """A crash may leave the last line torn: then its key never left."""
        data, header = path.read_bytes() if path.exists() else b"", msgspec.json.encode(self._owner)
        first, *lines = [*data.split(b"\n")[:-1]] or [b""]
        if header.startswith(data):
            path.unlink(missing_ok=True)
            self._append(path, header + b"\n")
            return
        try:
            owner = msgspec.json.decode(first, type=Owner)
            opened = [msgspec.json.decode(line, type=Opened) for line in lines]
        except msgspec.DecodeError as error:
            self._refuse(f"is damaged ({error}): put a whole copy of it back", error)
        if owner != self._owner:
            self._refuse(f"is {owner.party}'s under the plan {owner.plan[:12]}: keep it, and name another file")
        self._opened = {(each.of, each.round): each for each in opened}
        os.truncate(path, len(first) + sum(map(len, lines)) + len(lines) + 1)

    def _append(self, path: Path, line: bytes) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                if os.write(descriptor, line) < len(line):
                    self._refuse("cannot be written, the disk is full: make room, and go on from the last save")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            _sync(path.parent)
        except OSError as error:
            self._refuse(f"cannot be written ({error.strerror}): mend that, and go on from the last save", error)

    def _refuse(self, why: str, error: Exception | None = None) -> NoReturn:
        raise RunError(f"{self._path}, by which {self._owner.party} knows what it has opened, {why}") from error


def _sync(folder: Path) -> None:
    """So that the file's name outlives a power cut, too; where folders cannot be opened they need not be."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
