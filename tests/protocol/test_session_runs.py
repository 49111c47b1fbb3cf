"""Claims about whole runs: sessions joined by a wire that delivers in any order end alike, and as the plan says."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Run
from cutlayer.protocol.messages import Backward, Forward, Rows, Ticket
from protocol.claims import (
    assert_all_done,
    assert_fellows_talk_sealed_and_each_message_goes_once,
    assert_losses_told_to_whom_they_belong,
    assert_marks_are_on_activations_of_common_rows_only,
    assert_nothing_is_kept,
    assert_rows_are_loaded_in_the_order_that_all_were_told,
    assert_states_go_once_and_by_the_lab,
    assert_steps_as_scheduled,
    assert_steps_never_overlap,
    assert_sums_are_added_in_the_schedules_order,
    assert_values_came_by_their_edges,
    order,
    sent,
)
from protocol.joined import Wire
from protocol.plans import LAB, A, make_plan
from protocol.scenarios import EVERY, SCENARIOS, UNEQUAL, Scenario, states_used

ANY = given(SCENARIOS, st.integers(0, 2**32), st.booleans())


@settings(max_examples=60, deadline=None)
@ANY
def test_any_run_ends_as_the_plan_says_whatever_the_order_of_delivery(
    scenario: Scenario, seed: int, prompt: bool
) -> None:
    assert_ends_as_planned(scenario, seed, prompt)


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@ANY
def test_many_runs_end_as_their_plans_say(scenario: Scenario, seed: int, prompt: bool) -> None:
    assert_ends_as_planned(scenario, seed, prompt)


def assert_ends_as_planned(scenario: Scenario, seed: int, prompt: bool) -> None:
    wire = scenario.play(seed, prompt=prompt)
    assert_all_done(wire)
    assert_steps_as_scheduled(wire)
    assert_steps_never_overlap(wire)
    assert_values_came_by_their_edges(wire)
    assert_losses_told_to_whom_they_belong(wire)
    assert_sums_are_added_in_the_schedules_order(wire)
    assert_states_go_once_and_by_the_lab(wire)
    assert_fellows_talk_sealed_and_each_message_goes_once(wire)
    assert_marks_are_on_activations_of_common_rows_only(wire)
    assert_rows_are_loaded_in_the_order_that_all_were_told(wire)
    assert_nothing_is_kept(wire)
    assert states_used(wire) == states_used(scenario.play())


@pytest.mark.parametrize("orders", [6, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", EVERY.values(), ids=EVERY.keys())
def test_any_order_of_delivery_gives_each_replica_the_same_work_on_the_same_states(
    scenario: Scenario, orders: int
) -> None:
    straight = scenario.play()
    assert_all_done(straight)
    for seed in range(orders):
        wire = scenario.play(seed, prompt=bool(seed % 2), shared=seed % 3 == 0)
        assert_all_done(wire)
        assert order(wire, "forward") == order(straight, "forward")
        assert order(wire, "backward") == order(straight, "backward")
        assert states_used(wire) == states_used(straight)


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
    scenario = Scenario(topology, (Rows(), Rows()), rounds=rounds)
    wire = scenario.play()
    assert_all_done(wire)
    assert wire.by_replica() == {}


def test_a_client_whose_turns_are_over_waits_for_the_others_turns_without_complaint() -> None:
    scenario = Scenario("vanilla", (Rows(4), Rows(40)), turn="batch")
    assert_all_done(scenario.play())


def test_held_out_rows_and_micro_batches_are_loaded_whole_and_once() -> None:
    scenario = Scenario("u_shaped", (Rows(11, 7), Rows(3, 1)), micro_batches=3, rounds=2)
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
    scenario = Scenario(topology, UNEQUAL, micro_batches=2, frozen=frozen)
    wire = scenario.play(3)
    messages = [send.message for send in sent(wire)]
    activations = Counter((m.ticket, m.edge) for m in messages if isinstance(m, Forward) and m.edge[0] != "y")
    answers = {(m.ticket, m.edge): m for m in messages if isinstance(m, Backward)}
    assert activations == Counter(answers.keys())
    for (ticket, edge), answer in answers.items():
        gradient = ticket.purpose == "train" and not (frozen and edge.startswith("bottom"))
        assert bool(answer.tensors) == gradient
        assert (answer.normaliser > 0) == (ticket.purpose == "train")
    assert all(s.payload == () for s in sent(wire) if isinstance(s.message, Backward) and not s.message.tensors)
    learners = {t.action.node for t in wire.trace if isinstance(t.action, Run) and t.action.direction == "backward"}
    assert ("bottom" in learners) != frozen
