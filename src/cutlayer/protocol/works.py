"""The schedule's works at one party: which are open, what may begin, and what is over.

Turns are granted by the conductor; movements and saves follow of themselves as soon as all that lies before them is
over. Methods append to `out` what is to be done.
"""

from collections.abc import Collection, Mapping

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import AS_DECIDED, Average, Evaluate, Predict, Save, Train, Work
from cutlayer.protocol.agenda import Agenda, Numbered
from cutlayer.protocol.events import Action, Commit, Decide, Ran, Send, Tell, Value
from cutlayer.protocol.messages import Backward, Forward, Report, Saved, State, Turn
from cutlayer.protocol.movements import Movements
from cutlayer.protocol.reports import Reports
from cutlayer.protocol.saving import Saving
from cutlayer.protocol.traffic import Traffic
from cutlayer.protocol.turns import OpenTurn


class Works:
    """The works of party `me`. A conductor grants turns, `ahead` of them before the oldest is done."""

    def __init__(self, plan: Plan, me: str, ahead: int) -> None:
        self.traffic = Traffic(plan, me)
        self.movements = Movements(plan, me, self.traffic)
        self.reports = Reports(plan, me, self.traffic)
        self.saving = Saving(plan.conductor == me)
        self.agenda: Agenda | None = None
        """Once the run has begun."""
        self.decided = 0
        """Conductor: how many micro-batches a step has, once that was measured."""
        self._asked = False
        self._plan, self._me = plan, me
        self._conducts = plan.conductor == me
        self._window = 1 if plan.topology.is_chain else len(plan.topology.segments)
        self._staleness = plan.staleness.values()
        self._place = {party: place for place, party in enumerate(plan.terms.parties)}
        limits = plan.terms.limits
        self._ahead = ahead or (limits.turns_ahead if plan.schedule.server_shared else limits.max_live)

    @property
    def out(self) -> list[Action]:
        """What is to be done, in order."""
        return self.traffic.out

    @property
    def over(self) -> bool:
        """Whether nothing is left to do, or under way."""
        return self._idle and self.saving.idle and self.agenda is not None and self._next() is None

    @property
    def under_way(self) -> bool:
        """Whether a peer is at work on a turn that is open here."""
        return any(turn.under_way for turn in self.traffic.turns.values())

    def begin(self, agenda: Agenda, save: int) -> None:
        """The run begins, or is taken up from a save."""
        self.agenda, self.saving.held = agenda, save
        self._open_movements()

    # ------------------------------------------------------------------ what comes

    def ran(self, event: Ran) -> None:
        """A node of mine has run. Raises `Diverged`."""
        self.traffic.ran(event)
        self._settle()

    def forward(self, peer: str, message: Forward, payload: Value) -> None:
        """An activation arrived. Raises `RemoteProtocolError`, `Misaligned`."""
        self.traffic.forward(peer, message, payload)

    def backward(self, peer: str, message: Backward, payload: Value) -> None:
        """A gradient arrived. Raises `RemoteProtocolError`."""
        self.traffic.backward(peer, message, payload)
        self._settle()

    def state(self, peer: str, message: State, payload: Value) -> None:
        """A state arrived. Raises `RemoteProtocolError`."""
        self._save_passed()
        self.movements.arrived(peer, message, payload)

    def turn(self, peer: str, turn: Turn) -> None:
        """The conductor grants a turn. Raises `RemoteProtocolError` unless it is what my own schedule says."""
        self._save_passed()
        opened = self._open_next(turn.parts)
        if opened is None or opened.message() != turn:
            raise RemoteProtocolError("off-schedule", peer, f"turn {turn.number} is not what our own schedule says")
        opened.granted = True
        self._open_movements()
        self.traffic.begin()

    def report(self, peer: str, report: Report) -> None:
        """A peer's part of a turn is done. Raises `RemoteProtocolError`."""
        turn = self.reports.received(peer, report)
        if report.sums:
            self._tell(turn, report.sums)
        if self._conducts:
            self._pass_on(turn, peer, report.sums)

    # ------------------------------------------------------------------ saves

    def stored(self, number: int, members: Collection[str]) -> Commit | None:
        """My part of a save is written. Returns what holds now, at the conductor once all parts are."""
        return self._saved(members) if self.saving.written(number) else None

    def peer_saved(self, peer: str, message: Saved, members: Collection[str]) -> Commit | None:
        """A member's part of a save is written; or the conductor says that it holds. Raises `RemoteProtocolError`."""
        if self._conducts:
            self.saving.told(peer, message.number)
            return self._saved(members)
        self.out.append(self.saving.hold(message.number, peer))
        return None

    def _saved(self, members: Collection[str]) -> Commit | None:
        pending = self.saving.pending
        if pending is None or not (self._conducts and self.saving.complete(members)):
            if pending is not None and not self._conducts:
                self._send(self._plan.conductor, Saved(pending[0]))
            return None
        held = self.saving.hold(pending[0])
        self.out.append(held)
        for peer in members:
            self._send(peer, Saved(held.number))
        return held

    def _save_passed(self) -> None:
        """The conductor has gone on from the last save, and so may I: it would not have said this before."""
        if not self.saving.passed:
            self.saving.passed = True
            self._open_movements()

    # ------------------------------------------------------------------ going on

    def proceed(self) -> None:
        """Let what moves go on, and what waited for it."""
        while self.movements.stirred:
            self.movements.proceed()
            self._open_movements()
            self._settle()
            self.go_on()

    def go_on(self) -> None:
        """What follows of itself: movements, a save once all before it is over, at the conductor the next turns."""
        self._open_movements()
        while self.saving.may_begin and self._idle:
            self.out.append(self.saving.begin())
            self._open_movements()
        if self._conducts:
            self._grant()

    @property
    def _idle(self) -> bool:
        """Whether all is over that was begun here."""
        return not self.traffic.turns and not self.reports.due and self.movements.idle

    def _next(self) -> Numbered | None:
        """The next work in which I take part, unless the one before must be complete first."""
        if self.agenda is None or self.movements.blocked or self.saving.blocks:
            return None
        following = self.agenda.peek(self._me)
        if self.saving.pending is not None and following is not None and self._opens_a_sum(following[1]):
            return None
        return following

    def _opens_a_sum(self, work: Work) -> bool:
        """Not before the save holds to which the run would return without one of the sum's clients."""
        return isinstance(work, Average) and bool(work.among)

    def _pop(self) -> None:
        assert self.agenda is not None
        self.agenda.pop(self._me)

    def _open_movements(self) -> None:
        """What moves is granted by nobody: it is open as soon as the schedule has come to it. Nor are saves."""
        while (following := self._next()) is not None:
            number, work = following
            if isinstance(work, Train | Evaluate | Predict):
                return
            self._pop()
            if isinstance(work, Save):
                self.saving.reached = number, work
            else:
                self.movements.open(number, work)

    def _open_next(self, decided: int) -> OpenTurn | None:
        """Go on in the schedule to the next turn in which I take part: its tickets may come now.

        `decided`: how many micro-batches the conductor has found to be best; where it has not, such a turn must wait.
        """
        following = self._next()
        if self.agenda is None or following is None:
            return None
        number, work = following
        if not isinstance(work, Train | Evaluate | Predict):
            return None
        waits = isinstance(work, Train) and work.parts == AS_DECIDED
        if waits and decided not in self.agenda.course.tries:
            return None
        self._pop()
        turn = OpenTurn(
            number,
            work,
            self.agenda.course,
            self._plan.score_prefixes,
            window=self._window,
            ahead=max(self._staleness, default=0),
            decided=decided if waits else 0,
        )
        self.traffic.open(turn)
        self.reports.expect(turn)
        return turn

    def _grant(self) -> None:
        """Conductor: grant the next turns."""
        while len(self.reports.due) < self._ahead and (turn := self._open_next(self.decided)) is not None:
            turn.granted = True
            self._open_movements()
            message = turn.message()
            for peer in sorted(turn.unreported.keys() - {self._me}, key=self._place.__getitem__):
                self._send(peer, message)
            self.traffic.begin()
        if not (self.decided or self._asked or self.reports.due) and self._must_decide():
            self._asked = True
            self.out.append(Decide())

    def _must_decide(self) -> bool:
        """Whether the next turn has as many micro-batches as are fastest."""
        following = self._next()
        return following is not None and isinstance(following[1], Train) and following[1].parts == AS_DECIDED

    def decide(self, micro_batches: int) -> None:
        """Conductor: from now on a step has so many micro-batches."""
        self.decided = micro_batches
        self.go_on()

    def _settle(self) -> None:
        """Report the turns in which my part is done."""
        while self.traffic.finished:
            turn = self.traffic.finished.pop(0)
            if turn.sums:
                self._tell(turn, turn.sums)
            if self._conducts:
                self.reports.close(turn, self._me)
                self._pass_on(turn, self._me, turn.sums)
            else:
                self._send(self._plan.conductor, Report(turn.number, turn.sums))
            self.go_on()
            self.traffic.begin()

    def _pass_on(self, turn: OpenTurn, holder: str, sums: Mapping[str, Mapping[str, float]]) -> None:
        """Conductor: tell the owners of rows what became of them."""
        ready = self.reports.to_tell(turn, holder, sums)
        for owner in sorted(ready, key=self._place.__getitem__):
            self._send(owner, Report(turn.number, {owner: ready[owner]}))

    def _tell(self, turn: OpenTurn, sums: dict[str, dict[str, float]]) -> None:
        self.out.append(Tell(turn.number, turn.purpose, turn.work.round, sums))

    def _send(self, peer: str, message: Turn | Report | Saved) -> None:
        self.out.append(Send(peer, message))

    # ------------------------------------------------------------------ who is waited for

    def late(self, passed_s: float, waited_s: float, deadline_s: float, members: Collection[str]) -> set[str]:
        """Conductor: who holds up the others for too long, now that so much time has passed."""
        slow = self.reports.late(passed_s, deadline_s)
        if waited_s > deadline_s and not slow:  # what moves after an open turn is not due yet
            slow = self.movements.owing | self.saving.owing(members)
        return slow

    def waiting_for(self, members: Collection[str]) -> str:
        """What is due, and from whom, for a person; nothing if all is over."""
        if not self._conducts:
            return f"{self._plan.conductor} to {'answer' if self.traffic.turns else 'grant a turn'}"
        if (oldest := next(iter(self.reports.due.values()), None)) is not None:
            return f"{', '.join(sorted(oldest.unreported.keys() - {self._me}))} to answer"
        if not self.movements.idle:
            return f"{self.movements.waiting_for()} to send what moves"
        if self.saving.pending is not None:
            return f"{', '.join(sorted(self.saving.owing(members))) or self._me} to write a save"
        return ""
