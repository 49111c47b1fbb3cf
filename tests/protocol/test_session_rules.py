"""Claims about illegal messages: each is refused by the name of its rule, undecoded, and everybody hears of it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

import cutlayer.protocol
from cutlayer.errors import ChannelClosed, PeerStopped, RemoteProtocolError
from cutlayer.plan.tensors import DType, TensorShape
from cutlayer.protocol.events import (
    Action,
    Connected,
    Done,
    Drop,
    Fail,
    Lost,
    Ran,
    Received,
    Run,
    Send,
    Step,
    Tell,
    Tick,
)
from cutlayer.protocol.messages import (
    VERSION,
    Backward,
    Bye,
    Control,
    Forward,
    Hello,
    Message,
    Ping,
    Purpose,
    Refuse,
    Report,
    Rows,
    Ticket,
    Turn,
    Welcome,
)
from cutlayer.protocol.rules import MOVES, RULES
from protocol.joined import LAB, A, B, C, Wire, make_plan

ROWS = {A: Rows(8, 10), B: Rows(5, 4)}
MEMBERS = ROWS | {LAB: Rows()}
SUMS = {"loss": 1.0, "normaliser": 8.0}
PLAN = make_plan(micro_batches=2)


class Untouchable:
    """A payload that must not be looked at."""

    def _touched(self, *_: object) -> NoReturn:
        raise AssertionError("a refused payload was looked at")

    __getattribute__ = __iter__ = __len__ = __bool__ = __eq__ = __repr__ = __str__ = _touched
    __getitem__ = __contains__ = __call__ = __reduce__ = _touched
    __hash__ = _touched


# ---------------------------------------------------------------------- scenes

Scene = Callable[[], Wire]


def joining() -> Wire:
    """The lab waits: a has joined, b is connected, c has not come."""
    wire = Wire(make_plan(clients=3, micro_batches=2), ROWS | {C: Rows(3)})
    wire.connect(A)
    wire.run()
    wire.links[B, LAB], wire.links[LAB, B] = type(wire.links[A, LAB])(), type(wire.links[A, LAB])()
    wire.feed(LAB, Connected(B))
    return wire


def greeted() -> Wire:
    """A client has a link to the lab and has heard nothing yet."""
    wire = Wire(PLAN, ROWS)
    wire.feed(A, Connected(LAB))
    return wire


def joined() -> Wire:
    """A client waits for the lab's welcome."""
    wire = greeted()
    wire.inject(LAB, A, Hello(VERSION, PLAN.digest, LAB, Rows()))
    return wire


def begun(party: str, topology: str = "vanilla") -> Scene:
    """The party's run has just begun; for the lab the first turns are granted, for a client none."""
    return until(lambda wire: set(wire.sessions[party].states.values()) == {"running"}, topology)


def granted(topology: str = "vanilla") -> Scene:
    """`hospital-a` has sent the activations of its first step and waits for gradients."""
    return until(lambda wire: len(wire.sent(A)) >= 5 and not wire.results[A], topology)


def after(party: str, action: type, count: int = 1, topology: str = "vanilla", **fields: Any) -> Scene:
    """The party has just done that for the `count`th time; `fields` are the action's, its message's or its ticket's."""

    def is_meant(done: Action) -> bool:
        said = done.message if isinstance(done, Send) and action is not Send else done
        return isinstance(said, action) and all(_get(said, name) == value for name, value in fields.items())

    return until(lambda wire: sum(map(is_meant, wire.actions(party))) >= count, topology)


def _get(said: object, name: str) -> object:
    return getattr(said, name, getattr(getattr(said, "ticket", None), name, None))


def whole() -> Wire:
    """As `granted`, with steps of one part."""
    return Wire(make_plan(), ROWS).start().run(until=lambda wire: len(wire.sent(A)) >= 3)


def ahead() -> Wire:
    """The lab keeps an activation of `hospital-b`, granted ahead, until the turn of `hospital-a` is over."""
    wire = begun(LAB, "u_shaped")()
    assert wire.inject(B, LAB, forward(ticket(1, owner=B), "bottom->middle")) == []
    return wire


def reported() -> Wire:
    """The lab has the report of `hospital-a` on the evaluation, and waits for others."""
    return until(lambda wire: Report(2, {}) in [send.message for send in wire.sent(A)] and not wire.links[A, LAB])()


