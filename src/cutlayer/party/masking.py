"""Sums of which nobody sees a part: a client's share leaves as whole numbers under masks that cancel in the sum.

A share of which one client alone is in the sum is refused before it leaves: the sum would be the share. Where a round
may be done again without a client, shares are under their givers' own masks, too; the keys follow when all have come.
"""

from collections.abc import Callable, Collection, Mapping
from hashlib import sha256
from secrets import token_bytes

import numpy as np
import torch
from torch import Tensor

from cutlayer.errors import RunError
from cutlayer.keys.masking import KEY_BYTES, Words, mask, own_mask
from cutlayer.model.fixed import decode, encode, word_count
from cutlayer.model.state import MODEL, ReplicaState
from cutlayer.party.openings import Opened, Openings
from cutlayer.party.replicas import Replicas
from cutlayer.party.sealed import Seals
from cutlayer.plan.masking import FEWEST, own_masks
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
        self,
        plan: Plan,
        name: str,
        replicas: Replicas,
        *,
        run: Callable[[], str],
        seals: Seals | None,
        openings: Openings | None = None,
        present: Callable[[], Collection[str]] | None = None,
    ) -> None:
        """`openings`: what this party has opened; without, it knows that for as long as it lives.

        `present`: who takes part in the run now; without, all do.
        """
        self._present = present or (lambda: plan.clients)
        self._own_masks = own_masks(plan.terms)
        self._openings = openings or Openings(None, party=name, plan=plan.digest)
        self._key = b""
        """Of the own mask of this party's last share, until it was told."""
        self._called = b""
        """For which sum the aggregator has asked for it."""
        self._plan, self._name, self._replicas, self._run, self._seals = plan, name, replicas, run, seals
        self._like: dict[Kind, dict[str, Tensor]] = {}
        self._sum: Words = np.zeros(0, dtype=np.uint64)
        self._missing: set[str] = set()
        """Whose shares the sum lacks."""
        self._closed: set[str] = set()
        """Whose own masks are still in it."""
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
        if self._own_masks:
            self._openings.check(self._opening(give))
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
        if self._own_masks:
            self._key = token_bytes(KEY_BYTES)
            masked += own_mask(self._key, len(words))
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
            self._closed = set(add.among) if self._own_masks else set()
        self._missing.remove(add.owner)
        self._sum += words.numpy().view(np.uint64)

    def call(self, give: Give) -> bytes:
        """What the aggregator says when all shares of a sum have come: which sum that is."""
        said = (self._plan.digest, self._run(), give.of, give.round, sorted(give.among.items()))
        return sha256(repr(said).encode()).digest()

    def called(self, said: bytes) -> None:
        """The aggregator has all shares, as it says."""
        self._called = said

    def unmask(self, give: Give) -> bytes:
        """The key of the own mask of this party's share, which from now on is for this sum of the round alone.

        Raises `RunError`: the call was for another sum, another one of the round was opened, or this cannot be noted.
        """
        if self._called != self.call(give):
            raise RunError(
                f"{self._plan.aggregator} sums in round {give.round + 1} something else than {self._name} gave a share "
                "of: compare the plan's digest and its pinned keys with it"
            )
        self._openings.bind(self._opening(give))
        assert self._key, "a key is told once, after the share"
        key, self._key, self._called = self._key, b"", b""
        return key

    def _opening(self, give: Give) -> Opened:
        present = self._present()
        return Opened(give.of, give.round, dict(give.among), tuple(p for p in self._plan.clients if p in present))

    def unmasked(self, party: str, key: bytes) -> None:
        """Another client's own mask comes off the sum. Raises `RunError` for what is no key."""
        if len(key) != KEY_BYTES or self._missing or party not in self._closed:
            raise RunError(f"what came from {party} is not the key of a mask in the sum: all run the same cutlayer")
        self._closed.remove(party)
        self._sum -= own_mask(key, len(self._sum))

    def result(self) -> dict[str, Tensor]:
        """What all shares that were added since the last result come to; nothing if there were none."""
        assert not self._missing, "a sum is spread when all its shares have come"
        assert not self._closed, "and when all their own masks are off"
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
