"""Who holds up a turn: whose activations and answers are due to a party now."""

from collections.abc import Iterator

from cutlayer.protocol.messages import Ticket
from cutlayer.protocol.route import Route
from cutlayer.protocol.turns import OpenTurn


def awaited(turn: OpenTurn, owner: str, route: Route, me: str) -> set[str]:
    """The parties whose activations or answers are due to `me`, of the owner's tickets of the step that is due."""
    step = turn.due[owner]
    if step >= turn.steps[owner]:
        return set()
    owing: set[str] = set()
    for micro in range(len(turn.batches(owner, step))):
        flight = turn.flights.get(Ticket(turn.number, owner, step, micro, turn.purpose))
        seen = flight.seen if flight else set()
        owing.update(_activations(route, seen, me), _answers(route, seen, me))
    return owing


def _activations(route: Route, seen: set[tuple[str, str]], me: str) -> Iterator[str]:
    for edges in route.inputs.values():
        for edge in edges:
            if edge.target_party == me != edge.source_party and (edge.name, "forward") not in seen:
                yield edge.source_party


def _answers(route: Route, seen: set[tuple[str, str]], me: str) -> Iterator[str]:
    for node, edges in route.outputs.items():
        for edge in edges if (node, "forward") in seen else ():
            crosses = edge.source_party == me != edge.target_party
            if crosses and edge.returns and (edge.name, "backward") not in seen:
                yield edge.target_party
