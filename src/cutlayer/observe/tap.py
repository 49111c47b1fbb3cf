"""A party's own tap: what it sends and receives at a cut beside the rows that it is made of. It stays with the party.

Facts have no tensors. Who must see tensors (the monitor, a recording of a run of one's own) is a `Tap`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cutlayer.observe.facts import Stop, Way
from cutlayer.protocol.messages import Ticket


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A tensor that crosses a cut of this party, before its codec or after it; not to be changed, nor kept uncloned.

    `tensor`: what was released (`sent`) or what came, `[B, ...]`. `inputs`: the rows that a sent activation was made
    of, where they are this party's own, and `labels`, where it has them; `places`: where the rows lie in its data.
    Gradients are of the loss summed over the mini-batch.
    """

    party: str
    peer: str
    edge: str
    way: Way
    sent: bool
    ticket: Ticket
    tensor: Tensor
    inputs: tuple[Tensor, ...] = ()
    labels: Tensor | None = None
    places: Tensor | None = None


Tap = Callable[[Seen], Stop | None]
"""May end the run before this tensor is released, by returning a `Stop`."""


def flat(tensor: Tensor) -> Tensor:
    """`[B, ...]` as `[B, F]`; a single number a row, `[B]`, as `[B, 1]`."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
