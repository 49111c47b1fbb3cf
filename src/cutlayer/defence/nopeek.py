"""NoPeek: what crosses the cut is made to have little to do with the rows that it was made of.

Sources: Vepakomma, Singh, Gupta, Raskar 2020, "NoPeek: Information leakage reduction to share activations in
distributed deep learning" (arXiv 2008.09161): the loss is a weighted sum of DCOR(x, z), without a logarithm, and the
task's. Here the task's weight is 1; where code weighs the two by w and 1 − w, `alpha` is w / (1 − w).
Their own code squares distances, so that the figures they publish as distance correlation are √(linear CKA):
`root_cka` repeats them.

A heuristic, which bounds nothing. It makes a decoder's work harder on average; it does not stop a server that leads
the client's training astray (FSHA, arXiv 2012.02670, against α = 10⁴), nor does it hide single rows. It is of a whole
mini-batch: of its parts it is another penalty.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.defence.defence import Defence, Kind, strength_fault
from cutlayer.defence.dependence import distance_correlation, linear_cka, root_cka
from cutlayer.errors import PlanError
from cutlayer.plan.document import nearest
from cutlayer.plan.terms import Way

STATISTICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "distance_correlation": distance_correlation,
    "cka": linear_cka,
    "root_cka": root_cka,
}


@dataclass(frozen=True, kw_only=True)
class NoPeek(Defence):
    """`alpha`: the weight of `statistic`, `distance_correlation`, `cka` or `root_cka`, beside the task's mean loss."""

    alpha: float
    statistic: str = "distance_correlation"
    word: ClassVar[str] = "nopeek"
    kind: ClassVar[Kind] = "penalty"
    ways: ClassVar[frozenset[Way]] = frozenset({"forward"})

    def __post_init__(self) -> None:
        found = strength_fault(self.word, alpha=self.alpha)
        if self.statistic not in STATISTICS:
            found.append(f"{self.word}: statistic = {self.statistic!r} is unknown{nearest(self.statistic, STATISTICS)}")
        if found:
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return self.alpha == 0

    def penalty(self, inputs: Sequence[Tensor], cut: Tensor) -> Tensor:
        """alpha · statistic(x, z): z are the cut's rows, x the inputs' rows, all inputs of a row one after another."""
        x_BF = torch.cat([each.detach().reshape(len(cut), math.prod(each.shape[1:])) for each in inputs], 1)  # noqa: N806
        return self.alpha * STATISTICS[self.statistic](x_BF, cut)
