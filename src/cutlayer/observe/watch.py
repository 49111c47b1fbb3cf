"""What a monitor is asked for, what it tells, and how much time it may take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cutlayer.errors import PlanError
from cutlayer.observe.facts import Leaked, Statistic

LEAKS: tuple[Statistic, ...] = ("distance_correlation", "decoder", "label_auc")
PARTS: Mapping[Statistic, float] = {"distance_correlation": 0.1, "decoder": 0.2, "label_auc": 0.1, "hijack": 0.6}
"""How the monitor's time is parted."""
GUESSES_S: Mapping[Statistic, float] = {"decoder": 0.06, "label_auc": 0.02}
"""What a first measurement is taken to cost, where that is much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """What a party wants of its monitor.

    `classes`: of its labels, 0 where they are numbers. `every`: of so many batches one is measured for dependence, on
    `rows` rows. `limits`: by statistic, the largest mean score that is no alarm; for those that have none, `calibrate`
    scores at a time show a level (`Rise`; 0: none is set), and more than `tolerance` above it speaks for an alarm.
    `false_alarms`: the chance of each statistic at each cut, in a whole run. `share` of the run's time, and `advance_s`
    at its outset. `pixels`: the range of inputs that are images; None: that of the first rows. `label_edges`: on which
    labels go to others, who then train by these, which may be answers, or wrong on purpose.
    """

    classes: int = 0
    every: int = 8
    rows: int = 64
    limits: Mapping[str, float] = field(default_factory=dict)
    calibrate: int = 20
    tolerance: float = 0.25
    false_alarms: float = 0.001
    stops: bool = False
    share: float = 0.045
    advance_s: float = 0.03
    pixels: tuple[float, float] | None = None
    label_edges: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        least = {"every": (self.every, 1), "rows": (self.rows, 2)}
        faults = [f"monitor: {name} = {value}: at least {low}" for name, (value, low) in least.items() if value < low]
        positive = {"classes": self.classes, "calibrate": self.calibrate, "advance_s": self.advance_s}
        positive |= {"tolerance": self.tolerance}
        faults += [f"monitor: {name} = {value}: at least 0" for name, value in positive.items() if not value >= 0]
        shares = {"false_alarms": self.false_alarms, "share": self.share}
        faults += [
            f"monitor: {name} = {value}: above 0 and below 1" for name, value in shares.items() if not 0 < value < 1
        ]
        for name, limit in self.limits.items():
            if name not in LEAKS:
                faults.append(f"monitor: {name!r} has no limit: those that have are {', '.join(LEAKS)}")
            elif not 0 < limit < 1:
                faults.append(f"monitor: the limit of {name} = {limit}: above 0 and below 1")
        if self.pixels is not None and not self.pixels[0] < self.pixels[1]:
            faults.append(f"monitor: pixels from {self.pixels[0]} to {self.pixels[1]}: the lower end first")
        if faults:
            raise PlanError(faults)


@dataclass(kw_only=True, slots=True)
class Budget:
    """Time that may be spent: `share` of what has passed, and `advance_s` at the outset.

    `guess_s`: what the first measurement is taken to cost.
    """

    clock: Callable[[], float]
    share: float
    advance_s: float = 0.0
    guess_s: float = 0.002
    spent_s: float = 0.0
    _began_s: float | None = None
    _last_s: float = field(init=False)
    _since_s: float = 0.0

    def __post_init__(self) -> None:
        self._last_s = self.guess_s

    def begins(self) -> bool:
        """Whether there is time for another measurement like the last; if so it has begun."""
        now = self.clock()
        if self._began_s is None:
            self._began_s = now
        allowed = self.share * (now - self._began_s) + self.advance_s
        self._since_s = now
        return self.spent_s + self._last_s <= allowed

    def goes_on(self) -> None:
        """A second part of a measurement, that was let begin before."""
        self._since_s = self.clock()

    def ends(self, *, part: bool = False, earlier_s: float = 0.0) -> float:
        """The seconds that this part of a measurement took; its last part says what the `earlier` ones did."""
        took = self.clock() - self._since_s
        self.spent_s += took
        if not part:
            self._last_s = max(took + earlier_s, 0.9 * self._last_s)
        return took


def said(leaked: Leaked, peer: str) -> str:
    """What is wrong, for a person."""
    edge, value, limit = leaked.edge, leaked.value, leaked.threshold
    beyond = f"{value:.2f} at last, where {limit:.2f} is the limit" if limit is not None else f"{value:.2f} at last"
    assert leaked.statistic != "probe"  # a party's probes speak for themselves
    match leaked.statistic:
        case "hijack":
            return (
                f"the gradients that {peer} sends on {edge} do not depend on the labels as those of the agreed "
                "training do: it may train this party's segment for a purpose of its own"
            )
        case "decoder":
            return f"a small decoder of what it releases on {edge} rebuilds its rows better than it may ({beyond})"
        case "label_auc":
            return f"the gradients that it sends on {edge} tell its labels better than they may (leak AUC {beyond})"
        case "distance_correlation":
            return f"what it releases on {edge} goes with its inputs more than it may (distance correlation {beyond})"
