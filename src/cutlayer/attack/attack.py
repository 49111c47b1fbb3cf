"""What an attack is: traffic of a run of one's own, and what the attacker knows besides, to a score. One file a method.

`registry` has their names. Attacks that must take part in the run to work (they hijack what a client learns) are
segments instead: see `hijack`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Protocol

from torch import Tensor, nn

from cutlayer.attack.traffic import Score, Traffic

Need = Literal["activations", "gradients", "inputs", "labels", "auxiliary", "bottom", "known bottom", "top"]
"""`inputs` and `labels` of the traffic may be looked at only by attacks that need them, or to score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Knowledge:
    """What an attacker has besides the traffic.

    `auxiliary`: rows like the owner's, of others: inputs `[M, ...]`, and their labels `[M]` where those are known.
    `bottom`: makes a client's segment with fresh weights (its architecture is in the plan); `known`: the client's own,
    with the weights that it had when the traffic was made. `top`: makes a server's segment with fresh weights.
    `classes`: how many there are; 0: labels are no class numbers. `pixels`: the range of inputs, where they are images.
    """

    auxiliary: tuple[Tensor, Tensor | None] | None = None
    bottom: Callable[[], nn.Module] | None = None
    known: nn.Module | None = None
    top: Callable[[], nn.Module] | None = None
    classes: int = 0
    pixels: tuple[float, float] = (0.0, 1.0)


class Attack(Protocol):
    """One method with settings: a frozen dataclass whose fields are its options."""

    word: ClassVar[str]
    needs: ClassVar[frozenset[Need]]

    @property
    def name(self) -> str:
        """As a person would write it, such as `completion(labels=40)`."""
        told = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)  # type: ignore[arg-type]
            if getattr(self, field.name) != field.default
        ]
        return f"{self.word}({', '.join(told)})" if told else self.word

    def run(self, traffic: Traffic, knowledge: Knowledge, seed: int) -> Score:
        """How well it did. The same seed gives the same score. Raises `DataError` where it lacks what it needs."""
        ...
