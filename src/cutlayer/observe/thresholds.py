"""When a series of scores is an alarm, with the chance of a false one in the whole run stated beforehand.

A wager against the claim that scores in [0, 1] have a mean of at most `limit`, whatever came before: money that grows
where they are larger. While the claim holds it is a supermartingale, so that it ever reaches 1/α has at most the chance
α, however long the run is and however often one looks (Ville 1939; bets on bounded means: Waudby-Smith and Ramdas 2023,
arXiv 2010.09686, section 4). Money is put in anew before each score, 1 in all, so that a change late in a run is found
as an early one is (Shin, Ramdas, Rinaldo 2022, arXiv 2203.03532, weighted so that it bounds false alarms themselves).

Where nobody told a limit, a run's own scores set one (`Rise`), by their order alone: no distribution is assumed.
"""

import math
from dataclasses import dataclass, field

from cutlayer.errors import PlanError

_BOLDNESS = (0.2, 0.5, 0.9)
"""Shares of the largest bet that cannot ruin; the money is parted among them."""


@dataclass(kw_only=True, slots=True)
class Wager:
    """Of a series of scores: `add` says whether they give the alarm, with at most the chance `false_alarms` ever."""

    limit: float
    false_alarms: float
    scores: int = 0
    _money: list[float] = field(default_factory=lambda: [0.0] * len(_BOLDNESS))

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.limit < 1:
            faults.append(f"a limit of {self.limit!r}: scores lie between 0 and 1, so choose one between them")
        if not 0 < self.false_alarms < 1:
            faults.append(f"false_alarms = {self.false_alarms!r}: choose a chance above 0 and below 1, such as 0.001")
        if faults:
            raise PlanError(faults)

    @property
    def money(self) -> float:
        """How strongly the scores speak against the claim; an alarm at 1/`false_alarms`."""
        return sum(self._money) / len(_BOLDNESS)

    @property
    def alarmed(self) -> bool:
        return self.money >= 1 / self.false_alarms

    def add(self, score: float, limit: float | None = None) -> bool:
        """A score, cut to [0, 1]; the money stays where it is once there was an alarm. Raises no error for a nan: it
        counts as the largest score. `limit`: of this score's mean, where it is another; chosen before the score."""
        if self.alarmed:
            return True
        self.scores += 1
        put_in, limit = 1 / (self.scores * (self.scores + 1)), limit or self.limit
        gain = (1.0 if math.isnan(score) else min(1.0, max(0.0, score))) - limit
        self._money = [
            (money + put_in) * (1 + bold / limit * gain) for money, bold in zip(self._money, _BOLDNESS, strict=True)
        ]
        return self.alarmed


@dataclass(kw_only=True, slots=True)
class Rise:
    """Whether a run's scores have come to lie more than `tolerance` above what any `block` of them before was like.

    The k-th block of n scores shows a level: its largest one. If its scores are independent draws, the chance that a
    share of more than pₖ of such draws lies above the level is at most (1 − pₖ)ⁿ, whatever their distribution (Wilks
    1941, "Determination of sample sizes for setting tolerance limits"). pₖ is where that is (α/2) / (k (k + 1)), so
    all levels of a run together err with at most the chance α/2. The lowest level counts. Whether a score lies above
    it by more than `tolerance` goes to a `Wager`, with the other α/2, against the claim that the chance of that is at
    most the level's pₖ.

    The claim that false alarms are counted under: scores of a block are independent draws of one distribution, and no
    later score tends to be larger than those by more than `tolerance`. Training may lower what leaks, and the level
    follows; what training raises in an honest run must fit into `tolerance`.
    """

    block: int
    tolerance: float
    false_alarms: float
    _level: float = math.inf
    _share: float = 0.5
    _blocks: int = 0
    _scores: list[float] = field(default_factory=list)
    _wager: Wager = field(init=False)

    def __post_init__(self) -> None:
        if self.block < 1 or not self.tolerance >= 0:
            raise PlanError([f"a block of {self.block}, a tolerance of {self.tolerance!r}: at least 1, and at least 0"])
        self._wager = Wager(limit=self._share, false_alarms=self.false_alarms / 2)

    @property
    def limit(self) -> float | None:
        """Scores above this speak for an alarm; None before the first block is through, and where none could be."""
        return limit if (limit := self._level + self.tolerance) < 1 else None

    @property
    def alarmed(self) -> bool:
        return self._wager.alarmed

    def add(self, score: float) -> bool:
        """A score of at most 1. Nothing is concluded from one that is no number."""
        if self.alarmed or math.isnan(score):
            return self.alarmed
        if self.limit is not None:
            self._wager.add(float(score > self.limit), self._share)
        self._scores.append(score)
        if len(self._scores) == self.block:
            self._settle()
        return self.alarmed

    def _settle(self) -> None:
        self._blocks += 1
        if (level := max(self._scores)) < self._level:
            err = self.false_alarms / 2 / (self._blocks * (self._blocks + 1))
            self._level, self._share = level, 1 - err ** (1 / self.block)
        self._scores.clear()
