"""The crossing sheet: every edge that crossed between two parties, its shape, how often, how many bytes.

It is made from what the parties' meters counted on their channels, never from what a plan promises: raw rows and
labels that left their owner would stand here by number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from cutlayer.observe.meter import Meter

RAW = ("rows", "labels")
DENSE_BELOW = 90
"""Columns of a console under which tables close ranks."""

Crossings = Sequence[Mapping[str, Any]]
"""One party's, as its report lists them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """All frames from one party to another that carried the same over the same edge."""

    edge: str
    sender: str
    receiver: str
    carries: str
    """`"activation"`, `"gradient"`, or raw data: `"rows"`, `"labels"`."""
    shapes: tuple[str, ...]
    """Of the first frame; an epoch's last batch may be smaller."""
    frames: int
    rows: int
    """Over all frames: a row counts as often as it, or what became of it, crossed."""
    bytes: int
    """Whole frames: headers and tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """What crossed, and the raw data among it."""

    lines: tuple[Line, ...]

    @property
    def rows(self) -> int:
        """Raw rows that left their owner, as often as they did."""
        return self._raw("rows")

    @property
    def labels(self) -> int:
        """Labels that left their owner, as often as they did."""
        return self._raw("labels")

    @property
    def verdict(self) -> str:
        """`rows: 0, labels: 0`, counted."""
        return f"rows: {self.rows}, labels: {self.labels}"

    def as_data(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"crossings": [asdict(line) for line in self.lines], "rows": self.rows, "labels": self.labels}

    def _raw(self, kind: str) -> int:
        return sum(line.rows for line in self.lines if line.carries == kind)


def from_reports(crossings: Mapping[str, Crossings]) -> Sheet:
    """The sheet of a run from its parties' reports: `crossings` by party, of all parties or of some.

    What a party sent counts as the sender saw it; what it received counts only if its sender gave no report. Lines
    stand in the order in which a mini-batch meets them, the pairs of parties by name.
    """
    seen: dict[frozenset[str], dict[Line, list[Line]]] = {}
    for party, entries in crossings.items():
        for entry in entries:
            line = _line(party, entry)
            pair = seen.setdefault(frozenset((line.sender, line.receiver)), {})
            counted = pair.setdefault(replace(line, shapes=(), frames=0, rows=0, bytes=0), [])
            if entry["sent"] or entry["peer"] not in crossings:
                counted.append(line)
    return Sheet(
        lines=tuple(_sum(lines) for pair in sorted(seen, key=sorted) for lines in seen[pair].values() if lines)
    )


def from_meters(meters: Mapping[str, Meter]) -> Sheet:
    """The sheet of a simulated run."""
    return from_reports({name: [asdict(c) for c in meter.crossings.values()] for name, meter in meters.items()})


def _line(party: str, entry: Mapping[str, Any]) -> Line:
    sender, receiver = (party, entry["peer"]) if entry["sent"] else (entry["peer"], party)
    return Line(
        edge=entry["edge"],
        sender=sender,
        receiver=receiver,
        carries=entry["carries"] or ("activation" if entry["way"] == "forward" else "gradient"),
        shapes=tuple(map(str, entry["shapes"])),
        frames=entry["frames"],
        rows=entry["rows"],
        bytes=entry["frame_bytes"],
    )


def _sum(lines: Sequence[Line]) -> Line:
    """Training and evaluation together."""
    return replace(
        lines[0],
        frames=sum(line.frames for line in lines),
        rows=sum(line.rows for line in lines),
        bytes=sum(line.bytes for line in lines),
    )


# ---------------------------------------------------------------------- for a person


def table(sheet: Sheet, width: int = DENSE_BELOW) -> Table:
    """The sheet as a table for a console of this width, 80 columns or more; raw data stands out."""
    gap = 0 if width < DENSE_BELOW else 1
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    for name in ("from → to", "edge", "carries", "shape"):
        grid.add_column(name, no_wrap=True)
    for name in ("frames", "rows", "bytes"):
        grid.add_column(name, justify="right", no_wrap=True)
    for number, line in enumerate(sheet.lines):
        if number and {line.sender, line.receiver} != {
            sheet.lines[number - 1].sender,
            sheet.lines[number - 1].receiver,
        }:
            grid.add_section()
        grid.add_row(*_cells(line), style="bold red" if line.carries in RAW else None)
    return grid


def _cells(line: Line) -> list[str]:
    shapes = ", ".join(line.shapes)
    texts = (f"{line.sender} → {line.receiver}", line.edge, line.carries, shapes, str(line.frames), str(line.rows))
    return [*map(escape, texts), decimal(line.bytes)]
