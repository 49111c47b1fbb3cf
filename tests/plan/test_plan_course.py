"""Claims about who trains on which rows, and on whose weights: on the newest mean, or on what was handed on last."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.plan.check import faults
from cutlayer.plan.course import Course
from cutlayer.plan.schedule import SCHEDULES, Average, Evaluate, HandOver, Train
from plan.test_plan_check import SOUND
from plan.test_plan_schedules import course

ROWS = st.lists(st.integers(0, 13), min_size=1, max_size=5)
CHOICES = st.sampled_from(["all", 1, 2, 0.5])
SEEDS = st.integers(0, 50)


@given(st.sampled_from(["splitfed_v1", "splitfed_v2"]), ROWS, st.integers(1, 5), CHOICES, SEEDS, st.booleans())
def test_every_client_works_on_the_newest_mean_and_in_the_end_all_have_it(
    schedule: str, rows: list[int], rounds: int, choice: Any, seed: int, drop_last: bool
) -> None:
    """In rounds in which nobody has a row to train on there is no mean."""
    held_out = tuple(count % 3 for count in rows)
    terms = {"rounds": rounds, "clients_per_round": choice, "seed": seed, "drop_last": drop_last}
    each = course(*rows, held_out=held_out, schedule=schedule, **terms)
    newest, has = 0, dict.fromkeys(each.clients, 0)
    for work in SCHEDULES[schedule].turns(each):
        if isinstance(work, Average):
            newest += 1
            has |= dict.fromkeys(work.takers, newest)
        elif isinstance(work, Train | Evaluate):
            assert {has[party] for party in work.parties} == {newest}
    assert set(has.values()) == {newest}


@given(ROWS, st.integers(1, 4), CHOICES, SEEDS, st.sampled_from(["epoch", "batch"]))
def test_relay_trains_where_the_state_is_and_ends_with_all_having_the_last(
    rows: list[int], rounds: int, choice: Any, seed: int, turn: Any
) -> None:
    terms = {"rounds": rounds, "clients_per_round": choice, "seed": seed, "turn": turn}
    each = course(*rows, held_out=(1,) * len(rows), schedule="relay", **terms)
    newest, has = 0, dict.fromkeys(each.clients, 0)
    for work in SCHEDULES["relay"].turns(each):
        if isinstance(work, HandOver):
            assert has[work.source] == newest
            has[work.target] = newest
        elif isinstance(work, Train):
            assert has[work.parties[0]] == newest
            newest += 1
            has[work.parties[0]] = newest
        elif isinstance(work, Evaluate):
            assert {has[party] for party in work.parties} == {newest}
    assert set(has.values()) == {newest}


def test_a_mean_reaches_who_trains_after_rounds_in_which_nobody_does() -> None:
    """Here rounds 1 and 2 are those of clients without rows, and in round 3 one comes back that was not in round 1."""
    each = Scripted(train_rows={"a": 4, "b": 4, "c": 0}, held_out_rows={"a": 0, "b": 0, "c": 1}, rounds=4, batch_size=4)
    averages = [work for work in SCHEDULES["splitfed_v2"].turns(each) if isinstance(work, Average)]
    assert [(average.round, average.takers) for average in averages] == [(0, ("b", "c")), (3, ("a", "b", "c"))]


class Scripted(Course):
    """Whose rounds have one client each: a, c, c, b."""

    def chosen(self, number: int) -> tuple[str, ...]:
        return tuple("accb"[number])


# ---------------------------------------------------------------------- rows


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 5), st.integers(0, 3))
def test_joined_batches_have_equally_many_parts_that_are_all_their_rows(
    rows: list[int], batch_size: int, micro_batches: int, local_steps: int
) -> None:
    each = course(
        *rows,
        schedule="parallel",
        rounds=2,
        batch_size=batch_size,
        micro_batches=micro_batches,
        local_steps=local_steps,
    )
    for work in SCHEDULES["parallel"].turns(each):
        if isinstance(work, Train):
            parts = [each.batches(party, work.round, work.first, work.parts) for party in work.parties]
            assert {len(batches) for batches in parts} == {work.parts}
            smallest = min(batches[-1].stop - batches[0].start for batches in parts)
            assert work.parts == min(micro_batches, smallest)
            for party, batches in zip(work.parties, parts, strict=True):
                assert_whole(each, party, batches, each.place(party, work.round, work.first))


def assert_whole(each: Course, party: str, batches: list[Any], place: tuple[int, int]) -> None:
    epoch, index = place
    assert {batch.epoch for batch in batches} == {epoch}
    start, stop = index * each.batch_size, min((index + 1) * each.batch_size, each.train_rows[party])
    assert [row for batch in batches for row in range(batch.start, batch.stop)] == list(range(start, stop))


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_local_epochs_use_each_row_once_an_epoch(
    rows: int, batch_size: int, rounds: int, local_epochs: int, drop_last: bool
) -> None:
    each = course(rows, rounds=rounds, batch_size=batch_size, local_epochs=local_epochs, drop_last=drop_last)
    used = [
        (batch.epoch, row)
        for number in range(rounds)
        for step in range(each.steps("a"))
        for batch in each.batches("a", number, step, 1)
        for row in range(batch.start, batch.stop)
    ]
    kept = rows - rows % batch_size if drop_last else rows
    assert used == [(epoch, row) for epoch in range(rounds * local_epochs) for row in range(kept)]


def test_a_round_of_local_steps_may_be_longer_or_shorter_than_an_epoch_but_nobody_without_rows_takes_any() -> None:
    each = course(9, 2, 0, local_steps=5)
    assert [each.steps(party) for party in each.clients] == [5, 5, 0]
    assert course(3, 9, local_steps=5, drop_last=True).steps("a") == 0


def test_after_the_last_round_all_that_hold_rows_out_evaluate() -> None:
    each = course(4, 4, 4, 4, held_out=(1, 0, 1, 1), rounds=6, clients_per_round=1)
    for number in range(5):
        (party,) = each.chosen(number)
        assert each.evaluated(number) == ((party,) if each.held_out_rows[party] else ())
    assert each.evaluated(5) == ("a", "c", "d")


def test_clients_are_chosen_alike_by_all_whatever_they_know_of_rows() -> None:
    here, there = course(4, 4, 4, clients_per_round=2), course(9, 0, 1, clients_per_round=2)
    assert [here.chosen(number) for number in range(9)] == [there.chosen(number) for number in range(9)]
    assert [here.shuffled(number) for number in range(9)] == [there.shuffled(number) for number in range(9)]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_a_plan_without_any_server_is_a_fault_and_no_crash(schedule: str) -> None:
    clients = {"hospital-a": SOUND.parties["hospital-a"]}
    for sees_weights in (False, True):
        terms = replace(SOUND, parties=clients, schedule=schedule, aggregator_sees_weights=sees_weights)
        assert '0 parties have role = "server"; vanilla has exactly one' in faults(terms)
