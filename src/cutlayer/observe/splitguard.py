"""SplitGuard: labels that are wrong on purpose, and what the server makes of them.

Erdoğan, Küpçü and Çiçek 2022 (arXiv 2108.09052, section 4). Now and then a client gives a mini-batch wrong labels, and
does not learn from what comes back. A server that learns the task answers it with larger gradients in another
direction; one that never looks at labels cannot tell. Near 1 the score is that of an honest server, near 0 it is not.

What is concluded from scores is the paper's policy of averages: the mean of the last `JUDGED` is below `THRESHOLD`. It
has no stated rate of false alarms: a model that has not begun to learn answers all labels alike, and passes for
dishonest. A server with a model of the task beside its attack deceives it (SplitSpy, in Fu et al. 2023).
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

STEEPNESS, POWER = 5.0, 2.0
JUDGED, THRESHOLD = 10, 0.9


@dataclass(slots=True)
class Sums:
    """Of a set of gradients, each a whole mini-batch's: their sum, the sum of their norms, how many."""

    total: Tensor | None = None
    norms: float = 0.0
    count: int = 0

    def add(self, gradient: Tensor) -> None:
        flat = gradient.detach().cpu().double().flatten()
        self.total = flat.clone() if self.total is None else self.total + flat
        self.norms += float(flat.norm())
        self.count += 1

    def with_those_of(self, other: "Sums") -> "Sums":
        assert self.total is not None
        assert other.total is not None
        return Sums(self.total + other.total, self.norms + other.norms, self.count + other.count)

    def tensors(self) -> dict[str, Tensor]:
        """To be kept; nothing of an empty set."""
        numbers = torch.tensor([self.norms, float(self.count)], dtype=torch.float64)
        return {} if self.total is None else {"total": self.total, "numbers": numbers}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Sums":
        if not tensors:
            return cls()
        norms, count = tensors["numbers"].tolist()
        return cls(tensors["total"].clone(), norms, int(count))


def splitguard_score(fake: Sums, one: Sums, other: Sums) -> float:
    """σ(5 S)², with S = (θ(F, R) d(F, R) − θ(R₁, R₂) d(R₁, R₂)) / (d(F, R) + d(R₁, R₂)), in (0, 1).

    θ is the angle between mean gradients, in radians, and d how far the mean norms are apart; R is both halves of the
    regular batches, `one` and `other`. None of the three may be empty.
    """
    whole = one.with_those_of(other)
    angle, distance = _angle(fake, whole), _distance(fake, whole)
    own_angle, own_distance = _angle(one, other), _distance(one, other)
    apart = distance + own_distance
    found = (angle * distance - own_angle * own_distance) / apart if apart else 0.0
    return float((1 / (1 + math.exp(-STEEPNESS * found))) ** POWER)


def _angle(one: Sums, other: Sums) -> float:
    assert one.total is not None
    assert other.total is not None
    scale = float(one.total.norm() * other.total.norm())
    return math.acos(max(-1.0, min(1.0, float(one.total @ other.total) / scale))) if scale else 0.0


def _distance(one: Sums, other: Sums) -> float:
    return abs(one.norms / one.count - other.norms / other.count)


@dataclass(kw_only=True, slots=True)
class SplitGuard:
    """Adds up the gradients of whole mini-batches, all of one shape, and judges the server after each fake one."""

    fakes: Sums = field(default_factory=Sums)
    halves: tuple[Sums, Sums] = field(default_factory=lambda: (Sums(), Sums()))
    scores: deque[float] = field(default_factory=lambda: deque(maxlen=JUDGED))

    def regular(self, gradient: Tensor, half: int) -> None:
        """The gradient of a mini-batch with its own labels. `half`: 0 or 1, by a draw that the server cannot know."""
        self.halves[half].add(gradient)

    def fake(self, gradient: Tensor) -> float | None:
        """The gradient of a mini-batch with wrong labels. The score; None until both halves have some."""
        self.fakes.add(gradient)
        if not (self.halves[0].count and self.halves[1].count):
            return None
        self.scores.append(splitguard_score(self.fakes, *self.halves))
        return self.scores[-1]

    @property
    def size(self) -> int:
        """How many numbers a mini-batch's gradient has; 0 before the first."""
        return next((len(sums.total) for sums in (self.fakes, *self.halves) if sums.total is not None), 0)

    @property
    def mean(self) -> float:
        """Of the last scores; 1 while there are none."""
        return math.fsum(self.scores) / len(self.scores) if self.scores else 1.0

    @property
    def alarmed(self) -> bool:
        """Whether the last `JUDGED` scores speak for a server that does not look at labels."""
        return len(self.scores) == JUDGED and self.mean < THRESHOLD

    def tensors(self) -> dict[str, Tensor]:
        """All that is remembered."""
        sets = {"fakes": self.fakes, "one": self.halves[0], "other": self.halves[1]}
        found = {f"{part}.{name}": tensor for part, sums in sets.items() for name, tensor in sums.tensors().items()}
        return found | {"scores": torch.tensor(list(self.scores), dtype=torch.float64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `tensors` gave, and nothing else."""
        parts = [
            Sums.of({name: tensors[f"{part}.{name}"] for name in ("total", "numbers") if f"{part}.{name}" in tensors})
            for part in ("fakes", "one", "other")
        ]
        self.fakes, self.halves = parts[0], (parts[1], parts[2])
        self.scores = deque(tensors["scores"].tolist() if "scores" in tensors else (), maxlen=JUDGED)
