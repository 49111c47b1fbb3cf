"""The crossing sheet: every edge that crossed between two parties, its shape, how often, how many bytes.

It is made from what the parties' meters counted on their channels, never from what a plan promises: raw rows and
labels that left their owner would stand here by number.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.filesize import decimal
from rich.table import Table

from cutlayer.observe.meter import Meter

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

    What a party sent counts as the sender saw it; what it received counts only if its sender gave no report.
    """
    merged: dict[tuple[str, ...], Line] = {}
    for party, entries in crossings.items():
        for entry in entries:
            if entry["sent"] or entry["peer"] not in crossings:
                line = _line(party, entry)
                key = (line.edge, line.sender, line.receiver, line.carries)
                merged[key] = _sum(merged[key], line) if key in merged else line
    return Sheet(lines=tuple(sorted(merged.values(), key=lambda line: min(line.sender, line.receiver))))


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


def _sum(one: Line, other: Line) -> Line:
    return replace(
        one, frames=one.frames + other.frames, rows=one.rows + other.rows, bytes=one.bytes + other.bytes
    )  # fmt: skip


# ---------------------------------------------------------------------- for a person


def table(sheet: Sheet) -> Table:
    """The sheet as a table that fits 80 columns; raw data stands out."""
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for name in ("from → to", "edge", "carries", "shape"):
        grid.add_column(name, no_wrap=True)
    for name in ("frames", "rows", "bytes"):
        grid.add_column(name, justify="right", no_wrap=True)
    for group in _groups(sheet.lines):
        for line in group:
            grid.add_row(
                f"{line.sender} → {line.receiver}",
                line.edge,
                line.carries,
                ", ".join(line.shapes),
                str(line.frames),
                str(line.rows),
                decimal(line.bytes),
                style="bold red" if line.carries in {"rows", "labels"} else None,
            )
        grid.add_section()
    return grid


def _groups(lines: Iterable[Line]) -> list[list[Line]]:
    """Lines by pair of parties, in order."""
    pairs: dict[frozenset[str], list[Line]] = {}
    for line in lines:
        pairs.setdefault(frozenset((line.sender, line.receiver)), []).append(line)
    return list(pairs.values())
