"""The crossing sheet: every edge that crossed between two parties, its shape, how often, how many bytes; and states.

It is made from what the parties' meters counted on their channels, never from what a plan promises: raw rows and
labels that left their owner would stand here by number.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from cutlayer.observe.meter import Meter

RAW = ("rows", "labels")
STATES = {
    ("replica", "weights"): "weights and optimizer",
    ("share", "weights"): "weights, to be averaged",
    ("share", "gradients"): "gradients, to be summed",
    ("call", "weights"): "word that all shares are there",
    ("unmask", "weights"): "key of its own mask",
    ("mean", "weights"): "averaged weights",
    ("mean", "gradients"): "summed gradients",
}
"""What a state that moved is, in words, by `what` and `of`."""
LAYOUTS = ((1, ""), (0, ""), (0, "float32"))
"""From wide to narrow: the gap between columns, and the dtype that shapes leave out."""

Report = Mapping[str, Any]
"""One party's; its `crossings` and what was `moved` make the sheet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """All frames from one party to another that carried the same over the same edge."""

    edge: str
    sender: str
    receiver: str
    carries: str
    """`"activation"`, `"gradient"`, or raw data: `"rows"`, `"labels"`."""
    shapes: tuple[str, ...]
    """Of the first frame that has any; an epoch's last batch may be smaller."""
    frames: int
    rows: int
    """Over all frames: a row counts as often as it, or what became of it, crossed."""
    bytes: int
    """Whole frames: headers and tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """All states of one kind that went from one party to another between turns, by whomever they were forwarded."""

    sender: str
    receiver: str
    what: str
    """`"replica"`, `"share"` of an average, or its result: `"mean"`; `"call"` and `"unmask"` of sums under masks."""
    of: str
    """`"weights"` or `"gradients"`."""
    sealed: bool
    """For the receiver alone: whoever forwards it cannot read it."""
    frames: int
    bytes: int
    """Whole frames: headers, seals and tensors."""

    @property
    def carries(self) -> str:
        """In words, such as `weights and optimizer, sealed`."""
        return STATES.get((self.what, self.of), f"{self.what} of {self.of}") + ", sealed" * self.sealed


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """What crossed, the raw data among it, and the states that moved."""

    lines: tuple[Line, ...]
    moves: tuple[Move, ...] = ()

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
        return {
            "crossings": [asdict(line) for line in self.lines],
            "moved": [asdict(move) for move in self.moves],
            "rows": self.rows,
            "labels": self.labels,
        }

    def _raw(self, kind: str) -> int:
        return sum(line.rows for line in self.lines if line.carries == kind)


def from_reports(reports: Mapping[str, Report]) -> Sheet:
    """The sheet of a run from its parties' reports, of all parties or of some.

    What a party sent counts as the sender saw it; what it received counts only if its sender gave no report. Lines
    stand in the order in which a mini-batch meets them, the pairs of parties by name.
    """
    seen: dict[frozenset[str], dict[Line, list[Line]]] = {}
    for party, report in reports.items():
        for entry in report["crossings"]:
            line = _line(party, entry)
            pair = seen.setdefault(frozenset((line.sender, line.receiver)), {})
            counted = pair.setdefault(replace(line, shapes=(), frames=0, rows=0, bytes=0), [])
            if entry["sent"] or entry["peer"] not in reports:
                counted.append(line)
    return Sheet(
        lines=tuple(_sum(lines) for pair in sorted(seen, key=sorted) for lines in seen[pair].values() if lines),
        moves=tuple(sorted(_moves(reports), key=lambda move: (move.sender, move.receiver))),
    )


def from_meters(meters: Mapping[str, Meter]) -> Sheet:
    """The sheet of a simulated run."""
    return from_reports({
        name: {
            "crossings": [asdict(crossing) for crossing in meter.crossings.values()],
            "moved": [asdict(moving) for moving in meter.moved.values()],
        }
        for name, meter in meters.items()
    })  # fmt: skip


def _moves(reports: Mapping[str, Report]) -> Iterator[Move]:
    for report in reports.values():
        for entry in report.get("moved", ()):
            if entry["sent"] or entry["source"] not in reports:
                yield Move(
                    sender=entry["source"],
                    receiver=entry["target"],
                    what=entry["what"],
                    of=entry["of"],
                    sealed=entry["sealed"],
                    frames=entry["frames"],
                    bytes=entry["frame_bytes"],
                )


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
    """Training and evaluation together. An evaluation, which may come first, has no gradients but empty answers."""
    return replace(
        lines[0],
        shapes=next((line.shapes for line in lines if line.shapes), ()),
        frames=sum(line.frames for line in lines),
        rows=sum(line.rows for line in lines),
        bytes=sum(line.bytes for line in lines),
    )


# ---------------------------------------------------------------------- for a person


def table(sheet: Sheet, width: int) -> Table:
    """The edges as a table for a console of this width, 80 columns or more; raw data stands out."""
    grids = (_grid(sheet, *layout) for layout in LAYOUTS)
    return next((grid for grid in grids if _width(grid) <= width), _grid(sheet, *LAYOUTS[-1]))


def moves_table(sheet: Sheet) -> Table:
    """The states that moved, as a table that fits 80 columns."""
    grid = _columns(("from → to", "state"), ("frames", "bytes"), gap=1)
    for move in sheet.moves:
        pair = f"{move.sender} → {move.receiver}"
        grid.add_row(escape(pair), move.carries, str(move.frames), decimal(move.bytes))
    return grid


def _grid(sheet: Sheet, gap: int, unsaid: str) -> Table:
    grid = _columns(("from → to", "edge", "carries", "shape"), ("frames", "rows", "bytes"), gap=gap)
    before: set[str] = set()
    for line in sheet.lines:
        pair = {line.sender, line.receiver}
        if before and pair != before:
            grid.add_section()
        grid.add_row(*_cells(line, unsaid), style="bold red" if line.carries in RAW else None)
        before = pair
    return grid


def _columns(texts: Sequence[str], numbers: Sequence[str], *, gap: int) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap, 0, 0))
    for name in texts:
        grid.add_column(name, no_wrap=True)
    for name in numbers:
        grid.add_column(name, justify="right", no_wrap=True)
    return grid


def _width(grid: Table) -> int:
    """How many columns of a console the table needs."""
    return Console(width=10_000).measure(grid).maximum


def _cells(line: Line, unsaid: str) -> list[str]:
    shapes = ", ".join(shape.removeprefix(unsaid) for shape in line.shapes)
    texts = (f"{line.sender} → {line.receiver}", line.edge, line.carries, shapes, str(line.frames), str(line.rows))
    return [*map(escape, texts), decimal(line.bytes)]