def until(condition: Callable[[Wire], bool], topology: str = "vanilla") -> Scene:
    def scene() -> Wire:
        wire = Wire(make_plan(topology, micro_batches=2), ROWS).start().run(until=condition)
        assert condition(wire)
        return wire

    return scene


# ---------------------------------------------------------------------- messages


def ticket(turn: int = 0, step: int = 0, micro: int = 0, owner: str = A, purpose: Purpose = "train") -> Ticket:
    return Ticket(turn, owner, step, micro, purpose)


def forward(
    what: Ticket | None = None, edge: str = "bottom->top", rows: int = 2, width: int = 6, dtype: DType = "float64"
) -> Forward:
    return Forward(what or ticket(), edge, (TensorShape(dtype, (rows, width)),))


def backward(what: Ticket | None = None, edge: str = "bottom->top", rows: int = 2, normaliser: float = 2.0) -> Backward:
    return Backward(what or ticket(), edge, (TensorShape("float64", (rows, 6)),), normaliser)


def hello(peer: str, scene: Scene, version: int = VERSION, plan: str = "") -> Hello:
    return Hello(version, plan or scene().plan.digest, peer, MEMBERS.get(peer, Rows()))


FIRST_TURN = Turn(0, "train", (A,), 2)
NO_TENSORS = Backward(ticket(), "bottom->top", (), 2.0)
NO_ACTIVATION = Forward(ticket(), "bottom->top", ())
TWO_TENSORS = Forward(ticket(), "bottom->top", 2 * (TensorShape("float64", (2, 6)),))


@dataclass(frozen=True)
class Case:
    """`peer` says `message` to `hearer` in a scene, which breaks a rule."""

    rule: str
    scene: Scene
    hearer: str
    peer: str
    message: Message


def at_lab(rule: str, message: Message, scene: Scene | None = None, peer: str = A) -> Case:
    return Case(rule, scene or begun(LAB), LAB, peer, message)


def at_client(rule: str, message: Message, scene: Scene | None = None) -> Case:
    return Case(rule, scene or granted(), A, LAB, message)


def in_eval(step: int, owner: str = A) -> Ticket:
    return ticket(2, step, owner=owner, purpose="eval")


