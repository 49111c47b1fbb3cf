"""Gaussian noise on clipped rows.

A release of one row is (ε, δ)-DP under replace-one, by the analytic Gaussian mechanism (Balle and Wang 2018, arXiv
1805.06530, Theorem 8) with sensitivity 2·clip: two rows of norm `clip` may lie opposite each other. That holds for rows
whose tensors depend on no other row of their mini-batch: BatchNorm in training makes them do so.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cutlayer.defence import noise, rows
from cutlayer.defence.defence import Context, Defence, Kind, Mechanism, State, strength_fault
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import WAYS, Way


@dataclass(frozen=True, kw_only=True)
class Gaussian(Defence):
    """`clip`: the largest L2 norm of a row; 0: rows stay as they are, and the noise bounds nothing. `sigma`: the
    standard deviation of the noise of each element, in the unit of the elements. See `noise` on what floats leak."""

    clip: float
    sigma: float
    word: ClassVar[str] = "gaussian"
    kind: ClassVar[Kind] = "release"
    ways: ClassVar[frozenset[Way]] = frozenset(WAYS)

    def __post_init__(self) -> None:
        if found := strength_fault(self.word, clip=self.clip, sigma=self.sigma):
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return not self.clip and not self.sigma

    def fault(self, shape: TensorShape) -> str | None:
        return rows.float_fault(self.word, shape)

    def mechanism(self, shape: TensorShape) -> Mechanism | None:
        if not self.clip or not self.sigma:
            return None
        return Mechanism(kind="gaussian", scale=self.sigma / (2 * self.clip), sensitivity=2 * self.clip)

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        """Raises `Diverged` for a row that cannot be clipped."""
        if self.neutral:
            return tensor
        safer = rows.clipped(tensor, self.clip, order=2) if self.clip else rows.wide(tensor)
        if self.sigma:
            safer = safer + noise.normal(tensor.shape, context.generator).mul_(self.sigma).to(safer)
        return safer.to(tensor.dtype)
