"""Who is let in: the parties of the plan, but for those whom this party's person has revoked."""

import time
from collections.abc import Callable, Collection, Container

from cutlayer.errors import CredentialError, Interrupted
from cutlayer.plan.plan import Plan

FRESH_S = 1.0


class Guard:
    """A container of the parties that may have a link. `denied` reads who is revoked, at most once a second."""

    def __init__(self, plan: Plan, denied: Callable[[], Collection[str]] = tuple) -> None:
        self.admits: Collection[str] = plan.terms.parties
        """Who may open a new link: whom the run waits for."""
        self._plan, self._read = plan, denied
        self._denied: Collection[str] = denied()
        self._read_at = time.monotonic()

    def __contains__(self, party: object) -> bool:
        return party in self._plan.terms.parties and not self.denies(str(party))

    @property
    def newcomers(self) -> "Newcomers":
        """Those of them that may open a new link now."""
        return Newcomers(self)

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


class Newcomers(Container[str]):
    """The parties that may open a new link, as a guard says at the moment."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def __contains__(self, party: object) -> bool:
        return party in self._guard.admits and party in self._guard
