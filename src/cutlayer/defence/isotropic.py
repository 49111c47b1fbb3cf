"""Isotropic noise on gradients, as large as the largest row of the mini-batch says: what Marvell is measured against.

Sources: Li et al. 2021 (arXiv 2102.08504), the baseline `iso`. It promises nothing: its size
follows the gradients. For noise that an accountant can count, clip: `gaussian`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.defence.defence import Context, Defence, Kind, State, strength_fault
from cutlayer.errors import PlanError
from cutlayer.plan.terms import Way


@dataclass(frozen=True, kw_only=True)
class Isotropic(Defence):
    """`ratio`: the noise's expected norm (root mean square) over the norm of the largest row."""

    ratio: float
    word: ClassVar[str] = "isotropic"
    kind: ClassVar[Kind] = "release"
    ways: ClassVar[frozenset[Way]] = frozenset({"backward"})

    def __post_init__(self) -> None:
        if found := strength_fault(self.word, ratio=self.ratio):
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return self.ratio == 0

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        """g + n for each row g of d numbers, with n from N(0, (ratio |g_max|)² / d · I)."""
        if not tensor.numel():
            return tensor
        g_BD = tensor.detach().reshape(len(tensor), -1).double()  # noqa: N806
        deviation = self.ratio * g_BD.square().sum(1).max().sqrt() / math.sqrt(g_BD.shape[1])
        drawn_BD = torch.randn(g_BD.shape, dtype=torch.float64, generator=context.generator)  # noqa: N806
        return (g_BD + deviation * drawn_BD.to(g_BD.device)).to(tensor.dtype).view(tensor.shape)
