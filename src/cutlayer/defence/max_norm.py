"""Max-norm: each gradient gets noise along itself, until its expected norm is the largest of the mini-batch.

Sources: Li, Sun, Yang, Gao, Zhang, Xie, Smith, Wang 2021, "Label leakage and protection in two-party split learning"
(arXiv 2102.08504), section 4, the heuristic `max_norm`. It hides norms from who looks at norms, and promises nothing:
a row keeps its line, the largest row is not changed at all, and small rows are turned round in half of the cases.
Others hold patents on it as a product: ask before you sell it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.defence.defence import Context, Defence, Kind, State, strength_fault
from cutlayer.errors import PlanError
from cutlayer.plan.terms import Way


@dataclass(frozen=True, kw_only=True)
class MaxNorm(Defence):
    """`strength`: of the noise; 1 is the paper's, whose expected squared norm is the largest row's."""

    strength: float = 1.0
    word: ClassVar[str] = "max_norm"
    kind: ClassVar[Kind] = "release"
    ways: ClassVar[frozenset[Way]] = frozenset({"backward"})

    def __post_init__(self) -> None:
        if found := strength_fault(self.word, strength=self.strength):
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return self.strength == 0

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        """g (1 + σ n) with n from N(0, 1) and σ² = |g_max|² / |g|² − 1, for each row g.

        A row of zeros has no direction: it gets its noise along the largest row, since it would stand out.
        """
        if not tensor.numel():
            return tensor
        g_BD = tensor.detach().reshape(len(tensor), -1).double()  # noqa: N806
        norms_B1 = g_BD.square().sum(1, keepdim=True).sqrt()  # noqa: N806
        largest = norms_B1.max()
        if largest == 0:
            return tensor
        along_BD = torch.where(  # noqa: N806
            norms_B1 > 0, g_BD / norms_B1.clamp(min=torch.finfo(torch.float64).tiny), g_BD[norms_B1.argmax()] / largest
        )
        drawn_B1 = torch.randn(len(g_BD), 1, dtype=torch.float64, generator=context.generator)  # noqa: N806
        sizes_B1 = self.strength * (largest.square() - norms_B1.square()).clamp(min=0).sqrt()  # noqa: N806
        released = g_BD + drawn_B1.to(g_BD.device) * sizes_B1 * along_BD
        return released.to(tensor.dtype).view(tensor.shape)
