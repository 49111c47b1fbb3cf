"""What holds of a whole run that has ended, whatever its schedule and the order in which messages arrived."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cutlayer.plan.schedule import Evaluate, Share, Train
from cutlayer.protocol.events import Add, Done, Joined, Replica, Run, Send, Step
from cutlayer.protocol.messages import Report, State, Ticket
from protocol.joined import Wire
from protocol.plans import LAB, schedule_of, steps_of, turns_of

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
    plan, clients = wire.plan, wire.plan.terms.filling("client")
    trains = [work for work in turns_of(plan, wire.rows).values() if isinstance(work, Train)]
    for segment in plan.topology.segments:
        shared = segment.role == "server" and plan.schedule.server_shared
        for owner in (LAB,) if shared else clients:
            due = [step for work in trains for step in _steps_of_replica(wire, work, segment.role, owner)]
            if due:
                yield (LAB if segment.role == "server" else owner, (segment.name, owner)), due


def _steps_of_replica(wire: Wire, work: Train, role: str, owner: str) -> Iterator[Stepped]:
    """The steps that a replica of `owner` takes in a turn."""
    plan = wire.plan
    rows = [sum(each) for each in zip(*(steps_of(work, p, wire.rows, plan) for p in work.parties), strict=True)]
    equal = work.joined and plan.terms.training.client_segments == "equal"
    for normaliser in map(float, rows):
        if role == "server":
            if owner in (LAB, *work.parties):
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
    """The words that a loss was given tell the whole way that the rows of its ticket should have gone.

    Joined batches come all together, in party order.
    """
    turns = turns_of(wire.plan, wire.rows)
    for traced in wire.trace:
        run = traced.action
        if not isinstance(run, Run) or run.direction == "load":
            continue
        joined = getattr(turns[run.ticket.turn], "joined", False) and traced.party == LAB
        assert run.owners == (turns[run.ticket.turn].parties if joined else ())
        for place, owner in enumerate(run.owners or (run.ticket.owner,)):
            parts = [(edge, _part(value, place if joined else None)) for edge, value in run.inputs.items()]
            _assert_came_by_its_edges(wire, run, owner, parts)


def _part(value: Any, place: int | None) -> Any:
    if place is None:
        return value
    assert isinstance(value, Joined)
    return value.parts[place]


def _assert_came_by_its_edges(wire: Wire, run: Run, owner: str, inputs: list[tuple[str, Any]]) -> None:
    ways = {
        "vanilla": "top(bottom->top: bottom(x->bottom: x of {0}), y->top: y of {0})",
        "u_shaped": "head(middle->head: middle(bottom->middle: bottom(x->bottom: x of {0})), y->head: y of {0})",
    }
    ticket = Ticket(run.ticket.turn, owner, run.ticket.step, run.ticket.micro, run.ticket.purpose)
    if run.direction == "backward":
        assert all(value == f"d {edge} {ticket}" for edge, value in inputs)
    elif run.node in {"top", "head"}:
        said = ", ".join(f"{edge}: {value}" for edge, value in inputs)
        batch = said.rpartition(" of ")[2]
        assert batch.startswith(owner)
        assert f"{run.node}({said})" == ways[wire.plan.terms.topology].format(batch)


def assert_losses_told_to_whom_they_belong(wire: Wire) -> None:
    """A client hears the losses of its own rows only, each once; the lab hears all."""
    turns = turns_of(wire.plan, wire.rows)
    for name in wire.sessions:
        told = Counter((tell.turn, owner) for tell in wire.tells(name) for owner in tell.sums)
        due = [(number, owner) for number, work in turns.items() for owner in work.parties]
        assert told == Counter(each for each in due if name in {LAB, each[1]})
        for tell in wire.tells(name):
            for owner, sums in tell.sums.items():
                assert sums == _sums_of(wire, turns[tell.turn], owner)
        for send in wire.sent(LAB, name):
            assert not isinstance(send.message, Report) or set(send.message.sums) <= {name}


def _sums_of(wire: Wire, work: Train | Evaluate, owner: str) -> dict[str, float]:
    held_out = wire.rows[owner].held_out
    rows = sum(steps_of(work, owner, wire.rows, wire.plan)) if isinstance(work, Train) else held_out
    return {"loss": 2.0 * rows, "normaliser": float(rows)}


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


# ---------------------------------------------------------------------- the end


def assert_nothing_is_kept(wire: Wire) -> None:
    for session in wire.sessions.values():
        traffic, movements = session._traffic, session._movements
        assert not traffic.turns
        assert not traffic.finished
        assert not session._reports.due
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
