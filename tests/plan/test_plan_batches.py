"""Claims about micro-batches: every row once, in order, in parts as equal as can be."""

from hypothesis import given
from hypothesis import strategies as st

from cutlayer.plan.batches import Batch, micro_batches, step_count

rows, sizes, micros = st.integers(0, 60), st.integers(1, 12), st.integers(1, 14)


@given(rows, sizes, micros)
def test_the_parts_of_all_steps_are_the_rows_in_order(rows: int, size: int, micros: int) -> None:
    parts = [part for step in range(step_count(rows, size)) for part in micro_batches(rows, size, step, micros)]
    assert [row for start, stop in parts for row in range(start, stop)] == list(range(rows))


@given(rows, sizes, micros, st.integers(0, 70))
def test_parts_differ_by_one_row_at_most_and_none_is_empty(rows: int, size: int, micros: int, step: int) -> None:
    counts = [stop - start for start, stop in micro_batches(rows, size, step, micros)]
    assert all(counts)
    assert max(counts, default=0) - min(counts, default=0) <= 1
    assert len(counts) == min(micros, max(0, min(size, rows - step * size)))


@given(rows, sizes)
def test_a_small_last_step_is_kept_or_dropped(rows: int, size: int) -> None:
    kept, dropped = step_count(rows, size), step_count(rows, size, drop_last=True)
    assert dropped * size <= rows <= kept * size
    assert kept - dropped == (rows % size > 0)


def test_a_batch_knows_its_rows() -> None:
    assert Batch(0, 3, 8).rows == 5
