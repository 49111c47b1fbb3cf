"""The live monitor: what a party's own tensors tell at a cut, measured while the run goes, with alarms.

It runs at the data owner's side, on the owner's rows, and sends nothing. Per cut it measures

    distance_correlation   of own inputs with what is released (Székely et al. 2007), beside shuffled rows
    decoder                R² or SSIM of a small decoder taught as the run goes (`decoding`)
    label_auc              how well the gradients that this party sends tell its labels (Li et al. 2021)
    hijack                 whether gradients that come still train what was agreed (`hijacking`)

and tells `Leaked` facts. An alarm is `Alarmed`, with a sentence, and ends the run if the party wants that. Each alarm
has a stated chance to be false in a whole run (`thresholds`). `hijack` always gives one; the others only with a limit,
or with `calibrate`. Nothing of this changes training. It keeps its own time, and skips batches rather than take more
than its share of the run's.
"""

import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cutlayer.attack.cosine import label_leak
from cutlayer.attack.traffic import Traffic
from cutlayer.defence.dependence import distance_correlation
from cutlayer.errors import DataError
from cutlayer.observe.decoding import OnlineDecoder
from cutlayer.observe.facts import Alarmed, Leaked, Statistic, Stop
from cutlayer.observe.hijacking import Detector, Sample
from cutlayer.observe.tap import Seen
from cutlayer.observe.thresholds import Level
from cutlayer.observe.watch import LEAKS, PARTS, Budget, Watch, said
from cutlayer.protocol.messages import Ticket

COLUMNS = 4096
WAITING = 256
"""So many activations at most are kept until their gradients come."""
BATCHES = 8
"""So many batches of gradients make one label AUC."""


@dataclass(kw_only=True, slots=True)
class _Cut:
    """What is known of one edge."""

    detector: Detector
    decoders: dict[torch.Size, OnlineDecoder] = field(default_factory=dict)
    levels: dict[Statistic, Level] = field(default_factory=dict)
    gradients: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    batches: int = 0
    largest: int = 0
    alarmed: set[Statistic] = field(default_factory=set)


