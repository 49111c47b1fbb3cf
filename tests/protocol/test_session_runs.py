"""Claims about whole runs: sessions joined by a wire that delivers in any order end alike, and as the plan says."""

import gc
from collections import Counter
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Train, TurnUnit
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Done, Run, Send, Step
from cutlayer.protocol.messages import Backward, Forward, Report, Rows, Ticket
from cutlayer.protocol.session import Session
from protocol.joined import CLIENTS, LAB, A, B, Wire, make_plan, schedule_of, steps_of

Replica = tuple[str, tuple[str, str]]


@dataclass(frozen=True)
class Scenario:
    """A plan, and everybody's rows."""

    topology: str
    rows: tuple[Rows, ...]
    batch_size: int
    micro_batches: int
    rounds: int
    turn: TurnUnit
    drop_last: bool
    frozen: bool

    @property
    def plan(self) -> Plan:
        return make_plan(
            self.topology,
            clients=len(self.rows),
            rounds=self.rounds,
            batch_size=self.batch_size,
            micro_batches=self.micro_batches,
            turn=self.turn,
            drop_last=self.drop_last,
            frozen=self.frozen,
        )

    @property
    def brought(self) -> dict[str, Rows]:
        return dict(zip(CLIENTS, self.rows, strict=False))

    def play(self, seed: int | None = None, *, prompt: bool = True) -> Wire:
        return Wire(self.plan, self.brought, seed=seed, prompt=prompt).start().run()


SCENARIOS = st.builds(
    Scenario,
    topology=st.sampled_from(["vanilla", "u_shaped"]),
    rows=st.lists(st.builds(Rows, train=st.integers(0, 11), held_out=st.integers(0, 9)), min_size=1, max_size=4).map(
        tuple
    ),
    batch_size=st.integers(1, 5),
    micro_batches=st.integers(1, 4),
    rounds=st.integers(0, 3),
    turn=st.sampled_from(["epoch", "batch"]),
    drop_last=st.booleans(),
    frozen=st.booleans(),
)
UNEQUAL = (Rows(11, 5), Rows(4, 0), Rows(0, 3), Rows(7, 9))


def assert_all_done(wire: Wire) -> None:
    assert {name: type(ending) for name, ending in wire.endings().items()} == dict.fromkeys(wire.sessions, Done)
    for name in wire.sessions:
        assert isinstance(wire.actions(name)[-1], Done)
        assert sum(isinstance(action, Done) for action in wire.actions(name)) == 1


def assert_steps_as_scheduled(wire: Wire) -> None:
    """Each replica steps once per mini-batch, in the schedule's order, over that mini-batch's rows."""
    trains = [work for work in schedule_of(wire.plan, wire.rows) if isinstance(work, Train)]
    due = [
        (work.parties[0], work.round, float(rows))
        for work in trains
        for rows in steps_of(work, wire.rows[work.parties[0]], wire.plan)
    ]
    for (_, (_, owner)), done in wire.by_replica().items():
        stepped = [(step.owners[0], step.round, step.normaliser) for step in done if isinstance(step, Step)]
        assert stepped == [each for each in due if owner in {LAB, each[0]}]


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
    """The words that a loss was given tell the whole way that the rows of its ticket should have gone."""
    ways = {
        "vanilla": "top(bottom->top: bottom(x->bottom: x of {0}), y->top: y of {0})",
        "u_shaped": "head(middle->head: middle(bottom->middle: bottom(x->bottom: x of {0})), y->head: y of {0})",
    }
    for traced in wire.trace:
        run = traced.action
        if not isinstance(run, Run) or run.direction == "load":
            continue
        if run.direction == "backward":
            assert all(value == f"d {edge} {run.ticket}" for edge, value in run.inputs.items())
        elif run.node in {"top", "head"}:
            said = ", ".join(f"{edge}: {value}" for edge, value in run.inputs.items())
            batch = said.rpartition(" of ")[2]
            assert batch.startswith(run.ticket.owner)
            assert f"{run.node}({said})" == ways[wire.plan.terms.topology].format(batch)


