"""Claims about saves in a run: two phases, in whatever order parts are written, and nothing that goes past one."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.plan.schedule import Save
from cutlayer.protocol.agenda import numbered
from cutlayer.protocol.events import Add, Commit, Give, Restore, Run, Send, Settle, Spread, Store, Stored, Take
from cutlayer.protocol.messages import Bye, Saved, Turn
from protocol.claims import assert_all_done, assert_nothing_is_kept, order
from protocol.joined import Wire
from protocol.lasting import Lasting, lasting, saving
from protocol.plans import LAB, schedule_of
from protocol.scenarios import EVERY, Scenario, states_used

SAVING = {name: saving(scenario) for name, scenario in EVERY.items()}


def number_of(action: Any) -> int | None:
    """The place in the schedule of what a party works on; `None` for what has none."""
    match action:
        case Run():
            return action.ticket.turn
        case Give() | Spread():
            return action.number
        case Take():
            return action.message.number
        case Add() | Settle():
            return action.message.number if action.message else None
    return None


def assert_saved_in_two_phases(wire: Wire) -> None:
    """Every save of the schedule, at every party: written by all, then committed by the lab, then by all others."""
    due = [number for number, work in numbered(schedule_of(wire.plan, wire.rows)) if isinstance(work, Save)]
    place = {(traced.party, traced.action): at for at, traced in enumerate(wire.trace) if _is_of_saves(traced.action)}
    for name in wire.sessions:
        actions = wire.actions(name)
        assert [action.number for action in actions if isinstance(action, Store)] == due
        assert [action.number for action in actions if isinstance(action, Commit)] == due
    for number in due:
        begun, held = (
            {party: at for (party, action), at in place.items() if isinstance(action, kind) and action.number == number}
            for kind in (Store, Commit)
        )
        assert max(begun.values()) < held[LAB]
        assert held[LAB] == min(held.values())
        words = [at for (party, said), at in place.items() if party == LAB and _says(said, number)]
        assert len(words) == len(wire.sessions) - 1
        assert held[LAB] < min(words)


def _is_of_saves(action: Any) -> bool:
    return isinstance(action, Store | Commit) or (isinstance(action, Send) and isinstance(action.message, Saved))


def _says(action: Any, number: int) -> bool:
    return isinstance(action, Send) and action.message == Saved(number)


def assert_nobody_goes_past_a_save_before_the_conductor(wire: Wire) -> None:
    """All that a party does before a save lies before it in the schedule, and after it, behind it."""
    copied: dict[str, int] = {}
    for traced in wire.trace:
        party, action = traced.party, traced.action
        if isinstance(action, Store):
            copied[party] = action.number
        elif (number := number_of(action)) is not None:
            assert number > copied.get(party, -1)
            assert copied.get(party, -1) <= copied.get(LAB, -1)


def assert_nothing_before_a_save_comes_after_it(wire: Wire) -> None:
    for name in wire.sessions:
        done = -1
        for action in wire.actions(name):
            if (number := number_of(action)) is not None:
                done = max(done, number)
            elif isinstance(action, Store):
                assert done <= action.number


@pytest.mark.parametrize("scenario", SAVING.values(), ids=SAVING.keys())
def test_saves_are_made_in_two_phases_whenever_their_parts_are_written(scenario: Scenario) -> None:
    straight = lasting(scenario, hasty=True).run()
    for seed in range(2):
        wire = lasting(scenario, seed=seed, prompt=bool(seed % 2), shared=bool(seed))
        wire.run()
        assert_all_done(wire)
        assert_nothing_is_kept(wire)
        assert_saved_in_two_phases(wire)
        assert_nobody_goes_past_a_save_before_the_conductor(wire)
        assert_nothing_before_a_save_comes_after_it(wire)
        assert order(wire, "forward") == order(straight, "forward")
        assert order(wire, "backward") == order(straight, "backward")
        assert states_used(wire) == states_used(straight)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(EVERY)), st.integers(1, 5), st.integers(0, 2**32), st.booleans())
def test_saves_change_no_work_however_often_they_come(name: str, every: int, seed: int, prompt: bool) -> None:
    wire = lasting(saving(EVERY[name], every), seed=seed, prompt=prompt)
    wire.run()
    assert_all_done(wire)
    assert_saved_in_two_phases(wire)
    plain = EVERY[name].play()
    assert {party: states for party, (_, states) in states_used(plain).items()} == {
        party: states for party, (_, states) in states_used(wire).items()
    }


def slow_writer(party: str) -> Lasting:
    """A run in which one party's first part is not written, and nothing else is left to happen."""
    wire = lasting(saving(EVERY["alternating, vanilla"], 2))
    while (queues := [(me, queue) for me, queue in wire._queues() if queue is not wire.writing[party]]) != []:
        me, queue = queues[0]
        wire.feed(me, queue.popleft())
    return wire


@pytest.mark.parametrize("party", ["hospital-b", LAB])
def test_a_save_holds_only_when_all_wrote_it_but_work_goes_on_meanwhile(party: str) -> None:
    wire = slow_writer(party)
    first, second = [n for n, work in numbered(schedule_of(wire.plan, wire.rows)) if isinstance(work, Save)][:2]
    assert not any(isinstance(traced.action, Commit) for traced in wire.trace)
    assert not any(send.message == Saved(first) for send in wire.sent(LAB))
    turns = [send.message.number for send in wire.sent(LAB) if isinstance(send.message, Turn)]
    assert first < max(turns) <= second, "turns up to the next save are granted, and none beyond"
    assert not any(isinstance(send.message, Bye) for send in wire.sent(LAB))
    wire.run()
    assert_all_done(wire)
    assert_saved_in_two_phases(wire)


def test_a_run_without_disks_saves_too_so_that_all_runs_are_the_same() -> None:
    wire = SAVING["splitfed_v1, vanilla"].play()
    assert_all_done(wire)
    assert_saved_in_two_phases(wire)


def test_the_beginning_restores_nothing_and_comes_before_all_work() -> None:
    wire = lasting(SAVING["relay, vanilla"]).run()
    for name in wire.sessions:
        actions = [action for action in wire.actions(name) if not isinstance(action, Send)]
        assert isinstance(actions[0], Restore)
        assert actions[0].save == -1
        assert sum(isinstance(action, Restore) for action in actions) == 1


def test_a_part_that_was_written_for_a_save_that_is_not_due_means_nothing() -> None:
    wire = slow_writer("hospital-b")
    assert wire.sessions["hospital-b"].feed(Stored(999)) == []
    assert wire.sessions[LAB].feed(Stored(998)) == []
