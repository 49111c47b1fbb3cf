"""The meter: bytes by edge and direction as they crossed the channel, time by what it was spent on."""

from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from cutlayer.observe.facts import Cached, Crossed, Fact, Moved, Paced, Progressed, Resumed, Scored, Spent
from cutlayer.plan.tensors import TensorShape

NOT_LONG_AGO = 64
"""So many entries back another party's losses of the same turn may stand."""


@dataclass(slots=True)
class Crossing:
    """All frames of one kind: same edge, way, direction and purpose."""

    peer: str
    edge: str
    way: str
    sent: bool
    purpose: str
    carries: str | None
    codec: str
    shapes: tuple[TensorShape, ...]
    """Of the first frame; the last batch of an epoch may be smaller."""
    frames: int = 0
    rows: int = 0
    payload_bytes: int = 0
    frame_bytes: int = 0


@dataclass(slots=True)
class Moving:
    """All states of one kind that went from one party to another."""

    source: str
    target: str
    what: str
    of: str
    sent: bool
    sealed: bool
    frames: int = 0
    payload_bytes: int = 0
    """Of the tensors alone, as their sender counts them; a receiver counts 0."""
    frame_bytes: int = 0


class Meter:
    """An observer that adds up. One meter serves one party."""

    def __init__(self) -> None:
        self.moved: dict[tuple[str, str, str, str, bool], Moving] = {}
        self.crossings: dict[tuple[str, str, str, bool, str], Crossing] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.history: list[Scored] = []
        self.stale: Counter[int] = Counter()
        """Steps, by how many steps their weights were older than those that they changed."""
        self.cached: Counter[int] = Counter()
        """The same of steps that a party took by itself on what it had kept."""
        self.paced: Paced | None = None
        """How many micro-batches the conductor decided on, where it did."""

    def __call__(self, fact: Fact) -> None:
        match fact:
            case Crossed():
                self._count(fact)
            case Moved():
                self._count_moved(fact)
            case Spent():
                self.seconds[fact.on] += fact.seconds
            case Scored():
                self._note(fact)
            case Progressed() | Cached() | Paced():
                self._note_pace(fact)
            case Resumed():
                self.history = []
                for score in fact.scored:
                    self._note(score)

    def _note_pace(self, fact: Progressed | Cached | Paced) -> None:
        if isinstance(fact, Paced):
            self.paced = fact
        elif isinstance(fact, Cached):
            self.cached.update(fact.stale)
        else:
            self.stale[fact.stale] += 1

    def _note(self, fact: Scored) -> None:
        """A turn's scores on an owner's rows are one entry, though several parties may hold losses."""
        for place in range(len(self.history) - 1, max(len(self.history) - 1 - NOT_LONG_AGO, -1), -1):
            known = self.history[place]
            if (known.turn, known.owner) == (fact.turn, fact.owner):
                self.history[place] = replace(fact, metrics={**known.metrics, **fact.metrics})
                return
        self.history.append(fact)

    def _count(self, fact: Crossed) -> None:
        key = (fact.peer, fact.edge, fact.way, fact.sent, fact.purpose)
        crossing = self.crossings.get(key)
        if crossing is None:
            crossing = self.crossings[key] = Crossing(
                fact.peer, fact.edge, fact.way, fact.sent, fact.purpose, fact.carries, fact.codec, fact.shapes
            )
        crossing.frames += 1
        crossing.rows += fact.rows
        crossing.payload_bytes += fact.payload_bytes
        crossing.frame_bytes += fact.frame_bytes

    def _count_moved(self, fact: Moved) -> None:
        key = (fact.source, fact.target, fact.what, fact.of, fact.sent)
        moving = self.moved.get(key)
        if moving is None:
            moving = self.moved[key] = Moving(*key, fact.sealed)
        moving.frames += 1
        moving.payload_bytes += fact.payload_bytes
        moving.frame_bytes += fact.frame_bytes

    def last_scores(self) -> dict[str, dict[str, float]]:
        """The last evaluation on each owner's held-out rows."""
        return {score.owner: dict(score.metrics) for score in self.history if score.purpose == "eval"}

    def raw_rows_sent(self, kind: str) -> int:
        """How many rows of raw data of a kind (`"rows"`, `"labels"`) left this party: counted, not assumed."""
        return sum(c.rows for c in self.crossings.values() if c.sent and c.carries == kind)
