"""Tickets on their way through one party: what arrives goes to its node, what a node gives goes to the next.

This is the part of the session that a mini-batch meets. It knows the open turns, and for each replica a gate that
keeps the schedule's order; it decides nothing about whose turn it is.

Every activation is answered, by its gradient or, where there is none (evaluation, a frozen segment), by an answer
without tensors. So the owner of the rows always knows how far the others are, and never runs ahead of them.
"""

from collections.abc import Iterable, Mapping

from cutlayer.errors import Diverged, Misaligned
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Train, Turn
from cutlayer.plan.terms import TOGETHER
from cutlayer.protocol.arrivals import backward_edge, check_backward, check_forward, check_mark, due_turn, forward_edge
from cutlayer.protocol.events import JOINED, Action, Direction, Joined, Lap, Ran, Replica, Run, Send, Step, Value
from cutlayer.protocol.gate import Gate, Slot
from cutlayer.protocol.messages import Backward, Forward, Ticket
from cutlayer.protocol.owing import awaited
from cutlayer.protocol.route import EdgeRoute, Route
from cutlayer.protocol.turns import Flight, OpenTurn


class Gates(dict[Replica, Gate]):
    """A gate for each replica, made when it is asked for."""

    def __init__(self, staleness: Mapping[str, int]) -> None:
        super().__init__()
        self._staleness = staleness

    def __missing__(self, replica: Replica) -> Gate:
        gate = self[replica] = Gate(self._staleness.get(replica[0], 0))
        return gate


