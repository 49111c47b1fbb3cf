"""Claims about the schedules of many clients: whose turn it is, what moves from whom to whom, with which weight."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.plan.course import Course
from cutlayer.plan.schedule import SCHEDULES, Average, Entrust, Evaluate, HandOver, Predict, Save, Share, Train, Work


def course(*train: int, held_out: tuple[int, ...] = (), schedule: str = "relay", **terms: Any) -> Course:
    names = "abcdef"[: len(train)]
    roles = {"client": ("bottom",), "server": ("top",)}
    sharing = ("bank", "shop", "bureau") if schedule == "joint" else ()
    settings: dict[str, Any] = {"rounds": 1, "batch_size": 4, "row_owners": sharing}
    return Course(
        train_rows=dict(zip(names, train, strict=True)),
        held_out_rows=dict(zip(names, held_out or (0,) * len(train), strict=True)),
        client_segments=("bottom",),
        averaged_segments=tuple(name for role in SCHEDULES[schedule].averaged for name in roles[role]),
        **settings | terms,
    )


def said(schedule: str, *train: int, **terms: Any) -> list[str]:
    return [word(work) for work in SCHEDULES[schedule].turns(course(*train, schedule=schedule, **terms))]


def word(work: Work) -> str:  # noqa: PLR0911 (a word for each kind)
    assert not isinstance(work, Predict), "no schedule predicts"
    match work:
        case Train():
            return f"{''.join(work.parties)}{work.first}-{work.first + work.steps - 1}"
        case Evaluate():
            return f"evaluate {''.join(work.parties)}"
        case Save():
            return f"save {work.round}"
        case HandOver():
            return f"{work.source} to {work.target}"
        case Share():
            return f"share {work.kind} " + ", ".join(f"{name} {weight:g}" for name, weight in work.holders.items())
        case Entrust():
            return f"{work.source} tells {' and '.join(work.targets)}"
        case Average():
            return f"{'+'.join(work.segments)} to {''.join(work.takers)}"


def test_relay_hands_on_before_each_others_turn_evaluates_on_receiving_and_ends_with_all() -> None:
    assert said("relay", 9, 4, held_out=(1, 2), rounds=2) == [
        "a0-2", "a to b", "evaluate b", "b0-0",
        "b to a", "evaluate a", "a0-2", "a to b", "evaluate b", "b0-0",
        "b to a", "evaluate ab",
    ]  # fmt: skip


def test_relay_by_batch_hands_on_after_each_step_but_evaluates_once_a_round() -> None:
    assert said("relay", 5, 8, held_out=(1, 1), turn="batch") == [
        "a0-0", "a to b", "evaluate b", "b0-0", "b to a", "a1-1", "a to b", "b1-1", "b to a", "evaluate ab",
    ]  # fmt: skip


def test_relay_with_one_client_hands_nothing_over() -> None:
    assert said("relay", 4, rounds=2, held_out=(1,)) == ["a0-0", "evaluate a", "a0-0", "evaluate a"]


def test_parallel_sums_each_step_and_who_is_out_of_rows_takes_the_sum_only() -> None:
    assert said("parallel", 8, 4, 0, held_out=(1, 0, 2)) == [
        "ab0-0", "share gradients a 1, b 1", "bottom to abc", "a1-1", "share gradients a 1", "bottom to abc",
        "evaluate ac",
    ]  # fmt: skip


def test_parallel_with_clients_of_their_own_moves_nothing() -> None:
    assert said("parallel", 8, 4, equal_clients=False) == ["ab0-0", "a1-1"]


def test_v1_shares_after_each_turn_by_rows_and_evaluates_one_client_at_a_time() -> None:
    assert said("splitfed_v1", 9, 4, 0, held_out=(1, 0, 2)) == [
        "a0-2", "share weights a 9", "b0-0", "share weights b 4", "bottom+top to abc", "evaluate a", "evaluate c",
    ]  # fmt: skip


def test_v3_shares_the_servers_segments_only() -> None:
    assert said("splitfed_v3", 4, 4) == ["a0-0", "share weights a 4", "b0-0", "share weights b 4", "top to ab"]


def test_v2_trains_in_an_order_that_differs_from_round_to_round() -> None:
    orders = Counter(
        tuple(work.parties[0] for work in SCHEDULES["splitfed_v2"].turns(each) if isinstance(work, Train))
        for seed in range(20)
        for each in [course(4, 4, 4, schedule="splitfed_v2", seed=seed)]
    )
    assert len(orders) > 3
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_joint_tells_the_order_of_rows_once_and_then_trains_on_all_parties_rows_as_one() -> None:
    told = "bank tells shop and bureau"
    assert said("joint", 9, held_out=(2,), rounds=2) == [told, "a0-2", "evaluate a", "a0-2", "evaluate a"]
    assert said("joint", 9, rounds=1, row_owners=("bank",)) == ["a0-2"]


def test_a_mean_goes_to_who_evaluates_or_trains_next_and_in_the_end_to_all() -> None:
    each = course(4, 4, 4, 4, 4, held_out=(1,) * 5, schedule="splitfed_v1", rounds=3, clients_per_round=2)
    averages = [work for work in SCHEDULES["splitfed_v1"].turns(each) if isinstance(work, Average)]
    for number, average in enumerate(averages[:-1]):
        assert set(average.takers) == {*each.chosen(number), *each.chosen(number + 1)}
    assert averages[-1].takers == each.clients


@pytest.mark.parametrize(("choice", "count"), [("all", 5), (1, 1), (3, 3), (99, 5), (0.4, 2), (0.01, 1), (1.0, 5)])
def test_a_round_has_as_many_clients_as_the_plan_says(choice: Any, count: int) -> None:
    each = course(4, 4, 4, 4, 4, clients_per_round=choice, rounds=60)
    for number in range(60):
        assert len(each.chosen(number)) == count
        assert list(each.chosen(number)) == sorted(each.chosen(number))
    assert {name for number in range(60) for name in each.chosen(number)} == set("abcde")


def test_another_seed_chooses_others() -> None:
    chosen = {seed: [course(*[4] * 6, clients_per_round=2, seed=seed).chosen(n) for n in range(9)] for seed in (0, 1)}
    assert chosen[0] != chosen[1]
    assert chosen[0] == [course(*[4] * 6, clients_per_round=2, seed=0).chosen(n) for n in range(9)]


def test_local_steps_go_on_where_the_round_before_ended() -> None:
    each = course(9, local_steps=2)
    assert [each.place("a", number, step) for number in range(3) for step in range(2)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip


def test_local_epochs_are_passes_of_their_own_number() -> None:
    each = course(5, local_epochs=2)
    assert [each.place("a", 1, step) for step in range(4)] == [(2, 0), (2, 1), (3, 0), (3, 1)]


@given(
    st.sampled_from(list(SCHEDULES)),
    st.lists(st.integers(0, 13), min_size=1, max_size=5),
    st.integers(0, 3),
    st.sampled_from(["all", 1, 2, 0.5]),
    st.sampled_from([(1, 0), (2, 0), (1, 3)]),
    st.sampled_from(["epoch", "batch"]),
)
def test_every_step_of_every_chosen_client_comes_once_and_every_share_is_averaged(
    schedule: str, rows: list[int], rounds: int, choice: Any, local: tuple[int, int], turn: Any
) -> None:
    terms = {"rounds": rounds, "clients_per_round": choice, "local_epochs": local[0], "local_steps": local[1]}
    each = course(*rows, schedule=schedule, turn=turn, **terms)
    works = list(SCHEDULES[schedule].turns(each))
    assert works == list(SCHEDULES[schedule].turns(each))
    steps = Counter(
        (work.round, name, work.first + step)
        for work in works
        if isinstance(work, Train)
        for name in work.parties
        for step in range(work.steps)
    )
    due = [(n, name, step) for n in range(rounds) for name in each.chosen(n) for step in range(each.steps(name))]
    assert steps == Counter(due)
    for name in each.clients:
        assert each.total_steps(name) == sum(key[1] == name for key in steps)
    assert_shares_are_averaged(works)


def assert_shares_are_averaged(works: list[Work]) -> None:
    shared: list[Share] = []
    for work in works:
        if isinstance(work, Share):
            shared.append(work)
        elif isinstance(work, Average):
            assert shared
            assert {(share.kind, share.segments) for share in shared} == {(work.kind, work.segments)}
            shared = []
    assert not shared