def assert_losses_told_to_whom_they_belong(wire: Wire) -> None:
    """A client hears the losses of its own rows only, each once; the lab hears all."""
    turns = schedule_of(wire.plan, wire.rows)
    for name in wire.sessions:
        told = Counter((tell.turn, owner) for tell in wire.tells(name) for owner in tell.sums)
        due = [(turn, owner) for turn, work in enumerate(turns) for owner in work.parties]
        assert told == Counter(each for each in due if name in {LAB, each[1]})
        for tell in wire.tells(name):
            for owner, sums in tell.sums.items():
                assert sums == _sums_of(wire, tell.turn, owner)
        for send in wire.sent(LAB, name):
            assert not isinstance(send.message, Report) or set(send.message.sums) <= {name}


def _sums_of(wire: Wire, turn: int, owner: str) -> dict[str, float]:
    work, brought = schedule_of(wire.plan, wire.rows)[turn], wire.rows[owner]
    rows = sum(steps_of(work, brought, wire.plan)) if isinstance(work, Train) else brought.held_out
    return {"loss": 2.0 * rows, "normaliser": float(rows)}


def assert_nothing_is_kept(wire: Wire) -> None:
    for session in wire.sessions.values():
        assert not session._traffic.turns
        assert not session._traffic.finished
        assert not session._unreported
        for gate in session._traffic._gates.values():
            assert not gate.slots
            assert not gate._waiting


def order(wire: Wire, direction: str) -> dict[Replica, list[Any]]:
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


@settings(max_examples=120, deadline=None)
@given(SCENARIOS, st.integers(0, 2**32), st.booleans())
def test_any_run_ends_as_the_plan_says_whatever_the_order_of_delivery(
    scenario: Scenario, seed: int, prompt: bool
) -> None:
    wire = scenario.play(seed, prompt=prompt)
    assert_all_done(wire)
    assert_steps_as_scheduled(wire)
    assert_steps_never_overlap(wire)
    assert_values_came_by_their_edges(wire)
    assert_losses_told_to_whom_they_belong(wire)
    assert_nothing_is_kept(wire)


@pytest.mark.parametrize("turn", ["epoch", "batch"])
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_fifty_orders_of_delivery_give_each_replica_the_same_work_in_the_same_order(
    topology: str, turn: TurnUnit
) -> None:
    scenario = Scenario(topology, UNEQUAL, 4, 2, 1, turn, drop_last=False, frozen=False)
    straight = scenario.play()
    for seed in range(50):
        wire = scenario.play(seed, prompt=bool(seed % 2))
        assert_all_done(wire)
        assert order(wire, "forward") == order(straight, "forward")
        assert order(wire, "backward") == order(straight, "backward")


def test_parts_of_a_step_that_arrive_in_another_order_wait_for_each_other() -> None:
    plan = make_plan("u_shaped", clients=1, micro_batches=3)
    wire = Wire(plan, {A: Rows(4)}).start().run(until=lambda wire: wire.sessions[LAB].states.get(A) == "running")
    parts = [
        Forward(Ticket(0, A, 0, micro, "train"), "bottom->middle", _hidden(rows))
        for micro, rows in enumerate((1, 1, 2))
    ]
    assert wire.inject(A, LAB, parts[1]) == []
    assert wire.inject(A, LAB, parts[2]) == []
    released = [action for action in wire.inject(A, LAB, parts[0]) if isinstance(action, Run)]
    assert [run.ticket.micro for run in released] == [0, 1, 2]


def _hidden(rows: int) -> tuple[TensorShape, ...]:
    return (TensorShape("float64", (rows, 6)),)


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("rounds", [0, 1])
def test_clients_without_any_rows_join_and_leave(topology: str, rounds: int) -> None:
    scenario = Scenario(topology, (Rows(), Rows()), 4, 1, rounds, "epoch", drop_last=False, frozen=False)
    wire = scenario.play()
    assert_all_done(wire)
    assert wire.by_replica() == {}


