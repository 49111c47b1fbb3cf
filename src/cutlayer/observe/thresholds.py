"""When a series of scores is an alarm, with the chance of a false one in the whole run stated beforehand.

A wager against the claim that scores in [0, 1] have a mean of at most `limit`, whatever came before: money that grows
where they are larger. While the claim holds it is a supermartingale, so that it ever reaches 1/α has at most the chance
α, however long the run is and however often one looks (Ville 1939; bets on bounded means: Waudby-Smith and Ramdas 2023,
arXiv 2010.09686, section 4). Money is put in anew before each score, 1 in all, so that a change late in a run is found
as an early one is (Shin, Ramdas, Rinaldo 2022, arXiv 2203.03532, weighted so that it bounds false alarms themselves).
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

    def add(self, score: float) -> bool:
        """A score, cut to [0, 1]; the money stays where it is once there was an alarm. Raises no error for a nan: it
        counts as the largest score."""
        if self.alarmed:
            return True
        self.scores += 1
        put_in = 1 / (self.scores * (self.scores + 1))
        gain = (1.0 if math.isnan(score) else min(1.0, max(0.0, score))) - self.limit
        self._money = [
            (money + put_in) * (1 + bold / self.limit * gain)
            for money, bold in zip(self._money, _BOLDNESS, strict=True)
        ]
        return self.alarmed


@dataclass(kw_only=True, slots=True)
class Level:
    """A wager whose limit is told, or found from the first `calibrate` scores of a run that is honest until then.

    Found: their mean, with a margin for chance (Hoeffding's, at half of `false_alarms`) and `tolerance` for what an
    honest run changes later. The claim is then that later scores have no larger mean than that.
    """

    limit: float | None = None
    calibrate: int = 0
    tolerance: float = 0.1
    false_alarms: float = 0.001
    _first: list[float] = field(default_factory=list)
    _wager: Wager | None = None

    def __post_init__(self) -> None:
        if self.limit is not None:
            self._wager = Wager(limit=self.limit, false_alarms=self.false_alarms)

    def add(self, score: float) -> bool:
        """Whether the scores so far give the alarm; never, without a limit and without calibration."""
        if self._wager is not None:
            return self._wager.add(score)
        if self.calibrate:
            self._first.append(min(1.0, max(0.0, score)))
            if len(self._first) == self.calibrate:
                self._settle()
        return False

    def _settle(self) -> None:
        count = len(self._first)
        chance = math.sqrt(math.log(2 / self.false_alarms) / (2 * count))
        limit = sum(self._first) / count + chance + self.tolerance
        # Above this no score could ever give an alarm.
        if limit < 0.99:
            self.limit, self._wager = limit, Wager(limit=limit, false_alarms=self.false_alarms / 2)
        self.calibrate = 0
