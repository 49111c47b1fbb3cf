"""The session: one party's view of the run. Events in, actions out; no torch, no sockets, no clock, no disk.

It knows who may speak (`rules.MOVES`), whose turn it is (the plan's schedule, which every party runs), and hands each
ticket to `traffic`. Whatever a peer sends is refused, by the name of a rule, before its payload is decoded.

It is longer than other files since all that may be said is answered here, side by side. What a kind of message means
lies in `traffic`, `movements`, `reports` and `fellows`.
"""

from collections.abc import Collection, Mapping

from cutlayer.errors import ChannelClosed, ChannelTimeout, CutlayerError, PeerStopped, RemoteProtocolError
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Evaluate, Predict, Train
from cutlayer.protocol.agenda import Agenda, Agendas, Numbered
from cutlayer.protocol.events import (
    Action,
    Broke,
    Connected,
    Done,
    Drop,
    Event,
    Fail,
    Lost,
    Open,
    Ran,
    Received,
    Send,
    Tell,
    Tick,
    Value,
)
from cutlayer.protocol.fellows import Fellows
from cutlayer.protocol.messages import (
    SENTENCE,
    VERSION,
    Backward,
    Bye,
    Forward,
    Hello,
    Ping,
    Refuse,
    Report,
    Rows,
    Sealed,
    State,
    Task,
    Turn,
    Welcome,
    run_name,
)
from cutlayer.protocol.movements import Movements
from cutlayer.protocol.reports import Reports
from cutlayer.protocol.rules import MOVES
from cutlayer.protocol.traffic import Traffic
from cutlayer.protocol.turns import OpenTurn


