"""What holds of a whole run that has ended, whatever its schedule and the order in which messages arrived."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from cutlayer.plan.schedule import Evaluate, Share, Train
from cutlayer.plan.topology import Topology
from cutlayer.protocol.events import Add, Done, Joined, Replica, Run, Send, Step, Take
from cutlayer.protocol.messages import Backward, Bye, Forward, Report, Sealed, State, Ticket
from protocol.joined import Wire, mark_of
from protocol.plans import LAB, owned, schedule_of, steps_of, turns_of

Stepped = tuple[tuple[str, ...], int, float]
"""Whose rows a step was made of, its round and its normaliser."""


def assert_all_done(wire: Wire) -> None:
    assert {name: type(ending) for name, ending in wire.endings().items()} == dict.fromkeys(wire.sessions, Done)
    for name in wire.sessions:
        assert isinstance(wire.actions(name)[-1], Done)
        assert sum(isinstance(action, Done) for action in wire.actions(name)) == 1


# ---------------------------------------------------------------------- work


def assert_steps_as_scheduled(wire: Wire) -> None:
    """Each replica steps once per mini-batch, in the schedule's order, over that mini-batch's rows."""
    stepped: dict[tuple[str, Replica], list[Stepped]] = {}
    for place, done in wire.by_replica().items():
        if steps := [(step.owners, step.round, step.normaliser) for step in done if isinstance(step, Step)]:
            stepped[place] = steps
    assert stepped == dict(_steps_due(wire))


def _steps_due(wire: Wire) -> Iterator[tuple[tuple[str, Replica], list[Stepped]]]:
    plan = wire.plan
    owners = tuple(owned(plan, wire.rows))
    trains = [work for work in turns_of(plan, wire.rows).values() if isinstance(work, Train)]
    for segment in plan.topology.segments:
        for holder, owner in _replicas(wire, segment.role, owners):
            due = [
                step
                for work in trains
                if segment in plan.topology.without(work.silent).segments
                for step in _steps_of_replica(wire, work, segment.role, owner)
            ]
            if due:
                yield (holder, (segment.name, owner)), due


def _replicas(wire: Wire, role: str, owners: tuple[str, ...]) -> list[tuple[str, str]]:
    """The holders of a role's segments, and whom each replica is for."""
    plan = wire.plan
    if role == "client":
        return [(owner, owner) for owner in owners]
    holder = role if role in plan.terms.parties else plan.terms.filling(role)[0]
    own = role == "server" and not plan.schedule.server_shared
    return [(holder, owner) for owner in (owners if own else (holder,))]


def _steps_of_replica(wire: Wire, work: Train, role: str, owner: str) -> Iterator[Stepped]:
    """The steps that a replica of `owner` takes in a turn."""
    plan = wire.plan
    rows = [sum(each) for each in zip(*(steps_of(work, p, wire.rows, plan) for p in work.parties), strict=True)]
    equal = work.joined and plan.terms.training.client_segments == "equal"
    for normaliser in map(float, rows):
        if role != "client":
            if plan.schedule.server_shared or owner in work.parties:
                yield work.parties, work.round, normaliser
        elif owner in work.parties:
            yield (owner,), work.round, normaliser
        elif equal:
            yield (), work.round, normaliser


def assert_steps_never_overlap(wire: Wire) -> None:
    """Between two steps a replica works on the tickets of one step only, and on all of them."""
    for done in wire.by_replica().values():
        open_tickets: list[Run] = []
        for action in done:
            if isinstance(action, Run):
                assert not open_tickets or _group(action.ticket) == _group(open_tickets[0].ticket)
                if action.ticket.purpose == "train":
                    open_tickets.append(action)
            else:
                micros = Counter(run.ticket.micro for run in open_tickets if run.direction == "forward")
                assert sorted(micros.items()) == [(micro, 1) for micro in range(len(micros))]
                open_tickets = []
        assert not open_tickets


def _group(ticket: Ticket) -> tuple[Any, ...]:
    return ticket.turn, ticket.owner, ticket.step, ticket.purpose


