"""Marvell: noise on gradients, of the shape that makes the two classes' gradients hardest to tell apart.

Sources: Li, Sun, Yang, Gao, Zhang, Xie, Smith, Wang 2021, "Label leakage and protection in two-party split learning"
(arXiv 2102.08504), section 4 and its theorem: gradients of class y are taken as N(g_y, u_y I) in d dimensions; of all
Gaussian noises whose mean power is at most P, the one with the smallest sumKL = KL(0‖1) + KL(1‖0) has variance λ1 along
g_1 − g_0 and λ2 ≤ λ1 across it, for each class. Any score that a peer makes of a gradient then has an AUC of at most
½ + √ε/2 − ε/8, with ε = sumKL < 4.

That holds for the model, for one release, and for the population. Real gradients are no spherical Gaussians and a
mini-batch estimates them roughly; their scores can exceed the bound, and a peer that sees a row in many epochs averages
noise away. So it is counted as a heuristic. Others hold patents on it as a product: ask before you sell it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.defence.defence import Context, Defence, Kind, State, strength_fault
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import Way

_STEPS = 44
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """Gradients of two classes: `gap` = |g_1 − g_0|², their variances `spread_0` (u) and `spread_1` (v) per dimension,
    the `share` p of class 1, strictly between 0 and 1, and the number d of `dimensions`."""

    gap: float
    spread_0: float
    spread_1: float
    share: float
    dimensions: int

    def swapped(self) -> "Classes":
        return Classes(
            gap=self.gap,
            spread_0=self.spread_1,
            spread_1=self.spread_0,
            share=1 - self.share,
            dimensions=self.dimensions,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Variances of the noise: λ1 along the line between the classes' means, λ2 in each dimension across it."""

    along_0: float = 0.0
    across_0: float = 0.0
    along_1: float = 0.0
    across_1: float = 0.0

    def power(self, classes: Classes) -> float:
        """The mean over rows of the expected |noise|²."""
        across = classes.dimensions - 1
        zero, one = self.along_0 + across * self.across_0, self.along_1 + across * self.across_1
        return (1 - classes.share) * zero + classes.share * one

    def swapped(self) -> "Noise":
        return Noise(along_0=self.along_1, across_0=self.across_1, along_1=self.along_0, across_1=self.across_0)


def sum_kl(classes: Classes, noise: Noise) -> float:
    """KL(0‖1) + KL(1‖0) in nats of the two classes' gradients with the noise; infinite where one has no width."""
    a, b = classes.spread_0 + noise.along_0, classes.spread_1 + noise.along_1
    c, e = classes.spread_0 + noise.across_0, classes.spread_1 + noise.across_1
    along = _apart(a, b) + (classes.gap / a + classes.gap / b if a > 0 and b > 0 else math.inf)
    return (along + (classes.dimensions - 1) * _apart(c, e) if classes.dimensions > 1 else along) / 2


def most_auc(sum_kl: float) -> float:
    """What the AUC of any score is at most: ½ + √ε/2 − ε/8; 1 from ε = 4 on, where it bounds nothing.

    >>> most_auc(1.0)
    0.875
    """
    return 1.0 if sum_kl >= 4 else 0.5 + math.sqrt(sum_kl) / 2 - sum_kl / 8


def best_noise(classes: Classes, power: float) -> Noise:
    """The noise with the smallest sumKL of those whose power is at most `power`.

    Across the line, noise is of use only to the class with less spread (0 here), up to the other's. For each such
    amount what is left goes along the line, where the best split has a closed form; and in the logarithms of the four
    total variances the program is convex (sums of monomials), so that golden sections find the one amount.
    """
    if classes.spread_0 > classes.spread_1:
        return best_noise(classes.swapped(), power).swapped()
    if not (power > 0 and classes.gap > 0):
        return Noise()
    low, high = classes.spread_0, classes.spread_1
    across = classes.dimensions - 1
    # λ2 ≤ λ1: an amount is spent in all d dimensions at least.
    room = min(high - low, power / ((1 - classes.share) * classes.dimensions)) if across else 0.0
    if not room > 0:
        return _split(classes, power, 0.0)

    def cost(logarithm: float) -> float:
        return sum_kl(classes, _split(classes, power, min(max(math.exp(logarithm) - low, 0.0), room)))

    least = math.log(low if low > 0 else room * 1e-9)
    best = _lowest(cost, least, max(math.log(low + room), least))
    return _split(classes, power, min(max(math.exp(best) - low, 0.0), room))


def _split(classes: Classes, power: float, across: float) -> Noise:
    """What is left of the power along the line, best split: with the total variances a and b, p b + q a = C is spent,
    and (a + D)/b + (b + D)/a = (1 + q D/C) a/b + (1 + p D/C) b/a + D/C is least at b/a = √((C + q D)/(C + p D))."""
    p, q = classes.share, 1 - classes.share
    left = max(power - q * (classes.dimensions - 1) * across, 0.0)
    total = left + p * classes.spread_1 + q * classes.spread_0
    ratio = math.sqrt((total + q * classes.gap) / (total + p * classes.gap))
    along_0 = max(min(total / (q + p * ratio) - classes.spread_0, left / q), across)
    return Noise(along_0=along_0, across_0=across, along_1=max(left - q * along_0, 0.0) / p)