U = "u_shaped"
CASES = {
    "a client of another version": at_lab("wrong-version", hello(B, joining, VERSION + 1), joining, B),
    "a lab of another version": at_client("wrong-version", hello(LAB, greeted, VERSION + 1), greeted),
    "a client with another plan": at_lab("wrong-plan", hello(B, joining, plan="0" * 64), joining, B),
    "a lab with another plan": at_client("wrong-plan", hello(LAB, greeted, plan="0" * 64), greeted),
    "a client by another's name": at_lab("wrong-name", hello(C, joining), joining, B),
    "a lab by a client's name": at_client("wrong-name", hello(A, greeted), greeted),
    "an activation before the welcome": at_lab("out-of-order", forward(), joining),
    "an activation on no edge": at_lab("unknown-edge", forward(edge="bottom->attic")),
    "a gradient on no edge": at_client("unknown-edge", backward(edge="bottom->attic")),
    "an activation of the receiver's": at_lab("not-your-edge", forward(edge="middle->head"), begun(LAB, U)),
    "an activation for another's rows": at_lab("not-your-edge", forward(ticket(1, owner=B))),
    "a gradient of the receiver's": at_lab("not-your-edge", backward()),
    "the receiver's own activation back": at_client("not-your-edge", forward()),
    "an activation of the sender's alone": at_lab("not-my-edge", forward(edge="x->bottom")),
    "a gradient of the sender's alone": at_lab("not-my-edge", backward(edge="y->head"), begun(LAB, U)),
    "another's activation": at_client(
        "not-my-edge", forward(in_eval(0, B), "middle->head", rows=4), after(A, Forward, 2, U, turn=2)
    ),
    "a turn that is not granted": at_lab("unexpected-ticket", forward(ticket(3))),
    "a turn without end": at_lab("unexpected-ticket", forward(ticket(2**53))),
    "a turn that is over": at_lab("unexpected-ticket", forward(), after(LAB, Tell)),
    "a step of the future": at_lab("unexpected-ticket", forward(ticket(step=1))),
    "a step of the past": at_lab("unexpected-ticket", forward(), after(LAB, Step)),
    "a step that the turn has not": at_lab("unexpected-ticket", forward(ticket(step=2))),
    "a part that the step has not": at_lab("unexpected-ticket", forward(ticket(micro=2))),
    "a part that a small last step has not": at_lab(
        "unexpected-ticket", forward(ticket(1, 1, 1, B), rows=0), after(LAB, Step, 3), B
    ),
    "evaluation in a turn of training": at_lab("unexpected-ticket", forward(ticket(purpose="eval"))),
    "training in a turn of evaluation": at_lab("unexpected-ticket", forward(ticket(2))),
    "rows of a stranger": at_lab("unexpected-ticket", forward(ticket(owner="nobody"))),
    "rows of a client whose turn it is not": at_lab("unexpected-ticket", forward(ticket(owner=B)), peer=B),
    "more of an evaluation than was answered": at_lab("unexpected-ticket", forward(in_eval(2), rows=2)),
    "a gradient for a step of the past": at_client("unexpected-ticket", backward(), after(A, Step)),
    "a gradient for a step of the future": at_client("unexpected-ticket", backward(ticket(step=1))),
    "a gradient for another's rows": at_client("unexpected-ticket", backward(ticket(owner=B))),
    "an activation twice": at_lab("duplicate", forward(), after(LAB, Backward)),
    "labels twice": at_lab("duplicate", forward(edge="y->top", width=2), after(LAB, Backward)),
    "a gradient twice": at_client("duplicate", backward(), after(A, Run, direction="backward")),
    "an activation twice in evaluation": at_lab("duplicate", forward(in_eval(0), rows=4), after(LAB, Backward, turn=2)),
    "an answer twice in evaluation": at_client(
        "duplicate", Backward(in_eval(0), "bottom->top", (), 0.0), after(A, Run, direction="load", turn=2, step=2)
    ),
    "a gradient before its activation": at_lab(
        "gradient-before-activation", backward(edge="middle->head"), begun(LAB, U)
    ),
    "a gradient for what waits for its turn": at_lab(
        "gradient-before-activation", backward(ticket(1, owner=B), "middle->head"), ahead, B
    ),
    "a gradient of labels": at_client("no-gradient-here", backward(edge="y->top")),
    "too many rows": at_lab("wrong-shape", forward(rows=4)),
    "too wide": at_lab("wrong-shape", forward(width=7)),
    "another dtype": at_lab("wrong-shape", forward(dtype="float32")),
    "no tensors": at_lab("wrong-shape", NO_ACTIVATION),
    "two tensors": at_lab("wrong-shape", TWO_TENSORS),
    "a gradient of too many rows": at_client("wrong-shape", backward(rows=3)),
    "an answer instead of a gradient": at_client("wrong-shape", NO_TENSORS),
    "a gradient in evaluation": at_client(
        "wrong-shape", backward(in_eval(0), rows=4, normaliser=0.0), after(A, Forward, 2, turn=2)
    ),
    "a normaliser of nothing": at_client("wrong-normaliser", backward(rows=4, normaliser=0.0), whole),
    "a negative normaliser": at_client("wrong-normaliser", backward(normaliser=-2.0)),
    "an infinite normaliser": at_client("wrong-normaliser", backward(normaliser=math.inf)),
    "a normaliser that is no number": at_client("wrong-normaliser", backward(normaliser=math.nan)),
    "another normaliser than the loss's": at_client(
        "wrong-normaliser", backward(edge="bottom->middle", normaliser=3.0), after(A, Backward, topology=U)
    ),
    "a normaliser in evaluation": at_client(
        "wrong-normaliser", Backward(in_eval(0), "bottom->top", (), 4.0), after(A, Forward, 2, turn=2)
    ),
    "a member missing": at_client("wrong-rows", Welcome("", {A: ROWS[A], LAB: Rows()}), joined),
    "a member too many": at_client("wrong-rows", Welcome("", MEMBERS | {"nobody": Rows()}), joined),
    "other rows than announced": at_client("wrong-rows", Welcome("", MEMBERS | {A: Rows(9, 10)}), joined),
    "a report of no turn": at_lab("wrong-report", Report(9, {})),
    "a report of another's turn": at_lab("wrong-report", Report(1, {})),
    "a report twice": at_lab("wrong-report", Report(2, {}), reported),
    "a report after the turn": at_lab("wrong-report", Report(0, {}), after(LAB, Tell, 2)),
    "losses that the lab holds": at_lab("wrong-report", Report(0, {A: SUMS})),
    "losses of another": at_lab("wrong-report", Report(2, {B: SUMS}), begun(LAB, U)),
    "losses of one too many": at_lab("wrong-report", Report(2, {A: SUMS, B: SUMS}), begun(LAB, U)),
    "losses withheld": at_lab("wrong-report", Report(0, {}), begun(LAB, U)),
    "a loss that is no number": at_lab("wrong-report", Report(0, {A: SUMS | {"loss": math.nan}}), begun(LAB, U)),
    "a normaliser below nothing": at_lab("wrong-report", Report(0, {A: SUMS | {"normaliser": -1.0}}), begun(LAB, U)),
    "sums without a normaliser": at_lab("wrong-report", Report(0, {A: {"loss": 1.0}}), begun(LAB, U)),
    "right answers without a count": at_lab("wrong-report", Report(0, {A: SUMS | {"correct": 1.0}}), begun(LAB, U)),
    "sums of nobody knows what": at_lab("wrong-report", Report(0, {A: SUMS | {"[red]": 1.0}}), begun(LAB, U)),
    "sums of nothing": at_lab("wrong-report", Report(0, {A: {}}), begun(LAB, U)),
    "the lab reports a turn that is not mine": at_client("wrong-report", Report(1, {A: SUMS})),
    "the lab reports twice": at_client("wrong-report", Report(0, {A: SUMS}), after(A, Tell)),
    "the lab reports another's losses": at_client("wrong-report", Report(0, {B: SUMS})),
    "the lab reports what the client holds": at_client("wrong-report", Report(0, {A: SUMS}), granted(U)),
    "the lab reports no number": at_client("wrong-report", Report(0, {A: SUMS | {"loss": math.inf}})),
    "a turn by another number": at_client("off-schedule", Turn(1, "train", (A,), 2), begun(A)),
    "a turn of other work": at_client("off-schedule", Turn(0, "eval", (A,), 2), begun(A)),
    "a turn of another party": at_client("off-schedule", Turn(0, "train", (B,), 2), begun(A)),
    "a turn of more parties": at_client("off-schedule", Turn(0, "train", (A, B), 2), begun(A)),
    "a turn of more steps": at_client("off-schedule", Turn(0, "train", (A,), 3), begun(A)),
    "a turn left out": at_client("off-schedule", Turn(2, "eval", (A, B), 3), begun(A)),
    "a turn twice": at_client("off-schedule", FIRST_TURN),
    "a turn after the last": at_client("off-schedule", Turn(3, "train", (A,), 2), after(A, Report, turn=2)),
    "a goodbye before the first turn": at_client("early-bye", Bye(), begun(A)),
    "a goodbye in a turn": at_client("early-bye", Bye()),
    "a goodbye before the last losses": at_client("early-bye", Bye(), after(A, Report, turn=2)),
}


