"""Claims about alternating: whose turn it is, and that each row of each party is used once a round."""

from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.plan.batches import step_count
from cutlayer.plan.course import Course
from cutlayer.plan.schedule import LEGAL, SCHEDULES, Evaluate, Train, TurnUnit, alternating
from cutlayer.plan.topology import OWN, TOPOLOGIES


def course(
    *train: int, held_out: tuple[int, ...] = (), rounds: int = 1, drop_last: bool = False, turn: TurnUnit = "epoch"
) -> Course:
    names = "abcdef"[: len(train)]
    return Course(
        train_rows=dict(zip(names, train, strict=True)),
        held_out_rows=dict(zip(names, held_out or (0,) * len(train), strict=True)),
        rounds=rounds,
        batch_size=4,
        drop_last=drop_last,
        turn=turn,
    )


def said(course: Course) -> list[str]:
    """The turns in a word each: whose, which steps."""
    return [
        f"{''.join(work.parties)}{work.first}-{work.first + work.steps - 1}"
        if isinstance(work, Train)
        else f"evaluate {''.join(work.parties)}"
        for work in alternating(course)
        if isinstance(work, Train | Evaluate)
    ]


def test_by_epoch_each_party_trains_a_whole_epoch_before_the_next() -> None:
    assert said(course(9, 4, rounds=2)) == ["a0-2", "b0-0", "a0-2", "b0-0"]


def test_by_batch_parties_take_a_step_each_and_who_has_more_rows_goes_on_alone() -> None:
    assert said(course(9, 4, 5, turn="batch")) == ["a0-0", "b0-0", "c0-0", "a1-1", "c1-1", "a2-2"]


@pytest.mark.parametrize("turn", ["epoch", "batch"])
def test_parties_without_rows_have_no_turn(turn: TurnUnit) -> None:
    assert said(course(0, 4, 0, turn=turn)) == ["b0-0"]
    assert said(course(0, 0, turn=turn, rounds=3)) == []


@pytest.mark.parametrize("turn", ["epoch", "batch"])
def test_small_last_steps_may_be_dropped_and_with_them_a_whole_turn(turn: TurnUnit) -> None:
    assert said(course(7, 3, drop_last=True, turn=turn)) == ["a0-0"]


def test_only_who_holds_rows_out_evaluates_once_a_round_even_without_rows_to_train_on() -> None:
    assert said(course(4, 4, 0, held_out=(0, 2, 3), rounds=2)) == 2 * ["a0-0", "b0-0", "evaluate bc"]


def test_turns_know_their_round() -> None:
    works = list(alternating(course(4, 4, held_out=(1, 0), rounds=3)))
    assert [work.round for work in works] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [isinstance(work, Evaluate) for work in works] == 3 * [False, False, True]


@pytest.mark.parametrize("turn", ["epoch", "batch"])
def test_no_rounds_mean_no_turns(turn: TurnUnit) -> None:
    assert said(course(4, held_out=(4,), rounds=0, turn=turn)) == []


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(["epoch", "batch"]),
)
def test_each_step_of_each_party_comes_once_a_round_in_order(
    rows: list[int], rounds: int, drop_last: bool, turn: TurnUnit
) -> None:
    plan = course(*rows, rounds=rounds, drop_last=drop_last, turn=turn)
    steps = [
        (work.round, work.parties[0], step)
        for work in alternating(plan)
        if isinstance(work, Train)
        for step in range(work.first, work.first + work.steps)
    ]
    due = {name: step_count(count, 4, drop_last=drop_last) for name, count in plan.train_rows.items()}
    assert Counter(steps) == Counter(
        (r, name, step) for r in range(rounds) for name in due for step in range(due[name])
    )
    for name in due:
        own = [(number, step) for number, party, step in steps if party == name]
        assert own == sorted(own)
    assert all(plan.steps(name) == count for name, count in due.items())


def test_legal_pairs_name_topologies_and_schedules_that_there_are() -> None:
    assert LEGAL.keys() == {*TOPOLOGIES, OWN}
    assert all(schedules <= SCHEDULES.keys() for schedules in LEGAL.values())
    assert set().union(*LEGAL.values()) == SCHEDULES.keys()


def table(head: str) -> list[list[str]]:
    """The cells of a table in the docs, without its head."""
    lines = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {head} |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in takewhile(bool, lines[start + 2 :])]


def test_the_table_of_topologies_in_the_docs_has_each_of_them() -> None:
    assert [row[0].strip("`") for row in table("topology")] == [*TOPOLOGIES, OWN]


def test_the_table_of_legal_pairs_in_the_docs_is_the_one_that_is_checked() -> None:
    rows = table("schedule")
    told = {row[0].strip("`"): {topology.strip(" `") for topology in row[-1].split(",")} for row in rows}
    assert told == {name: {t for t, legal in LEGAL.items() if name in legal} for name in SCHEDULES}