class Monitor:
    """A tap of one party. `seed` draws which rows and numbers are looked at; `tell` hears its facts."""

    def __init__(
        self,
        watch: Watch,
        tell: Callable[[Leaked | Alarmed], object],
        *,
        seed: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._watch, self._tell = watch, tell
        self._generator = torch.Generator().manual_seed(seed)
        self.budgets = {
            name: Budget(clock=clock, share=part * watch.share, advance_s=part * watch.advance_s)
            for name, part in PARTS.items()
        }
        self._cuts: defaultdict[str, _Cut] = defaultdict(self._cut)
        self._waiting: OrderedDict[tuple[str, Ticket], list[tuple[torch.Size, Sample]]] = OrderedDict()
        self._stop: Stop | None = None

    def __call__(self, seen: Seen) -> Stop | None:
        if seen.ticket.purpose == "train" and seen.tensor.is_floating_point() and len(seen.tensor) > 1:
            if seen.way == "forward" and seen.sent and seen.inputs:
                self._released(seen)
            elif seen.way == "backward" and not seen.sent:
                self._answered(seen)
            elif seen.way == "backward" and seen.labels is not None and self._watch.classes:
                self._told(seen, seen.labels)
        return self._stop

    @property
    def spent_s(self) -> float:
        """Seconds that it took of the run so far."""
        return sum(budget.spent_s for budget in self.budgets.values())

    def _cut(self) -> _Cut:
        watch = self._watch
        levels = {
            name: Level(
                limit=watch.limits.get(name),
                calibrate=watch.calibrate,
                tolerance=watch.tolerance,
                false_alarms=watch.false_alarms,
            )
            for name in LEAKS
        }
        detector = Detector(classes=watch.classes, generator=self._generator, false_alarms=watch.false_alarms)
        return _Cut(detector=detector, levels=levels)

    # ------------------------------------------------------------------ what is released

    def _released(self, seen: Seen) -> None:
        cut = self._cuts[seen.edge]
        cut.batches += 1
        cut.largest = max(cut.largest, len(seen.tensor))
        inputs = [column for column in seen.inputs if column.is_floating_point()]
        # Chance lifts it the more, the fewer the rows: an epoch's last ones would not compare.
        whole = len(seen.tensor) >= min(self._watch.rows, cut.largest)
        if inputs and cut.batches % self._watch.every == 0 and whole:
            self._timed("distance_correlation", lambda: self._depends(seen, inputs))
        if inputs:
            self._timed("decoder", lambda: self._decodes(seen, inputs))
        if seen.labels is not None and len(seen.labels) == len(seen.tensor):
            labels = seen.labels
            self._timed("hijack", lambda: self._remember(seen, labels), part=True)

    def _depends(self, seen: Seen, inputs: list[Tensor]) -> None:
        rows = torch.randperm(len(seen.tensor), generator=self._generator)[: self._watch.rows]
        z, x = self._sampled([seen.tensor], rows), self._sampled(inputs, rows)
        value, chance = (float(distance_correlation(side, z)) for side in (x, x.roll(1, 0)))
        self._leaked(seen, "distance_correlation", value, chance)

    def _sampled(self, columns: list[Tensor], rows: Tensor) -> Tensor:
        """`[B, F]`: these rows of all columns, of too wide ones a part of their numbers."""
        found = []
        for column in columns:
            flat = column.detach().flatten(1)
            if flat.shape[1] > COLUMNS:
                flat = flat[:, :: -(-flat.shape[1] // COLUMNS)]
            found.append(flat[rows.to(flat.device)].float().cpu())
        return torch.cat(found, 1)

    def _decodes(self, seen: Seen, inputs: list[Tensor]) -> None:
        row = inputs[0] if inputs[0].dim() == 4 else torch.cat([column.flatten(1) for column in inputs], 1)
        decoders, shape = self._cuts[seen.edge].decoders, seen.tensor.shape[1:]
        if shape not in decoders:
            decoders[shape] = OnlineDecoder(generator=self._generator, pixels=self._watch.pixels)
        found = decoders[shape].add(seen.tensor, row, seen.places)
        if found is not None:
            self._leaked(seen, "decoder", found.value, found.chance)

    # ------------------------------------------------------------------ what comes back

    def _remember(self, seen: Seen, labels: Tensor) -> None:
        sample = self._cuts[seen.edge].detector.sample(seen.tensor, labels)
        if sample is not None:
            self._waiting.setdefault((seen.edge, seen.ticket), []).append((seen.tensor.shape, sample))
        while len(self._waiting) > WAITING:
            self._waiting.popitem(last=False)

    def _answered(self, seen: Seen) -> None:
        kept = self._waiting.get((seen.edge, seen.ticket), [])
        # Of an edge with several tensors the gradients come in their order, but only of those that have any.
        place = next((n for n, (shape, _) in enumerate(kept) if shape == seen.tensor.shape), None)
        if place is None:
            return
        _, sample = kept.pop(place)
        if not kept:
            del self._waiting[(seen.edge, seen.ticket)]
        budget, detector = self.budgets["hijack"], self._cuts[seen.edge].detector
        budget.goes_on()
        score = detector.add(sample, seen.tensor)
        budget.ends()
        if score is not None:
            self._leaked(seen, "hijack", score, 0.0)

    def _told(self, seen: Seen, labels: Tensor) -> None:
        self._timed("label_auc", lambda: self._tells(seen, labels))

    def _tells(self, seen: Seen, labels: Tensor) -> None:
        rows = torch.randperm(len(seen.tensor), generator=self._generator)[: self._watch.rows]
        kept = self._cuts[seen.edge].gradients
        kept.append((self._sampled([seen.tensor], rows), labels.detach().cpu()[rows]))
        if len(kept) < BATCHES:
            return
        steps = torch.cat([torch.full((len(g),), step) for step, (g, _) in enumerate(kept)])
        gradients, known = (torch.cat(parts) for parts in zip(*kept, strict=True))
        kept.clear()
        try:
            score = label_leak(Traffic(steps=steps, gradients=gradients, labels=known))
        except DataError:
            return
        self._leaked(seen, "label_auc", score.value, score.chance)

    # ------------------------------------------------------------------ what is told

    def _timed(self, name: Statistic, measure: Callable[[], None], *, part: bool = False) -> None:
        budget = self.budgets[name]
        if budget.begins():
            measure()
            budget.ends(part=part)

    def _leaked(self, seen: Seen, name: Statistic, value: float, chance: float) -> None:
        cut = self._cuts[seen.edge]
        if name == "hijack":
            wager = cut.detector.wager
            alarm, threshold, batches = wager.alarmed, cut.detector.threshold, wager.scores
        else:
            level = cut.levels[name]
            alarm, threshold, batches = level.add(value), level.limit, cut.batches
        leaked = Leaked(
            party=seen.party, edge=seen.edge, statistic=name, value=value, chance=chance,
            threshold=threshold, alarm=alarm,
        )  # fmt: skip
        self._tell(leaked)
        if alarm and name not in cut.alarmed:
            cut.alarmed.add(name)
            self._alarm(seen, leaked, batches)

    def _alarm(self, seen: Seen, leaked: Leaked, batches: int) -> None:
        rate = self._watch.false_alarms
        sentence = f"{seen.party}: {said(leaked, seen.peer)}; a run without fault says so with a chance of {rate:g}"
        self._tell(
            Alarmed(
                party=seen.party, edge=seen.edge, statistic=leaked.statistic, batches=batches,
                false_alarms=rate, sentence=sentence,
            )
        )  # fmt: skip
        if self._watch.stops:
            self._stop = Stop(reason=sentence)