def assert_values_came_by_their_edges(wire: Wire) -> None:
    """What a segment was given tells the whole way that the rows of its ticket should have gone.

    Joined batches come all together, in party order.
    """
    turns = turns_of(wire.plan, wire.rows)
    for traced in wire.trace:
        run = traced.action
        if not isinstance(run, Run) or run.direction == "load":
            continue
        work = turns[run.ticket.turn]
        joined = getattr(work, "joined", False) and traced.party == LAB
        assert run.owners == (work.parties if joined else ())
        for place, owner in enumerate(run.owners or (run.ticket.owner,)):
            parts = {edge: _part(value, place if joined else None) for edge, value in run.inputs.items()}
            _assert_came_by_its_edges(wire.plan.topology.without(work.silent), run, owner, parts)


def _part(value: Any, place: int | None) -> Any:
    if place is None:
        return value
    assert isinstance(value, Joined)
    return value.parts[place]


def _assert_came_by_its_edges(topology: Topology, run: Run, owner: str, inputs: dict[str, Any]) -> None:
    ticket = Ticket(run.ticket.turn, owner, run.ticket.step, run.ticket.micro, run.ticket.purpose)
    if run.direction == "backward":
        assert inputs == {edge: f"d {edge} {ticket}" for edge in inputs}
        assert inputs.keys() <= {edge.name for edge in topology.outputs(run.node)}
        return
    (batch,) = {"".join(BATCH.findall(value)[:1]) for value in inputs.values()}
    assert batch.startswith(f"{owner} (")
    told = [(edge.name, _told(topology, edge.source, batch)) for edge in topology.inputs(run.node)]
    assert list(inputs.items()) == told


BATCH = re.compile(r" of ([\w-]+ \([^)]*\))")
"""Whose rows a word speaks of, and which."""


def _told(topology: Topology, node: str, batch: str) -> str:
    """What a node says of a batch, by the way that leads to it."""
    if topology.source(node):
        return f"{node} of {batch}"
    inputs = (f"{edge.name}: {_told(topology, edge.source, batch)}" for edge in topology.inputs(node))
    return f"{node}({', '.join(inputs)})"


def assert_losses_told_to_whom_they_belong(wire: Wire) -> None:
    """A client hears the losses of its own rows only, each once; the lab hears all; others know what they hold."""
    plan, turns = wire.plan, turns_of(wire.plan, wire.rows)
    for name in wire.sessions:
        told: dict[tuple[int, str], dict[str, float]] = {}
        for tell in wire.tells(name):
            for owner, sums in tell.sums.items():
                known = told.setdefault((tell.turn, owner), {})
                assert not known.keys() & sums.keys()
                known.update(sums)
        due: dict[tuple[int, str], dict[str, float]] = {}
        for number, work in turns.items():
            for owner in work.parties:
                losses = plan.topology.without(work.silent).losses
                heard = [loss for loss in losses if name in {LAB, owner, plan.holder(loss.role, owner)}]
                if heard:
                    prefixes = [plan.score_prefixes[loss.name] for loss in heard]
                    due[number, owner] = _sums_of(wire, work, owner, prefixes)
        assert told == due
        for send in wire.sent(LAB, name):
            assert not isinstance(send.message, Report) or set(send.message.sums) <= {name}


def _sums_of(wire: Wire, work: Train | Evaluate, owner: str, prefixes: list[str]) -> dict[str, float]:
    held_out = owned(wire.plan, wire.rows)[owner].held_out
    rows = sum(steps_of(work, owner, wire.rows, wire.plan)) if isinstance(work, Train) else held_out
    sums = {"loss": 2.0 * rows, "normaliser": float(rows)}
    return {prefix + name: value for prefix in prefixes for name, value in sums.items()}


def assert_rows_are_loaded_in_the_order_that_all_were_told(wire: Wire) -> None:
    """Where parties have columns of the same rows, nobody loads one before it knows the key of their order."""
    owners = wire.plan.row_owners if wire.plan.schedule.together else ()
    for name in owners[1:]:
        done = [a for a in wire.actions(name) if isinstance(a, Take) or (isinstance(a, Run) and a.direction == "load")]
        assert sum(isinstance(action, Take) for action in done) == 1
        assert isinstance(done[0], Take)
        assert done[0].message.source == owners[0]


