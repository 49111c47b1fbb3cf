"""The session: one party's view of the run. Events in, actions out; no torch, no sockets, no clock, no disk.

It knows who is here and who may speak (`rules.MOVES`), how a run begins, is interrupted and ends, and how long to wait.
What is to be done in the run lies in `works`; what is said before it in `joining`. Whatever a peer sends is refused, by
the name of a rule, before its payload is decoded.
"""

from collections.abc import Mapping

from cutlayer.errors import ChannelClosed, ChannelTimeout, CutlayerError, Interrupted, PeerStopped, RemoteProtocolError
from cutlayer.plan.membership import Start, own_save
from cutlayer.plan.plan import Plan
from cutlayer.protocol.agenda import Agenda, Agendas
from cutlayer.protocol.events import (
    Action,
    Commit,
    Connected,
    Decided,
    Done,
    Drop,
    Event,
    Fail,
    Finish,
    Lost,
    Open,
    Ran,
    Received,
    Restore,
    Send,
    Stored,
    Tick,
    Value,
)
from cutlayer.protocol.fellows import Fellows
from cutlayer.protocol.joining import Joining
from cutlayer.protocol.messages import (
    SENTENCE,
    Backward,
    Bye,
    Forward,
    Hello,
    Leave,
    Ping,
    Refuse,
    Report,
    Rows,
    Saved,
    Sealed,
    State,
    Task,
    Turn,
    Welcome,
)
from cutlayer.protocol.patience import Stage, patience_s
from cutlayer.protocol.resuming import Standing
from cutlayer.protocol.rules import MOVES
from cutlayer.protocol.works import Works

LONGEST_LOG = 256
"""Of memberships: who has come and gone so often that no more fit into a `Welcome` waits for the end."""