def test_a_part_of_a_step_may_count_for_nothing() -> None:
    wire = granted()()
    actions = wire.sessions[A].feed(Received(LAB, backward(normaliser=0.0), None))
    assert [type(action) for action in actions] == [Run]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_illegal_message_is_refused_by_its_rule_undecoded_and_everybody_hears_of_it(case: Case) -> None:
    wire = case.scene()
    session = wire.sessions[case.hearer]
    others = [peer for peer, state in session.states.items() if peer != case.peer and state != "gone"]
    actions = session.feed(Received(case.peer, case.message, Untouchable()))
    assert_refused(actions, case.rule, case.peer)
    if session.over:
        assert_ended(actions, case.peer, others)
        assert_deaf(session.feed, case.peer)
    else:
        assert case.scene is joining
        assert [action.peer for action in actions if isinstance(action, Drop)] == [case.peer]
        assert len(actions) == 2


def assert_refused(actions: list[Action], rule: str, peer: str) -> None:
    first = actions[0]
    assert isinstance(first, Send)
    assert isinstance(first.message, Refuse)
    assert (first.peer, first.message.rule, first.payload) == (peer, rule, None)
    assert first.message.detail


def assert_ended(actions: list[Action], peer: str, others: list[str]) -> None:
    """The others are told why, the peer only that it was refused, and the party itself fails."""
    goodbyes, last = actions[1:-1], actions[-1]
    assert [action.peer for action in goodbyes if isinstance(action, Send)] == others
    for action in goodbyes:
        assert isinstance(action, Send)
        assert isinstance(action.message, Bye)
        assert peer in action.message.reason
    assert isinstance(last, Fail)
    assert isinstance(last.error, RemoteProtocolError)
    refused = actions[0]
    assert isinstance(refused, Send)
    assert isinstance(refused.message, Refuse)
    assert (last.error.rule, last.error.peer, last.error.detail) == (refused.message.rule, peer, refused.message.detail)


