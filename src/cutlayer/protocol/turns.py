"""A turn that is open at a party: whose rows, which step is due, which tickets are in flight."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cutlayer.errors import Diverged
from cutlayer.plan.batches import Batch, step_count
from cutlayer.plan.course import Course
from cutlayer.plan.schedule import Evaluate, Train, Turn
from cutlayer.protocol import messages
from cutlayer.protocol.events import Direction, Ran, Replica, Value
from cutlayer.protocol.messages import Purpose, Ticket
from cutlayer.protocol.route import Route

WINDOW: dict[Purpose, int] = {"train": 1, "eval": 2, "predict": 2}
"""Steps that an owner of rows has in flight at a time. Training waits for the step before it; evaluation keeps enough
in flight to hide the round trip, and little to hold. Where a party has several segments that are no chain, one of them
may be done with a step that another still waits in: it takes tickets of as many steps as there are segments."""


@dataclass(slots=True)
class Flight:
    """One ticket at one party: what has arrived for each node, and how far it has got."""

    batch: Batch
    route: Route
    inputs: dict[str, dict[str, Value]] = field(default_factory=dict)
    grads: dict[str, dict[str, Value]] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)
    """(edge, "forward" | "backward") that arrived, and (node, "forward") that ran."""
    normaliser: float = 0.0
    """The loss's, when training: from the loss itself, or from the first gradient."""
    drained: int = 0
    """When evaluating: replicas of mine that it is through."""
    mark: bytes = b""
    """Of its rows, where several parties bring columns."""
    marker: str = ""
    """Who brought the mark."""


