"""How long a step takes, against sums by hand and a second implementation of the same rules."""

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.studies.pipeline import Line, Sending, Work, step_seconds

WORK = Work(
    load_s=0.001,
    forward_s=0.01,
    server_s=0.02,
    backward_s=0.015,
    label_bytes=100,
    up_bytes=1_000_000,
    down_bytes=500_000,
    client_step_s=0.002,
    server_step_s=0.003,
)
LINE = Line(up_bytes_per_s=1e7, down_bytes_per_s=5e6, delay_s=0.025)
NO_LINE = Line(up_bytes_per_s=inf, down_bytes_per_s=inf, delay_s=0.0)
EARLY, LATE = Sending(early=True), Sending(early=False)

seconds = st.floats(0.0, 0.1)
sizes = st.integers(0, 2_000_000)
works = st.builds(
    Work,
    load_s=seconds,
    forward_s=seconds,
    server_s=seconds,
    backward_s=seconds,
    label_bytes=st.just(0),
    up_bytes=sizes,
    down_bytes=sizes,
    client_step_s=seconds,
    server_step_s=st.just(0.0),
)
lines = st.builds(
    Line, up_bytes_per_s=st.floats(1e5, 1e9), down_bytes_per_s=st.floats(1e5, 1e9), delay_s=st.floats(0, 0.2)
)
counts = st.integers(1, 8)


def in_a_row(work: Work, line: Line) -> float:
    """One micro-batch: everything after everything else."""
    client = work.load_s + work.forward_s + work.backward_s + work.client_step_s
    link = work.up_bytes / line.up_bytes_per_s + work.down_bytes / line.down_bytes_per_s + 2 * line.delay_s
    return client + link + work.server_s


def test_one_micro_batch_is_a_sum() -> None:
    assert step_seconds(WORK, 1, LINE) == pytest.approx(0.001 + 0.01 + 0.1 + 0.025 + 0.02 + 0.1 + 0.025 + 0.015 + 0.002)


@given(works, lines)
def test_one_micro_batch_is_a_sum_for_any_link_and_either_order_of_sending(work: Work, line: Line) -> None:
    for sending in (EARLY, LATE):
        assert step_seconds(work, 1, line, sending) == pytest.approx(in_a_row(work, line), abs=1e-9)


@given(works, lines, counts)
@settings(max_examples=60)
def test_micro_batches_are_never_slower_than_in_a_row_nor_faster_than_their_busiest_resource(
    work: Work, line: Line, count: int
) -> None:
    client = count * (work.load_s + work.forward_s + work.backward_s) + work.client_step_s
    busiest = max(client, count * work.server_s, count * work.up_bytes / line.up_bytes_per_s)
    for sending in (EARLY, LATE):
        took = step_seconds(work, count, line, sending)
        assert max(busiest, 2 * line.delay_s) - 1e-9 <= took
        assert took <= count * in_a_row(replace(work, client_step_s=0.0), line) + work.client_step_s + 1e-9
    assert step_seconds(work, count, line, EARLY) <= step_seconds(work, count, line, LATE) + 1e-9


def test_two_micro_batches_by_hand() -> None:
    """Server 4, up 2, everything else 1: the second one waits for the server, not for the link."""
    work = Work(
        load_s=0.0, forward_s=1.0, server_s=4.0, backward_s=1.0, label_bytes=0, up_bytes=2, down_bytes=1,
        client_step_s=1.0, server_step_s=0.0,
    )  # fmt: skip
    line = Line(up_bytes_per_s=1.0, down_bytes_per_s=1.0, delay_s=1.0)
    # forward ends 1, 2; has left 3, 5; arrived 4, 6; served 8, 12; left 9, 13; back 10, 14; backward 11, 15; step 16
    assert step_seconds(work, 2, line, EARLY) == pytest.approx(16.0)
    # the first leaves when both forwards are done: one later, and all that follows
    assert step_seconds(work, 2, line, LATE) == pytest.approx(17.0)


def test_a_slow_link_carries_one_micro_batch_after_another() -> None:
    work = replace(WORK, load_s=0.0, forward_s=0.0, server_s=0.0, backward_s=0.0, label_bytes=0, client_step_s=0.0)
    line = Line(up_bytes_per_s=1e6, down_bytes_per_s=1e6, delay_s=0.0)
    assert step_seconds(work, 3, line) == pytest.approx(3 * 1.0 + 0.5)


def test_a_slow_server_step_delays_the_next_step_only_if_nothing_else_takes_longer() -> None:
    hidden = replace(WORK, server_step_s=0.05)
    assert step_seconds(hidden, 1, LINE) == pytest.approx(step_seconds(WORK, 1, LINE))
    assert step_seconds(replace(WORK, server_step_s=1.0), 1, LINE) > step_seconds(WORK, 1, LINE) + 0.5


def test_a_sender_that_is_held_up_by_its_link_computes_later() -> None:
    held, free = Sending(early=True, buffer_bytes=0), Sending(early=True)
    work = replace(WORK, forward_s=0.1, label_bytes=0)
    assert step_seconds(work, 4, LINE, held) > step_seconds(work, 4, LINE, free) + 0.05
    assert step_seconds(work, 1, LINE, held) == pytest.approx(step_seconds(work, 1, LINE, free))


def test_without_a_link_and_a_server_what_is_left_is_the_client() -> None:
    work = replace(WORK, server_s=0.0, server_step_s=0.0)
    assert step_seconds(work, 3, NO_LINE) == pytest.approx(3 * (0.001 + 0.01 + 0.015) + 0.002)
