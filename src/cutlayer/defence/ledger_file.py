"""The file of a ledger: lines are added, flushed when they must be, and read again after a crash.

A crash may tear what was not flushed, and that is at the end. Anything else that is not as it was written is damage.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cutlayer.defence.entries import Entry, Line, Made, Opened, Recovered, line_from, line_of
from cutlayer.errors import RunError

_SPOILT = b"#\n"
"""Ends a torn line so that it is none, even if all that it lacked was its end."""


class LedgerFile:
    """One process' own until it is closed. `entries` are to be read, all of them, before anything is written.

    `torn`: after that, how many bytes at the end are no whole lines.
    """

    def __init__(self, path: Path, opened: Opened) -> None:
        """Raises `RunError`: another process has it, or it cannot be opened."""
        self.torn = 0
        self._path, self._opened = path, opened
        self._number, self._unended = 0, False
        self._failed: RunError | None = None
        self._lock = FileLock(f"{path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunError(f"another process writes {path}: stop it first, or name another file") from error
        except OSError as error:
            raise self._unwritten(error) from error
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            self._lock.release()
            raise self._unwritten(error) from error

    def entries(self) -> Iterator[Entry]:
        """All that it says. Raises `RunError`: it is damaged, or another party's or plan's."""
        reading = Reading()
        with open(self._path, "rb") as file:
            try:
                for entry in reading.entries(file):
                    if reading.number == 1:
                        self._check_own(entry)
                    yield entry
            except Damaged as error:
                raise self.damaged(f"after its line {reading.number}") from error
            if not reading.number:
                file.seek(0)
                self._begin(file.read())
                return
        self._number, self.torn, self._unended = reading.number, reading.torn, reading.unended

    def write(self, entry: Entry, *, flushed: bool = True) -> None:
        """Add a line; if it is flushed it outlives a power cut once this returns. Raises `RunError`, from then on."""
        assert self.is_open
        if self._failed is not None:
            raise self._failed
        line = line_of(self._number + 1, entry)
        try:
            self._append(_SPOILT + line if self._unended else line)
            if flushed:
                os.fsync(self._file)
        except OSError as error:
            self._failed = self._unwritten(error)
            raise self._failed from error
        self._number, self._unended = self._number + 1, False

    @property
    def is_open(self) -> bool:
        return bool(self._lock.is_locked)

    def close(self) -> None:
        """A second time it does nothing."""
        if self.is_open:
            os.close(self._file)
            self._lock.release()

    def damaged(self, where: str) -> RunError:
        return RunError(
            f"{self._path} is no record of releases, or is damaged {where}: put a whole copy of it back; without one "
            f"nobody knows what {self._opened.party} has told of its rows, and they are not to be released any more"
        )

    def _begin(self, torn: bytes) -> None:
        """The first line; over a torn one, which nothing was released after."""
        if not line_of(1, self._opened).startswith(torn.rstrip(b"\0")):
            raise self.damaged("at its first line")
        os.ftruncate(self._file, 0)
        self.write(self._opened)
        _flush_folder(self._path.parent)

    def _check_own(self, entry: Entry) -> None:
        if not isinstance(entry, Opened) or entry.version != self._opened.version:
            raise self.damaged("at its first line")
        if entry != self._opened:
            raise RunError(
                f"{self._path} is the record of what {entry.party} releases under the plan {entry.plan[:12]}, and not "
                f"{self._opened.party}'s under {self._opened.plan[:12]}: keep it, and name another file for this one"
            )

    def _append(self, data: bytes) -> None:
        if os.write(self._file, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _unwritten(self, error: OSError) -> RunError:
        return RunError(
            f"{self._opened.party} cannot write {self._path} ({error.strerror}), and releases nothing that is not "
            "recorded: make room or mend its rights, and go on from the last save"
        )


class Damaged(Exception):
    """Something other than a crash has changed the file, after its line `number`."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


class Reading:
    """Reads lines; `number` is the last whole one's. A crash may tear what was not flushed, which is at the end.

    `torn`: how many bytes at the end are no whole lines, or lie before lines that were not flushed either.
    `unended`: the last line has no end.
    """

    def __init__(self) -> None:
        self.number = self.torn = 0
        self.unended = False

    def entries(self, lines: Iterable[bytes]) -> Iterator[Entry]:
        """Raises `Damaged`."""
        for line in lines:
            self.unended = not line.endswith(b"\n")
            read = None if self.unended else line_from(line)
            if read is None:
                self.torn += len(line)
                continue
            if not self._follows(read):
                raise Damaged(self.number)
            self.number = read.n
            if isinstance(read.said, Recovered):
                self.torn = 0
            yield read.said

    def _follows(self, line: Line) -> bool:
        """A line that was flushed took those before it to the disk: none of them can be missing or torn."""
        if self.torn and isinstance(line.said, Made) and line.said.reserved:
            return line.n > self.number
        return line.n == self.number + 1 and (not self.torn or isinstance(line.said, Recovered))


def _flush_folder(folder: Path) -> None:
    """So that the file's name outlives a power cut, too; where folders cannot be opened they need not be."""
    if os.name != "nt":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
