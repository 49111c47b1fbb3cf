"""What every dialling end does: it tries until it is let in, again when the link broke, and says why it was not."""

import secrets
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from cutlayer.errors import ChannelError, ChannelTimeout, CredentialError, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.transport.buffers import BufferPool
from cutlayer.transport.identity import Identity
from cutlayer.transport.keeper import SHORTEST_TRY_S, FinalError, pauses
from cutlayer.transport.lanes import Lanes
from cutlayer.transport.link import Link
from cutlayer.transport.opening import LIFE_BYTES, Answer, Deadline
from cutlayer.transport.tls import why_refused


class PassingError(ChannelError):
    """This attempt failed for a reason that may pass."""


class Call(ABC):
    """A call of `party` to `peer` at `address`: a link's `Redial`."""

    what: ClassVar[str] = "listener"
    """What should answer there."""
    faults: ClassVar[tuple[type[Exception], ...]] = ()
    """What else a library raises where a connection fails."""

    def __init__(
        self,
        address: tuple[str, int],
        identity: Identity,
        *,
        party: str,
        peer: str,
        limits: Limits,
        pins: Mapping[str, str],
    ) -> None:
        self.address, self.identity = address, identity
        self.party, self.peer, self.limits, self.pins = party, peer, limits, pins
        self._life = b""
        self._incarnation = 0
        self._pool = BufferPool()

    def until_let_in(self, give_up_after_s: float | None) -> Link:
        """Tries, ever more slowly. Raises `ChannelTimeout` after so long, and at once what no other try can mend."""
        patience_s = self.limits.join_timeout_s if give_up_after_s is None else give_up_after_s
        started = time.monotonic()
        for pause_s in pauses():
            left_s = patience_s - (time.monotonic() - started)
            try:
                return self.first(max(left_s, SHORTEST_TRY_S))
            except PassingError as error:
                reason = str(error)
            left_s = patience_s - (time.monotonic() - started)
            if left_s <= SHORTEST_TRY_S:
                break
            time.sleep(min(left_s / 2, pause_s))
        raise ChannelTimeout(
            f"{self.party} tried for {patience_s:g} s to reach {self.peer} at {self.place}; "
            f"the last attempt ended with: {reason}"
        )

    @property
    def place(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"

    def first(self, timeout_s: float) -> Link:
        """One attempt. Raises `PassingError`, `CredentialError`, `ChannelError`."""
        self._life = secrets.token_bytes(LIFE_BYTES)
        try:
            pair, _ = self._open(timeout_s)
        except FinalError as error:
            raise CredentialError(f"{self.peer} does not let {self.party} in: {error}") from error
        return Link(self.peer, self._life, pair, self.limits, redial=self)

    def again(self, received: int, timeout_s: float) -> tuple[Lanes, int]:
        """One attempt for a link that broke. Raises `FinalError`, `ChannelError`, `CredentialError`."""
        try:
            return self._open(timeout_s, resumes=True, received=received)
        except FinalError as error:
            raise FinalError(f"{self.peer} is gone from this link: {error}") from error

    @abstractmethod
    def stop(self) -> None:
        """Ends an attempt that is being made, and all later ones."""

    def _open(self, timeout_s: float, *, resumes: bool = False, received: int = 0) -> tuple[Lanes, int]:
        try:
            self.identity.renew()
            self._incarnation = max(self._incarnation + 1, time.time_ns())
            return self._try(Deadline(min(self.limits.handshake_timeout_s, timeout_s)), resumes, received)
        except FrameRefused as error:
            raise ChannelError(
                f"whoever answers at {self.place} is no {self.what} of ours ({error}); check the address and the port"
            ) from error
        except ssl.SSLError as error:
            if reason := why_refused(error, self.peer):
                raise CredentialError(reason) from error
            raise PassingError("the connection broke off") from error
        except TimeoutError as error:
            raise PassingError("no answer") from error
        except EOFError as error:
            raise PassingError("the connection broke off") from error
        except OSError as error:
            raise PassingError(error.strerror or str(error) or "the connection broke off") from error
        except self.faults as error:
            raise PassingError(self._fault(error)) from error

    @abstractmethod
    def _try(self, deadline: Deadline, resumes: bool, received: int) -> tuple[Lanes, int]:
        """One attempt: the lanes, and how many frames the peer has received."""

    def _fault(self, error: Exception) -> str:
        """One of `faults`, for a person."""
        return str(error)

    def _checked(self, answer: Answer) -> Answer:
        """The peer's own answer, if it lets us in. Raises `PassingError`, `FinalError`, `CredentialError`."""
        if answer.refusal and answer.passing:
            raise PassingError(f"{self.peer} refused: {answer.refusal}")
        if answer.refusal:
            raise FinalError(answer.refusal)
        if answer.party != self.peer:
            raise CredentialError(f"{answer.party} answers at {self.place}, not {self.peer}")
        return answer