def test_a_client_whose_turns_are_over_waits_for_the_others_turns_without_complaint() -> None:
    scenario = Scenario("vanilla", (Rows(4), Rows(40)), 4, 1, 1, "batch", drop_last=False, frozen=False)
    assert_all_done(scenario.play())


def test_held_out_rows_and_micro_batches_are_loaded_whole_and_once() -> None:
    scenario = Scenario("u_shaped", (Rows(11, 7), Rows(3, 1)), 4, 3, 2, "epoch", drop_last=False, frozen=False)
    wire = scenario.play(7)
    loads = [t.action.batch for t in wire.trace if isinstance(t.action, Run) and t.action.node == "x" and t.party == A]
    used = Counter((b.epoch, b.held_out, row) for b in loads if b is not None for row in range(b.start, b.stop))
    assert used == Counter(
        [(epoch, False, row) for epoch in range(2) for row in range(11)]
        + [(epoch, True, row) for epoch in range(2) for row in range(7)]
    )


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("frozen", [False, True])
def test_every_activation_is_answered_once_and_without_tensors_where_there_is_no_gradient(
    topology: str, frozen: bool
) -> None:
    scenario = Scenario(topology, UNEQUAL, 4, 2, 1, "epoch", drop_last=False, frozen=frozen)
    wire = scenario.play(3)
    messages = [send.message for send in _sends(wire)]
    activations = Counter((m.ticket, m.edge) for m in messages if isinstance(m, Forward) and m.edge[0] != "y")
    answers = {(m.ticket, m.edge): m for m in messages if isinstance(m, Backward)}
    assert activations == Counter(answers.keys())
    for (ticket, edge), answer in answers.items():
        gradient = ticket.purpose == "train" and not (frozen and edge.startswith("bottom"))
        assert bool(answer.tensors) == gradient
        assert (answer.normaliser > 0) == (ticket.purpose == "train")
    assert all(s.payload == () for s in _sends(wire) if isinstance(s.message, Backward) and not s.message.tensors)
    learners = {t.action.node for t in wire.trace if isinstance(t.action, Run) and t.action.direction == "backward"}
    assert ("bottom" in learners) != frozen


def _sends(wire: Wire) -> list[Send]:
    return [traced.action for traced in wire.trace if isinstance(traced.action, Send)]


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("frozen", [False, True])
def test_nobody_holds_more_than_a_few_tickets_however_many_rows_there_are(topology: str, frozen: bool) -> None:
    scenario = Scenario(topology, (Rows(40, 60), Rows(40, 60)), 2, 2, 2, "epoch", drop_last=False, frozen=frozen)
    held: list[int] = []

    def hold(wire: Wire) -> bool:
        for session in wire.sessions.values():
            held.append(max((len(turn.flights) for turn in session._traffic.turns.values()), default=0))
        return False

    for seed in range(4):
        wire = Wire(scenario.plan, scenario.brought, seed=seed, prompt=bool(seed % 2)).start().run(until=hold)
        assert_all_done(wire)
    assert max(held) <= 4


def test_a_session_does_not_grow_over_many_rounds() -> None:
    sizes: dict[int, Counter[str]] = {}
    for rounds in (2, 40):
        plan = make_plan("u_shaped", clients=2, rounds=rounds)
        largest = sizes[rounds] = Counter()

        def weigh(wire: Wire, largest: Counter[str] = largest) -> bool:
            for name, session in wire.sessions.items():
                largest[name] = max(largest[name], _kept_objects(session))
            return False

        assert_all_done(Wire(plan, {A: Rows(9, 3), B: Rows(4, 5)}).start().run(until=weigh))
    for name, few in sizes[2].items():
        assert sizes[40][name] <= 1.2 * few


def _kept_objects(session: Session) -> int:
    """How many objects a session keeps alive, the plan apart."""
    seen = {id(session.plan)}
    queue: list[object] = [session]
    while queue:
        each = queue.pop()
        if id(each) not in seen and not isinstance(each, type | ModuleType | FunctionType):
            seen.add(id(each))
            queue += gc.get_referents(each)
    return len(seen)
