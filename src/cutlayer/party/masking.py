"""Sums of which nobody sees a part: a client's share leaves as whole numbers under masks that cancel in the sum.

A share of which one client alone is in the sum is refused before it leaves: the sum would be the share.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from cutlayer.errors import RunError
from cutlayer.keys.masking import Words, mask
from cutlayer.model.fixed import decode, encode, word_count
from cutlayer.model.state import MODEL, ReplicaState
from cutlayer.party.replicas import Replicas
from cutlayer.party.sealed import Seals
from cutlayer.plan.masking import FEWEST
from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import Kind
from cutlayer.protocol.events import Add, Give

WORDS = "words"
"""The one tensor of a masked share."""


class MaskedSum:
    """What party `name` does of sums under masks: its own share, if it is a client; the sum, if it is the aggregator.

    The sum is the weighted mean of weights, or the sum of gradients, as soon as all shares are in it.
    """

    def __init__(
        self, plan: Plan, name: str, replicas: Replicas, *, run: Callable[[], str], seals: Seals | None
    ) -> None:
        self._plan, self._name, self._replicas, self._run, self._seals = plan, name, replicas, run, seals
        self._like: dict[Kind, dict[str, Tensor]] = {}
        self._sum: Words = np.zeros(0, dtype=np.uint64)
        self._missing: set[str] = set()
        """Whose shares the sum lacks."""
        self._parties = 0
        self._of: Kind = "weights"

    def share(self, give: Give, state: ReplicaState) -> ReplicaState:
        """This party's share, under masks. Raises `RunError` if it is alone in the sum, or its values do not fit."""
        assert self._seals is not None, "a plan with sums under masks is run with keys"
        if len(give.among) < FEWEST:
            raise RunError(
                f"in round {give.round + 1} only {self._name} has rows for a step that is summed, and the sum would be "
                "its share: see that all clients take as many steps (training.local_steps), or leave out "
                "secure_aggregation"
            )
        weight = give.among[self._name] / sum(sorted(give.among.values()))
        words = encode(
            state.tensors,
            self._layout(give.of, self._name),
            coefficient=weight if give.of == "weights" else 1.0,
            part=weight,
        )
        context = self._context(give)
        keys = {peer: self._seals.mask_key(peer, context=context) for peer in give.among if peer != self._name}
        masked = words + mask(self._name, keys, len(words))
        return ReplicaState(tensors={WORDS: torch.from_numpy(masked.view(np.int64))}, counts={})

    def add(self, add: Add, state: ReplicaState) -> None:
        """Another client's share comes into the sum. Raises `RunError` for what is no share."""
        words = state.tensors.get(WORDS)
        length = word_count(self._layout(add.of, add.owner))
        if words is None or len(state.tensors) > 1 or words.dtype != torch.int64 or words.shape != (length,):
            raise RunError(f"a state that came does not fit: a share under masks from {add.owner} is {length:,} words")
        if not self._missing:
            self._sum, self._missing = np.zeros(length, dtype=np.uint64), set(add.among)
            self._parties, self._of = len(add.among), add.of
        self._missing.remove(add.owner)
        self._sum += words.numpy().view(np.uint64)

    def result(self) -> dict[str, Tensor]:
        """What all shares that were added since the last result come to; nothing if there were none."""
        assert not self._missing, "a sum is spread when all its shares have come"
        if not self._parties:
            return {}
        parties, self._parties = self._parties, 0
        return decode(self._sum, self._like[self._of], parties=parties)

    def _layout(self, of: Kind, owner: str) -> Mapping[str, Tensor]:
        """The tensors that come into a sum, by name; the same at all clients."""
        if of not in self._like:
            like: dict[str, Tensor] = {}
            for key in [(segment, owner) for segment in self._plan.client_segments]:
                module, names = self._replicas.pattern(key).module, self._replicas.averaged(key)
                held = dict(module.named_parameters()) | (dict(module.named_buffers()) if of == "weights" else {})
                like |= {MODEL + name: held[name] for name in names if name in held}
            self._like[of] = like
        return self._like[of]

    def _context(self, give: Give) -> bytes:
        """What masks are good for: one sum of this run of this plan, and of those with their weights that are in it.

        Gradients are summed several times a round, all clients' at one place of the schedule; weights once a round.
        """
        place = give.number if give.of == "gradients" else give.round
        said = (self._plan.digest, self._run(), give.of, place, sorted(give.among.items()))
        return repr(said).encode()
