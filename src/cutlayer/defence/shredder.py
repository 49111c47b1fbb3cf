"""Learned noise: tensors that are added to what crosses, trained to be large and yet do the task no harm.

Mireshghallah et al. 2020 (ASPLOS, arXiv 1905.11814): the task's loss less λ·Σ|n|, by gradient descent on the noise n,
which starts as Laplace noise. The paper trains several such tensors apart, with the network frozen, and draws one for
each row that it sends; here they are trained side by side, and with the network where that is trained. A heuristic: it
bounds nothing, and who sees many rows can tell a constant from them, the sooner the fewer `tensors` there are. Others
hold a patent on learning noise so (US 12008470).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cutlayer.defence import noise, rows
from cutlayer.defence.defence import Context, Defence, Kind, State, strength_fault
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import Way


@dataclass(frozen=True, kw_only=True)
class Shredder(Defence):
    """`scale`: of the Laplace noise that learning starts from. `weight`: λ, how much larger noise is worth beside the
    loss as its gradients cross, summed over a mini-batch. `lr`: the learning rate of the noise; 0: it stays as it was
    drawn. `tensors`: how many there are to draw from."""

    scale: float
    weight: float = 0.1
    lr: float = 0.001
    tensors: int = 1
    word: ClassVar[str] = "shredder"
    kind: ClassVar[Kind] = "release"
    ways: ClassVar[frozenset[Way]] = frozenset({"forward"})

    def __post_init__(self) -> None:
        found = strength_fault(self.word, scale=self.scale, weight=self.weight, lr=self.lr)
        if self.tensors < 1:
            found.append(f"shredder: tensors = {self.tensors}: at least 1")
        if found:
            raise PlanError(found)

    @property
    def neutral(self) -> bool:
        return not self.scale

    def fault(self, shape: TensorShape) -> str | None:
        return rows.float_fault(self.word, shape)

    def init(self, shape: TensorShape, generator: torch.Generator) -> State:
        drawn = noise.laplace((self.tensors, *shape.shape[1:]), generator).mul_(self.scale)
        return {"noise": drawn.to(getattr(torch, shape.dtype)).requires_grad_()}

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        """Each row plus one of the tensors, drawn evenly."""
        if self.neutral:
            return tensor
        which = noise.uniform((len(tensor),), context.generator).mul(self.tensors).ceil().long() - 1
        added = state["noise"][which.to(state["noise"].device)]
        return tensor + added.to(tensor)

    def learn(self, gradients: State, state: State) -> State:
        """One step of gradient descent on loss − λ·Σ|n|; `gradients` are of the loss alone."""
        before = state["noise"].detach()
        downhill = gradients["noise"].to(before) - self.weight * before.sign()
        return {"noise": (before - self.lr * downhill).requires_grad_()}
