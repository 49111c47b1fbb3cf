"""Keeps one replica's work in the schedule's order, whatever the order in which messages arrive.

Parameters are frozen while a step's tickets are in flight: a ticket of a later step, or of another client's later
turn, waits here. Where the plan admits staleness, so many later steps go forward before; always the same ones before
each change of the weights, so that the bits do not depend on the network. Within a step forwards run in ticket order
and backwards run in ticket order, so that sums and BatchNorm statistics have the same bits on every run.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from cutlayer.protocol.events import Run
from cutlayer.protocol.messages import Purpose


@dataclass(slots=True)
class Slot:
    """A turn's place in a replica's queue.

    For training, `step` is the one whose tickets may go back, and `drained` counts those of its tickets that are
    through; `ahead` is the one whose tickets may go forward: the same, or where the plan admits staleness a later one.
    For evaluation and prediction the whole turn is one step. A movement has no tickets: while its slot is in front,
    state may move.
    """

    turn: int
    purpose: Purpose | None
    steps: int
    step: int = 0
    ahead: int = 0
    forwards: int = 0
    backwards: int = 0
    drained: int = 0
    normaliser: float = 0.0

    def next_step(self) -> bool:
        """Move on to the next step; whether there is one."""
        self.step += 1
        self.backwards = self.drained = 0
        self.normaliser = 0.0
        return self.step < self.steps


class Gate:
    """The queue of one replica: slots in schedule order, and the work that waits for its slot."""

    def __init__(self, staleness: int = 0) -> None:
        self.slots: deque[Slot] = deque()
        self._staleness = staleness
        self._waiting: list[tuple[Run, int]] = []

    def append(self, turn: int, purpose: Purpose | None, steps: int) -> None:
        """Queue a turn of so many steps (for evaluation: of so many tickets), or a movement."""
        self.slots.append(Slot(turn, purpose, steps))

    def has_come_to(self, turn: int) -> bool:
        """Whether all work before this turn is done."""
        return bool(self.slots) and self.slots[0].turn == turn

    def offer(self, run: Run, parts: int) -> Iterator[Run]:
        """The work that may run now: `run`, of a step of so many parts, and what waited for it, or nothing."""
        self._waiting.append((run, parts))
        return self.release() if self._is_due(run) else iter(())

    def release(self) -> Iterator[Run]:
        """Waiting work whose time has come, in order."""
        while (due := next((each for each in self._waiting if self._is_due(each[0])), None)) is not None:
            self._waiting.remove(due)
            run, parts = due
            slot = self.slots[0]
            if run.direction == "backward":
                slot.backwards += 1
            else:
                slot.forwards += 1
                if slot.forwards == parts:
                    slot.ahead, slot.forwards = slot.ahead + 1, 0
            yield run

    def _is_due(self, run: Run) -> bool:
        if not self.slots:
            return False
        slot, ticket = self.slots[0], run.ticket
        if slot.purpose in ("eval", "predict"):
            return ticket.turn == slot.turn
        place = (ticket.turn, ticket.step, ticket.micro)
        if run.direction == "forward":
            return place == (slot.turn, slot.ahead, slot.forwards) and slot.ahead <= slot.step + self._staleness
        return place == (slot.turn, slot.step, slot.backwards) and slot.ahead > self._first_to_wait(slot)

    def _first_to_wait(self, slot: Slot) -> int:
        """The last step that goes forward by the present weights, and so before they change. Without staleness a part
        may go back before the next one of its step has come."""
        return min(slot.step + self._staleness, slot.steps - 1) if self._staleness else -1
