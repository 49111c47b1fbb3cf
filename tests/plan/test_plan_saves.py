"""Claims about saves in a schedule: where they fall, and that turns which they part are the same steps in order."""

from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.plan.schedule import SCHEDULES, Average, Save, Share, Train, Work, predictions, works
from plan.test_plan_schedules import course, word

ROWS = st.lists(st.integers(0, 13), min_size=1, max_size=4)


def said(schedule: str, *train: int, **terms: Any) -> list[str]:
    each = course(*train, schedule=schedule, **terms)
    return [_word(work) for work in works(each, SCHEDULES[schedule])]


def _word(work: Work) -> str:
    return f"{word(work)} ends" if isinstance(work, Save) and work.ends_round else word(work)


def test_a_save_follows_each_round_and_ends_it_when_all_of_it_is_over() -> None:
    assert said("alternating", 9, 4, held_out=(1, 0), rounds=2) == [
        "a0-2", "b0-0", "evaluate a", "save 0 ends", "a0-2", "b0-0", "evaluate a", "save 1 ends",
    ]  # fmt: skip
    assert said("splitfed_v2", 4, 4, held_out=(0, 1), rounds=1)[-3:] == ["bottom to ab", "evaluate b", "save 0 ends"]


def test_relay_saves_before_the_next_round_hands_the_state_on_and_once_all_have_the_last() -> None:
    assert said("relay", 4, 4, rounds=2) == [
        "a0-0", "a to b", "b0-0", "save 0 ends", "b to a", "a0-0", "a to b", "b0-0", "b to a", "save 1 ends",
    ]  # fmt: skip


def test_within_a_round_there_is_a_save_after_so_many_steps_whosever_they_are() -> None:
    assert said("alternating", 12, 20, save_every=2) == [
        "a0-1", "save 0", "a2-2", "b0-0", "save 0", "b1-2", "save 0", "b3-4", "save 0 ends",
    ]  # fmt: skip


def test_steps_are_counted_anew_in_each_round() -> None:
    assert said("alternating", 12, save_every=2, rounds=2) == [
        "a0-1", "save 0", "a2-2", "save 0 ends", "a0-1", "save 1", "a2-2", "save 1 ends",
    ]  # fmt: skip


def test_no_save_falls_while_a_sum_is_under_way() -> None:
    """`splitfed_v1` shares as each client's round ends: only the first client's round, before any share, is parted."""
    assert said("splitfed_v1", 12, 12, save_every=1) == [
        "a0-0", "save 0", "a1-1", "save 0", "a2-2", "share weights a 12", "b0-2", "share weights b 12",
        "bottom+top to ab", "save 0 ends",
    ]  # fmt: skip
    assert said("parallel", 8, 4, save_every=1) == [
        "ab0-0", "share gradients a 1, b 1", "bottom to ab", "save 0", "a1-1", "share gradients a 1", "bottom to ab",
        "save 0 ends",
    ]  # fmt: skip


def test_there_may_be_a_save_after_every_other_round_only_and_always_one_at_the_end() -> None:
    assert said("alternating", 4, rounds=5, save_rounds=2) == [
        "a0-0", "a0-0", "save 1 ends", "a0-0", "a0-0", "save 3 ends", "a0-0", "save 4 ends",
    ]  # fmt: skip


def test_a_save_that_a_sum_put_off_comes_before_the_next_step_of_whatever_round() -> None:
    assert said("splitfed_v1", 12, 12, save_every=4, rounds=2, save_rounds=2)[3:8] == [
        "share weights b 12", "bottom+top to ab", "save 1", "a0-2", "share weights a 12",
    ]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("rounds", [0, 2])
def test_where_nothing_is_done_nothing_is_saved(schedule: str, rounds: int) -> None:
    assert said(schedule, *((0, 0) if rounds else (4, 4)), rounds=rounds, row_owners=("a",)) == []


def test_predictions_are_never_saved() -> None:
    each = replace(course(8, 8, held_out=(3, 4), save_every=1, rounds=3), feature_owners=("a", "b"))
    assert not any(isinstance(work, Save) for work in predictions(each, ()))


def _steps(all_works: list[Work]) -> list[Any]:
    """All works but saves, their turns step by step."""
    single: list[Any] = []
    for work in all_works:
        if isinstance(work, Train):
            single += [replace(work, first=work.first + step, steps=1) for step in range(work.steps)]
        elif not isinstance(work, Save):
            single.append(work)
    return single


SAVING = st.fixed_dictionaries(
    {
        "rounds": st.integers(0, 3),
        "clients_per_round": st.sampled_from(["all", 1, 2]),
        "local_epochs": st.integers(1, 2),
        "turn": st.sampled_from(["epoch", "batch"]),
        "save_rounds": st.integers(1, 3),
        "equal_clients": st.booleans(),
    }
)


@settings(deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), ROWS, SAVING, st.integers(0, 7), st.sampled_from([0, 2, 3]))
def test_with_saves_a_run_is_the_same_steps_once_and_in_order(
    schedule: str, rows: list[int], terms: dict[str, Any], every: int, period: int
) -> None:
    periods = {"e": period} if period and schedule != "parallel" else {}
    each = course(*rows, held_out=tuple(count % 2 for count in rows), schedule=schedule, periods=periods, **terms)
    plain: list[Work] = [work for work in works(each, SCHEDULES[schedule]) if not isinstance(work, Save)]
    if not periods:
        assert plain == list(SCHEDULES[schedule].turns(each))
    saving = list(works(replace(each, save_every=every), SCHEDULES[schedule]))
    assert _steps(saving) == _steps(plain)
    assert_saved_in_time(saving, every, terms["save_rounds"])


def assert_saved_in_time(all_works: list[Work], every: int, rounds: int) -> None:
    """At the end of each round that is due, and of the last; within one as late only as a sum needs."""
    assert [work.round for work in all_works] == sorted(work.round for work in all_works)
    saves = [isinstance(work, Save) for work in (Save(round=0, ends_round=False), *all_works)]
    assert not any(one and other for one, other in pairwise(saves)), "a save has the number of the work before it"
    grouped = [list(group) for _, group in groupby(all_works, key=lambda work: work.round)]
    for done in grouped:
        due = done is grouped[-1] or (done[0].round + 1) % rounds == 0
        assert [work for work in done if isinstance(work, Save) and work.ends_round] == (done[-1:] if due else [])
    since, summing, late = 0, False, False
    for work in all_works:
        if isinstance(work, Save):
            assert not summing
            assert work.ends_round or since == every > 0 or (late and since > every)
            since, late = 0, False
        elif isinstance(work, Train):
            since += work.steps
            late |= summing
            assert work.steps > 0
            assert not every or late or since <= every
        summing = isinstance(work, Share) or (summing and not isinstance(work, Average))
