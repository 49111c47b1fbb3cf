"""Reading an audit log without believing it: is it whole, and its party's own?"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cutlayer.errors import RunError
from cutlayer.observe.chain import Fields, digest_of, fields_of, statement

_FIRST_BYTES = 4096
IsSigned = Callable[[bytes, bytes], bool]
"""Whether this is the signature of a log's party of this statement."""


@dataclass(kw_only=True, slots=True)
class Trail:
    """One party's log as it was read; `faults` and `notices` are sentences. Lines are numbered as in the file."""

    name: str
    party: str = ""
    plan: str = ""
    lines: int = 0
    signed: int = 0
    """The last line with a good signature; 0 if there is none."""
    crossed: dict[tuple[str, str, str], list[tuple[int, Fields]]] = field(default_factory=dict)
    """By run, sender and receiver: what this party says of what crossed, in order, with the line's number."""
    stops: list[int] = field(default_factory=list)
    """Lines before which what was on its way may be lost: the run is taken up from a save, or by another process."""
    breaks: list[int] = field(default_factory=list)
    """Lines before which some may be missing, since a process was killed."""
    faults: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def count(self, entry: str) -> int:
        """How many messages were `sent`, or `came`."""
        place = 1 if entry == "sent" else 2
        return sum(len(found) for key, found in self.crossed.items() if key[place] == self.party)


def read_trail(path: Path, is_signed: IsSigned | None = None) -> Trail:
    """The log in a file, with all faults of its chain and signatures. Without `is_signed` those are not verified.

    Raises `RunError` if there is no such file, or it is no audit log.
    """
    *lines, torn = _read(path).split(b"\n")
    opened = _opened(path, lines[0] if lines else torn)
    reader = _Reader(Trail(name=str(path), party=opened["party"], plan=str(opened.get("plan"))), is_signed)
    for line in lines:
        reader.read(line)
    reader.end(torn)
    return reader.trail


def party_of(path: Path) -> str:
    """Whose log this says that it is. Raises `RunError` if it is none."""
    party: str = _opened(path, _read(path, _FIRST_BYTES).partition(b"\n")[0])["party"]
    return party


def _read(path: Path, limit: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): name an audit log") from error


def _opened(path: Path, line: bytes) -> Fields:
    fields = fields_of(line)
    if fields is None or not isinstance(fields.get("party"), str):
        raise RunError(f"{path} does not begin as an audit log: name the file that a run was told to keep one in")
    return fields


class _Reader:
    """Follows the chain, line by line."""

    def __init__(self, trail: Trail, is_signed: IsSigned | None) -> None:
        self.trail, self._is_signed = trail, is_signed
        self._number, self._before = 0, ""
        self._last = ""
        self._closed = False

    def read(self, line: bytes) -> None:
        self.trail.lines += 1
        fields = fields_of(line)
        if fields is None:
            self._fault("is no line of an audit log: it was changed")
            self._number += 1
        else:
            self._follow(fields)
            self._take(fields)
            self._number = fields["n"]
        self._before = digest_of((line,))

    def end(self, torn: bytes) -> None:
        """What the log's end says, and does not say."""
        trail = self.trail
        if torn:
            trail.faults.append(f"{trail.name} ends in half a line of {len(torn)} bytes: its process was killed there")
        if not self._closed:
            trail.breaks.append(trail.lines + 1)
            trail.faults.append(
                f"{trail.name} ends at line {trail.lines} and was not closed: {trail.party}'s process was killed, or "
                "later lines were taken out; the next process of the party that continues the log says which"
            )
        if self._is_signed is None:
            trail.notices.append(
                f"{trail.name}: no public key of {trail.party} was given, so whoever had the file may have rewritten it"
            )
        elif trail.signed < trail.lines:
            rest = f"lines {trail.signed + 1} to {trail.lines}" if trail.signed else "its lines"
            trail.faults.append(f"{trail.name}: {rest} are not signed by {trail.party}: anyone may have written them")

    def _follow(self, fields: Fields) -> None:
        due, number = self._number + 1, fields["n"]
        if number > due:
            missing = f"line {due} is" if number == due + 1 else f"lines {due} to {number - 1} are"
            self._fault(f"has the number {number}: {missing} missing before it")
        elif number < due:
            self._fault(f"has the number {number}, and should have {due}: it is out of order")
        elif fields["before"] != self._before:
            self._fault(f"does not follow: line {self.trail.lines - 1} was changed after it was written")

    def _take(self, fields: Fields) -> None:
        entry = fields["entry"]
        match entry:
            case "opened":
                self._open(fields)
            case "sent" | "came":
                self._cross(fields, entry)
            case "resumed":
                self.trail.stops.append(self.trail.lines)
            case "signed":
                self._verify(fields)
            case "torn" | "closed":
                pass
            case _:
                self._fault(f"is a {entry!r}, which this version does not know")
        self._closed = entry == "closed" or (self._closed and entry == "signed")

    def _open(self, fields: Fields) -> None:
        trail = self.trail
        trail.stops.append(trail.lines)
        if trail.lines > 1 and not self._closed:
            trail.breaks.append(trail.lines)
            trail.notices.append(
                f"{trail.name}: {trail.party}'s process was killed after line {trail.lines - 1}, and another went on"
            )
        if fields.get("party") != trail.party:
            self._fault(f"is of {fields.get('party')}, in {trail.party}'s log")
        if fields.get("plan") != trail.plan:
            trail.notices.append(f"{trail.name}: another plan begins at line {trail.lines}")

    def _cross(self, fields: Fields, entry: str) -> None:
        run, peer, mine = str(fields.get("run")), str(fields.get("peer")), self.trail.party
        ends = (mine, peer) if entry == "sent" else (peer, mine)
        self.trail.crossed.setdefault((run, *ends), []).append((self.trail.lines, fields))

    def _verify(self, fields: Fields) -> None:
        if self._is_signed is None:
            return
        said = statement(self.trail.party, fields["n"], self._before)
        if self._is_signed(_unhex(fields.get("signature")), said):
            self.trail.signed = self.trail.lines
        else:
            self._fault(f"is no signature of {self.trail.party} for the lines before it: they were changed after it")

    def _fault(self, what: str) -> None:
        self.trail.faults.append(f"{self.trail.name} line {self.trail.lines} {what}")


def _unhex(text: object) -> bytes:
    try:
        return bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError:
        return b""
