"""What a segment keeps of its last mini-batches, to step on them alone; and how far each row of that is to be trusted.

Source: Fu et al. 2022, "Towards communication-efficient vertical federated learning training via cache-enabled local
updates" (CELU-VFL, arXiv 2207.14628): its workset table with W = R = the number of cached steps, its weights of
instances with ξ = 60°.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cutlayer.protocol.messages import Ticket

Tensors = tuple[Tensor, ...]
Places = Sequence[int | None]
"""Of each tensor the dimension that grows with the rows; None if it has none."""

NARROWEST = 0.5
"""cos 60°: a row whose present and cached tensors lie further apart counts for nothing."""
TINY = 1e-30
"""Below this a row's norm is that of a row of zeros, which is like nothing."""


@dataclass(kw_only=True, slots=True)
class Entry:
    """What a segment has of one mini-batch: what it went forward with, and what came of that."""

    ticket: Ticket
    inputs: Mapping[str, Tensors]
    rows: int
    left_out: Collection[str]
    outputs: Tensors
    """What the segment gave, as far as gradients come back for it; nothing where it ends in a loss."""
    begun: int
    """How many steps the replica had taken."""
    gradients: Tensors | None = None
    """Those that came back for the outputs; where the segment ends in a loss, those that went back from it."""
    normaliser: float = 0.0


class Workset:
    """The last mini-batches of a turn, at most `most`. With the turn it ends: what is saved needs nothing of it.

    In memory: of each mini-batch the inputs and, of the same size as what crosses, an activation and its gradient.
    `outputs` and `inputs` say where the rows lie in what the segment gives, and in what a gradient goes back for.
    """

    def __init__(self, most: int, *, outputs: Places, inputs: Places) -> None:
        self.outputs, self.inputs = outputs, inputs
        self.taken = 0
        """Steps that the replica has taken in this turn, exact ones and cached ones."""
        self._turn = -1
        self._entries: deque[Entry] = deque(maxlen=most)
        self._under_way: Entry | None = None

    def enter(self, turn: int) -> None:
        """A ticket of a turn came; what is left of another one goes."""
        if turn != self._turn:
            self._turn, self.taken, self._under_way = turn, 0, None
            self._entries.clear()

    def went_forward(self, entry: Entry) -> None:
        """A mini-batch is under way."""
        self._under_way = entry

    def came_back(self, gradients: Sequence[Tensor]) -> None:
        """Its gradients are there."""
        assert self._under_way is not None
        self._under_way.gradients = tuple(gradients)

    def stepped(self, normaliser: float) -> None:
        """The replica stepped on it, with its gradients divided by `normaliser`."""
        entry, self._under_way = self._under_way, None
        self.taken += 1
        if entry is not None and entry.gradients is not None:
            entry.normaliser = normaliser
            self._entries.append(entry)

    def newest_first(self) -> Iterator[Entry]:
        """The mini-batches, of which no more are put in meanwhile."""
        return reversed(self._entries)


def trust(present: Sequence[Tensor], cached: Sequence[Tensor], places: Places, rows: int) -> Tensor:
    """How far each row of a cached step is to be trusted `[rows]`, float64, from 0 to 1.

    It is the cosine between what the row's tensors are at present and what is cached of them, all in one vector, and 0
    below `NARROWEST`. Where no tensor has rows it is 1.

    >>> trust([torch.tensor([[2.0, 0.0], [0.0, 1.0]])], [torch.tensor([[1.0, 0.0], [1.0, 0.0]])], (0,), 2)
    tensor([1., 0.], dtype=torch.float64)
    """
    pairs = [
        (_by_row(one, place, rows), _by_row(other, place, rows))
        for one, other, place in zip(present, cached, places, strict=True)
        if place is not None
    ]
    if not pairs:
        return torch.ones(rows, dtype=torch.float64)
    one, other = (torch.cat(tensors, 1).double() for tensors in zip(*pairs, strict=True))
    cosine = F.cosine_similarity(one, other, 1, eps=TINY)
    return torch.where(cosine >= NARROWEST, cosine.clamp(max=1.0), 0.0)


def weighted(gradients: Sequence[Tensor], trusted: Tensor, places: Places) -> list[Tensor]:
    """The gradients with each row multiplied by how far it is trusted."""
    return [
        gradient if place is None else _weighted(gradient, trusted, place)
        for gradient, place in zip(gradients, places, strict=True)
    ]


def _weighted(gradient: Tensor, trusted: Tensor, place: int) -> Tensor:
    entries = gradient.shape[place] // len(trusted)  # a row may have several successive ones
    weights = trusted.to(gradient).repeat_interleave(entries)
    return gradient * weights.view(-1, *[1] * (gradient.ndim - place - 1))


def _by_row(tensor: Tensor, place: int, rows: int) -> Tensor:
    """`[rows, numbers of a row]`."""
    return tensor.detach().movedim(place, 0).reshape(rows, -1)