# ---------------------------------------------------------------------- movements


def assert_sums_are_added_in_the_schedules_order(wire: Wire) -> None:
    """Whatever the order of arrival: owner by owner, weight by weight."""
    plan = wire.plan
    shares = [work for work in schedule_of(plan, wire.rows) if isinstance(work, Share)]
    own = [name for name in plan.averaged_segments if name not in plan.client_segments]
    for name in wire.sessions:
        added = [(action.owner, action.weight) for action in wire.actions(name) if isinstance(action, Add)]
        due = []
        for work in shares:
            summed = [
                name == plan.aggregator and not set(work.segments).isdisjoint(plan.client_segments),
                name == plan.aggregator != LAB and bool(plan.straddling),
                name == LAB and bool(own),
            ]
            due += [each for each in work.holders.items() for _ in range(sum(summed))]
        assert added == due


def assert_states_go_once_and_by_the_lab(wire: Wire) -> None:
    """A state is sent once, forwarded once if it is between others, and comes as it was sent."""
    sent = Counter((name, send) for name in wire.sessions for send in _states(wire, name) if send[0].source == name)
    forwarded = Counter(send for send in _states(wire, LAB) if send[0].source != LAB)
    assert all(count == 1 for count in sent.values())
    due = [send for (name, send), _ in sent.items() if LAB not in (name, send[0].target)]
    assert forwarded == Counter(due)


def _states(wire: Wire, party: str) -> list[tuple[State, Any]]:
    return [(send.message, send.payload) for send in wire.sent(party) if isinstance(send.message, State)]


# ---------------------------------------------------------------------- by the conductor


def assert_fellows_talk_sealed_and_each_message_goes_once(wire: Wire) -> None:
    """Two parties without a link talk by the lab, which sends on what came, once each and in order."""
    pairs = {(one, other) for one in wire.sessions for other in wire.sessions[one].fellows}
    assert pairs == wire.plan.forwarded_pairs
    for one, other in pairs:
        said = [send for send in wire.sent(one, other) if not isinstance(send.message, Bye)]
        sealed, passed = (
            [
                (each.message.number, each.payload)
                for each in wire.sent(*ends)
                if isinstance(each.message, Sealed) and (each.message.source, each.message.target) == (one, other)
            ]
            for ends in ((one, LAB), (LAB, other))
        )
        assert sealed == passed
        assert [payload.message for _, payload in sealed] == [send.message for send in said]
        assert [number for number, _ in sealed] == list(range(len(said)))
        assert all(isinstance(send.message, Forward | Backward) for send in said)


def assert_marks_are_on_activations_of_common_rows_only(wire: Wire) -> None:
    for traced in wire.trace:
        send = traced.action
        if isinstance(send, Send) and isinstance(send.message, Forward):
            assert send.message.mark == (mark_of(send.message.ticket) if wire.plan.schedule.together else b"")


# ---------------------------------------------------------------------- the end


def assert_nothing_is_kept(wire: Wire) -> None:
    for session in wire.sessions.values():
        traffic, movements = session._works.traffic, session._works.movements
        assert not traffic.turns
        assert not traffic.finished
        assert not session._works.reports.due
        assert movements.idle
        assert not movements.blocked
        for gate in traffic.gates.values():
            assert not gate.slots
            assert not gate._waiting


def order(wire: Wire, direction: str) -> dict[tuple[str, Replica], list[Any]]:
    """The training that each replica did, in order: runs in this direction, and steps.

    How forwards and backwards of one step interleave depends on the delivery; it changes no bit.
    """
    return {
        replica: [
            (action.ticket, action.direction) if isinstance(action, Run) else action
            for action in done
            if isinstance(action, Step) or (action.ticket.purpose == "train" and action.direction == direction)
        ]
        for replica, done in wire.by_replica().items()
    }


def sent(wire: Wire) -> list[Send]:
    return [traced.action for traced in wire.trace if isinstance(traced.action, Send)]
