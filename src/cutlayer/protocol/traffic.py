"""Tickets on their way through one party: what arrives goes to its node, what a node gives goes to the next.

This is the part of the session that a mini-batch meets. It knows the open turns, and for each replica a gate that
keeps the schedule's order; it decides nothing about whose turn it is.

Every activation is answered, by its gradient or, where there is none (evaluation, a frozen segment), by an answer
without tensors. So the owner of the rows always knows how far the others are, and never runs ahead of them.
"""

import math
from collections import defaultdict
from collections.abc import Mapping

from cutlayer.errors import Diverged, RemoteProtocolError
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Work
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Action, Ran, Replica, Run, Send, Step, Value
from cutlayer.protocol.gate import Gate
from cutlayer.protocol.messages import Backward, Forward, Ticket
from cutlayer.protocol.route import EdgeRoute, Route, parties_on_the_way
from cutlayer.protocol.turns import WINDOW, Flight, OpenTurn


class Traffic:
    """The tickets of the open turns at party `me`. Methods append to `out`; `finished` collects turns that are done."""

    def __init__(self, plan: Plan, me: str) -> None:
        self.plan, self.me = plan, me
        self.turns: dict[int, OpenTurn] = {}
        self.out: list[Action] = []
        self.finished: list[OpenTurn] = []
        self._routes: dict[str, Route] = {}
        self._parties: dict[str, frozenset[str]] = {}
        self._gates: defaultdict[Replica, Gate] = defaultdict(Gate)

    def route(self, owner: str) -> Route:
        if owner not in self._routes:
            self._routes[owner] = Route(self.plan, self.me, owner)
        return self._routes[owner]

    def parties(self, work: Work) -> set[str]:
        """The parties that a turn needs."""
        return set().union(*map(self._on_the_way, work.parties))

    def takes_part(self, work: Work) -> bool:
        """Whether a turn needs me."""
        return self.me in work.parties or any(self.me in self._on_the_way(owner) for owner in work.parties)

    def _on_the_way(self, owner: str) -> frozenset[str]:
        if owner not in self._parties:
            self._parties[owner] = parties_on_the_way(self.plan, owner)
        return self._parties[owner]

    # ------------------------------------------------------------------ turns

    def open(self, turn: OpenTurn) -> None:
        """Give the turn its place in the queue of every replica of mine that it needs."""
        needed: dict[Replica, int] = {}
        for owner, steps in turn.steps.items():
            if self.me in self._on_the_way(owner):
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
                    for _ in range(WINDOW[turn.purpose]):
                        self._begin_step(turn)
                return

    def _begin_step(self, turn: OpenTurn) -> None:
        if turn.begun == turn.steps[self.me]:
            return
        sources = self.route(self.me).sources
        for micro, batch in enumerate(turn.batches(self.me, turn.begun)):
            ticket = Ticket(turn.number, self.me, turn.begun, micro, turn.purpose)
            self._flight(turn, ticket)
            self.out += [Run(ticket, name, "load", (name, self.me), batch=batch) for name in sources]
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
        if ticket in turn.finished:
            raise RemoteProtocolError("duplicate", peer, f"{ticket} is through already")
        flight = self._flight(turn, ticket)
        if (edge.name, "forward") in flight.seen:
            raise RemoteProtocolError("duplicate", peer, f"a second activation on {edge.name} for {ticket}")
        self._check_shapes(peer, message, edge.shapes(flight.batch.rows))
        turn.under_way = True
        self._arrived(ticket, flight, edge, payload)

    def backward(self, peer: str, message: Backward, payload: Value) -> None:
        """A gradient arrived, undecoded. Raises `RemoteProtocolError`."""
        ticket = message.ticket
        turn = self._turn(peer, ticket)
        edge = self._edge(peer, message)
        if edge.target_party != peer:
            raise RemoteProtocolError("not-your-edge", peer, f"{edge.target} belongs to {edge.target_party}")
        if edge.source_party != self.me:
            raise RemoteProtocolError("not-my-edge", peer, f"{edge.source} belongs to {edge.source_party}")
        if not edge.returns:
            raise RemoteProtocolError("no-gradient-here", peer, f"nothing comes back on {edge.name}")
        flight = turn.flights.get(ticket)
        if ticket in turn.finished or (flight is not None and (edge.name, "backward") in flight.seen):
            raise RemoteProtocolError("duplicate", peer, f"a second gradient on {edge.name} for {ticket}")
        if flight is None or (edge.source, "forward") not in flight.seen:
            raise RemoteProtocolError("gradient-before-activation", peer, f"{edge.name} for {ticket}")
        self._check_shapes(peer, message, edge.answer_shapes(flight.batch.rows, turn.purpose))
        self._check_normaliser(peer, message, flight)
        turn.under_way = True
        flight.normaliser = message.normaliser
        self._answered(turn, ticket, flight, edge, payload)

    def _turn(self, peer: str, ticket: Ticket) -> OpenTurn:
        turn = self.turns.get(ticket.turn)
        if turn is None or not turn.is_due(ticket):
            due = "that turn is not open" if turn is None else f"its steps that are due: {turn.due}"
            raise RemoteProtocolError("unexpected-ticket", peer, f"{ticket}; {due}")
        return turn

    def _edge(self, peer: str, message: Forward | Backward) -> EdgeRoute:
        edge = self.route(message.ticket.owner).edges.get(message.edge)
        if edge is None:
            raise RemoteProtocolError("unknown-edge", peer, f"the plan has no edge {message.edge!r}")
        return edge

    def _check_shapes(self, peer: str, message: Forward | Backward, expected: tuple[TensorShape, ...]) -> None:
        if message.tensors != expected:
            sent, due = (", ".join(map(str, shapes)) or "nothing" for shapes in (message.tensors, expected))
            raise RemoteProtocolError("wrong-shape", peer, f"{sent} on {message.edge} for {message.ticket}; due: {due}")

    def _check_normaliser(self, peer: str, message: Backward, flight: Flight) -> None:
        """Each of a training ticket's gradients bears the loss's own normaliser, which I know if the loss is mine."""
        normaliser = message.normaliser
        if message.ticket.purpose == "train":
            right = self._counts(normaliser) and flight.normaliser in {0.0, normaliser}
        else:
            right = normaliser == 0
        if not right:
            raise RemoteProtocolError("wrong-normaliser", peer, f"{normaliser} for {message.ticket}")

    def _flight(self, turn: OpenTurn, ticket: Ticket) -> Flight:
        flight = turn.flights.get(ticket)
        if flight is None:
            batch = turn.batches(ticket.owner, ticket.step)[ticket.micro]
            flight = turn.flights[ticket] = Flight(batch, self.route(ticket.owner))
        return flight

    # ------------------------------------------------------------------ what my own nodes give

    def ran(self, event: Ran) -> None:
        """A node of mine has run: move its result on, forward or back. Raises `Diverged`."""
        ticket, node = event.ticket, event.node
        turn = self.turns[ticket.turn]
        flight = turn.flights[ticket]
        if event.direction == "backward":
            self._through(turn, ticket, flight, node, event.result)
            return
        if event.sums is not None:
            self._note_loss(turn, flight, event)
        flight.seen.add((node, "forward"))
        outputs = flight.route.outputs[node]
        for edge in outputs:
            self._move_on(ticket, flight, edge, event.result)
        if not outputs:
            self._turn_back(turn, ticket, flight, node)

    def _note_loss(self, turn: OpenTurn, flight: Flight, event: Ran) -> None:
        assert event.sums is not None
        loss, normaliser = event.sums["loss"], event.sums["normaliser"]
        training = turn.purpose == "train"
        if not math.isfinite(loss) or not (self._counts(normaliser) if training else math.isfinite(normaliser)):
            raise Diverged(
                f"the loss of {event.node} is {loss} (over {normaliser:g}) at {event.ticket} (round "
                f"{turn.work.round}): lower the learning rate, or look at that party's rows"
            )
        if training:
            flight.normaliser = normaliser
        turn.add(event.ticket.owner, dict(event.sums))

    def _counts(self, normaliser: float) -> bool:
        """Whether a ticket may have this normaliser: a part of a step may lie on rows that do not count."""
        a_part = self.plan.terms.training.micro_batches > 1
        return math.isfinite(normaliser) and (normaliser > 0 or (a_part and normaliser == 0))

    def _move_on(self, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        if edge.target_party == self.me:
            self._arrived(ticket, flight, edge, value)
        else:
            message = Forward(ticket, edge.name, edge.shapes(flight.batch.rows))
            self.out.append(Send(edge.target_party, message, value))

    def _move_back(self, turn: OpenTurn, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        if edge.source_party == self.me:
            self._answered(turn, ticket, flight, edge, value)
        else:
            shapes = edge.answer_shapes(flight.batch.rows, turn.purpose)
            message = Backward(ticket, edge.name, shapes, flight.normaliser)
            self.out.append(Send(edge.source_party, message, value))

    # ------------------------------------------------------------------ what a node waits for

    def _arrived(self, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        route = flight.route
        flight.seen.add((edge.name, "forward"))
        values = flight.inputs.setdefault(edge.target, {})
        values[edge.name] = value
        if len(values) == len(route.inputs[edge.target]):
            inputs = {each.name: values[each.name] for each in route.inputs[edge.target]}
            del flight.inputs[edge.target]
            self._offer(Run(ticket, edge.target, "forward", route.replicas[edge.target], inputs))

    def _answered(self, turn: OpenTurn, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        flight.seen.add((edge.name, "backward"))
        flight.grads.setdefault(edge.source, {})[edge.name] = value
        if len(flight.grads[edge.source]) == len(flight.route.outputs[edge.source]):
            self._turn_back(turn, ticket, flight, edge.source)

    def _turn_back(self, turn: OpenTurn, ticket: Ticket, flight: Flight, node: str) -> None:
        """A segment has all it needs for its backward; without gradients, or in evaluation, it is through at once."""
        route, values = flight.route, flight.grads.pop(node, {})
        grads = {edge.name: values[edge.name] for edge in route.outputs[node] if edge.differentiable}
        if turn.purpose == "train" and (grads or not route.outputs[node]):
            self._offer(Run(ticket, node, "backward", route.replicas[node], grads))
        else:
            self._through(turn, ticket, flight, node, None)

    def _offer(self, run: Run) -> None:
        self.out += self._gates[run.replica].offer(run)

    # ------------------------------------------------------------------ when a replica's step has drained

    def _through(
        self, turn: OpenTurn, ticket: Ticket, flight: Flight, node: str, grads: Mapping[str, Value] | None
    ) -> None:
        """One ticket is through one replica of mine: answer its activations, with gradients where there are any."""
        route = flight.route
        for edge in route.inputs[node]:
            if edge.returns:
                value = grads[edge.name] if grads is not None and edge.differentiable else ()
                self._move_back(turn, ticket, flight, edge, value)
        gate = self._gates[route.replicas[node]]
        slot = gate.slots[0]
        slot.drained += 1
        if turn.purpose == "eval":
            self._finish_eval_ticket(turn, ticket, flight)
            if slot.drained == slot.steps:
                self._leave(turn, gate)
            return
        slot.normaliser += flight.normaliser
        if slot.drained < len(turn.batches(ticket.owner, slot.step)):
            return
        if slot.normaliser <= 0:
            raise Diverged(f"no row counts in the loss of step {ticket.step} of turn {ticket.turn}, {ticket.owner}'s")
        self.out.append(Step(route.replicas[node], ticket.owner, turn.work.round, slot.normaliser))
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
        turn.finish(owner, turn.due[owner])
        turn.step_left = len(self.route(owner).replicas)
        if owner == self.me:
            self._begin_step(turn)

    def _finish_eval_ticket(self, turn: OpenTurn, ticket: Ticket, flight: Flight) -> None:
        flight.drained += 1
        if flight.drained == len(flight.route.replicas):
            del turn.flights[ticket]
            turn.finished.add(ticket)
            turn.finish(ticket.owner, ticket.step)
            if ticket.owner == self.me:
                self._begin_step(turn)