def assert_deaf(feed: Callable[..., list[Action]], peer: str) -> None:
    for event in (
        Connected(peer),
        Received(peer, forward(), Untouchable()),
        Received(peer, Bye()),
        Ran(ticket(), "bottom", "forward", Untouchable()),
        Lost(peer, "gone"),
        Tick(1e9),
    ):
        assert feed(event) == []


def test_every_rule_can_be_broken_and_no_other_is_named() -> None:
    assert {case.rule for case in CASES.values()} == set(RULES)
    folder = Path(cutlayer.protocol.__path__[0])
    named = {
        rule
        for file in folder.glob("*.py")
        for rule in re.findall(r'RemoteProtocolError\(\s*"(.+?)"', file.read_text())
    }
    assert named == set(RULES)


# ---------------------------------------------------------------------- the table of moves

STATES: dict[tuple[str, str], tuple[Scene, str, str]] = {
    ("member", "connected"): (joining, LAB, B),
    ("member", "joined"): (joining, LAB, A),
    ("member", "running"): (begun(LAB), LAB, A),
    ("member", "closing"): (after(LAB, Bye), LAB, A),
    ("member", "gone"): (until(lambda wire: wire.sessions[LAB].states.get(A) == "gone"), LAB, A),
    ("conductor", "connected"): (greeted, A, LAB),
    ("conductor", "joined"): (joined, A, LAB),
    ("conductor", "running"): (granted(), A, LAB),
}
"""How each state of a peer comes about: the scene, who hears, who the peer is."""
SAYINGS: dict[type, Message] = {
    Hello: Hello(VERSION, PLAN.digest, A, ROWS[A]),
    Welcome: Welcome("", MEMBERS),
    Turn: FIRST_TURN,
    Forward: forward(),
    Backward: backward(),
    Report: Report(0, {}),
    Bye: Bye(),
}


@pytest.mark.parametrize("saying", SAYINGS.values(), ids=lambda saying: type(saying).__name__)
@pytest.mark.parametrize(("kinship", "state"), STATES.keys())
def test_what_is_not_in_the_table_of_moves_is_out_of_order(kinship: str, state: str, saying: Message) -> None:
    scene, hearer, peer = STATES[kinship, state]
    session = scene().sessions[hearer]
    assert session.states[peer] == state
    actions = session.feed(Received(peer, saying, Untouchable()))
    refusals = [a.message.rule for a in actions if isinstance(a, Send) and isinstance(a.message, Refuse)]
    if (kinship, state, type(saying)) in MOVES:
        assert refusals != ["out-of-order"]
    else:
        assert refusals == ["out-of-order"]


def test_the_states_above_are_those_of_the_table() -> None:
    reached = {(kinship, following) for (kinship, _, _), following in MOVES.items()}
    reached |= {(kinship, state) for kinship, state, _ in MOVES}
    reached.remove(("conductor", "gone"))  # then the member's run is over, and it hears nothing
    assert reached == STATES.keys()


@pytest.mark.parametrize(("kinship", "state"), STATES.keys())
def test_a_heartbeat_is_never_out_of_order(kinship: str, state: str) -> None:
    scene, hearer, peer = STATES[kinship, state]
    session = scene().sessions[hearer]
    assert session.feed(Received(peer, Ping())) == []
    assert session.states[peer] == state


GIVING_UP: dict[str, Message | Control] = {
    "goodbye": Bye("its disk is \x1b[31mfull"),
    "refusal": Refuse("wrong-shape", "its disk is \x1b[31mfull"),
}


