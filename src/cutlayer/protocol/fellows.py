"""Parties without a link: what one seals to another goes by the conductor, once, in order, between such pairs only."""

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.plan import Plan
from cutlayer.protocol.messages import Sealed


class Fellows:
    """The parties that `me` talks to by the conductor, and how much has been sealed so far as `me` knows it."""

    def __init__(self, plan: Plan, me: str) -> None:
        self._conductor, self._me = plan.conductor, me
        self._pairs = plan.forwarded_pairs
        self.names = frozenset(target for source, target in self._pairs if source == me)
        self._so_far: dict[tuple[str, str], int] = {}

    def check(self, peer: str, message: Sealed) -> None:
        """Whether a peer may bring this. Raises `RemoteProtocolError`; it looks at nothing that is sealed."""
        pair = (message.source, message.target)
        conducts = self._me == self._conductor
        if peer != (message.source if conducts else self._conductor) or pair not in self._pairs:
            raise RemoteProtocolError("wrong-seal", peer, f"nothing goes from {message.source} to {message.target}")
        if not conducts and message.target != self._me:
            raise RemoteProtocolError("wrong-seal", peer, f"what is for {message.target} came here")
        if len(message.tensors) != 1 or message.number != self._so_far.get(pair, 0):
            raise RemoteProtocolError("wrong-seal", peer, f"number {message.number} from {message.source}")
        self._so_far[pair] = message.number + 1