class OpenTurn:
    """What a party keeps about a turn, from its opening until its own part in it is done."""

    def __init__(
        self,
        number: int,
        work: Turn,
        course: Course,
        prefixes: Mapping[str, str],
        *,
        window: int = 1,
        ahead: int = 0,
        decided: int = 0,
    ) -> None:
        """`prefixes`: with what the names of each loss' sums begin. Tickets may come of `window` steps, and of `ahead`
        more, which are begun before the oldest is through. `decided`: how many parts a step has, if that was decided.
        """
        self._decided = decided
        self.number = number
        self.work = work
        self.joined = isinstance(work, Train) and work.joined
        self.purpose: Purpose = (
            "train" if isinstance(work, Train) else "eval" if isinstance(work, Evaluate) else "predict"
        )
        ahead = ahead if self.purpose == "train" else 0
        self.at_once = WINDOW[self.purpose] + ahead
        """Steps that an owner of rows begins at once."""
        self._window = max(WINDOW[self.purpose], window) + ahead
        self.to_load: deque[Ticket] = deque()
        """Tickets of steps that have begun, whose rows have not been brought in."""
        self.loaded = 0
        """Of those that were: how many are not through."""
        self.last_back: Replica | None = None
        """The replica of mine through which a ticket of mine goes last."""
        self._course, self._prefixes = course, prefixes
        self._batches: dict[tuple[str, int], list[Batch]] = {}
        self.steps = self._steps()
        self.due = dict.fromkeys(work.parties, 0)
        """Steps of each owner that are through: when training, the number of the one that is in flight."""
        self.begun = 0
        """Steps that this party has begun on its own rows."""
        self.flights: dict[Ticket, Flight] = {}
        self.finished: set[Ticket] = set()
        """Evaluation tickets that are through; training tickets are known by their step."""
        self.granted = False
        self.under_way = False
        """A peer has sent something of this turn, so it is at work on it."""
        self.age_s = 0.0
        """Conductor: since it was granted."""
        self.replicas_left = 0
        """Replicas of mine that have not finished this turn."""
        self.replicas = 0
        """Replicas of mine that take part."""
        self._left: dict[int, int] = {}
        """How many of them have not finished a step that some have."""
        self._joining: dict[tuple[str, str, int, int], dict[str, Mapping[str, Value]]] = {}
        """Where batches are joined: what has come for (node, direction, step, micro), by owner."""
        self._totals: dict[tuple[int, int], float] = {}
        """Where batches are joined: the normaliser of all owners' rows together, by (step, micro)."""
        self.unreported: dict[str, set[str]] = {}
        """Whose reports are due, and the owners of the rows whose losses each will tell."""
        self.sums: dict[str, dict[str, float]] = {}

    def _steps(self) -> dict[str, int]:
        """Steps of each owner of rows; when evaluating, as many as it has batches."""
        if isinstance(self.work, Train):
            return dict.fromkeys(self.work.parties, self.work.steps)
        held_out, batch_size = self._course.held_out_rows, self._course.batch_size
        return {owner: step_count(held_out[owner], batch_size) for owner in self.work.parties}

    def message(self) -> messages.Turn:
        """What the conductor sends for this turn, and what a member expects to hear."""
        return messages.Turn(
            number=self.number,
            work=self.purpose,
            parties=self.work.parties,
            steps=sum(self.steps.values()),
            parts=self._decided,
        )

    def is_due(self, ticket: Ticket) -> bool:
        """Whether there is such a ticket and its owner may have it in flight, or have had it when evaluating."""
        owner, step = ticket.owner, ticket.step
        if ticket.purpose != self.purpose or step >= self.steps.get(owner, 0):
            return False
        ahead = step - self.due[owner]
        if ahead >= self._window or (ahead < 0 and self.purpose == "train"):
            return False
        return ticket.micro < len(self.batches(owner, step))

    def batches(self, owner: str, step: int) -> list[Batch]:
        """The rows of each ticket of a step, in order."""
        if (owner, step) not in self._batches:
            self._batches[owner, step] = self._parts(owner, step)
        return self._batches[owner, step]

    def is_last(self, step: int) -> bool:
        """Whether all replicas of mine but one have finished a step."""
        return self._left.get(step, self.replicas) == 1

    def drained(self, step: int) -> bool:
        """A replica of mine has finished a step; whether it was the last of them."""
        left = self._left.pop(step, self.replicas) - 1
        if left:
            self._left[step] = left
        return not left

    def forget(self, step: int) -> None:
        """Drop the tickets of a step that is through here."""
        for ticket in [ticket for ticket in self.flights if ticket.step == step]:
            del self.flights[ticket]

    def finish(self, owner: str, step: int) -> None:
        """A step is through at this party."""
        self.due[owner] += 1
        self._batches.pop((owner, step), None)

    def _parts(self, owner: str, step: int) -> list[Batch]:
        number = self.work.round
        if isinstance(self.work, Train):
            parts = self._decided or self.work.parts or self._course.micro_batches
            return self._course.batches(owner, number, self.work.first + step, parts)
        return self._course.held_out_batches(owner, number, step)

    # ------------------------------------------------------------------ joined batches

    def siblings(self, ticket: Ticket) -> list[Ticket]:
        """Where batches are joined: the tickets that go together with this one, in party order."""
        return [
            Ticket(ticket.turn, owner, ticket.step, ticket.micro, ticket.purpose) for owner in self.work.parties
        ]  # fmt: skip

    def gathered(
        self, ticket: Ticket, node: str, way: Direction, values: Mapping[str, Value]
    ) -> Mapping[str, Mapping[str, Value]] | None:
        """The values of all owners for a node, once the last of them has come."""
        place = (node, way, ticket.step, ticket.micro)
        come = self._joining.setdefault(place, {})
        come[ticket.owner] = values
        return self._joining.pop(place) if len(come) == len(self.work.parties) else None

    def total_normaliser(self, ticket: Ticket, flights: Iterable[Flight]) -> float:
        """The normaliser of all owners' rows together, from their own ones when it is asked for first."""
        place = (ticket.step, ticket.micro)
        if place not in self._totals:
            self._totals[place] = sum(flight.normaliser for flight in flights)
        return self._totals[place]

    # ------------------------------------------------------------------ losses

    @property
    def several_losses(self) -> bool:
        return len(self._prefixes) > 1

    def counts(self, normaliser: float) -> bool:
        """Whether a ticket may have this normaliser: a part of a step may lie on rows that do not count."""
        a_part = self.joined or self._course.micro_batches > 1 or self._course.tries or self.several_losses
        return math.isfinite(normaliser) and (normaliser > 0 or (bool(a_part) and normaliser == 0))

    def note_loss(self, event: Ran) -> None:
        """Add what a loss was, for each owner of its rows. Raises `Diverged`."""
        for owner, sums in (event.sums or {}).items():
            loss, normaliser = sums["loss"], sums["normaliser"]
            counts = self.counts(normaliser) if self.purpose == "train" else math.isfinite(normaliser)
            if not math.isfinite(loss) or not counts:
                raise Diverged(
                    f"the loss of {event.node} is {loss} (over {normaliser:g}) at {event.ticket} of {owner} (round "
                    f"{self.work.round}): lower the learning rate, or look at that party's rows"
                )
            total, prefix = self.sums.setdefault(owner, {}), self._prefixes[event.node]
            for name, value in sums.items():
                total[prefix + name] = total.get(prefix + name, 0.0) + value
