"""A file of lines, each with the digest of the line before it, signed from time to time: what is there stays there.

A line is a JSON object. `n` is its number, from 1; `at` is the time by its party's clock, UTC; `before` is the digest
(BLAKE3) of the line before it, without the line's end, and empty in the first. `entry` says what the line is:

    opened   a process of `party` begins to write, in a run of `plan`. Where no `closed` is before it, one was killed
    torn     so many bytes were cut off: a line that the killed process could not finish
    closed   the process has written all that it will
    signed   the party's signature (Ed25519) of all lines before: of its name, this line's number, and `before`

Other entries are the writer's own. A line is with the operating system when `add` returns: it outlives the process. It
outlives a power cut once it is sealed.
"""

import errno
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeGuard

import msgspec
from blake3 import blake3

from cutlayer.errors import RunError

VERSION = 1
SEAL_EVERY: Final = 256
"""So many lines a power cut may take, at most; to sign and flush them costs some milliseconds."""
_TAIL_BYTES = 2**20
"""How much of an older file is verified before it is continued. Many lines fit in it."""
_BEGIN = b'{"n":'

Sign = Callable[[bytes], bytes]
Fields = dict[str, Any]


def digest_of(parts: Iterable[bytes | memoryview]) -> str:
    """The digest of bytes one after another, 64 hexadecimal digits."""
    hashed = blake3()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


def statement(party: str, number: int, before: str) -> bytes:
    """What a party signs in line `number`: that all its lines before it are these."""
    return f"cutlayer audit {VERSION}: signature\n{party}\n{number}\n{before}\n".encode()


def fields_of(line: bytes) -> Fields | None:
    """What a line says, or None if it is none."""
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return fields if _is_line(fields) else None


def follows(fields: Fields, number: int, before: str) -> bool:
    """Whether a line can stand after the line with this number and digest."""
    return bool(fields["n"] == number + 1 and fields["before"] == before)


def now() -> datetime:
    return datetime.now(UTC)


class Chain:
    """The file of one party, open for writing; an older one is continued.

    Raises `RunError` if it cannot be opened, or is not this party's own undamaged file. `add` and `close` raise
    `OSError`; after that no line is added any more.
    """

    def __init__(self, path: Path, party: str, plan: str, sign: Sign | None, clock: Callable[[], datetime]) -> None:
        self.path, self._party, self._sign, self._clock = path, party, sign, clock
        self._number, self._before, self._unsealed = 0, "", 0
        self._broken: OSError | None = None
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise RunError(f"{path} cannot be opened ({error.strerror}): name another file for the audit") from error
        try:
            torn = self._continue()
            self.add("opened", version=VERSION, party=party, plan=plan)
            if torn:
                self.add("torn", bytes=torn)
        except BaseException:
            os.close(self._file)
            raise

    def add(self, entry: str, **fields: Any) -> None:
        """A line; sealed with those before it when there are many."""
        self._write(entry, fields)
        if self._unsealed >= SEAL_EVERY:
            self._seal()

    def close(self) -> None:
        """The last line, sealed."""
        try:
            self._write("closed", {})
            self._seal()
        finally:
            os.close(self._file)

    def _write(self, entry: str, fields: Fields) -> None:
        if self._broken is not None:
            raise self._broken
        number = self._number + 1
        said = {"n": number, "at": self._clock().isoformat(), "entry": entry, **fields, "before": self._before}
        line = msgspec.json.encode(said)
        try:
            _write_whole(self._file, line + b"\n")
        except OSError as error:
            self._broken = error
            raise
        self._number, self._before = number, digest_of((line,))
        self._unsealed += 1

    def _seal(self) -> None:
        """Sign all lines so far, and let them outlive a power cut."""
        if self._sign is not None:
            signature = self._sign(statement(self._party, self._number + 1, self._before))
            self._write("signed", {"signature": signature.hex()})
        os.fsync(self._file)
        self._unsealed = 0

    # ------------------------------------------------------------------ an older file

    def _continue(self) -> int:
        """Go on after the last whole line; returns how many bytes of a torn one were cut off."""
        size = os.fstat(self._file).st_size
        with open(self._file, "rb", closefd=False) as file:
            first = file.readline(_TAIL_BYTES)
            file.seek(max(0, size - _TAIL_BYTES))
            *lines, torn = file.read().split(b"\n")
        if size > _TAIL_BYTES:
            del lines[:1]  # it began earlier
        if not (self._is_own(first, torn) and self._follow(lines, whole=size <= _TAIL_BYTES)):
            raise RunError(
                f"{self.path} is not {self._party}'s own audit log, or was changed (see `cutlayer audit verify`): keep "
                "it as it is, and name another file"
            )
        if torn:
            os.ftruncate(self._file, size - len(torn))
        return len(torn)

    def _is_own(self, first: bytes, torn: bytes) -> bool:
        """Whether the first line is this party's; and what is torn, a power cut's zeros apart, began as a line."""
        began = torn.rstrip(b"\0")
        if began[: len(_BEGIN)] != _BEGIN[: len(began)]:
            return False
        fields = fields_of(first) if first.endswith(b"\n") else {"party": self._party}
        return fields is not None and fields.get("party") == self._party

    def _follow(self, lines: list[bytes], *, whole: bool) -> bool:
        """Take up the last line's number and digest; False unless each of the lines follows the one before it."""
        for place, line in enumerate(lines):
            fields = fields_of(line)
            if fields is None or not (follows(fields, self._number, self._before) or (place == 0 and not whole)):
                return False
            self._number, self._before = fields["n"], digest_of((line,))
        return whole or bool(lines)


def _write_whole(file: int, data: bytes) -> None:
    if os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_line(fields: object) -> TypeGuard[Fields]:
    return (
        isinstance(fields, dict)
        and type(fields.get("n")) is int
        and all(isinstance(fields.get(name), str) for name in ("at", "entry", "before"))
    )
