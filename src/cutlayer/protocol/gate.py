"""Keeps one replica's work in the schedule's order, whatever the order in which messages arrive.

Parameters are frozen while a step's tickets are in flight: a ticket of a later step, or of another client's later
turn, waits here. Within a step forwards run in ticket order and backwards run in ticket order, so that sums and
BatchNorm statistics have the same bits on every run.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from cutlayer.protocol.events import Run
from cutlayer.protocol.messages import Purpose


@dataclass(slots=True)
class Slot:
    """A turn's place in a replica's queue.

    For training, `step` is the one whose tickets may run, and `drained` counts those of its tickets that are through.
    For evaluation and prediction the whole turn is one step. A movement has no tickets: while its slot is in front,
    state may move.
    """

    turn: int
    purpose: Purpose | None
    steps: int
    step: int = 0
    forwards: int = 0
    backwards: int = 0
    drained: int = 0
    normaliser: float = 0.0

    def next_step(self) -> bool:
        """Move on to the next step; whether there is one."""
        self.step += 1
        self.forwards = self.backwards = self.drained = 0
        self.normaliser = 0.0
        return self.step < self.steps


class Gate:
    """The queue of one replica: slots in schedule order, and the work that waits for its slot."""

    def __init__(self) -> None:
        self.slots: deque[Slot] = deque()
        self._waiting: list[Run] = []

    def append(self, turn: int, purpose: Purpose | None, steps: int) -> None:
        """Queue a turn of so many steps (for evaluation: of so many tickets), or a movement."""
        self.slots.append(Slot(turn, purpose, steps))

    def has_come_to(self, turn: int) -> bool:
        """Whether all work before this turn is done."""
        return bool(self.slots) and self.slots[0].turn == turn

    def offer(self, run: Run) -> Iterator[Run]:
        """The work that may run now: `run` and what waited for it, or nothing."""
        self._waiting.append(run)
        return self.release() if self._is_due(run) else iter(())

    def release(self) -> Iterator[Run]:
        """Waiting work whose time has come, in order."""
        while (run := next(filter(self._is_due, self._waiting), None)) is not None:
            self._waiting.remove(run)
            if run.direction == "forward":
                self.slots[0].forwards += 1
            else:
                self.slots[0].backwards += 1
            yield run

    def _is_due(self, run: Run) -> bool:
        if not self.slots:
            return False
        slot, ticket = self.slots[0], run.ticket
        if slot.purpose in ("eval", "predict"):
            return ticket.turn == slot.turn
        cursor = slot.forwards if run.direction == "forward" else slot.backwards
        return (ticket.turn, ticket.step, ticket.micro) == (slot.turn, slot.step, cursor)
