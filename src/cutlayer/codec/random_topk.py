"""Randomised top-k: as top-k, but each of the k places goes to one outside the top k with a small probability.

So every element is sent now and then, and learns. Source: Zheng et al. 2023, "Reducing communication for split
learning by randomized top-k sparsification" (arXiv 2305.18469): with probability 1 - α the next place is drawn evenly
from the top k, else evenly from the others. Size: as top-k's. Error: max|x|, or the inner codec's where it is larger.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from cutlayer.codec import sparse
from cutlayer.codec.codec import Encoded
from cutlayer.codec.sections import carried, refuse_if_not_finite, shape_of
from cutlayer.codec.topk import TopK
from cutlayer.errors import PlanError


@dataclass(frozen=True, kw_only=True)
class RandomTopK(TopK):
    """`share`, `across` and `masked` as in top-k. `alpha`: the probability of a place outside; with 0 it is top-k."""

    alpha: float = 0.1
    masked: bool = True
    word: ClassVar[str] = "random_topk"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise PlanError(f"random_topk: alpha = {self.alpha!r} must be from 0 to 1")

    def error_bound(self, tensor: Tensor) -> float:
        if not tensor.numel() or self.lossless:
            return 0.0
        return max(float(tensor.abs().max()), self.inner.error_bound(tensor.reshape(-1)))

    def encode(self, tensor: Tensor, seed: int) -> Encoded:
        flat = carried(self, tensor)
        rows, k, n = self._size(shape_of(flat))
        x_BN = flat.view(rows, n)  # noqa: N806
        if not self.lossless:
            refuse_if_not_finite(self, x_BN)
        places = self._drawn_places(x_BN, k, torch.Generator().manual_seed(seed))
        kept = sparse.sent(places, tensor) if self.masked else None
        return Encoded(sparse.encode(self, self.inner, x_BN, places, seed).payload, kept)

    def _drawn_places(self, x_BN: Tensor, k: int, generator: Generator) -> Tensor:  # noqa: N803
        """[rows, k], rising: of the top ones as many as chance leaves, drawn evenly, then others, drawn evenly."""
        top = sparse.largest(x_BN, k)
        rows, n = x_BN.shape
        if k == n or self.alpha == 0 or not rows:
            return top
        draws = torch.rand(rows, n, generator=generator)
        others = (torch.rand(rows, k, generator=generator) < self.alpha).sum(1, keepdim=True).clamp_(max=n - k)
        of_top = top.gather(1, draws.gather(1, top).argsort(1))
        of_others = draws.scatter(1, top, 2.0).topk(min(k, n - k), dim=1, largest=False).indices
        of_others = torch.cat((of_others, of_top), 1)[:, :k]
        return torch.where(torch.arange(k) < others, of_others, of_top).sort(1).values