def _lowest(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one valley is lowest, by golden sections."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    cost_left, cost_right = cost(left), cost(right)
    for _ in range(_STEPS):
        if cost_left <= cost_right:
            high, right, cost_right = right, left, cost_left
            left = high - _GOLDEN * (high - low)
            cost_left = cost(left)
        else:
            low, left, cost_left = left, right, cost_right
            right = low + _GOLDEN * (high - low)
            cost_right = cost(right)
    return (low + high) / 2


def _apart(one: float, other: float) -> float:
    """one/other + other/one − 2; 0 where both are 0: two points in the same place."""
    if one == other:
        return 0.0
    return (one - other) / one * ((one - other) / other) if one > 0 and other > 0 else math.inf


@dataclass(frozen=True, kw_only=True)
class Marvell(Defence):
    """`s`: the noise's mean power over |g_1 − g_0|² of the mini-batch; more hides more. The paper's figure
    for Criteo is of s = 4.

    It needs mini-batches with rows of both classes. One of a single class gets the noise of the last one with both:
    without noise it would show that class bare, and nothing can be estimated from it. Until there was one with both,
    zeros are released, of which the peer's segment learns nothing. Where a number is not finite, none of them is.
    """

    s: float
    word: ClassVar[str] = "marvell"
    kind: ClassVar[Kind] = "release"
    ways: ClassVar[frozenset[Way]] = frozenset({"backward"})
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if found := strength_fault(self.word, s=self.s):
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return self.s == 0

    def labels_fault(self, classes: int, rows: int) -> str | None:
        if classes not in (0, 2):
            return f"marvell tells two classes apart, and the labels have {classes}: say max_norm or isotropic instead"
        if rows < 2:
            return (
                "marvell compares rows of two classes in a mini-batch, and with one row in each it would release "
                "nothing but zeros: say training.batch_size = 2 or more (hundreds are better), or max_norm"
            )
        return None

    def init(self, shape: TensorShape, generator: torch.Generator) -> State:
        """`line`: g_1 − g_0, [d]; `classes`: u, v and p. Zeros: none seen yet."""
        return {
            "line": torch.zeros(math.prod(shape.shape[1:]), dtype=torch.float64),
            "classes": torch.zeros(3, dtype=torch.float64),
        }

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        """g + n, with n from N(0, Σ_y) for a row of class y. Raises `PlanError` if labels are not of two classes."""
        if not tensor.numel():
            return tensor
        ones_B = _ones(context, len(tensor)).to(tensor.device)  # noqa: N806
        g_BD = tensor.detach().reshape(len(tensor), -1).double()  # noqa: N806
        if not g_BD.isfinite().all():
            return torch.full_like(tensor, math.nan)
        if ones_B.any() and not ones_B.all():
            state["line"], state["classes"] = _estimated(g_BD, ones_B)
        line_D = state["line"].to(tensor.device)  # noqa: N806
        spread_0, spread_1, share = state["classes"].tolist()
        if not 0 < share < 1:
            return torch.zeros_like(tensor)
        gap = float(line_D.square().sum())
        classes = Classes(gap=gap, spread_0=spread_0, spread_1=spread_1, share=share, dimensions=len(line_D))
        noise = best_noise(classes, self.s * gap)
        released = g_BD + _drawn(noise, ones_B, line_D, context.generator)
        return released.to(tensor.dtype).view(tensor.shape)


def _ones(context: Context, rows: int) -> Tensor:
    """bool [B]: which rows are of class 1."""
    labels = context.labels
    if labels is None:
        raise PlanError("marvell needs the labels of the rows: name it where the labels are, or say max_norm")
    flat = labels.detach().reshape(-1)
    two = context.classes in (0, 2) and bool(((flat == 0) | (flat == 1)).all())
    if not two or len(flat) != rows:
        raise PlanError(
            "marvell tells two classes apart, and these labels are not a 0 or a 1 for each row: say max_norm or "
            "isotropic instead"
        )
    return flat == 1


def _estimated(g_BD: Tensor, ones_B: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
    """g_1 − g_0, and u, v, p of a mini-batch, on the CPU."""
    zero, one = g_BD[~ones_B], g_BD[ones_B]
    spreads = [(rows - rows.mean(0)).square().mean() for rows in (zero, one)]
    return (one.mean(0) - zero.mean(0)).cpu(), torch.stack([*spreads, ones_B.double().mean()]).cpu()


def _drawn(noise: Noise, ones_B: Tensor, line_D: Tensor, generator: torch.Generator) -> Tensor:  # noqa: N803
    """[B, D]: noise for each row, by its class."""

    def by_class(zero: float, one: float) -> Tensor:
        deviations = torch.tensor([zero, one], dtype=torch.float64, device=ones_B.device).sqrt()
        return deviations[ones_B.long(), None]

    rows, dimensions = len(ones_B), len(line_D)
    normal_B1 = torch.randn(rows, 1, dtype=torch.float64, generator=generator)  # noqa: N806
    direction_D = line_D / line_D.square().sum().sqrt().clamp(min=torch.finfo(torch.float64).tiny)  # noqa: N806
    along_B1 = by_class(noise.along_0 - noise.across_0, noise.along_1 - noise.across_1)  # noqa: N806
    drawn_BD = along_B1 * normal_B1.to(line_D.device) * direction_D  # noqa: N806
    if noise.across_0 or noise.across_1:
        normal_BD = torch.randn(rows, dimensions, dtype=torch.float64, generator=generator)  # noqa: N806
        drawn_BD = drawn_BD + by_class(noise.across_0, noise.across_1) * normal_BD.to(line_D.device)  # noqa: N806
    return drawn_BD
