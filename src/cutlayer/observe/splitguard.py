"""SplitGuard: labels that are wrong on purpose, and what the server makes of them.

Erdoğan, Küpçü and Çiçek 2022 (arXiv 2108.09052, section 4). From batch `AFTER` on, with the chance `FAKE`, a client
sends a batch with wrong labels; its gradient is not used. A server that learns the task sends large gradients for it,
in another direction; one that never looks at labels cannot tell. Near 1 the server is honest, near 0 it is not.

A run must feed it: tickets of their own for fake batches, drawn from the client's secret, that look to the server like
any other; labels drawn anew among the other classes; and the client's segment must not step on what comes back. Until
then nothing calls this. A server with a model of the task beside its attack deceives it (SplitSpy, in Fu et al. 2023).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

AFTER, FAKE = 20, 0.1
STEEPNESS, POWER = 5.0, 2.0


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
    """Adds up what came back. `generator` parts regular batches into halves; the server must not know it.

    >>> guard = SplitGuard(generator=torch.Generator().manual_seed(1))
    >>> guard.score is None
    True
    """

    generator: torch.Generator
    fakes: Sums = field(default_factory=Sums)
    halves: tuple[Sums, Sums] = field(default_factory=lambda: (Sums(), Sums()))
    batches: int = 0

    def wants_fake(self) -> bool:
        """Whether the next batch is to be a fake one."""
        self.batches += 1
        drawn = float(torch.rand((), generator=self.generator))
        return self.batches > AFTER and drawn < FAKE

    def regular(self, gradient: Tensor) -> None:
        """The gradient of a batch with its own labels, from batch `AFTER` on as in the paper; earlier ones are left."""
        if self.batches > AFTER:
            self.halves[int(torch.randint(2, (), generator=self.generator))].add(gradient)

    def fake(self, gradient: Tensor) -> None:
        self.fakes.add(gradient)

    @property
    def score(self) -> float | None:
        """None until there are a fake batch and two halves."""
        if not (self.fakes.count and self.halves[0].count and self.halves[1].count):
            return None
        return splitguard_score(self.fakes, *self.halves)
