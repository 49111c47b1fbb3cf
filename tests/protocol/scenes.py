"""Runs stopped at a moment, and messages to say then."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from cutlayer.plan.limits import Limits
from cutlayer.plan.tensors import DType, TensorShape
from cutlayer.protocol.events import Action, Connected, Send
from cutlayer.protocol.messages import VERSION, Backward, Forward, Hello, Message, Purpose, Report, Rows, Ticket
from protocol.joined import Wire
from protocol.plans import LAB, A, B, C, make_plan

ROWS = {A: Rows(8, 10), B: Rows(5, 4)}
MEMBERS = ROWS | {LAB: Rows()}
SUMS_OF_LOSS = {"loss": 1.0, "normaliser": 8.0}
PLAN = make_plan(micro_batches=2)


class Untouchable:
    """A payload that must not be looked at."""

    def _touched(self, *_: object) -> NoReturn:
        raise AssertionError("a refused payload was looked at")

    __getattribute__ = __iter__ = __len__ = __bool__ = __eq__ = __repr__ = __str__ = _touched
    __getitem__ = __contains__ = __call__ = __reduce__ = _touched
    __hash__ = _touched


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


def begun(party: str, topology: str = "vanilla", **terms: Any) -> Scene:
    """The party's run has just begun; for the lab the first turns are granted, for a client none."""
    return until(lambda wire: set(wire.sessions[party].states.values()) == {"running"}, topology, **terms)


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


def until(
    condition: Callable[[Wire], bool],
    topology: str = "vanilla",
    *,
    rows: Mapping[str, Rows] = ROWS,
    turns_ahead: int = 4,
    **terms: Any,
) -> Scene:
    """A run of a plan of these terms, stopped as soon as the condition holds."""

    def scene() -> Wire:
        plan = make_plan(topology, micro_batches=2, limits=Limits(turns_ahead=turns_ahead), **terms)
        wire = Wire(plan, rows).start().run(until=condition)
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
