"""Who is let in: the parties of the plan that the run waits for, but for those whom this party's person has revoked."""

import time
from collections.abc import Callable, Collection, Iterator

from cutlayer.errors import CredentialError, Interrupted
from cutlayer.plan.plan import Plan

FRESH_S = 1.0


class Guard:
    """A container of the parties that may come in now. `denied` reads who is revoked, at most once a second."""

    def __init__(self, plan: Plan, denied: Callable[[], Collection[str]] = tuple) -> None:
        self.admits: Collection[str] = plan.terms.parties
        """Whom the run waits for."""
        self._plan, self._read = plan, denied
        self._denied: Collection[str] = denied()
        self._read_at = time.monotonic()

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __contains__(self, party: object) -> bool:
        return party in self.admits and not self.denies(str(party))

    def _now(self) -> list[str]:
        return [party for party in self.admits if not self.denies(party)]

    @property
    def denied(self) -> frozenset[str]:
        """Who is revoked."""
        if time.monotonic() - self._read_at > FRESH_S:
            self._denied, self._read_at = self._read(), time.monotonic()
        return frozenset(self._denied)

    def denies(self, party: str) -> bool:
        """Whether a party is revoked."""
        return party in self.denied

    def revoked(self, party: str, absent: Collection[str]) -> CredentialError | Interrupted:
        """What becomes of the run now that a party is cut off: it goes on without it where a quorum is enough."""
        if self._plan.why_not_go_on_without([*absent, party]):
            return CredentialError(f"{party} is revoked by this party's deny list, and the run cannot go on without it")
        return Interrupted(f"{party} is revoked by this party's deny list", without=[party])
