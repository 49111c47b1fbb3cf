"""Attacks of a server that learn while a run goes on: those that take it over, and those that look on.

A malicious server answers a client's activations with gradients of its own making: the client's loss is not what it is
told, and its segment learns what serves the attacker. One that is honest but curious trains what it should, and learns
beside that. Such a server takes the place of the honest one in a run of one's own (`cutlayer attack`), and of nobody
else's.
"""

from dataclasses import fields
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from cutlayer.attack.attack import Knowledge, Need
from cutlayer.attack.traffic import Score, Traffic


class Insider(Protocol):
    """One method: a dataclass whose fields are its options, and networks of its own that `begin` makes.

    It draws from generators of its own alone: the global one is left as it was. The same seed and the same mini-batches
    give the same networks.
    """

    word: ClassVar[str]
    needs: ClassVar[frozenset[Need]]

    @property
    def name(self) -> str:
        """As a person would write it, such as `fsha(width=16)`."""
        ...

    def begin(self, knowledge: Knowledge, example: Tensor, seed: int) -> None:
        """Make the attacker's networks anew for activations like `example` `[B, ...]`, on the device that it is on.

        Raises `DataError` where the knowledge does not do for it.
        """
        ...

    def score(self, traffic: Traffic) -> Score:
        """How well inputs are rebuilt from activations that crossed; nothing is learned.

        The client's segment moves on while it learns, so the traffic should be that of the last steps. Of a row that
        crossed more than once the last crossing counts. Raises `DataError`.
        """
        ...


class Hijack(Insider, Protocol):
    """A malicious server."""

    def answer(self, activations: Tensor, labels: Tensor | None) -> Tensor:
        """The gradient that is sent down for a mini-batch `[B, ...]`, of a loss summed over its rows; and learn.

        Called once a training step, in the place of the honest server's forward, loss and backward.
        """
        ...


class Onlooker(Insider, Protocol):
    """A server that trains as it was agreed, and learns beside it: no client can tell."""

    def watch(self, activations: Tensor, labels: Tensor | None, top: nn.Module) -> None:
        """Learn from a mini-batch that came, `[B, ...]` and `[B]`, and from the honest segment as it is now.

        Called once a training step, beside the honest server's own. `top` takes activations and gives predictions
        `[B, ...]`, before the loss. It is copied: its weights, buffers, gradients and mode stay as they are. Raises
        `DataError` where the labels are not known.
        """
        ...


def named(attack: Any) -> str:
    """Its word, and the options that are not as usual."""
    told = [f"{f.name}={getattr(attack, f.name)!r}" for f in fields(attack) if getattr(attack, f.name) != f.default]
    return f"{attack.word}({', '.join(told)})" if told else str(attack.word)


def option_faults(attack: Any, *, above_zero: tuple[str, ...] = (), at_least_zero: tuple[str, ...] = ()) -> list[str]:
    """A sentence for each of these options that is no finite number above 0, or of at least 0."""
    found = [
        f"{attack.word}: {name} = {getattr(attack, name)!r}: a finite number above 0"
        for name in above_zero
        if not 0 < getattr(attack, name) < float("inf")
    ]
    return found + [
        f"{attack.word}: {name} = {getattr(attack, name)!r}: a finite number, at least 0"
        for name in at_least_zero
        if not 0 <= getattr(attack, name) < float("inf")
    ]
