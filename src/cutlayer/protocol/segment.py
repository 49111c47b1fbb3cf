"""What a party asks of a segment. Declared without torch; `model` implements it, and so may an attacker's server."""

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

from cutlayer.protocol.messages import Ticket

V = TypeVar("V")


class Outcome(Struct, Generic[V], frozen=True):
    """What a forward gave: the outputs, and where the segment is a loss the sums of this ticket."""

    outputs: V
    sums: Mapping[str, float] | None = None


class Segment(Protocol[V]):
    """A slice of a network at work on one replica. Inputs are named by edge, never by position."""

    def forward(self, ticket: Ticket, inputs: Mapping[str, V]) -> Outcome[V]:
        """Outputs for inputs by edge name. When training, what backward needs is kept under the ticket."""

    def backward(self, ticket: Ticket, grads: Mapping[str, V]) -> dict[str, V]:
        """Gradients of the loss sum by input edge, given those by output edge; frees the ticket."""

    def step(self, normaliser: float, number: int) -> None:
        """Divide the accumulated gradients by `normaliser` and step the optimizer once, in round `number`."""
