"""The live monitor: what a party's own tensors tell at a cut, measured while the run goes, with alarms.

It runs at the data owner's side, on the owner's rows, and sends nothing. Per cut it measures

    distance_correlation   of own inputs with what is released (Székely et al. 2007), beside shuffled rows
    decoder                R² or SSIM of a small decoder of what is released (`decoding`)
    label_auc              how well the gradients that this party sends tell its labels (Li et al. 2021)
    hijack                 whether gradients that come still train what was agreed (`hijacking`)

and tells `Leaked` facts. An alarm is `Alarmed`, with a sentence, and ends the run if the party wants that. Each alarm
has a stated chance to be false in a whole run (`thresholds`): the first three give one where more leaks than a limit
that was told allows or, without a limit, clearly more than earlier in the run. Nothing of this changes training. It
keeps its own time, and skips batches rather than take more than its share of the run's.
"""

import math
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cutlayer.attack.cosine import label_leak
from cutlayer.attack.traffic import Traffic
from cutlayer.defence.dependence import distance_correlation
from cutlayer.errors import DataError
from cutlayer.observe.decoding import WindowDecoder
from cutlayer.observe.facts import Alarmed, Leaked, Statistic, Stop, Way
from cutlayer.observe.hijacking import Detector, Sample
from cutlayer.observe.tap import Seen, flat
from cutlayer.observe.thresholds import Rise, Wager
from cutlayer.observe.watch import GUESSES_S, LEAKS, PARTS, Budget, Watch, said
from cutlayer.protocol.messages import Ticket

COLUMNS, OF_GRADIENTS = 4096, 1024
"""So many numbers of a row are looked at, at most."""
WAITING = 256
"""So many activations at most are kept until their gradients come."""
BATCHES, LEAST_ROWS = 8, 8
"""So many batches of gradients make one label AUC, for a class with so many rows."""

Place = tuple[str, Way, str, int]
"""An edge, the way, whose rows cross, and which of the message's tensors."""


