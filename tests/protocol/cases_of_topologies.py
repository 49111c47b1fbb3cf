"""Messages that break a rule where several parties have columns of the same rows, or talk by the conductor."""

from collections.abc import Callable
from typing import Any

from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Event, Received
from cutlayer.protocol.messages import MARK_BYTES, VERSION, Forward, Hello, Report, Rows, Sealed, Ticket
from protocol.joined import SEALED, Wire, mark_of
from protocol.plans import BUREAU, HOPS, LAB, LAB_2, A, B, make_plan
from protocol.scenes import MEMBERS, SUMS_OF_LOSS, Case, Scene, at_client, begun, forward, greeted, joining, ticket

VERTICAL, MULTI_HOP, MULTI_TASK = "vertical", "multi_hop", "multi_task"
BROUGHT = {name: Rows(8, 4) for name in (A, B, BUREAU, LAB, LAB_2)}
"""The same rows of everybody."""
ALL = "all"


def playing(condition: Callable[[Wire], bool], topology: str = VERTICAL, **terms: Any) -> Scene:
    """A run of a plan of this topology, stopped as soon as the condition holds."""

    def scene() -> Wire:
        wire = Wire(make_plan(topology, **terms), BROUGHT).start().run(until=condition)
        assert condition(wire)
        return wire

    return scene


def next_is(kind: type, peer: str, hearer: str, topology: str = VERTICAL, **terms: Any) -> Scene:
    """What the hearer is to hear next from the peer is a message of this kind."""
    return playing(lambda wire: _is(kind, wire.links.get((peer, hearer), ())), topology, **terms)


def _is(kind: type, inbox: Any) -> bool:
    first: Event | None = inbox[0] if inbox else None
    return isinstance(first, Received) and isinstance(first.message, kind)


def of_all(edge: str, mark: bytes | None = None, rows: int = 4, width: int = 6) -> Forward:
    """An activation of everybody's rows in the first step; `all` names their owner."""
    first = first_ticket()
    return Forward(first, edge, (TensorShape("float64", (rows, width)),), mark_of(first) if mark is None else mark)


def first_ticket() -> Ticket:
    """The order of rows is told first, so the first turn is the second work."""
    return ticket(1, owner=ALL)


def sealed(source: str, target: str, number: int = 0) -> Sealed:
    return Sealed(source, target, number, SEALED)


def predicting(peer: str, scene: Scene) -> Hello:
    return Hello(VERSION, scene().plan.digest, peer, MEMBERS.get(peer, Rows()), "predict")


def begun_together() -> Scene:
    """Two servers have losses; the first turn is granted."""
    return next_is(Forward, A, LAB, MULTI_TASK)


EARLY = next_is(Forward, A, LAB)
"""The lab has heard no activation."""
HOPPING = next_is(Sealed, A, LAB, MULTI_HOP)
"""The lab has passed nothing on."""
PASSED = playing(lambda wire: any(isinstance(s.message, Sealed) for s in wire.sent(LAB)), MULTI_HOP)
"""The lab has passed one message on."""
COMING = next_is(Sealed, LAB, HOPS[0], MULTI_HOP)
OPENED = playing(
    lambda wire: any(isinstance(s.message, Sealed) for s in wire.sent(HOPS[0])) and not wire.links[LAB, HOPS[0]],
    MULTI_HOP,
)
"""The first hop has opened a message, and none is on its way."""

CASES_OF_TOPOLOGIES = {
    "a client that came to predict": Case("wrong-task", joining, LAB, B, predicting(B, joining)),
    "a lab that is there to predict": Case("wrong-task", greeted, A, LAB, predicting(LAB, greeted)),
    "an activation of common rows without a mark": Case(
        "wrong-mark", EARLY, LAB, A, of_all("bottom_hospital_a->top", b"")
    ),
    "a mark that is too short": Case(
        "wrong-mark", EARLY, LAB, A, of_all("bottom_hospital_a->top", bytes(MARK_BYTES - 1))
    ),
    "labels of common rows without a mark": Case("wrong-mark", EARLY, LAB, BUREAU, of_all("y->top", b"", width=2)),
    "a mark of a client's own rows": Case(
        "wrong-mark", begun(LAB), LAB, A, Forward(ticket(), "bottom->top", forward().tensors, bytes(MARK_BYTES))
    ),
    "a sealed message where all talk to the lab": Case("wrong-seal", begun(LAB), LAB, A, sealed(A, B)),
    "a sealed message between parties without an edge": Case("wrong-seal", HOPPING, LAB, A, sealed(A, HOPS[1])),
    "a sealed message to the lab": Case("wrong-seal", HOPPING, LAB, A, sealed(A, LAB)),
    "a sealed message to a stranger": Case("wrong-seal", HOPPING, LAB, A, sealed(A, "nobody")),
    "a sealed message of another": Case("wrong-seal", HOPPING, LAB, B, sealed(A, HOPS[0])),
    "a sealed message of another's fellow": Case("wrong-seal", HOPPING, LAB, A, sealed(HOPS[0], A)),
    "a sealed message left out": Case("wrong-seal", HOPPING, LAB, A, sealed(A, HOPS[0], 1)),
    "a sealed message twice": Case("wrong-seal", PASSED, LAB, A, sealed(A, HOPS[0])),
    "two sealed messages at once": Case("wrong-seal", HOPPING, LAB, A, Sealed(A, HOPS[0], 0, 2 * SEALED)),
    "nothing that is sealed": Case("wrong-seal", HOPPING, LAB, A, Sealed(A, HOPS[0], 0, ())),
    "the lab leaves a sealed message out": Case("wrong-seal", COMING, HOPS[0], LAB, sealed(A, HOPS[0], 1)),
    "the lab brings a sealed message twice": Case("wrong-seal", OPENED, HOPS[0], LAB, sealed(A, HOPS[0])),
    "the lab brings a sealed message for another": Case("wrong-seal", COMING, HOPS[0], LAB, sealed(HOPS[0], HOPS[1])),
    "the lab brings a sealed message of no fellow": Case("wrong-seal", COMING, HOPS[0], LAB, sealed(LAB, HOPS[0])),
    "losses of another segment": Case(
        "wrong-report",
        begun_together(),
        LAB,
        LAB_2,
        Report(1, {ALL: {f"top_lab.{name}": value for name, value in SUMS_OF_LOSS.items()}}),
    ),
    "losses without the segment's name": Case(
        "wrong-report", begun_together(), LAB, LAB_2, Report(1, {ALL: SUMS_OF_LOSS})
    ),
    "the lab reports losses of no segment": at_client(
        "wrong-report", Report(0, {A: {f"[red].{name}": value for name, value in SUMS_OF_LOSS.items()}})
    ),
    "losses of nothing": Case("wrong-report", begun_together(), LAB, LAB_2, Report(1, {ALL: {}})),
}
