"""Saves, in two phases: each party writes its part and says so; once all have, the conductor says that the save holds.

A party comes to a save when all before it is over. The conductor goes on as soon as its part is copied: the writing
goes on beside. A member goes on when it hears that the conductor has, by the next turn or state, or because the save
holds. Nobody begins the next save before this one holds.
"""

from collections.abc import Collection

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.schedule import Save
from cutlayer.protocol.events import Commit, Store

NONE = -1


class Saving:
    """How far party `me` is with saves. The conductor hears of everybody's."""

    def __init__(self, conducts: bool) -> None:
        self._conducts = conducts
        self.reached: tuple[int, Save] | None = None
        """The save that the schedule has come to, while what lies before it is not over."""
        self.pending: tuple[int, Save] | None = None
        """The save whose parts are being written."""
        self.passed = True
        """Whether the conductor has gone on from there."""
        self._written = False
        """My own part of it."""
        self._told: dict[str, int] = {}
        """Conductor: of which save each member has written its part, of those that have since the last one held."""
        self._numbers: set[int] = set()
        """Conductor: of which saves these are: of one, unless somebody is wrong."""
        self.held = NONE

    @property
    def idle(self) -> bool:
        """Whether no save is due, or being written."""
        return self.reached is None and self.pending is None

    @property
    def blocks(self) -> bool:
        """Whether nothing that follows may begin."""
        return self.reached is not None or not self.passed

    @property
    def may_begin(self) -> bool:
        """Whether a save is due, and the one before it holds."""
        return self.reached is not None and self.pending is None

    def begin(self) -> Store:
        """All before the save is over: copy what it needs."""
        assert self.reached is not None
        self.pending, self.reached, self._written = self.reached, None, False
        self.passed = self._conducts
        number, save = self.pending
        return Store(number, save.round, save.ends_round)

    def written(self, number: int) -> bool:
        """My own part is written; whether it is of the save that is due."""
        self._written = self.pending is not None and self.pending[0] == number
        return self._written

    def told(self, peer: str, number: int) -> None:
        """Conductor: a member's part is written. Raises `RemoteProtocolError`."""
        last = self._told.get(peer, NONE)
        if number <= self.held or last > self.held:
            raise RemoteProtocolError("wrong-save", peer, f"save {number}, after {last}; {self.held} holds")
        self._told[peer] = number
        self._numbers.add(number)

    def complete(self, members: Collection[str]) -> bool:
        """Conductor: whether all parts of the save are written. Raises `RemoteProtocolError`."""
        if self.pending is None or not self._written:
            return False
        number, _ = self.pending
        if not self._numbers <= {number}:
            peer, told = next((peer, told) for peer, told in self._told.items() if told != number)
            raise RemoteProtocolError("wrong-save", peer, f"save {told}, where {number} is due")
        return len(self._told) >= len(members) and self._told.keys() >= set(members)

    def hold(self, number: int, peer: str = "") -> Commit:
        """The save holds. Raises `RemoteProtocolError` if the conductor, `peer`, says so of another."""
        if self.pending is None or self.pending[0] != number or not self._written:
            raise RemoteProtocolError("wrong-save", peer, f"save {number} cannot hold yet")
        _, save = self.pending
        self.pending, self.held, self.passed = None, number, True
        self._told.clear()
        self._numbers.clear()
        return Commit(number, save.round, save.ends_round)

    def owing(self, members: Collection[str]) -> set[str]:
        """Conductor: who has not written its part of the save that is due."""
        if self.pending is None:
            return set()
        return {peer for peer in members if self._told.get(peer, NONE) != self.pending[0]}
