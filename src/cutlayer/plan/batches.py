"""Which rows a ticket takes: a pure function of row counts, so that every party can work out every batch's size."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows `start` to `stop` of an owner's order in `epoch`; of the held-out rows, in their own order, if so said."""

    epoch: int
    start: int
    stop: int
    held_out: bool = False

    @property
    def rows(self) -> int:
        return self.stop - self.start


def step_count(rows: int, batch_size: int, *, drop_last: bool = False) -> int:
    """How many mini-batches an epoch has; the last one may be smaller, or dropped.

    >>> step_count(10, 4), step_count(10, 4, drop_last=True)
    (3, 2)
    """
    return rows // batch_size if drop_last else -(-rows // batch_size)


def micro_batches(rows: int, batch_size: int, step: int, micros: int = 1) -> list[tuple[int, int]]:
    """(start, stop) of each part of mini-batch `step`. Parts differ by one row at most; none is empty.

    >>> micro_batches(10, 4, step=1, micros=3)
    [(4, 5), (5, 6), (6, 8)]
    >>> micro_batches(10, 4, step=2, micros=3)
    [(8, 9), (9, 10)]
    """
    start, stop = step * batch_size, min((step + 1) * batch_size, rows)
    count = stop - start
    parts = min(micros, count)
    return [(start + count * part // parts, start + count * (part + 1) // parts) for part in range(parts)]
