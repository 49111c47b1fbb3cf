"""What goes into a session and what comes out: plain data. Tensors pass through as opaque values.

event  = Connected | Received | Ran | Lost | Tick | Broke
action = Run | Send | Step | Tell | Drop | Done | Fail
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cutlayer.errors import CutlayerError
from cutlayer.plan.batches import Batch
from cutlayer.protocol.messages import Control, Message, Purpose, Ticket

Value = Any
"""Whatever the party's segments and codecs work on. The session never looks inside."""

Direction = Literal["load", "forward", "backward"]

Replica = tuple[str, str]
"""(segment, owner): the owner is the client whose own copy it is, or the server's party if all clients share it."""


@dataclass(frozen=True, slots=True)
class Connected:
    """A link to `peer` stands; the transport has verified who it is."""

    peer: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message from `peer`, its payload not yet decoded."""

    peer: str
    message: Message | Control
    payload: Value = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Ran:
    """What a `Run` gave: outputs (load, forward) or gradients by edge (backward); sums where the node is a loss.

    A party has one thread, so these come in the order of their `Run`s.
    """

    ticket: Ticket
    node: str
    direction: Direction
    result: Value = field(repr=False)
    sums: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """The link to `peer` is gone."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """No event for `waited_s` seconds. The session owns no clock; it only knows its limits."""

    waited_s: float


@dataclass(frozen=True, slots=True)
class Broke:
    """The party itself cannot go on: its data, its model, its disk, or a person pressed Ctrl-C."""

    error: CutlayerError


Event = Connected | Received | Ran | Lost | Tick | Broke


@dataclass(frozen=True, slots=True)
class Run:
    """Load a source, or run a segment's replica forward or backward; answer with `Ran`."""

    ticket: Ticket
    node: str
    direction: Direction
    replica: Replica
    inputs: Mapping[str, Value] = field(default_factory=dict, repr=False)
    batch: Batch | None = None


@dataclass(frozen=True, slots=True)
class Send:
    """Encode the payload and send the message."""

    peer: str
    message: Message | Control
    payload: Value = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Step:
    """All tickets of the replica's step have drained: divide its gradients by `normaliser`, step its optimizer once."""

    replica: Replica
    owner: str
    """Whose rows the step was made of."""
    round: int
    normaliser: float


@dataclass(frozen=True, slots=True)
class Tell:
    """A turn is over as far as `sums` go: losses and counts by owner of the rows."""

    turn: int
    purpose: Purpose
    round: int
    sums: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the link to `peer`; the run goes on. `reason` is for a person."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The run has ended as planned."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run has ended with an error. Peers have been told by the `Send`s before it."""

    error: CutlayerError


Action = Run | Send | Step | Tell | Drop | Done | Fail