@pytest.mark.parametrize("message", GIVING_UP.values(), ids=GIVING_UP.keys())
@pytest.mark.parametrize(("kinship", "state"), STATES.keys())
def test_anyone_may_give_up_at_any_time_and_the_reason_is_plain_text(
    kinship: str, state: str, message: Message | Control
) -> None:
    scene, hearer, peer = STATES[kinship, state]
    session = scene().sessions[hearer]
    actions = session.feed(Received(peer, message))
    if scene is joining:  # the others wait on
        (drop,) = actions
        assert isinstance(drop, Drop)
        assert drop.peer == peer
        assert "its disk is  [31mfull" in drop.reason
    else:
        last = actions[-1]
        assert isinstance(last, Fail)
        assert isinstance(last.error, PeerStopped)
        assert "its disk is  [31mfull" in str(last.error)
        assert peer in str(last.error)
        assert peer not in {action.peer for action in actions if isinstance(action, Send)}


# ---------------------------------------------------------------------- before the run, and strangers


def test_a_client_that_was_sent_away_may_come_again_and_the_run_goes_on() -> None:
    wire = joining()
    wire.inject(B, LAB, Hello(VERSION, "another plan", B, ROWS[B]))
    assert wire.sessions[LAB].states == {A: "joined"}
    for late in (Forward(ticket(), "bottom->top", ()), Refuse("wrong-plan", ""), Bye("stopped"), Ping()):
        assert wire.sessions[LAB].feed(Received(B, late, Untouchable())) == []
    assert wire.sessions[LAB].feed(Lost(B, "closed")) == []
    wire.connect(B)
    wire.connect(C)
    wire.run()
    assert {type(ending) for ending in wire.endings().values()} == {Done}
    assert len(wire.endings()) == 4


def test_a_client_that_is_lost_before_the_run_may_come_again_with_other_rows() -> None:
    wire = joining()
    assert wire.sessions[LAB].feed(Lost(A, "no route")) == []
    assert wire.sessions[LAB].states == {B: "connected"}
    wire.sessions[A] = type(wire.sessions[A])(wire.plan, A, Rows(3, 1))
    for client in (A, B, C):
        wire.connect(client)
    wire.run()
    assert wire.sessions[B].members[A] == Rows(3, 1)
    assert len([ending for ending in wire.endings().values() if isinstance(ending, Done)]) == 4


@pytest.mark.parametrize("scene", [joining, begun(LAB)], ids=["joining", "running"])
def test_a_stranger_is_sent_away_at_the_door_and_changes_nothing(scene: Scene) -> None:
    session = scene().sessions[LAB]
    before = dict(session.states)
    actions = session.feed(Connected("nobody"))
    assert [type(action) for action in actions] == [Drop]
    for message in (Hello(VERSION, PLAN.digest, "nobody", Rows()), forward(), Bye("no"), Refuse("no", "no")):
        assert session.feed(Received("nobody", message, Untouchable())) == []
    assert session.feed(Lost("nobody", "gone")) == []
    assert session.states == before
    assert not session.over


def test_a_lone_client_that_is_refused_and_lost_does_not_end_the_run_as_done() -> None:
    wire = Wire(make_plan(clients=1), {A: Rows(4)})
    session = wire.sessions[LAB]
    session.feed(Connected(A))
    session.feed(Received(A, Hello(VERSION, "another plan", A, Rows(4))))
    assert session.feed(Lost(A, "it closed")) == []
    assert not session.over


def test_a_party_that_connects_anew_in_the_run_ends_it_with_a_reason() -> None:
    wire = begun(LAB)()
    actions = wire.feed(LAB, Connected(A))
    last = actions[-1]
    assert isinstance(last, Fail)
    assert isinstance(last.error, ChannelClosed)
    assert {action.peer for action in actions if isinstance(action, Send)} == {A, B}


def test_a_party_that_connects_anew_after_its_goodbye_changes_nothing() -> None:
    wire = after(LAB, Bye)()
    wire.feed(LAB, Connected(A))
    wire.links.pop((A, LAB), None)
    wire.run()
    assert isinstance(wire.endings()[LAB], Done)


def test_refusals_and_reasons_fit_their_messages() -> None:
    many = tuple(TensorShape("bfloat16", (2**40,) * 16) for _ in range(64))
    session = begun(LAB)().sessions[LAB]
    actions = session.feed(Received(A, Forward(ticket(), "bottom->top", many), Untouchable()))
    for action in actions[:-1]:
        assert isinstance(action, Send)
        assert isinstance(action.message, Refuse | Bye)
        assert len(getattr(action.message, "detail", "") + getattr(action.message, "reason", "")) == 4096