@dataclass(kw_only=True, slots=True)
class _Cut:
    """What is known of one tensor of an edge. What waits is kept by its shape: sequences may differ in length."""

    rules: dict[Statistic, Rise | Wager]
    decoders: dict[tuple[torch.Size, torch.Size], WindowDecoder] = field(default_factory=dict)
    decoding_s: float = 0.0
    pairs: defaultdict[tuple[int, int], list[tuple[Tensor, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    gradients: defaultdict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    sought: float | None = None
    batches: int = 0


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
        self._watch, self._tell, self._clock = watch, tell, clock
        self._generator = torch.Generator().manual_seed(seed)
        self.budgets = {
            name: Budget(
                clock=clock, share=part * watch.share, advance_s=part * watch.advance_s,
                guess_s=GUESSES_S.get(name, 0.002),
            )
            for name, part in PARTS.items()
        }  # fmt: skip
        self._cuts: defaultdict[Place, _Cut] = defaultdict(self._cut)
        self._detectors: defaultdict[str, Detector] = defaultdict(self._detector)
        self._last: tuple[object, ...] = ()
        self._number = 0
        self._waiting: OrderedDict[tuple[str, Ticket], list[tuple[torch.Size, Sample]]] = OrderedDict()
        self._answers: OrderedDict[Ticket, Tensor] = OrderedDict()
        self._alarmed: set[tuple[str | Place, Statistic]] = set()
        self._stop: Stop | None = None

    def __call__(self, seen: Seen) -> Stop | None:
        began_s, spent_s = self._clock(), self.spent_s
        self._look(seen)
        # What no measurement counts as its own is the largest part's.
        self.budgets["hijack"].spent_s += self._clock() - began_s - (self.spent_s - spent_s)
        return self._stop

    def _look(self, seen: Seen) -> None:
        tensor, message = seen.tensor, (seen.edge, seen.way, seen.sent, seen.ticket)
        self._number = self._number + 1 if message == self._last else 0
        self._last = message
        usable = tensor.is_floating_point() and tensor.dim() > 0 and tensor.numel() > 0 and len(tensor) > 1
        if seen.edge in self._watch.label_edges:
            self._answers[seen.ticket] = seen.tensor.detach().clone()
            while len(self._answers) > WAITING:
                self._answers.popitem(last=False)
        elif seen.ticket.purpose == "train" and usable:
            if seen.way == "forward" and seen.sent and seen.inputs:
                self._released(seen)
            elif seen.way == "backward" and not seen.sent:
                self._answered(seen)
            elif seen.way == "backward" and _fits(seen, seen.labels) and self._watch.classes:
                self._timed("label_auc", lambda: self._tells(seen))

    @property
    def spent_s(self) -> float:
        """Seconds that it took of the run so far."""
        return sum(budget.spent_s for budget in self.budgets.values())

    def _cut(self) -> _Cut:
        watch, rules = self._watch, dict[Statistic, Rise | Wager]()
        for name in LEAKS:
            if name in watch.limits:
                rules[name] = Wager(limit=watch.limits[name], false_alarms=watch.false_alarms)
            elif watch.calibrate:
                rules[name] = Rise(
                    block=watch.calibrate, tolerance=watch.tolerance, false_alarms=watch.false_alarms
                )  # fmt: skip
        return _Cut(rules=rules)

    def _detector(self) -> Detector:
        return Detector(
            classes=self._watch.classes, generator=self._generator, false_alarms=self._watch.false_alarms
        )  # fmt: skip

    def _place(self, seen: Seen) -> Place:
        """Several tensors of one message come one after the other."""
        return seen.edge, seen.way, seen.ticket.owner, self._number

    # ------------------------------------------------------------------ what is released

    def _released(self, seen: Seen) -> None:
        cut = self._cuts[self._place(seen)]
        cut.batches += 1
        inputs = [column for column in seen.inputs if column.is_floating_point() and _fits(seen, column)]
        if inputs:
            key = (seen.tensor[0].numel(), sum(column[0].numel() for column in inputs))
            if cut.pairs[key] or cut.batches % self._watch.every == 0:
                self._timed("distance_correlation", lambda: self._depends(seen, inputs, cut.pairs[key]))
            self._decodes(seen, inputs)
        if _fits(seen, seen.labels):
            self._timed("hijack", lambda: self._remember(seen), part=True)

    def _depends(self, seen: Seen, inputs: list[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Chance lifts it the more, the fewer the rows: small batches are put together."""
        missing = self._watch.rows - sum(len(z) for z, _ in pairs)
        rows = torch.randperm(len(seen.tensor), generator=self._generator)[:missing]
        pairs.append((self._sampled([seen.tensor], rows), self._sampled(inputs, rows)))
        if len(rows) < missing:
            return
        z, x = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        pairs.clear()
        if not bool(z.isfinite().all() and x.isfinite().all()):
            return
        value, chance = (float(distance_correlation(side, z)) for side in (x, x.roll(1, 0)))
        self._leaked(seen, "distance_correlation", value, chance)

    def _sampled(self, columns: list[Tensor], rows: Tensor, most: int = COLUMNS) -> Tensor:
        """`[B, F]`: these rows of all columns, of too wide ones a part of their numbers."""
        found = []
        for column in columns:
            row = flat(column.detach())
            if row.shape[1] > most:
                row = row[:, :: -(-row.shape[1] // most)]
            found.append(row[rows.to(row.device)].float().cpu())
        return torch.cat(found, 1)

    def _decodes(self, seen: Seen, inputs: list[Tensor]) -> None:
        """A window is begun when there is time for all of it."""
        cut, budget = self._cuts[self._place(seen)], self.budgets["decoder"]
        row = inputs[0] if inputs[0].dim() == 4 else torch.cat([flat(column) for column in inputs], 1)
        shapes = seen.tensor.shape[1:], row.shape[1:]
        if shapes not in cut.decoders:
            cut.decoders[shapes] = WindowDecoder(generator=self._generator, pixels=self._watch.pixels)
        decoder = cut.decoders[shapes]
        if not decoder.begun:
            if not budget.begins():
                return
            cut.decoding_s = 0.0
        budget.goes_on()
        decoder.add(seen.tensor, row, seen.places)
        found = decoder.score() if (ready := decoder.ready) else None
        cut.decoding_s += budget.ends(part=not ready, earlier_s=cut.decoding_s)
        if found is not None:
            self._leaked(seen, "decoder", found.value, found.chance)

    # ------------------------------------------------------------------ what comes back

    def _remember(self, seen: Seen) -> None:
        assert seen.labels is not None
        sample = self._detectors[seen.edge].sample(seen.tensor, seen.labels)
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
        if (answers := self._answers.get(seen.ticket)) is not None and len(answers) == len(seen.tensor):
            sample = replace(sample, labels=flat(answers.detach()).cpu()[sample.rows])
        if not kept:
            del self._waiting[(seen.edge, seen.ticket)]
        budget, detector = self.budgets["hijack"], self._detectors[seen.edge]
        budget.goes_on()
        score = detector.add(sample, seen.tensor)
        budget.ends()
        if score is not None:
            self._leaked(seen, "hijack", score, 0.0)

    def _tells(self, seen: Seen) -> None:
        assert seen.labels is not None
        cut = self._cuts[self._place(seen)]
        cut.batches += 1
        rows = torch.randperm(len(seen.tensor), generator=self._generator)[: self._watch.rows]
        kept = cut.gradients[seen.tensor[0].numel()]
        kept.append((self._sampled([seen.tensor], rows, OF_GRADIENTS), flat(seen.labels.detach()).cpu()[rows]))
        if len(kept) < BATCHES:
            return
        steps = torch.cat([torch.full((len(g),), step) for step, (g, _) in enumerate(kept)])
        gradients, known = (torch.cat(parts) for parts in zip(*kept, strict=True))
        kept.clear()
        # Negative numbers stand for rows that the loss leaves out.
        usable = (known >= 0).all(1) & gradients.isfinite().all(1)
        if known.shape[1] != 1 or not bool(usable.any()):
            return
        cut.sought = _sought(known[usable, 0]) if cut.sought is None else cut.sought
        traffic = Traffic(steps=steps, gradients=gradients, labels=(known[:, 0] == cut.sought).long())
        try:
            score = label_leak(traffic.chosen(usable))
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
        if not (math.isfinite(value) and math.isfinite(chance)):
            return
        place, detector = self._place(seen), self._detectors[seen.edge]
        rule = self._cuts[place].rules.get(name)
        if name == "hijack":
            alarm, threshold, batches = detector.wager.alarmed, detector.threshold, detector.wager.scores
        elif rule is not None:
            alarm, threshold, batches = rule.add(value), rule.limit, self._cuts[place].batches
        else:
            alarm, threshold, batches = False, None, 0
        leaked = Leaked(
            party=seen.party, edge=seen.edge, statistic=name, value=value, chance=chance,
            threshold=threshold, alarm=alarm,
        )  # fmt: skip
        self._tell(leaked)
        which = seen.edge if name == "hijack" else place
        if alarm and (which, name) not in self._alarmed:
            self._alarmed.add((which, name))
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


def _fits(seen: Seen, column: Tensor | None) -> bool:
    """Whether it has a row for each of what crosses."""
    return column is not None and column.dim() > 0 and len(column) == len(seen.tensor)


def _sought(labels: Tensor) -> float:
    """The class whose rows an attacker is taken to look for: the rarest that has enough of them."""
    classes, counts = torch.unique(labels, return_counts=True)
    enough = counts >= LEAST_ROWS
    return float(classes[enough][counts[enough].argmin()] if bool(enough.any()) else classes[counts.argmax()])
