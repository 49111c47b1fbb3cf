"""How fast steps go with different numbers of micro-batches, and which number is kept. Only a conductor asks."""

import statistics
import time
from collections import defaultdict
from itertools import pairwise

from cutlayer.observe.facts import Paced
from cutlayer.protocol.events import Decided, Lap

WORTH_IT = 0.95
"""More than one part is kept only if a step takes less than so much of the time that it takes whole."""


class Pace:
    """The laps of party `name`, and what it has decided.

    `decided`: a number to be kept without measuring, as where a run is simulated.
    """

    def __init__(self, name: str, decided: int = 0) -> None:
        self._name = name
        self.decided = decided
        self._ends: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        """By turn and number of micro-batches: when each step was through."""

    def lap(self, lap: Lap) -> None:
        """A step is through now."""
        self._ends[lap.turn, lap.micro_batches].append(time.perf_counter())

    def decide(self) -> tuple[Decided, Paced]:
        """The number of micro-batches for the rest of the run, and what to tell of it."""
        seconds = self._seconds()
        if not self.decided:
            best = min(seconds, key=seconds.__getitem__, default=1)
            pays = best in seconds and seconds[best] < WORTH_IT * seconds.get(1, 0.0)
            self.decided = best if pays else 1
        return Decided(self.decided), Paced(party=self._name, micro_batches=self.decided, seconds=seconds)

    def _seconds(self) -> dict[int, float]:
        """By number of micro-batches, how long a step took: the median, over all turns but the first, that warms up."""
        spans: defaultdict[int, list[float]] = defaultdict(list)
        for (_, parts), ends in sorted(self._ends.items())[1:]:
            spans[parts] += [after - before for before, after in pairwise(ends)]
        return {parts: statistics.median(each) for parts, each in sorted(spans.items()) if each}
