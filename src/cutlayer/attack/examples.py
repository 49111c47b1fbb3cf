"""The rows that an attacker learns from while a run goes on, and how well it then rebuilds those of others."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.rebuilt import Measure, rebuilt_score, seen_inputs
from cutlayer.attack.scoring import class_numbers, latest, needed
from cutlayer.attack.traffic import Score, Traffic
from cutlayer.errors import DataError

CHUNK = 256
"""How many rows are rebuilt at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """Inputs as networks rebuild them: (inputs - `centre`) / `spread`; those rebuilt are kept within `low` and `high`.

    `shift`: what is added to them before an encoder takes them, so that their mean is not 0. A client's segment then
    learns by the mean which way is up; without, it may end up with the negatives of the attacker's features.
    """

    centre: Tensor
    spread: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, inputs: Tensor, pixels: tuple[float, float]) -> "Scaling":
        """Of columns by their means, deviations and ranges; of images by the mean image and the pixels' range.

        That is wider than `pixels` where they are.
        """
        mean = inputs.mean(0)
        if inputs.dim() == 2:
            spread = inputs.std(0, correction=0)
            spread = torch.where(spread > 0, spread, 1.0)
            shift = (mean / spread).clamp(-1, 1)
            return cls(centre=mean, spread=spread, shift=shift, low=inputs.amin(0), high=inputs.amax(0))
        low, high = inputs.min().clamp(max=pixels[0]), inputs.max().clamp(min=pixels[1])
        spread = (high - low) / 2 if high > low else torch.ones_like(high)
        return cls(centre=mean, spread=spread, shift=(mean - (low + high) / 2) / spread, low=low, high=high)

    def narrowed(self, inputs: Tensor) -> Tensor:
        return (inputs - self.centre) / self.spread

    def widened(self, rows: Tensor) -> Tensor:
        return (rows * self.spread + self.centre).clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """The attacker's own rows, scaled `[M, ...]`, and their labels `[M]` where it has them."""

    knowledge: Knowledge
    rows: Tensor
    labels: Tensor | None
    scaling: Scaling

    @classmethod
    def known(cls, word: str, knowledge: Knowledge, device: torch.device) -> "Examples":
        """Raises `DataError` where there are none to learn from."""
        if knowledge.auxiliary is None:
            raise DataError(f"{word} needs rows like the owner's to learn from: name auxiliary data")
        inputs, labels = knowledge.auxiliary
        if len(inputs) < 2 or inputs.dim() < 2 or not inputs.is_floating_point():
            raise DataError(f"{word} needs at least two auxiliary rows of floats, [M, ...]: {list(inputs.shape)} given")
        if labels is not None and len(labels) != len(inputs):
            raise DataError(f"{word} was given {len(labels)} labels for {len(inputs)} auxiliary rows: one for each")
        inputs = inputs.to(device, torch.float32)
        if labels is not None:
            labels = (class_numbers(word, labels) if knowledge.classes else labels).to(device)
        scaling = Scaling.of(inputs, knowledge.pixels)
        return cls(knowledge=knowledge, rows=scaling.narrowed(inputs), labels=labels, scaling=scaling)

    def labelled(self, word: str) -> Tensor:
        """Their labels. Raises `DataError` where they are not known."""
        if self.labels is None:
            raise DataError(f"{word} needs auxiliary rows with their labels: name both")
        return self.labels

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Places of rows drawn with replacement, `[count]`."""
        return torch.randint(len(self.rows), (count,), generator=generator).to(self.rows.device)

    def alike(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Places of rows with these labels `[B]`; of any rows for labels that none of them has."""
        assert self.labels is not None
        places = self.drawn(len(labels), generator)
        for label in torch.unique(labels).tolist():
            own = (self.labels == label).nonzero().flatten()
            if len(own):
                chosen = torch.randint(len(own), (len(labels),), generator=generator).to(own.device)
                places = torch.where(labels == label, own[chosen], places)
        return places

    def encoded(self, places: Tensor) -> Tensor:
        """Rows as an encoder of the attacker's takes them."""
        return self.rows[places] + self.scaling.shift

    def simulated(self, places: Tensor) -> Tensor:
        """Rows as what stands for the client's segment takes them: as the owner's are, where it is of its kind."""
        return self.encoded(places) if self.knowledge.bottom is None else self.scaling.widened(self.rows[places])

    def score(
        self,
        name: str,
        traffic: Traffic,
        rebuild: Callable[[Tensor, Tensor | None], Tensor],
        *,
        how: tuple[Measure, int],
        told: bool = False,
    ) -> Score:
        """How near `rebuild`, of activations to scaled rows, comes to the inputs; each row once, the last time.

        `how`: the measure, and the seed of the interval. `told`: it is given the class numbers too. Chance then knows
        them as well: it is the mean of each class, where else it is the mean row.
        """
        seen = latest(traffic)
        activations, truth = seen_inputs(name, seen)
        device, (measure, seed) = self.rows.device, how
        labels = class_numbers(name, needed(name, seen, "labels")[0]).to(device) if told else None
        with torch.no_grad():
            rows = [
                rebuild(activations[at].to(device), None if labels is None else labels[at])
                for at in torch.split(torch.arange(len(truth)), CHUNK)
            ]

        def scored(rebuilt: Tensor) -> Score:
            rebuilt = self.scaling.widened(rebuilt).cpu()
            return rebuilt_score(name, truth.cpu(), rebuilt, knowledge=self.knowledge, seed=seed, measure=measure)

        score = scored(torch.cat(rows))
        if labels is None:
            return score
        best = max if score.better == "larger" else min
        return replace(score, chance=best(score.chance, scored(self._class_means(labels)).value))

    def _class_means(self, labels: Tensor) -> Tensor:
        means = self.rows.mean(0).expand(len(labels), *self.rows.shape[1:]).clone()
        for label in torch.unique(labels).tolist():
            if len(own := self.rows[self.labels == label]):
                means[labels == label] = own.mean(0)
        return means
