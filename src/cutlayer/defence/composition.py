"""What so many releases by these mechanisms tell of one row together: ε at δ.

By the tightest bound that holds and can be afforded. Gaussian noise alone composes exactly (Balle, Wang 2018, arXiv
1805.06530, theorem 8; Dong, Roth, Su 2019, arXiv 1905.02383, corollary 3.3). Else it is the smallest of plain addition,
Rényi DP (Mironov 2017, arXiv 1702.07476, table II and proposition 1; Canonne, Kamath, Steinke 2020, arXiv 2004.00010,
proposition 12) and discretised privacy losses (Doroshenko et al. 2022, arXiv 2207.04380), the latter two by
`dp_accounting`. All of them hold where each release may depend on those before it.

`Mechanism.scale` is the noise over the sensitivity under the mechanism's own relation. To `dp_accounting` each is thus
one of sensitivity 1, whose default relation does not double it.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.defence.defence import Mechanism

Counts = Mapping[Mechanism, int]
"""How often a row is released by each mechanism."""
Told = frozenset[tuple[Mechanism, int]]

ORDERS: tuple[float, ...] = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)
"""The orders at which Rényi DP is counted."""
_BUCKETS, _PARTS, _LEAST_PARTS = 400_000, 20, 2
"""A discretised loss so long takes about a second; in how many buckets the largest loss of one release lies."""
_ENDLESS = 2**40
"""More releases than a run makes."""


def epsilon(counts: Counts, delta: float) -> float:
    """The ε at δ of so many releases of a row by each mechanism, composed; 0 for none, ∞ if nothing bounds it."""
    told = frozenset((mechanism, count) for mechanism, count in counts.items() if count)
    return min(_quick(told, delta), _by_losses(told, delta))


def subsampled_epsilon(*, noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """The ε at δ of DP-SGD whose mini-batches are Poisson samples, each row in each with probability `rate`.

    Of use only where nobody else learns which rows a mini-batch has, not even how many; mini-batches of a shuffled
    table are no such samples. Add or remove one row: `noise_multiplier` is the noise over the clip, the sensitivity
    of a sum of clipped gradients (Mironov, Talwar, Zhang 2019, arXiv 1908.10530).
    """
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS)
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise_multiplier)), steps)
    return float(accountant.get_epsilon(delta))


class Allowance:
    """Whether counts stay inside ε at δ. It looks ahead, so that most answers are a comparison of counts."""

    def __init__(self, epsilon: float, delta: float) -> None:
        self.epsilon, self.delta = epsilon, delta
        self._inside: Counts = {}
        """Counts that are known to stay inside, as far as possible in the proportion of those last asked for."""

    def holds(self, counts: Counts) -> bool:
        if all(count <= self._inside.get(mechanism, 0) for mechanism, count in counts.items()):
            return True
        for bound in (_quick, _by_losses):  # cheap first: the other is asked for only when that one gives out
            if bound(frozenset(counts.items()), self.delta) <= self.epsilon:
                self._inside = self._furthest(counts, bound)
                return True
        return False

    def _furthest(self, counts: Counts, bound: Callable[[Told, float], float]) -> Counts:
        """Counts in the same proportion, by a search for the largest one, that stay inside by this bound."""
        most = max(counts.values())

        def scaled(to: int) -> Counts:
            return {mechanism: count * to // most for mechanism, count in counts.items()}

        low, step = most, max(1, most // 16)
        while low < _ENDLESS and bound(frozenset(scaled(low + step).items()), self.delta) <= self.epsilon:
            low, step = low + step, 2 * step
        while step > 1:  # low stays inside, low + step does not
            half = step // 2
            if bound(frozenset(scaled(low + half).items()), self.delta) <= self.epsilon:
                low, step = low + half, step - half
            else:
                step = half
        return scaled(low)


def _quick(told: Told, delta: float) -> float:
    """In some hundred microseconds."""
    told = frozenset((mechanism, count) for mechanism, count in told if count)
    if all(mechanism.kind == "gaussian" for mechanism, _ in told):
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

        shift = _gaussian_shift(told)
        return float(get_epsilon_gaussian(1 / shift, delta)) if shift else 0.0
    return min(_by_addition(told), renyi_epsilon(told, delta))


def _gaussian_shift(told: Told) -> float:
    """μ of the Gaussian releases together: by how many deviations a row shifts what is released."""
    shares = [_over(count, mechanism.scale**2) for mechanism, count in told if mechanism.kind == "gaussian"]
    return math.sqrt(math.fsum(shares))


def _loss(mechanism: Mechanism) -> float:
    """The ε of a single release at δ = 0."""
    match mechanism.kind:
        case "laplace":
            return _over(1, mechanism.scale)
        case "pure":
            return mechanism.scale
        case "gaussian":
            return math.inf


def _over(number: float, scale: float) -> float:
    return number / scale if scale else math.inf


def _by_addition(told: Told) -> float:
    return math.fsum(count * _loss(mechanism) for mechanism, count in told)


def renyi_epsilon(told: Told, delta: float, orders: tuple[float, ...] = ORDERS) -> float:
    """The ε at δ by Rényi DP at these orders."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    total = np.zeros(len(orders))
    for mechanism, count in told:
        total += count * _renyi_curve(mechanism, orders)
    return float(compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=64)
