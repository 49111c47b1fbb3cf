"""A loss over labels that were answered at random, corrected for how they were.

Source: Patrini, Rozza, Menon, Nock, Qu 2017, "Making deep neural networks robust to label noise: a loss correction
approach" (arXiv 1609.03683), whose T[y, a] is the chance that a row of class y is answered with a. With ℓ[j] the loss
of a row if its label were j, which is −log of the chance that the model gives to class j:

- `backward` (theorem 1): Σ_j T⁻¹[a, j] ℓ[j]. Its mean over answers is the loss over true labels, exactly; but a row's
  loss has no lower bound, and the less an answer tells the larger its variance.
- `forward` (theorem 2): −log Σ_j T[j, a] exp(−ℓ[j]), what the model says of answers rather than of labels. Its mean is
  another number than the loss over true labels, with its minimum at the same model; it is bounded below.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Answered:
    """How labels of K classes are answered: `chances` is T, float64 `[K, K]`, and not singular.

    `backward`: which of the two corrections the loss gets.
    """

    chances: Tensor
    backward: bool

    def total(self, losses: Tensor, answers: Tensor) -> Tensor:
        """The corrected loss summed over rows, of `[B, K, ...]` and their answers, one a row."""
        losses_BK = losses.reshape(-1, len(self.chances))  # noqa: N806
        if self.backward:
            return torch.sum(_at(self.inverse.to(losses), answers) * losses_BK)
        return -torch.sum(torch.logsumexp(_at(self.chances.T.to(losses), answers).log() - losses_BK, 1))

    def right(self, guesses: Tensor, answers: Tensor) -> float:
        """How many guesses are right of the true labels: Σ T⁻¹[a, guess], whose mean over answers is that number."""
        return float(_at(self.inverse, answers.cpu()).gather(1, guesses.reshape(-1, 1).long().cpu()).sum())

    @cached_property
    def inverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.inv(self.chances)
        return inverse


def _at(rows_KK: Tensor, answers: Tensor) -> Tensor:  # noqa: N803
    """The row of each answer, `[B, K]`; torch refuses an answer that is none of the classes."""
    return rows_KK.index_select(0, answers.reshape(-1).long())
