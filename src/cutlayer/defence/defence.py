"""What a defence is: a tensor to a safer tensor, and what the safer one still tells. One file a method.

`registry` has their names. A defence works before the codec: nothing done later to a released tensor can weaken it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import Way

Kind = Literal["release", "penalty", "update"]
State = dict[str, Tensor]
"""What a defence remembers from one release to the next; whoever uses it keeps it, and saves it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What a release may look at.

    `generator`: on the CPU, seeded by the party's own secret, the run, the place of the ticket and the digest of the
    tensor: the same bits get the same noise, other bits independent noise, and no peer can draw it again.
    `row_keys`: a secret number for each row, the same whenever the row is released: int64 `[B]`; None where this party
    does not know whose rows they are. `labels`: of the rows, where this party has them. `classes`: how many there are;
    0 where they are no class numbers.
    """

    generator: torch.Generator
    labels: Tensor | None = None
    row_keys: Tensor | None = None
    classes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanism:
    """What the release of one row tells of it, as an accountant counts it.

    `gaussian`: `scale` is the noise's standard deviation over the sensitivity. `laplace`: its parameter b over the
    sensitivity in L1. `pure`: ε-DP, and `scale` is ε. `once`: a row that is released again tells nothing new, since it
    is released as it was the first time. `relation` and `sensitivity`, in words and as a number, are for people.
    """

    kind: Literal["gaussian", "laplace", "pure"]
    scale: float
    sensitivity: float
    relation: str = "replace one row"
    once: bool = False


class Defence(Protocol):
    """One method with settings: a frozen dataclass whose fields are the options that a plan may name.

    `kind`: a `release` changes what crosses. A `penalty` is added to the loss of the segment that sends, so that what
    crosses tells less. An `update` changes how a segment learns. `ways`: which ways of an edge it can defend.
    """

    word: ClassVar[str]
    kind: ClassVar[Kind]
    ways: ClassVar[frozenset[Way]]
    needs_labels: ClassVar[bool] = False
    for_labels: ClassVar[bool] = False
    """Whether it defends class numbers; others defend floats."""

    @property
    def name(self) -> str:
        """As a plan would write it, such as `gaussian(clip=1.0, sigma=0.5)`."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        told = [f"{name}={value!r}" for name, value in options.items() if value != ""]
        return f"{self.word}({', '.join(told)})" if told else self.word

    @property
    def neutral(self) -> bool:
        """Whether its strength is zero: then it is never called, and the run has the bits of one without it."""
        return False

    def fault(self, shape: TensorShape) -> str | None:
        """Why it cannot defend tensors like this, in a sentence with the mend; or None."""
        return None

    def labels_fault(self, classes: int, rows: int) -> str | None:
        """Why it cannot defend with labels of so many classes (0: no class numbers) in mini-batches of so many rows;
        asked of those that need labels."""
        return None

    def mechanism(self, shape: TensorShape) -> Mechanism | None:
        """What the release of one row of a mini-batch like this tells; None: a heuristic, which bounds nothing."""
        return None

    # ------------------------------------------------------------------ a release

    def init(self, shape: TensorShape, generator: torch.Generator) -> State:
        """What it remembers before the first release of tensors like this (whatever their rows); by default nothing."""
        return {}

    def release(self, tensor: Tensor, context: Context, state: State) -> Tensor:
        """The safer tensor, of the same shape and dtype, on the same device; rows come first.

        Differentiable in `tensor` (and in what of the state requires gradients) where it defends activations: the
        gradient that comes back for what was released goes back through it. It does not change `tensor`.
        """
        raise AssertionError(f"{self.word} does no such thing")

    def learn(self, gradients: State, state: State) -> State:
        """The state after gradients of the loss for what of it requires them; by default it stays."""
        return state

    # ------------------------------------------------------------------ a penalty

    def penalty(self, inputs: Sequence[Tensor], cut: Tensor) -> Tensor:
        """What is added to a mini-batch's mean loss: a scalar, differentiable in `cut`, of the segment's inputs and
        what it gives."""
        raise AssertionError(f"{self.word} does no such thing")


def strength_fault(word: str, **options: Any) -> list[str]:
    """A sentence for each option that is no finite number of at least 0."""
    return [
        f"{word}: {name} = {value!r}: a finite number, at least 0"
        for name, value in options.items()
        if not 0 <= value < float("inf")
    ]