class Traffic:
    """The tickets of the open turns at party `me`. Methods append to `out`; `finished` collects turns that are done."""

    def __init__(self, plan: Plan, me: str) -> None:
        self.plan, self.me = plan, me
        self.turns: dict[int, OpenTurn] = {}
        self.out: list[Action] = []
        self.finished: list[OpenTurn] = []
        self._routes: dict[tuple[str, frozenset[str]], Route] = {}
        self._together = plan.schedule.together
        self._serves = self._together or me in {
            plan.holder(role, "") for role in plan.topology.roles if role != "client"
        }
        """Whether clients' rows meet replicas of mine, not only my own rows."""
        self.gates = Gates(plan.staleness)
        self._topology = plan.topology
        self.left = False
        """Whether a replica of mine has gone on to what comes next; whoever waits for that resets it."""
        self.joined_normaliser = 0.0
        """Of the last step of joined batches in which my rows took part: over all parties' rows."""
        self._staleness, self._in_flight = plan.staleness, plan.terms.training.in_flight
        self._own_steps = plan.terms.training.client_segments == "own"
        """Whether a client steps by itself after joined batches, or when the sum of all gradients has come."""

    def route(self, owner: str, silent: frozenset[str] = frozenset()) -> Route:
        if (route := self._routes.get((owner, silent))) is None:
            route = self._routes[owner, silent] = Route(self.plan, self.me, owner, silent)
        return route

    def _route(self, turn: OpenTurn, owner: str) -> Route:
        return self.route(owner, turn.work.silent)

    def _loads(self, turn: OpenTurn) -> str | None:
        """Under which name rows of mine travel in a turn, if any do."""
        owner = TOGETHER if self._together else self.me
        return owner if owner in turn.steps and self._route(turn, owner).sources else None

    def at_work(self, segments: Iterable[str]) -> list[Replica]:
        """My replicas of these segments that are not through with all open turns."""
        owners = dict.fromkeys(owner for turn in self.turns.values() for owner in self._owners(turn.work))
        replicas = (self.route(owner).replicas.get(name) for owner in owners for name in segments)
        return list(dict.fromkeys(replica for replica in replicas if replica is not None))

    def _owners(self, work: Turn) -> tuple[str, ...]:
        """The owners of a turn's rows that meet replicas of mine."""
        return work.parties if self._serves else (self.me,)

    # ------------------------------------------------------------------ turns

    def open(self, turn: OpenTurn) -> None:
        """Give the turn its place in the queue of every replica of mine that it needs."""
        needed: dict[Replica, int] = {}
        for owner in self._owners(turn.work):
            steps = turn.steps[owner]
            for replica in self._route(turn, owner).replicas.values():
                needed[replica] = steps if turn.joined else needed.get(replica, 0) + steps
        for replica, steps in needed.items():
            self.gates[replica].append(turn.number, turn.purpose, steps)
        turn.replicas_left = turn.replicas = len(needed)
        if needed:
            self.turns[turn.number] = turn

    def begin(self) -> None:
        """Begin the oldest turn on my own rows, if it is granted and has not begun."""
        for turn in self.turns.values():
            if (owner := self._loads(turn)) is not None:
                if turn.granted and not turn.begun:
                    turn.last_back = next(iter(self._route(turn, owner).replicas.values()), None)
                    for _ in range(turn.at_once):
                        self._begin_step(turn, owner)
                return

    def _begin_step(self, turn: OpenTurn, owner: str) -> None:
        if turn.begun == turn.steps[owner]:
            return
        for micro in range(len(turn.batches(owner, turn.begun))):
            turn.to_load.append(Ticket(turn.number, owner, turn.begun, micro, turn.purpose))
        turn.begun += 1
        self._load(turn)

    def _load(self, turn: OpenTurn) -> None:
        """Bring in my rows of as many more tickets as may be in flight."""
        limited = self._in_flight and turn.purpose == "train"
        while turn.to_load and not (limited and turn.loaded >= self._in_flight):
            ticket = turn.to_load.popleft()
            batch = self._flight(turn, ticket).batch
            turn.loaded += 1
            sources = self._route(turn, ticket.owner).sources
            self.out += [Run(ticket, name, "load", (name, self.me), batch=batch) for name in sources]

    def awaited(self, turn: OpenTurn) -> set[str]:
        """Whose activations or answers are due to me now, so that a turn can go on."""
        owing = (awaited(turn, owner, self._route(turn, owner), self.me) for owner in self._owners(turn.work))
        return set().union(*owing)

    # ------------------------------------------------------------------ what peers send

    def forward(self, peer: str, message: Forward, payload: Value) -> None:
        """An activation arrived, undecoded. Raises `RemoteProtocolError`."""
        ticket = message.ticket
        turn = due_turn(self.turns, peer, ticket)
        edge = forward_edge(self._route(turn, ticket.owner), self.me, peer, message)
        flight = self._flight(turn, ticket)
        check_forward(turn, flight, edge, peer, message)
        check_mark(peer, message, due=self._together)
        self._note_mark(ticket, flight, peer, message.mark)
        turn.under_way = True
        self._arrived(turn, ticket, flight, edge, payload)

    def backward(self, peer: str, message: Backward, payload: Value) -> None:
        """A gradient arrived, undecoded. Raises `RemoteProtocolError`."""
        ticket = message.ticket
        turn = due_turn(self.turns, peer, ticket)
        edge = backward_edge(self._route(turn, ticket.owner), self.me, peer, message)
        flight = check_backward(turn, edge, peer, message)
        turn.under_way = True
        flight.normaliser = message.normaliser
        self._answered(turn, ticket, flight, edge, payload)

    def _flight(self, turn: OpenTurn, ticket: Ticket) -> Flight:
        flight = turn.flights.get(ticket)
        if flight is None:
            batch = turn.batches(ticket.owner, ticket.step)[ticket.micro]
            flight = turn.flights[ticket] = Flight(batch, self._route(turn, ticket.owner))
        return flight

    def _note_mark(self, ticket: Ticket, flight: Flight, party: str, mark: bytes) -> None:
        """All who bring columns of a ticket's rows must mean the same rows. Raises `Misaligned`."""
        if flight.mark and mark != flight.mark:
            raise Misaligned(ticket, flight.batch, (flight.marker, party), (flight.mark, mark))
        flight.mark, flight.marker = mark, flight.marker or party

    # ------------------------------------------------------------------ what my own nodes give

    def ran(self, event: Ran) -> None:
        """A node of mine has run: move its result on, forward or back. Raises `Diverged`."""
        turn = self.turns[event.ticket.turn]
        if event.ticket.owner == JOINED:
            self._ran_joined(turn, event)
            return
        flight = turn.flights[event.ticket]
        if event.direction == "backward":
            self._through(turn, event.ticket, flight, event.node, event.result)
            return
        if event.direction == "load":
            self._note_mark(event.ticket, flight, self.me, event.mark)
        if event.sums is not None:
            turn.note_loss(event)
            if turn.purpose == "train":
                own = event.sums[event.ticket.owner]["normaliser"]
                flight.normaliser = float(flight.batch.rows) if turn.several_losses else own
        self._ran_forward(turn, event.ticket, flight, event.node, event.result)

    def _ran_forward(self, turn: OpenTurn, ticket: Ticket, flight: Flight, node: str, result: Value) -> None:
        flight.seen.add((node, "forward"))
        outputs = flight.route.outputs[node]
        for edge in outputs:
            self._move_on(turn, ticket, flight, edge, result)
        if not outputs:
            self._turn_back(turn, ticket, flight, node)

    def _ran_joined(self, turn: OpenTurn, event: Ran) -> None:
        """The same for joined batches: to each owner its own part."""
        tickets = turn.siblings(event.ticket)
        flights = [turn.flights[ticket] for ticket in tickets]
        if event.direction == "backward":
            self._through_joined(turn, event.ticket, event.node, event.result)
            return
        if event.sums is not None:
            turn.note_loss(event)
            for ticket, flight in zip(tickets, flights, strict=True):
                flight.normaliser = event.sums[ticket.owner]["normaliser"]
        results = event.result.parts if flights[0].route.outputs[event.node] else [None] * len(flights)
        for ticket, flight, result in zip(tickets, flights, results, strict=True):
            self._ran_forward(turn, ticket, flight, event.node, result)

    def _move_on(self, turn: OpenTurn, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        if edge.target_party == self.me:
            self._arrived(turn, ticket, flight, edge, value)
        else:
            message = Forward(ticket, edge.name, edge.shapes(flight.batch.rows), flight.mark)
            self.out.append(Send(edge.target_party, message, value))

    def _move_back(self, turn: OpenTurn, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        if edge.source_party == self.me:
            self._answered(turn, ticket, flight, edge, value)
        else:
            shapes = edge.answer_shapes(flight.batch.rows, turn.purpose)
            message = Backward(ticket, edge.name, shapes, flight.normaliser)
            self.out.append(Send(edge.source_party, message, value))

    # ------------------------------------------------------------------ what a node waits for

    def _arrived(self, turn: OpenTurn, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        route = flight.route
        flight.seen.add((edge.name, "forward"))
        values = flight.inputs.setdefault(edge.target, {})
        values[edge.name] = value
        if len(values) == len(route.inputs[edge.target]):
            inputs = {each.name: values[each.name] for each in route.inputs[edge.target]}
            del flight.inputs[edge.target]
            self._ready(turn, ticket, flight, edge.target, "forward", inputs)

    def _answered(self, turn: OpenTurn, ticket: Ticket, flight: Flight, edge: EdgeRoute, value: Value) -> None:
        flight.seen.add((edge.name, "backward"))
        flight.grads.setdefault(edge.source, {})[edge.name] = value
        if len(flight.grads[edge.source]) == flight.route.answers[edge.source]:
            self._turn_back(turn, ticket, flight, edge.source)

    def _turn_back(self, turn: OpenTurn, ticket: Ticket, flight: Flight, node: str) -> None:
        """A segment has all it needs for its backward; without gradients, or in evaluation, it is through at once."""
        route, values = flight.route, flight.grads.pop(node, {})
        grads = {edge.name: values[edge.name] for edge in route.outputs[node] if edge.differentiable}
        if turn.purpose == "train" and (grads or not route.outputs[node]):
            self._ready(turn, ticket, flight, node, "backward", grads)
        elif self._joins(turn, flight, node):
            if turn.gathered(ticket, node, "backward", {}):
                self._through_joined(turn, ticket, node, None)
        else:
            self._through(turn, ticket, flight, node, None)

    def _ready(
        self, turn: OpenTurn, ticket: Ticket, flight: Flight, node: str, way: Direction, values: Mapping[str, Value]
    ) -> None:
        """A node has what it needs to run for this ticket; where batches are joined, it runs once for all owners."""
        replica = flight.route.replicas[node]
        if not self._joins(turn, flight, node):
            self._offer(turn, Run(ticket, node, way, replica, values, flight.batch))
        elif come := turn.gathered(ticket, node, way, values):
            owners = turn.work.parties
            inputs = {edge: Joined(tuple(come[owner][edge] for owner in owners)) for edge in values}
            rows = tuple(turn.flights[sibling].batch.rows for sibling in turn.siblings(ticket))
            joined = Ticket(ticket.turn, JOINED, ticket.step, ticket.micro, ticket.purpose)
            self._offer(turn, Run(joined, node, way, replica, inputs, owners=owners, rows=rows))

    def _joins(self, turn: OpenTurn, flight: Flight, node: str) -> bool:
        """Whether a node of mine runs once for all owners of joined batches: one that is no owner's own."""
        return turn.joined and flight.route.replicas[node][1] != flight.route.owner

    def _offer(self, turn: OpenTurn, run: Run) -> None:
        owner = run.owners[0] if run.owners else run.ticket.owner
        self.out += self.gates[run.replica].offer(run, len(turn.batches(owner, run.ticket.step)))

    # ------------------------------------------------------------------ when a replica's step has drained

    def _through(
        self, turn: OpenTurn, ticket: Ticket, flight: Flight, node: str, grads: Mapping[str, Value] | None
    ) -> None:
        """One ticket is through one replica of mine: answer its activations, with gradients where there are any."""
        self._answer(turn, ticket, flight, node, grads)
        replica = flight.route.replicas[node]
        if turn.purpose == "train":
            self._drain(turn, replica, (ticket.owner,), flight.normaliser)
            return
        gate = self.gates[replica]
        slot = gate.slots[0]
        slot.drained += 1
        self._finish_eval_ticket(turn, ticket, flight)
        if slot.drained == slot.steps:
            self._leave(turn, gate)

    def _through_joined(self, turn: OpenTurn, ticket: Ticket, node: str, grads: Mapping[str, Joined] | None) -> None:
        """The same for joined batches. From here back the normaliser is that of all owners' rows together."""
        tickets = turn.siblings(ticket)
        flights = [turn.flights[sibling] for sibling in tickets]
        total = turn.total_normaliser(ticket, flights)
        for at, (sibling, flight) in enumerate(zip(tickets, flights, strict=True)):
            flight.normaliser = total
            own = None if grads is None else {edge: joined.parts[at] for edge, joined in grads.items()}
            self._answer(turn, sibling, flight, node, own)
        self._drain(turn, flights[0].route.replicas[node], turn.work.parties, total)

    def _answer(
        self, turn: OpenTurn, ticket: Ticket, flight: Flight, node: str, grads: Mapping[str, Value] | None
    ) -> None:
        for edge in flight.route.inputs[node]:
            if edge.returns:
                value = grads[edge.name] if grads is not None and edge.differentiable else ()
                self._move_back(turn, ticket, flight, edge, value)

    def _drain(self, turn: OpenTurn, replica: Replica, owners: tuple[str, ...], normaliser: float) -> None:
        """Another ticket of the step is through this replica; after the last one it steps, and goes on."""
        if replica == turn.last_back:
            turn.loaded -= 1
            self._load(turn)
        gate = self.gates[replica]
        slot = gate.slots[0]
        slot.drained += 1
        slot.normaliser += normaliser
        if slot.drained < len(turn.batches(owners[0], slot.step)):
            return
        if not turn.joined or replica[1] not in owners:
            self._step((replica,), owners, turn, slot)
        elif turn.is_last(slot.step):
            self.joined_normaliser = slot.normaliser
            replicas = tuple(self.route(self.me).replicas.values()) if self._own_steps else ()
            self._step(replicas, owners, turn, slot)
        step = slot.step
        if not slot.next_step():
            self._leave(turn, gate)
        if turn.drained(step):
            self._finish_step(turn, owners, step)
        self.out += gate.release()

    def _step(
        self, replicas: tuple[Replica, ...], owners: tuple[str, ...], turn: OpenTurn, slot: Slot
    ) -> None:  # fmt: skip
        normaliser, step = slot.normaliser, slot.step
        if normaliser <= 0:
            raise Diverged(f"no row counts in the loss of a step of turn {turn.number}, of {', '.join(owners)}")
        stepping = [replica for replica in replicas if self._topology.source(replica[0]) is None]
        self.out += [
            Step(replica, owners, turn.work.round, normaliser, min(self._staleness.get(replica[0], 0), step))
            for replica in stepping
        ]

    def _leave(self, turn: OpenTurn, gate: Gate) -> None:
        """A replica of mine is through with a turn."""
        turn.replicas_left -= 1
        if not turn.replicas_left:
            del self.turns[turn.number]
            self.finished.append(turn)
        self.leave((gate,))

    def leave(self, gates: Iterable[Gate]) -> None:
        """Let these replicas go on to what comes next."""
        self.left = True
        for gate in gates:
            gate.slots.popleft()
            self.out += gate.release()

    def _finish_step(self, turn: OpenTurn, owners: tuple[str, ...], step: int) -> None:
        turn.forget(step)
        if isinstance(turn.work, Train) and turn.work.tried and self.me == self.plan.conductor:
            self.out.append(Lap(turn.number, turn.work.parts))
        for each in owners:
            turn.finish(each, step)
        owner = self._loads(turn)
        if owner is not None and owner in owners:
            self._begin_step(turn, owner)

    def _finish_eval_ticket(self, turn: OpenTurn, ticket: Ticket, flight: Flight) -> None:
        flight.drained += 1
        if flight.drained == len(flight.route.replicas):
            del turn.flights[ticket]
            turn.finished.add(ticket)
            turn.finish(ticket.owner, ticket.step)
            if ticket.owner == self._loads(turn):
                self._begin_step(turn, ticket.owner)