def _renyi_curve(mechanism: Mechanism, orders: tuple[float, ...]) -> NDArray[np.float64]:
    """The Rényi divergence of one release, by order α > 1."""
    a, loss = np.array(orders, np.float64), _loss(mechanism)
    match mechanism.kind:
        case "gaussian":
            return a * _over(1, 2 * mechanism.scale**2)
        case "laplace":
            same, other = np.log(a / (2 * a - 1)) + (a - 1) * loss, np.log((a - 1) / (2 * a - 1)) - a * loss
        case "pure":  # by that of randomised response, which no ε-DP mechanism exceeds (Kairouz et al. 2015)
            truth = -math.log1p(math.exp(-loss))
            same, other = truth + (a - 1) * loss, truth - a * loss
    curve: NDArray[np.float64] = np.logaddexp(same, other) / (a - 1)
    return curve


@lru_cache(maxsize=256)
def _by_losses(told: Told, delta: float) -> float:
    """By discretised privacy losses; ∞ where that takes too long, and where Gaussian noise alone is counted exactly."""
    losses = {mechanism: _loss(mechanism) for mechanism, count in told if count and mechanism.kind != "gaussian"}
    finest = min((loss for loss in losses.values() if loss), default=math.inf)
    shift = _gaussian_shift(told)
    if delta == 0 or math.isinf(finest) or math.isinf(shift) or math.isinf(max(losses.values())):
        return math.inf
    span = shift**2 + 20 * shift + math.fsum(2 * count * losses.get(mechanism, 0.0) for mechanism, count in told)
    interval = max(finest / _PARTS, span / _BUCKETS)
    if interval > finest / _LEAST_PARTS:
        return math.inf
    composed = _discretised(Mechanism(kind="gaussian", scale=1 / shift, sensitivity=1), interval) if shift else None
    for mechanism, count in sorted(told, key=str):
        if count and losses.get(mechanism):
            one = _discretised(mechanism, interval).self_compose(count)
            composed = one if composed is None else composed.compose(one)
    assert composed is not None
    return float(composed.get_epsilon_for_delta(delta))


def _discretised(mechanism: Mechanism, interval: float) -> Any:
    from dp_accounting.pld import common
    from dp_accounting.pld import privacy_loss_distribution as losses

    told = {"value_discretization_interval": interval}
    match mechanism.kind:
        case "gaussian":
            return losses.from_gaussian_mechanism(mechanism.scale, **told)
        case "laplace":
            return losses.from_laplace_mechanism(mechanism.scale, **told)
        case "pure":
            return losses.from_privacy_parameters(common.DifferentialPrivacyParameters(mechanism.scale, 0.0), **told)
