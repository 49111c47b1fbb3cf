"""Laplace noise on clipped rows.

A release of one row is ε-DP under replace-one with ε = 2·clip/b (Dwork et al. 2006, TCC), where `clip` bounds the L1
norm: two rows of norm `clip` may lie opposite each other. As under `gaussian`, a row's tensor must depend on no other
row of its mini-batch.
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
class Laplace(Defence):
    """`clip`: the largest L1 norm of a row; 0: rows stay as they are, and the noise bounds nothing. `b`: the scale of
    the noise of each element (its standard deviation is b·√2).

    Textbook Laplace noise in floating point can be undone by its last bits (Mironov 2012, CCS). Here it is drawn and
    added in float64 and rounded once to the tensor's dtype, which hides them below float64; no more is claimed.
    """

    clip: float
    b: float
    word: ClassVar[str] = "laplace"
    kind: ClassVar[Kind] = "release"
    ways: ClassVar[frozenset[Way]] = frozenset(WAYS)

    def __post_init__(self) -> None:
        if found := strength_fault(self.word, clip=self.clip, b=self.b):
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return not self.clip and not self.b

    def fault(self, shape: TensorShape) -> str | None:
        return rows.float_fault(self.word, shape)

    def mechanism(self, shape: TensorShape) -> Mechanism | None:
        if not self.clip or not self.b:
            return None
        return Mechanism(kind="laplace", scale=self.b / (2 * self.clip), sensitivity=2 * self.clip)

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        """Raises `Diverged` for a row that cannot be clipped."""
        if self.neutral:
            return tensor
        safer = rows.clipped(tensor, self.clip, order=1) if self.clip else rows.wide(tensor)
        if self.b:
            safer = safer + noise.laplace(tensor.shape, context.generator).mul_(self.b).to(safer)
        return safer.to(tensor.dtype)
