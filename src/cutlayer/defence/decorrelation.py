"""Decorrelation at a bottleneck: no feature that crosses the cut says what another one says already.

Sources: Cogswell, Ahmed, Girshick, Zitnick, Batra 2016, "Reducing overfitting in deep networks by decorrelating
representations" (DeCov, arXiv 1511.06068), which penalises covariances between different features. Here they are
correlations, and their mean square: covariances vanish if all features merely shrink.

It protects nothing by itself. A narrow cut whose features are few and not redundant leaves a decoder no second look at
the same fact, and spares noise from being averaged away over copies of a feature; but features that are uncorrelated
can be inverted as well as others (whitening is invertible). Combine it with noise. It bounds nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.defence.defence import Defence, Kind, strength_fault
from cutlayer.defence.dependence import rounding
from cutlayer.errors import PlanError
from cutlayer.plan.terms import Way

_RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Decorrelation(Defence):
    """`weight`: of the mean squared correlation between different features, beside the task's mean loss."""

    weight: float
    word: ClassVar[str] = "decorrelation"
    kind: ClassVar[Kind] = "penalty"
    ways: ClassVar[frozenset[Way]] = frozenset({"forward"})

    def __post_init__(self) -> None:
        if found := strength_fault(self.word, weight=self.weight):
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return self.weight == 0

    def penalty(self, inputs: Sequence[Tensor], cut: Tensor) -> Tensor:
        return self.weight * mean_squared_correlation(cut)


def mean_squared_correlation(cut: Tensor) -> Tensor:
    """The mean of r² over all pairs of different features of `[B, ...]`, in [0, 1]; 0 with one row or one feature.

    r = c_ij / √((v_i + δ)(v_j + δ)), where δ is a millionth of the mean variance: a feature that is all but constant
    correlates with nothing, and its gradient stays finite.
    """
    z_BF = cut.reshape(len(cut), math.prod(cut.shape[1:])).double()  # noqa: N806
    rows, features = z_BF.shape
    told = torch.promote_types(cut.dtype, torch.float32)
    if rows < 2 or features < 2:
        return (z_BF.sum() * 0).to(told)
    centred = z_BF - z_BF.mean(0)
    if centred.detach().abs().max() <= rounding(cut.dtype) * z_BF.detach().abs().max():
        return (centred.sum() * 0).to(told)
    variances = centred.square().mean(0)
    floored = variances + _RIDGE * variances.mean()
    scaled = centred / (floored * rows).sqrt()
    # Both products have the same sum of squares; the smaller one is cheaper.
    squares = (scaled.T @ scaled if features < rows else scaled @ scaled.T).square().sum()
    others = squares - (variances / floored).square().sum()
    return (others.clamp(min=0) / (features * (features - 1))).to(told)
