"""What a peer sends of a ticket, checked before its payload is decoded: is it due, is the edge its own, does it fit.

All raise `RemoteProtocolError` by the name of a rule.
"""

from collections.abc import Mapping

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.tensors import TensorShape, most_coded_bytes
from cutlayer.protocol.messages import MARK_BYTES, Backward, Forward, Ticket
from cutlayer.protocol.route import EdgeRoute, Route
from cutlayer.protocol.turns import Flight, OpenTurn


def due_turn(turns: Mapping[int, OpenTurn], peer: str, ticket: Ticket) -> OpenTurn:
    """The open turn that a ticket belongs to, if it is one of those that are due."""
    turn = turns.get(ticket.turn)
    if turn is None or not turn.is_due(ticket):
        due = "that turn is not open" if turn is None else f"its steps that are due: {turn.due}"
        raise RemoteProtocolError("unexpected-ticket", peer, f"{ticket}; {due}")
    return turn


def forward_edge(route: Route, me: str, peer: str, message: Forward) -> EdgeRoute:
    """The edge that an activation comes by, which leads from the peer to me."""
    edge = _edge(route, peer, message.edge)
    if edge.source_party != peer:
        raise RemoteProtocolError("not-your-edge", peer, f"{edge.source} belongs to {edge.source_party}")
    if edge.target_party != me:
        raise RemoteProtocolError("not-my-edge", peer, f"{edge.target} belongs to {edge.target_party}")
    return edge


def backward_edge(route: Route, me: str, peer: str, message: Backward) -> EdgeRoute:
    """The edge that a gradient comes back by, which leads from me to the peer."""
    edge = _edge(route, peer, message.edge)
    if edge.target_party != peer:
        raise RemoteProtocolError("not-your-edge", peer, f"{edge.target} belongs to {edge.target_party}")
    if edge.source_party != me:
        raise RemoteProtocolError("not-my-edge", peer, f"{edge.source} belongs to {edge.source_party}")
    if not edge.returns:
        raise RemoteProtocolError("no-gradient-here", peer, f"nothing comes back on {edge.name}")
    return edge


def _edge(route: Route, peer: str, name: str) -> EdgeRoute:
    edge = route.edges.get(name)
    if edge is None:
        raise RemoteProtocolError("unknown-edge", peer, f"the plan has no edge {name!r}")
    return edge


def check_forward(turn: OpenTurn, flight: Flight, edge: EdgeRoute, peer: str, message: Forward) -> None:
    """An activation comes once, and looks as the plan says for its ticket's rows."""
    ticket = message.ticket
    if ticket in turn.finished:
        raise RemoteProtocolError("duplicate", peer, f"{ticket} is through already")
    if (edge.name, "forward") in flight.seen:
        raise RemoteProtocolError("duplicate", peer, f"a second activation on {edge.name} for {ticket}")
    _check_shapes(peer, message, edge.shapes(flight.batch.rows), coded="forward" in edge.coded)


def check_mark(peer: str, message: Forward, *, due: bool) -> None:
    """Where several parties bring columns of the same rows, an activation says which rows it means."""
    if len(message.mark) != due * MARK_BYTES:
        raise RemoteProtocolError("wrong-mark", peer, f"{len(message.mark)} bytes for {message.ticket}")


def check_backward(turn: OpenTurn, edge: EdgeRoute, peer: str, message: Backward) -> Flight:
    """A gradient comes once, answers an activation, and fits its ticket's rows and loss. Returns the flight."""
    ticket = message.ticket
    flight = turn.flights.get(ticket)
    if ticket in turn.finished or (flight is not None and (edge.name, "backward") in flight.seen):
        raise RemoteProtocolError("duplicate", peer, f"a second gradient on {edge.name} for {ticket}")
    if flight is None or (edge.source, "forward") not in flight.seen:
        raise RemoteProtocolError("gradient-before-activation", peer, f"{edge.name} for {ticket}")
    _check_shapes(peer, message, edge.answer_shapes(flight.batch.rows, turn.purpose), coded="backward" in edge.coded)
    if not _fits(message.normaliser, turn, flight):
        raise RemoteProtocolError("wrong-normaliser", peer, f"{message.normaliser} for {ticket}")
    return flight


def _check_shapes(
    peer: str, message: Forward | Backward, expected: tuple[TensorShape, ...], *, coded: bool
) -> None:  # fmt: skip
    if message.tensors != expected:
        sent, due = (", ".join(map(str, shapes)) or "nothing" for shapes in (message.tensors, expected))
        raise RemoteProtocolError("wrong-shape", peer, f"{sent} on {message.edge} for {message.ticket}; due: {due}")
    if not coded and not message.sizes:
        return
    most = tuple(map(most_coded_bytes, expected)) if coded else ()
    if len(message.sizes) != len(most) or any(size > limit for size, limit in zip(message.sizes, most, strict=True)):
        raise RemoteProtocolError(
            "wrong-size",
            peer,
            f"{message.sizes} bytes encoded on {message.edge} for {message.ticket}; at most {most}",
        )


def _fits(normaliser: float, turn: OpenTurn, flight: Flight) -> bool:
    """Each of a training ticket's gradients bears the loss's own normaliser, which I know if the loss is mine.

    Of joined batches it may be over others' rows, too.
    """
    if turn.purpose != "train":
        return normaliser == 0
    if turn.joined:
        return turn.counts(normaliser) and flight.normaliser <= normaliser
    return turn.counts(normaliser) and flight.normaliser in {0.0, normaliser}
