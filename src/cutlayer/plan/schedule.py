"""Schedules: whose turn it is, over many mini-batches. Pure generators on the plan's terms and the members' rows.

Every party runs the same schedule and refuses a turn that differs from its own, so nothing about the order of a run is
decided by one party alone.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cutlayer.plan.batches import step_count

TurnUnit = Literal["epoch", "batch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """The parties train on their own rows: `steps` mini-batches of their epoch `round`, from mini-batch `first` on."""

    parties: tuple[str, ...]
    round: int
    first: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """The parties' held-out rows run through the cut in eval mode, after `round`."""

    parties: tuple[str, ...]
    round: int


Work = Train | Evaluate


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """What a schedule needs to know: the clients in party order, their rows, and the terms that shape turns."""

    train_rows: Mapping[str, int]
    held_out_rows: Mapping[str, int]
    rounds: int
    batch_size: int
    drop_last: bool = False
    turn: TurnUnit = "epoch"

    def steps(self, party: str) -> int:
        """Mini-batches in an epoch of this party."""
        return step_count(self.train_rows[party], self.batch_size, drop_last=self.drop_last)


def alternating(course: Course) -> Iterator[Work]:
    """One client after another, an epoch or a mini-batch at a time; client segments stay, server segments are shared.

    With `turn = "batch"` clients with more rows go on alone when the others' epoch is over.
    Source: Gawali et al. 2020 (arXiv 2012.12591), "alternate client" and "alternate mini-batch" training.
    """
    for number in range(course.rounds):
        yield from _epochs(course, number) if course.turn == "epoch" else _batches(course, number)
        if holders := tuple(party for party, rows in course.held_out_rows.items() if rows):
            yield Evaluate(parties=holders, round=number)


def _epochs(course: Course, number: int) -> Iterator[Train]:
    for party in course.train_rows:
        if steps := course.steps(party):
            yield Train(parties=(party,), round=number, first=0, steps=steps)


def _batches(course: Course, number: int) -> Iterator[Train]:
    for step in range(max(map(course.steps, course.train_rows), default=0)):
        for party in course.train_rows:
            if step < course.steps(party):
                yield Train(parties=(party,), round=number, first=step, steps=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A generator of turns, and whether a server segment is one replica for all clients."""

    turns: Callable[[Course], Iterator[Work]]
    server_shared: bool


SCHEDULES: dict[str, Schedule] = {
    "alternating": Schedule(turns=alternating, server_shared=True),
}

LEGAL: frozenset[tuple[str, str]] = frozenset({
    ("vanilla", "alternating"),
    ("u_shaped", "alternating"),
})  # fmt: skip
"""The pairs of topology and schedule that mean something."""