class Session:
    """Party `me` in a run of `plan`, bringing `rows`. `feed` it events, carry out the actions in order.

    `run`: the run's name, where no nonce in `rows` makes it one. Sessions of one process may share their agendas.
    `ahead`: how many turns a conductor grants before the oldest of them is done, if not as many as the plan's limits
    allow. `task`: to train, or to predict. `standing`: what this party has of the run already, if it takes it up.
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
        standing: Standing = Standing(),  # noqa: B008 (frozen)
    ) -> None:
        self.plan, self.me, self.rows, self.run = plan, me, rows, run
        self.limits = plan.terms.limits
        self.conducts = plan.conductor == me
        self.task: Task = task
        members = [name for name in plan.terms.parties if name != me and name not in standing.absent]
        self.peers = tuple(members) if self.conducts else (plan.conductor,)
        self._standing = standing
        self._joining = Joining(plan, me, rows, task, standing)
        self._fellows = Fellows(plan, me)
        self.joinable = set(self.peers)
        """Who may still come in: nobody once the run has begun, unless it can be taken up again."""
        self.members: Mapping[str, Rows] = {}
        self.start = Start()
        """From where the run was begun, or taken up."""
        self.states: dict[str, str] = {}
        self._staying = set(self.peers)
        """Who has not gone."""
        self._waiting: set[str] = set()
        """Conductor: parties that are absent, and back again: they wait for the next round."""
        self._welcomed: Welcome | None = None
        self._closing = False
        self.over = False
        self._works = Works(plan, me, ahead)
        self._agendas = agendas or (lambda members, start: Agenda(plan, members, (me,), task, start))
        if standing.over:
            self._close(self._joining.over())

    def _close(self, welcome: Welcome) -> None:
        """Conductor: all was over before this process began, but for the goodbyes: who comes is told."""
        self.run, self.members = welcome.run, welcome.members
        self.start = Start(welcome.log, welcome.save)
        self._welcomed, self._closing = welcome, True
        self._works.begin(self._agendas(self.members, self.start), welcome.save)
        self.peers = tuple(peer for peer in self.peers if peer in self.members)
        self._staying = set(self.peers)
        self.states = dict.fromkeys(self.peers, "away")

    @property
    def fellows(self) -> frozenset[str]:
        """The parties that I talk to by the conductor."""
        return self._fellows.names

    @property
    def begun(self) -> bool:
        """Whether all have joined."""
        return self._works.agenda is not None

    def feed(self, event: Event) -> list[Action]:
        """What to do about an event. Never raises for what a peer did: that becomes `Send(Refuse)` and `Fail`."""
        if self.over:
            return []
        try:
            self._handle(event)
            self._works.proceed()
            self._say_goodbye()
        except RemoteProtocolError as error:
            self._refuse(error)
        except CutlayerError as error:
            self._fail(error)
        actions, self._out = self._out, []
        return actions

    @property
    def _out(self) -> list[Action]:
        return self._works.out

    @_out.setter
    def _out(self, actions: list[Action]) -> None:
        self._works.traffic.out = actions

    def _handle(self, event: Event) -> None:
        match event:
            case Ran():
                self._works.ran(event)
            case Received():
                self._received(event)
            case Stored():
                self._stored(event)
            case Decided():
                self._works.decide(event.micro_batches)
            case Connected():
                self._connected(event.peer)
            case Lost():
                self._lost(event)
            case Tick():
                self._tick(event)
            case _:
                raise event.error

    # ------------------------------------------------------------------ messages

    def _connected(self, peer: str) -> None:
        state = self.states.get(peer)
        if peer not in self.joinable and (peer not in self.peers or state in {"closing", "gone"}):
            self._out.append(Drop(peer, f"{peer} has no part in the run, or not any more"))
            self._lost(Lost(peer, "it connected anew"))
        elif self._is_late(peer):
            self.states[peer] = "waiting"
            self._waiting.add(peer)
        elif state == "away" or (state == "closing" and self.conducts and self._standing.lasting):
            self.states[peer] = "away"
            self._send(peer, self._joining.hello())
        elif state is None or not self.begun:
            self.states[peer] = "connected"
            self._joining.left(peer)
            self._send(peer, self._joining.hello())
        elif self._standing.lasting:
            raise Interrupted(f"{peer} came back, and goes on from a save")
        else:
            raise ChannelClosed(f"{peer} connected anew: what was under way on its older link is lost")

    def _is_late(self, peer: str) -> bool:
        """Conductor: whether the run goes on, or is to begin, without this party."""
        return self.conducts and (peer in self._joining.late or (self.begun and peer not in self.members))

    def _received(self, event: Received) -> None:
        peer, message = event.peer, event.message
        state = "running" if peer in self.fellows and self.begun else self.states.get(peer)
        if state is None or isinstance(message, Ping | Leave):
            return  # what a peer said before it was sent away is moot
        if isinstance(message, Refuse) or (isinstance(message, Bye) and message.reason):
            self._stopped(peer, message)
            return
        following = MOVES.get((self._kinship(peer), state, type(message)))
        if following is None:
            raise RemoteProtocolError("out-of-order", peer, f"{type(message).__name__} from a peer that is {state}")
        match message:
            case Forward():
                self._works.forward(peer, message, event.payload)
            case Backward():
                self._works.backward(peer, message, event.payload)
            case State():
                self._works.state(peer, message, event.payload)
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
        self._out.append(Open(message, payload) if mine else Send(message.target, message, payload))

    def _governed(self, peer: str, message: Hello | Welcome | Turn | Report | Saved | Bye) -> None:
        match message:
            case Turn():
                self._works.turn(peer, message)
            case Report():
                self._works.report(peer, message)
            case Saved():
                self._take_back(self._works.peer_saved(peer, message, self.peers))
            case Hello():
                self._hello(peer, message)
            case Welcome():
                self._welcome(peer, message)
            case Bye():
                self._bye(peer)

    def _hello(self, peer: str, hello: Hello) -> None:
        self._joining.check(peer, hello)
        if self.conducts and peer not in self._waiting:
            self._joining.joined(peer, hello)
            if self._closing and self._welcomed is not None:
                self._send(peer, self._joining.again(peer, self._welcomed, self._works.saving.held))
                self._send(peer, Bye())

    def _welcome(self, peer: str, welcome: Welcome) -> None:
        self._joining.check_welcome(peer, welcome)
        self._begin(welcome, self._agenda_of(welcome))

    def _agenda_of(self, welcome: Welcome) -> Agenda:
        """Raises `RunError` if the members' rows cannot be worked on together."""
        return self._agendas(welcome.members, Start(welcome.log, welcome.save, self._standing.until))

    def _begin(self, welcome: Welcome, agenda: Agenda) -> None:
        """The run begins, or is taken up, as all are told."""
        self.run, self.members = welcome.run or self.run, welcome.members
        self.start = Start(welcome.log, welcome.save, self._standing.until)
        own = own_save(welcome.log, self.me, welcome.save)
        if self.task == "train":
            self._out.append(Restore(self.start, own, welcome.members))
        self._welcomed = welcome
        if not self._standing.lasting:
            self.joinable.clear()
        self._works.begin(agenda, welcome.save)

    def _bye(self, peer: str) -> None:
        if not self.conducts:
            if not self._works.over:
                raise RemoteProtocolError("early-bye", peer, "turns of our schedule are still open")
            self._out.append(Finish())
            self._send(peer, Bye())

    def _progress(self, *, patient: bool = True) -> None:
        """What has become possible: to welcome all, to grant the next turn, to end the run."""
        if self.conducts and not self.begun and self._joining.ready(patient=patient):
            if apart := self._joining.apart:
                names = ", ".join(sorted(apart))
                raise Interrupted(
                    f"{names} came back while a sum was open, and waits for the next round", without=apart
                )
            welcome = self._joining.begin()
            agenda = self._agenda_of(welcome)
            self.peers = tuple(peer for peer in self.peers if peer in welcome.members)
            self._staying = set(self.peers)
            for peer in self.peers:
                self._send(peer, welcome)
                self.states[peer] = "running"
            self._begin(welcome, agenda)
        if self.begun:
            self._works.go_on()
        if not self._staying:
            self._end()

    def _end(self) -> None:
        self.over = True
        for peer in sorted(self._waiting):
            self._send(peer, Bye(reason="the run has ended without you"))
        if self.conducts:
            self._out.append(Finish())
        self._out.append(Done())

    def _say_goodbye(self) -> None:
        """Conductor: all is over. Write that down, since a new process of mine would have to know, then tell all."""
        if not self.conducts or self._closing or not self._works.over:
            return
        self._closing = True
        if self._standing.lasting:
            self._out.append(Finish(left=False))
        for peer in self.peers:
            self._send(peer, Bye())
            self.states[peer] = "closing"

    def _stored(self, event: Stored) -> None:
        self._take_back(self._works.stored(event.number, self.peers))
        self._progress()

    def _take_back(self, held: Commit | None) -> None:
        """Conductor: once a save that ends a round holds, those who have come back take part in the next one."""
        more = held is not None and held.ends_round and held.round + 1 < self.plan.terms.training.rounds
        if more and self._waiting and len(self.start.log) < LONGEST_LOG:
            raise Interrupted(f"{', '.join(sorted(self._waiting))} came back, for the next round")

    def _note(self, peer: str, state: str) -> None:
        self.states[peer] = state
        if state == "gone":
            self._staying.discard(peer)

    # ------------------------------------------------------------------ when things go wrong

    def _send(self, peer: str, message: Hello | Welcome | Bye | Refuse) -> None:
        self._out.append(Send(peer, message))

    def _refuse(self, error: RemoteProtocolError) -> None:
        """A peer that breaks a rule before it has a part in the run is sent away; of one that has, the run ends."""
        if error.peer in self.fellows:
            self._out = []
            self._fail(error)
            return
        self._out = [Send(error.peer, Refuse(error.rule, error.detail[:SENTENCE]))]
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
        """Conductor: close the link to a peer that has no part in the run yet, and may come again."""
        if not self.conducts or (self.begun and peer not in self._waiting):
            return False
        self._forget(peer)
        self._out.append(Drop(peer, reason))
        return True

    def _forget(self, peer: str) -> None:
        """Conductor: a peer that is no part of the run yet is gone, and may come again."""
        del self.states[peer]
        self._joining.left(peer)
        self._waiting.discard(peer)

    def _fail(self, error: CutlayerError) -> None:
        """The run is over for me: all are told why, but where it is taken up again as soon as they are back."""
        self.over = True
        for peer, state in self.states.items():
            if state != "gone" and not isinstance(error, Interrupted):
                self._send(peer, Bye(reason=error.told[:SENTENCE] or type(error).__name__))
        self._out.append(Fail(error))

    def _lost(self, event: Lost) -> None:
        peer, state = event.peer, self.states.get(event.peer)
        if state in {"closing", "away"} and self._standing.lasting and self.conducts:
            self.states[peer] = "away"  # it may not have heard that all is over, and have to go on from the last save
        elif state in {"gone", "closing", "away"}:
            self._note(peer, "gone")
            self._progress()
        elif state is not None and self.conducts and (not self.begun or peer in self._waiting):
            self._forget(peer)
        elif state is not None:
            self._note(peer, "gone")
            sentence = f"{peer} is lost: {event.reason}"
            raise Interrupted(sentence) if self._standing.lasting else ChannelClosed(sentence)

    # ------------------------------------------------------------------ time

    def _tick(self, tick: Tick) -> None:
        if self.conducts and self.plan.terms.quorum != "all":
            self._check_deadlines(tick)
        if tick.waited_s > patience_s(self.limits, self._stage, self._standing, conducts=self.conducts):
            if self._closing and self._standing.lasting:
                self._end()
                return
            raise ChannelTimeout(f"waited {tick.waited_s:.0f} s for {self.waiting_for()}")

    def _take_in_the_late(self) -> None:
        """Those that were to be done without are here, and others are not: join anew, with them."""
        if not self.begun and self._waiting and not self._joining.ready(patient=False):
            raise Interrupted(f"{', '.join(sorted(self._waiting))} can take the place of those who are missing")

    @property
    def _stage(self) -> Stage:
        if not self.begun:
            return "joining"
        if self._closing:
            return "leaving"
        return "at work" if self.conducts or self._works.under_way else "idle"

    def _check_deadlines(self, tick: Tick) -> None:
        """Conductor, where a quorum is enough: do without those that are lost, or slow, for too long."""
        deadline_s = self.limits.deadline_s
        if not self.begun:
            if tick.waited_s > deadline_s:
                self._progress(patient=False)
                self._take_in_the_late()
            return
        slow = self._works.late(tick.passed_s, tick.waited_s, deadline_s, self.peers)
        if self._standing.lasting and slow and not self.plan.why_not_go_on_without([*self.start.log[-1].absent, *slow]):
            names = ", ".join(sorted(slow))
            raise Interrupted(f"{names} did not answer within {deadline_s:.0f} s: the others go on", without=slow)

    # ------------------------------------------------------------------ what a person may ask

    def first_segment(self, owner: str) -> str | None:
        """The first of my segments that `owner`'s rows meet: on the way back the last to step."""
        return next(iter(self._works.traffic.route(owner).segments), None)

    def total_steps(self, owner: str) -> int:
        """Training steps on `owner`'s rows in the whole run."""
        return agenda.course.total_steps(owner) if (agenda := self._works.agenda) else 0

    def steps_of_round(self, owner: str) -> int:
        """Training steps on `owner`'s rows in each round that it takes part in."""
        return agenda.course.steps(owner) if (agenda := self._works.agenda) else 0

    def steps_behind(self, owner: str) -> int:
        """Of these, those that lay behind the save from which the run was taken up."""
        return agenda.done.get(owner, 0) if (agenda := self._works.agenda) else 0

    def waiting_for(self) -> str:
        """What this party is waiting for, for a person."""
        if not self.begun:
            missing = [peer for peer in self.peers if self.states.get(peer) != "joined"]
            return self._joining.waiting_for(missing or self.peers) if self.conducts else f"{self.peers[0]} to begin"
        leaving = [peer for peer in self.peers if self.states.get(peer) != "gone"]
        return self._works.waiting_for(self.peers) or f"{', '.join(leaving)} to leave"