class Session:
    """Party `me` in a run of `plan`, bringing `rows`. `feed` it events, carry out the actions in order.

    `run`: the run's name, where no nonce in `rows` makes it one. Sessions of one process may share their agendas.
    `ahead`: how many turns a conductor grants before the oldest of them is done, if not as many as the plan's limits
    allow. `task`: to train, or to predict; `absent`: for a conductor that predicts, the parties that it does without.
    """

    def __init__(
        self,
        plan: Plan,
        me: str,
        rows: Rows = Rows(),  # noqa: B008 (frozen)
        *,
        run: str = "",
        agendas: Agendas | None = None,
        ahead: int = 0,
        task: Task = "train",
        absent: Collection[str] = (),
    ) -> None:
        self.plan, self.me, self.rows, self.run = plan, me, rows, run
        self.limits = plan.terms.limits
        self.conducts = plan.conductor == me
        self.task: Task = task
        self.absent = frozenset(absent)
        members = [name for name in plan.terms.parties if name != me and name not in absent]
        self.peers = tuple(members) if self.conducts else (plan.conductor,)
        self._fellows = Fellows(plan, me)
        self._window = 1 if plan.topology.is_chain else len(plan.topology.segments)
        self._place = {peer: place for place, peer in enumerate(self.peers)}
        self.joinable = set(self.peers)
        """Who may still come in: nobody once the run has begun, since this version cannot take up a run again."""
        self.members: Mapping[str, Rows] = {}
        self._joined: dict[str, Rows] = {}
        """Conductor: the rows of those who have joined."""
        self.states: dict[str, str] = {}
        self._staying = set(self.peers)
        """Who has not gone."""
        self._closing = False
        self.over = False
        self._traffic = Traffic(plan, me)
        self._movements = Movements(plan, me, self._traffic)
        self._agendas = agendas or (lambda members: Agenda(plan, members, (me,), task))
        self._agenda: Agenda | None = None
        """Once the run has begun."""
        self._ahead = ahead or (self.limits.turns_ahead if plan.schedule.server_shared else self.limits.max_live)
        self._reports = Reports(plan, me, self._traffic)

    @property
    def fellows(self) -> frozenset[str]:
        """The parties that I talk to by the conductor."""
        return self._fellows.names

    @property
    def begun(self) -> bool:
        """Whether all have joined."""
        return self._agenda is not None

    def feed(self, event: Event) -> list[Action]:
        """What to do about an event. Never raises for what a peer did: that becomes `Send(Refuse)` and `Fail`."""
        if self.over:
            return []
        try:
            self._handle(event)
            while self._movements.stirred:
                self._proceed()
        except RemoteProtocolError as error:
            self._refuse(error)
        except CutlayerError as error:
            self._fail(error)
        actions, self._traffic.out = self._traffic.out, []
        return actions

    def _handle(self, event: Event) -> None:
        match event:
            case Ran():
                self._traffic.ran(event)
                self._settle()
            case Received():
                self._received(event)
            case Connected():
                self._connected(event.peer)
            case Lost():
                self._lost(event)
            case Tick():
                self._check_patience(event.waited_s)
            case Broke():
                raise event.error

    # ------------------------------------------------------------------ messages

    def _connected(self, peer: str) -> None:
        state = self.states.get(peer)
        if peer not in self.peers or state in {"closing", "gone"}:
            self._traffic.out.append(Drop(peer, f"{peer} has no part in the run, or not any more"))
            self._lost(Lost(peer, "it connected anew"))
        elif state is None or not self.begun:
            self.states[peer] = "connected"
            self._joined.pop(peer, None)
            self._send(peer, Hello(VERSION, self.plan.digest, self.me, self.rows, self.task))
        else:
            raise ChannelClosed(f"{peer} connected anew: what was under way on its older link is lost")

    def _received(self, event: Received) -> None:
        peer, message = event.peer, event.message
        state = "running" if peer in self.fellows and self.begun else self.states.get(peer)
        if state is None or isinstance(message, Ping):
            return  # what a peer said before it was sent away is moot
        if isinstance(message, Refuse) or (isinstance(message, Bye) and message.reason):
            self._stopped(peer, message)
            return
        following = MOVES.get((self._kinship(peer), state, type(message)))
        if following is None:
            raise RemoteProtocolError("out-of-order", peer, f"{type(message).__name__} from a peer that is {state}")
        match message:
            case Forward():
                self._traffic.forward(peer, message, event.payload)
            case Backward():
                self._traffic.backward(peer, message, event.payload)
                self._settle()
            case State():
                self._movements.arrived(peer, message, event.payload)
            case Sealed():
                self._sealed(peer, message, event.payload)
            case _:
                self._governed(peer, message)
                self._note(peer, following)
                self._progress()

    def _kinship(self, peer: str) -> str:
        return "conductor" if peer == self.plan.conductor else "fellow" if peer in self.fellows else "member"

    def _sealed(self, peer: str, message: Sealed, payload: Value) -> None:
        """What one fellow says to another: forwarded unread by the conductor, opened by the other."""
        self._fellows.check(peer, message)
        mine = message.target == self.me
        self._traffic.out.append(Open(message, payload) if mine else Send(message.target, message, payload))

    def _governed(self, peer: str, message: Hello | Welcome | Turn | Report | Bye) -> None:
        match message:
            case Turn():
                self._turn(peer, message)
            case Report():
                self._report(peer, message)
            case Hello():
                self._hello(peer, message)
            case Welcome():
                self._welcome(peer, message)
            case Bye():
                self._bye(peer)

    def _hello(self, peer: str, hello: Hello) -> None:
        if hello.version != VERSION:
            raise RemoteProtocolError("wrong-version", peer, f"it speaks {hello.version}, we speak {VERSION}")
        if hello.party != peer:
            raise RemoteProtocolError("wrong-name", peer, f"it calls itself {hello.party!r}")
        if hello.plan != self.plan.digest:
            detail = f"its plan is {hello.plan[:12]}…, ours {self.plan.digest[:12]}…: exchange plan.toml and its files"
            raise RemoteProtocolError("wrong-plan", peer, detail)
        if hello.task != self.task:
            raise RemoteProtocolError("wrong-task", peer, f"it came to {hello.task}, we are here to {self.task}")
        if self.conducts:
            self._joined[peer] = hello.rows

    def _welcome(self, peer: str, welcome: Welcome) -> None:
        missing = self.plan.terms.parties.keys() - welcome.members.keys()
        at_fault = welcome.members.keys() - self.plan.terms.parties.keys() or not self._may_lack(missing)
        if at_fault or welcome.members.get(self.me) != self.rows:
            raise RemoteProtocolError("wrong-rows", peer, "its members are not the plan's, or our rows not ours")
        if self.rows.nonce and welcome.run != run_name(self.plan.digest, self.task, welcome.members):
            raise RemoteProtocolError("wrong-rows", peer, "the run's name is not made of what all have drawn for it")
        self.run = welcome.run
        self._begin_schedule(self._agendas(welcome.members))

    def _may_lack(self, missing: Collection[str]) -> bool:
        return not missing or (self.task == "predict" and not self.plan.why_not_without(missing))

    def _turn(self, peer: str, turn: Turn) -> None:
        opened = self._open_next()
        if opened is None or opened.message() != turn:
            raise RemoteProtocolError("off-schedule", peer, f"turn {turn.number} is not what our own schedule says")
        opened.granted = True
        self._open_movements()
        self._traffic.begin()

    def _report(self, peer: str, report: Report) -> None:
        turn = self._reports.received(peer, report)
        if report.sums:
            self._tell(turn, report.sums)
        if self.conducts:
            self._pass_on(turn, peer, report.sums)

    def _pass_on(self, turn: OpenTurn, holder: str, sums: Mapping[str, Mapping[str, float]]) -> None:
        """Conductor: tell the owners of rows what became of them."""
        ready = self._reports.to_tell(turn, holder, sums)
        for owner in sorted(ready, key=self._place.__getitem__):
            self._send(owner, Report(turn.number, {owner: ready[owner]}))

    def _bye(self, peer: str) -> None:
        if not self.conducts:
            if self._traffic.turns or self._reports.due or not self._movements.idle or self._next() is not None:
                raise RemoteProtocolError("early-bye", peer, "turns of our schedule are still open")
            self._send(peer, Bye())

    # ------------------------------------------------------------------ turns

    def _begin_schedule(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self.members = agenda.members
        self.joinable.clear()
        self._open_movements()

    def _next(self) -> Numbered | None:
        """The next work in which I take part, unless the one before must be complete first."""
        if self._agenda is None or self._movements.blocked:
            return None
        return self._agenda.peek(self.me)

    def _open_movements(self) -> None:
        """What moves is granted by nobody: it is open as soon as the schedule has come to it."""
        while (following := self._next()) is not None:
            number, work = following
            if isinstance(work, Train | Evaluate | Predict):
                return
            self._pop()
            self._movements.open(number, work)

    def _open_next(self) -> OpenTurn | None:
        """Go on in the schedule to the next turn in which I take part: its tickets may come now."""
        following = self._next()
        if self._agenda is None or following is None:
            return None
        number, work = following
        if not isinstance(work, Train | Evaluate | Predict):
            return None
        self._pop()
        turn = OpenTurn(number, work, self._agenda.course, self.plan.score_prefixes, self._window)
        self._traffic.open(turn)
        self._reports.expect(turn)
        return turn

    def _pop(self) -> None:
        assert self._agenda is not None
        self._agenda.pop(self.me)

    def _proceed(self) -> None:
        """Let what moves go on, and what waited for it."""
        self._movements.proceed()
        self._open_movements()
        self._settle()
        if self.conducts:
            self._grant()

    def _progress(self) -> None:
        """What has become possible: to welcome all, to grant the next turn, to end the run."""
        if self.conducts and not self.begun and len(self._joined) == len(self.peers):
            members = {
                name: self._joined.get(name, self.rows) for name in self.plan.terms.parties if name not in self.absent
            }  # fmt: skip
            agenda = self._agendas(members)
            if self.rows.nonce:
                self.run = run_name(self.plan.digest, self.task, members)
            for peer in self.peers:
                self._send(peer, Welcome(self.run, members))
                self.states[peer] = "running"
            self._begin_schedule(agenda)
        if self.conducts and self.begun:
            self._grant()
        if not self._staying:
            self.over = True
            self._traffic.out.append(Done())

    def _grant(self) -> None:
        """Conductor: grant the next turns, say goodbye after the last."""
        while len(self._reports.due) < self._ahead and (turn := self._open_next()) is not None:
            turn.granted = True
            self._open_movements()
            message = turn.message()
            for peer in sorted(turn.unreported.keys() - {self.me}, key=self._place.__getitem__):
                self._send(peer, message)
            self._traffic.begin()
        if not self._reports.due and self._movements.idle and not self._closing:
            self._closing = True
            for peer in self.peers:
                self._send(peer, Bye())
                self.states[peer] = "closing"

    def _settle(self) -> None:
        """Report the turns in which my part is done."""
        while self._traffic.finished:
            turn = self._traffic.finished.pop(0)
            if turn.sums:
                self._tell(turn, turn.sums)
            if self.conducts:
                self._reports.close(turn, self.me)
                self._pass_on(turn, self.me, turn.sums)
                self._grant()
            else:
                self._send(self.plan.conductor, Report(turn.number, turn.sums))
            self._traffic.begin()

    def _note(self, peer: str, state: str) -> None:
        self.states[peer] = state
        if state == "gone":
            self._staying.discard(peer)

    def _tell(self, turn: OpenTurn, sums: dict[str, dict[str, float]]) -> None:
        self._traffic.out.append(Tell(turn.number, turn.purpose, turn.work.round, sums))

    # ------------------------------------------------------------------ when things go wrong

    def _send(self, peer: str, message: Hello | Welcome | Turn | Report | Bye | Refuse) -> None:
        self._traffic.out.append(Send(peer, message))

    def _refuse(self, error: RemoteProtocolError) -> None:
        """Before the run a peer that breaks a rule is sent away and the others wait on; in the run the run ends."""
        if error.peer in self.fellows:
            self._traffic.out = []
            self._fail(error)
            return
        self._traffic.out = [Send(error.peer, Refuse(error.rule, error.detail[:SENTENCE]))]
        if not self._sent_away(error.peer, str(error)):
            del self.states[error.peer]
            self._fail(error)

    def _stopped(self, peer: str, message: Refuse | Bye) -> None:
        if isinstance(message, Refuse):
            sentence = f"{peer} refused a message of ours by the rule {message.rule!r}: {message.detail}"
        else:
            sentence = f"{peer} ended the run: {message.reason}"
        sentence = "".join(char if char.isprintable() else " " for char in sentence)
        if not self._sent_away(peer, sentence):
            self._note(peer, "gone")
            raise PeerStopped(sentence)

    def _sent_away(self, peer: str, reason: str) -> bool:
        """Conductor, before the run: close the link to a peer, which may come again."""
        if not self.conducts or self.begun:
            return False
        del self.states[peer]
        self._joined.pop(peer, None)
        self._traffic.out.append(Drop(peer, reason))
        return True

    def _fail(self, error: CutlayerError) -> None:
        self.over = True
        for peer, state in self.states.items():
            if state != "gone":
                self._send(peer, Bye(reason=error.told[:SENTENCE] or type(error).__name__))
        self._traffic.out.append(Fail(error))

    def _lost(self, event: Lost) -> None:
        state = self.states.get(event.peer)
        if state in {"gone", "closing"}:
            self._note(event.peer, "gone")
            self._progress()
        elif state is not None and self.conducts and not self.begun:
            del self.states[event.peer]
            self._joined.pop(event.peer, None)
        elif state is not None:
            self._note(event.peer, "gone")
            raise ChannelClosed(f"{event.peer} is lost: {event.reason}")

    def _check_patience(self, waited_s: float) -> None:
        if not self.begun:
            limit_s = self.limits.join_timeout_s
        elif self.conducts or any(turn.under_way for turn in self._traffic.turns.values()):
            limit_s = self.limits.progress_timeout_s
        else:
            limit_s = self.limits.turn_timeout_s
        if waited_s > limit_s:
            raise ChannelTimeout(f"waited {waited_s:.0f} s for {self.waiting_for()}")

    # ------------------------------------------------------------------ what a person may ask

    def first_segment(self, owner: str) -> str | None:
        """The first of my segments that `owner`'s rows meet: on the way back the last to step."""
        return next(iter(self._traffic.route(owner).segments), None)

    def total_steps(self, owner: str) -> int:
        """Training steps on `owner`'s rows in the whole run."""
        return self._agenda.course.total_steps(owner) if self._agenda else 0

    def waiting_for(self) -> str:
        """What this party is waiting for, for a person."""
        if not self.begun:
            missing = [peer for peer in self.peers if self.states.get(peer) != "joined"]
            return f"{', '.join(missing or self.peers)} to join" if self.conducts else f"{self.peers[0]} to begin"
        if self.conducts:
            oldest = next(iter(self._reports.due.values()), None)
            if oldest is None and not self._movements.idle:
                return f"{self._movements.waiting_for()} to send what moves"
            owing = oldest.unreported.keys() - {self.me} if oldest else set()
            leaving = [peer for peer in self.peers if self.states.get(peer) != "gone"]
            return f"{', '.join(sorted(owing) or leaving)} to {'answer' if oldest else 'leave'}"
        return f"{self.peers[0]} to answer" if self._traffic.turns else f"{self.peers[0]} to grant a turn"
