"""The error tree. Each message is one sentence for a person, with the mend.

CutlayerError
├── PlanError            the plan, or what a person wrote beside it; lists all faults at once
├── CutError             the model cannot be cut there
├── CodecError           a tensor that a codec cannot carry, or a payload that is none of its own
├── DataError            a party's rows
├── CredentialError      keys, certificates, who may speak
├── ProtocolError        a message that breaks a rule
│   ├── RemoteProtocolError   the peer's fault: refused before its payload was decoded
│   └── LocalProtocolError    our own: a bug in cutlayer
├── ChannelError         the link to a peer
│   ├── ChannelClosed        the peer is gone without a `Bye`
│   ├── ChannelTimeout       silence, or no progress, for longer than the limit
│   └── FrameRefused         too large, or not a frame at all
└── RunError             the run cannot go on
    ├── SegmentFailed        the user's own model raised an exception
    ├── PeerStopped          a peer ended the run and said why
    ├── Interrupted          a peer was lost, or is back: the run is taken up again from a save
    ├── Misaligned           two parties mean different rows by the same ticket
    ├── BudgetSpent          a party would tell more of a row than its plan allows
    └── Diverged             a loss or a gradient is not finite
"""

from collections.abc import Iterable
from typing import Any


class CutlayerError(Exception):
    """Anything cutlayer raises on purpose. `str(error)` is one sentence for the person at this party."""

    @property
    def told(self) -> str:
        """What other parties may be told about it: never a value from a party's rows."""
        return str(self)


class PlanError(CutlayerError):
    """What was agreed does not hold together. `faults` are all of them, one sentence each."""

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class CutError(CutlayerError):
    """The model cannot be cut there; the message says what to do."""


class CodecError(CutlayerError):
    """A tensor that a codec cannot carry, or a payload that it would not have made; the message names the codec."""


class DataError(CutlayerError):
    """A party's rows cannot be used; the message names the file, row and column, and may quote a cell."""

    @property
    def told(self) -> str:
        return "its rows cannot be used"


class CredentialError(CutlayerError):
    """A key, a certificate or a name that does not fit."""


class ProtocolError(CutlayerError):
    """A message that breaks a rule of the protocol. `rule` is its name, `peer` who sent it."""

    def __init__(self, rule: str, peer: str, detail: str) -> None:
        self.rule, self.peer, self.detail = rule, peer, detail
        super().__init__(f"{peer} broke the rule {rule!r}: {detail}")


class RemoteProtocolError(ProtocolError):
    """The peer's fault. Its payload was not decoded."""


class LocalProtocolError(ProtocolError):
    """Our own fault: a bug in cutlayer, never the peer's or the user's."""


class ChannelError(CutlayerError):
    """The link to a peer failed."""


class ChannelClosed(ChannelError):
    """The peer closed the link, or died, without a `Bye`."""


class ChannelTimeout(ChannelError):
    """Nothing moved on the link for longer than its limit."""


class FrameRefused(ChannelError):
    """The peer announced a frame above the limit, or sent bytes that are no frame."""


class RunError(CutlayerError):
    """The run cannot go on."""


class SegmentFailed(RunError):
    """The user's own model raised an exception; `where` says at which segment, party and ticket."""

    def __init__(self, where: str, cause: Exception) -> None:
        self.where = where
        super().__init__(f"{where}: {type(cause).__name__}: {cause}")

    @property
    def told(self) -> str:
        return self.where


class PeerStopped(RunError):
    """A peer ended the run and said why."""


class Interrupted(RunError):
    """The run cannot go on as it is, but can be taken up from a save; `without` those that are not waited for."""

    def __init__(self, sentence: str, without: Iterable[str] = ()) -> None:
        self.without = frozenset(without)
        super().__init__(sentence)


class Misaligned(RunError):
    """Two parties bring columns of different rows for the same ticket. No gradient was made of them."""

    def __init__(self, ticket: Any, batch: Any, parties: tuple[str, str], marks: tuple[bytes, bytes]) -> None:
        self.ticket, self.batch, self.parties, self.marks = ticket, batch, parties, marks
        self._found = ""
        super().__init__(ticket, batch, parties, marks)

    def __str__(self) -> str:
        return self._sentence(self._found)

    @property
    def told(self) -> str:
        return self._sentence("")

    def explain(self, found: str) -> None:
        """What a party with rows of its own found out; for its own person."""
        self._found = f" ({found})"

    def _sentence(self, found: str) -> str:
        one, other = self.parties
        at = f"rows {self.batch.start} to {self.batch.stop - 1}"
        return (
            f"{one} at {at} and {other} at {at} of their common order ({self.ticket}) do not have the same rows{found}"
            ": align their tables anew with `cutlayer align`, and name its file in both parties' own files"
        )


class Diverged(RunError):
    """A loss is not a finite number any more."""


class BudgetSpent(RunError):
    """One more release would tell more of a row than a party's budget allows; it was not made.

    By its `channel` `party` has told ε = `spent` so far, of `budget`, at `delta`; it would have been `after`.
    """

    def __init__(self, party: str, channel: str, *, spent: float, after: float, budget: float, delta: float) -> None:
        self.party, self.channel = party, channel
        self.spent, self.after, self.budget, self.delta = spent, after, budget, delta
        super().__init__(party, channel)

    def __str__(self) -> str:
        if self.after < float("inf"):
            cause, mend = f"would make it {self.after:.4g}", "more noise, fewer rounds or a larger budget"
        else:
            cause, mend = "would tell without a bound", "a defence with a mechanism there (such as gaussian)"
        return (
            f"{self.party} has told ε = {self.spent:.4g} of a row by its {self.channel}, and one more release {cause}, "
            f"over its budget of {self.budget:g} at δ = {self.delta:g}: agree on a plan with {mend}"
        )
