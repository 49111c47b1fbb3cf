"""Tickets on their way through one party: what arrives goes to its node, what a node gives goes to the next.

This is the part of the session that a mini-batch meets. It knows the open turns, and for each replica a gate that
keeps the schedule's order; it decides nothing about whose turn it is.
"""

import math
from collections import defaultdict

from cutlayer.errors import Diverged, RemoteProtocolError
from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Action, Ran, Replica, Run, Send, Step, Value
from cutlayer.protocol.gate import Gate
from cutlayer.protocol.messages import Backward, Forward, Ticket
from cutlayer.protocol.route import EdgeRoute, Route
from cutlayer.protocol.turns import Flight, OpenTurn

EVAL_WINDOW = 2
"""Evaluation batches that an owner of rows keeps in flight: enough to hide the round trip, little to hold."""


class Traffic:
    """The tickets of the open turns at party `me`. Methods append to `out`; `finished` collects turns that are done."""

    def __init__(self, plan: Plan, me: str) -> None:
        self.plan, self.me = plan, me
        self.turns: dict[int, OpenTurn] = {}
        self.out: list[Action] = []
        self.finished: list[OpenTurn] = []
        self._routes: dict[str, Route] = {}
        self._gates: defaultdict[Replica, Gate] = defaultdict(Gate)

    def route(self, owner: str) -> Route:
        if owner not in self._routes:
            self._routes[owner] = Route(self.plan, self.me, owner)
        return self._routes[owner]

    # ------------------------------------------------------------------ turns

    def open(self, turn: OpenTurn) -> None:
        """Give the turn its place in the queue of every replica of mine that it needs."""
        needed: dict[Replica, int] = {}
        for owner, steps in turn.steps.items():
            for replica in self.route(owner).replicas.values():
                needed[replica] = needed.get(replica, 0) + steps
        for replica, steps in needed.items():
            self._gates[replica].append(turn.number, turn.purpose, steps)
        turn.replicas_left = turn.step_left = len(needed)
        self.turns[turn.number] = turn

    def begin(self) -> None:
        """Begin the oldest turn on my own rows, if it is granted and has not begun."""
        for turn in self.turns.values():
            if self.me in turn.steps and self.route(self.me).sources:
                if turn.granted and not turn.begun:
                    for _ in range(1 if turn.purpose == "train" else EVAL_WINDOW):
                        self._begin_step(turn)
                return

    def _begin_step(self, turn: OpenTurn) -> None:
        if turn.begun == turn.steps[self.me]:
            return
        route = self.route(self.me)
        for ticket in turn.tickets(self.me, turn.begun):
            self._flight(self.me, turn, ticket)
            batch = turn.batch(ticket)
            self.out += [Run(ticket, name, "load", (name, self.me), batch=batch) for name in route.sources]
        turn.begun += 1

    # ------------------------------------------------------------------ what peers send

    def forward(self, peer: str, message: Forward, payload: Value) -> None:
        """An activation arrived, undecoded. Raises `RemoteProtocolError`."""
        ticket = message.ticket
        turn = self._turn(peer, ticket)
        edge = self._edge(peer, message)
        if edge.source_party != peer:
            raise RemoteProtocolError("not-your-edge", peer, f"{edge.source} belongs to {edge.source_party}")
        if edge.target_party != self.me:
            raise RemoteProtocolError("not-my-edge", peer, f"{edge.target} belongs to {edge.target_party}")
        flight = self._flight(peer, turn, ticket)
        if (edge.name, "forward") in flight.seen:
            raise RemoteProtocolError("duplicate", peer, f"a second activation on {edge.name} for {ticket}")
        self._check_shapes(peer, message, edge.shapes(flight.batch.rows))
        self._arrived(turn, ticket, flight, edge, payload)

    def backward(self, peer: str, message: Backward, payload: Value) -> None:
        """A gradient arrived, undecoded. Raises `RemoteProtocolError`."""
        ticket = message.ticket
        turn = self._turn(peer, ticket)
        edge = self._edge(peer, message)
        if edge.target_party != peer:
            raise RemoteProtocolError("not-your-edge", peer, f"{edge.target} belongs to {edge.target_party}")
        if edge.source_party != self.me:
            raise RemoteProtocolError("not-my-edge", peer, f"{edge.source} belongs to {edge.source_party}")
        if turn.purpose == "eval" or not edge.returns:
            raise RemoteProtocolError("no-gradient-here", peer, f"no gradient is due on {edge.name} for {ticket}")
        flight = turn.flights.get(ticket)
        if flight is None or (edge.source, "forward") not in flight.seen:
            raise RemoteProtocolError("gradient-before-activation", peer, f"{edge.name} for {ticket}")
        if (edge.name, "backward") in flight.seen:
            raise RemoteProtocolError("duplicate", peer, f"a second gradient on {edge.name} for {ticket}")
        self._check_shapes(peer, message, edge.gradient_shapes(flight.batch.rows))
        if not (math.isfinite(message.normaliser) and message.normaliser > 0):
            raise RemoteProtocolError("wrong-normaliser", peer, f"{message.normaliser} for {ticket}")
        flight.normaliser = message.normaliser
        self._graded(ticket, flight, edge, payload)

    def _turn(self, peer: str, ticket: Ticket) -> OpenTurn:
        turn = self.turns.get(ticket.turn)
        if turn is None or turn.batch(ticket) is None:
            raise RemoteProtocolError("unexpected-ticket", peer, f"{ticket} belongs to no open turn")
        if turn.purpose == "train" and ticket.step != turn.due[ticket.owner]:
            raise RemoteProtocolError("unexpected-ticket", peer, f"{ticket}, but step {turn.due[ticket.owner]} is due")
        return turn

    def _edge(self, peer: str, message: Forward | Backward) -> EdgeRoute:
        edge = self.route(message.ticket.owner).edges.get(message.edge)
        if edge is None:
            raise RemoteProtocolError("unknown-edge", peer, f"the plan has no edge {message.edge!r}")
        return edge

    def _check_shapes(self, peer: str, message: Forward | Backward, expected: tuple[object, ...]) -> None:
        if message.tensors != expected:
            sent, due = (", ".join(map(str, shapes)) or "nothing" for shapes in (message.tensors, expected))
            raise RemoteProtocolError("wrong-shape", peer, f"{sent} on {message.edge} for {message.ticket}; due: {due}")

    def _flight(self, peer: str, turn: OpenTurn, ticket: Ticket) -> Flight:
        flight = turn.flights.get(ticket)
        if flight is None:
            if ticket in turn.finished:
                raise RemoteProtocolError("duplicate", peer, f"{ticket} is through already")
            batch = turn.batch(ticket)
            assert batch is not None
            flight = turn.flights[ticket] = Flight(batch)
        return flight

    # ------------------------------------------------------------------ what my own nodes give

    def ran(self, event: Ran) -> None:
        """A node of mine has run: move its result on, forward or back. Raises `Diverged`."""
        ticket = event.ticket
        turn, route = self.turns[ticket.turn], self.route(ticket.owner)
        flight = turn.flights[ticket]
        if event.direction == "backward":
            for edge in route.inputs[event.node]:
                if edge.returns:
                    self._move_back(ticket, flight, edge, event.result[edge.name])
            self._drained(turn, ticket, flight, route.replicas[event.node])
        else:
            if event.sums is not None:
                self._note_loss(turn, flight, event)
            flight.seen.add((event.node, "forward"))
            for edge in route.outputs[event.node]:
                self._move_on(turn, ticket, flight, edge, event.result)
            if event.direction == "forward":
                self._forwarded(turn, event, flight, route)

    def _forwarded(self, turn: OpenTurn, event: Ran, flight: Flight, route: Route) -> None:
        """A segment has run forward: in evaluation it is through; a loss starts the way back."""
        ticket, replica = event.ticket, route.replicas[event.node]
        if turn.purpose == "eval":
            self._drained(turn, ticket, flight, replica)
        elif event.node in route.losses:
            self._offer(Run(ticket, event.node, "backward", replica))
        elif not route.returning[event.node]:
            self._drained(turn, ticket, flight, replica)

    def _note_loss(self, turn: OpenTurn, flight: Flight, event: Ran) -> None:
        assert event.sums is not None
        flight.normaliser = event.sums["normaliser"]
        loss = event.sums["loss"]
        if not math.isfinite(loss) or (turn.purpose == "train" and flight.normaliser <= 0):
            raise Diverged(
                f"the loss of {event.node} is {loss} at {event.ticket} (round {turn.work.round}): lower the learning "
                "rate, or look at that party's rows"
            )
        turn.add(event.ticket.owner, dict(event.sums))

    def _move_on(self, turn: OpenTurn, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        if edge.target_party == self.me:
            self._arrived(turn, ticket, flight, edge, value)
        else:
            message = Forward(ticket, edge.name, edge.shapes(flight.batch.rows))
            self.out.append(Send(edge.target_party, message, value))

    def _move_back(self, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        if edge.source_party == self.me:
            self._graded(ticket, flight, edge, value)
        else:
            shapes = edge.gradient_shapes(flight.batch.rows)
            self.out.append(
                Send(edge.source_party, Backward(ticket, edge.name, shapes, flight.normaliser), value)
            )  # fmt: skip

    # ------------------------------------------------------------------ what a node waits for

    def _arrived(self, turn: OpenTurn, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        route = self.route(ticket.owner)
        flight.seen.add((edge.name, "forward"))
        inputs = flight.inputs.setdefault(edge.target, {})
        inputs[edge.name] = value
        if len(inputs) == len(route.inputs[edge.target]):
            del flight.inputs[edge.target]
            self._offer(Run(ticket, edge.target, "forward", route.replicas[edge.target], inputs))

    def _graded(self, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        route = self.route(ticket.owner)
        flight.seen.add((edge.name, "backward"))
        grads = flight.grads.setdefault(edge.source, {})
        grads[edge.name] = value
        if len(grads) == len(route.returning[edge.source]):
            del flight.grads[edge.source]
            self._offer(Run(ticket, edge.source, "backward", route.replicas[edge.source], grads))

    def _offer(self, run: Run) -> None:
        self.out += self._gates[run.replica].offer(run)

    # ------------------------------------------------------------------ when a replica's step has drained

    def _drained(self, turn: OpenTurn, ticket: Ticket, flight: Flight, replica: Replica) -> None:
        """One ticket is through one replica of mine."""
        gate = self._gates[replica]
        slot = gate.slots[0]
        slot.drained += 1
        if turn.purpose == "eval":
            self._finish_eval_ticket(turn, ticket, flight)
            if slot.drained == slot.steps:
                self._leave(turn, gate)
            return
        slot.normaliser += flight.normaliser
        if slot.drained < len(turn.tickets(ticket.owner, slot.step)):
            return
        self.out.append(Step(replica, ticket.owner, turn.work.round, slot.normaliser))
        if not slot.next_step():
            self._leave(turn, gate)
        self._finish_step(turn, ticket.owner)
        self.out += gate.release()

    def _leave(self, turn: OpenTurn, gate: Gate) -> None:
        """A replica of mine is through with a turn."""
        gate.slots.popleft()
        turn.replicas_left -= 1
        if not turn.replicas_left:
            del self.turns[turn.number]
            self.finished.append(turn)
        self.out += gate.release()

    def _finish_step(self, turn: OpenTurn, owner: str) -> None:
        turn.step_left -= 1
        if turn.step_left:
            return
        turn.flights.clear()
        turn.due[owner] += 1
        turn.step_left = len(self.route(owner).replicas)
        if owner == self.me:
            self._begin_step(turn)

    def _finish_eval_ticket(self, turn: OpenTurn, ticket: Ticket, flight: Flight) -> None:
        segments = self.route(ticket.owner).segments
        if all((name, "forward") in flight.seen for name in segments):
            del turn.flights[ticket]
            turn.finished.add(ticket)
            if ticket.owner == self.me:
                self._begin_step(turn)
