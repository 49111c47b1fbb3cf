"""What goes into a session and what comes out: plain data. Tensors pass through as opaque values.

event  = Connected | Received | Ran | Stored | Lost | Tick | Broke
action = Run | Send | Open | Step | Give | Take | Add | Spread | Settle | Restore | Store | Commit | Finish | Tell
       | Drop | Done | Fail
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cutlayer.errors import CutlayerError
from cutlayer.plan.batches import Batch
from cutlayer.plan.membership import Start
from cutlayer.plan.schedule import Kind
from cutlayer.protocol.messages import Control, Message, Purpose, Rows, Sealed, State, StateKind, Ticket

Value = Any
"""Whatever the party's segments and codecs work on. The session never looks inside."""

Direction = Literal["load", "forward", "backward"]

Replica = tuple[str, str]
"""(segment, owner): the owner is the client whose own copy it is, or the server's party if all clients share it."""


JOINED = ""
"""The owner of a ticket in which the batches of several parties are joined. Such a ticket never leaves its party."""


@dataclass(frozen=True, slots=True)
class Joined:
    """One value for each party whose batches are joined, in party order."""

    parts: tuple[Value, ...]


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
    """What a `Run` gave: outputs (load, forward) or gradients by edge (backward); sums by owner where it is a loss.

    Of joined batches every output and gradient is `Joined`. A party has one thread, so these come in the order of
    their `Run`s. Rows of which several parties have columns are loaded with their `mark`.
    """

    ticket: Ticket
    node: str
    direction: Direction
    result: Value = field(repr=False)
    sums: Mapping[str, Mapping[str, float]] | None = None
    mark: bytes = b""


@dataclass(frozen=True, slots=True)
class Lost:
    """The link to `peer` is gone."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Stored:
    """This party's part of a save is written, and lasts."""

    number: int


@dataclass(frozen=True, slots=True)
class Tick:
    """No event for `waited_s` seconds, and `passed_s` since the last tick. The session owns no clock."""

    waited_s: float
    passed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Broke:
    """The party itself cannot go on: its data, its model, its disk, or a person pressed Ctrl-C."""

    error: CutlayerError


@dataclass(frozen=True, slots=True)
class Decided:
    """How many micro-batches a step has from now on."""

    micro_batches: int


Event = Connected | Received | Ran | Stored | Lost | Tick | Broke | Decided


@dataclass(frozen=True, slots=True)
class Run:
    """Load a source, or run a segment's replica forward or backward; answer with `Ran`.

    `batch` are the ticket's rows. Where batches are joined, `owners` are the parties whose they are, with how many
    `rows` each, and inputs `Joined`.
    """

    ticket: Ticket
    node: str
    direction: Direction
    replica: Replica
    inputs: Mapping[str, Value] = field(default_factory=dict, repr=False)
    batch: Batch | None = None
    owners: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Send:
    """Encode the payload and send the message."""

    peer: str
    message: Message | Control
    payload: Value = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Open:
    """Open what a fellow has sealed for me, and answer with the `Received` that is in it."""

    message: Sealed
    payload: Value = field(repr=False)


@dataclass(frozen=True, slots=True)
class Step:
    """All tickets of the replica's step have drained: divide its gradients by `normaliser`, step its optimizer once."""

    replica: Replica
    owners: tuple[str, ...]
    """Whose rows the step was made of, as far as this party had to do with them."""
    round: int
    normaliser: float
    stale: int = 0
    """How many steps lie between the weights by which the step was computed and those that it changes."""


@dataclass(frozen=True, slots=True)
class Give:
    """Send `target` the state of my replicas of `owner`, as `kind` of what `of` says. They have drained.

    Of a share, a call, or the key of a mask: the round, and all that come into the same sum, with their weights.
    """

    number: int
    kind: StateKind
    of: Kind
    target: str
    replicas: tuple[Replica, ...]
    normaliser: float = 0.0
    round: int = 0
    among: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Take:
    """Put what `message` brought into my replicas: whole, the mean of weights, or the sum of gradients."""

    message: State
    of: Kind
    replicas: tuple[Replica, ...]
    payload: Value = field(repr=False)


@dataclass(frozen=True, slots=True)
class Add:
    """Add to the sum, with this weight: what `message` brought, or the replicas of mine that serve one owner.

    My own replicas go back to where the last average left them, but for what is never averaged.
    """

    of: Kind
    weight: float
    owner: str
    message: State | None = None
    payload: Value = field(default=None, repr=False)
    replicas: tuple[Replica, ...] = ()
    among: Mapping[str, float] = field(default_factory=dict, repr=False, compare=False)
    """All that come into the sum."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The sum is complete: send what came of it to the targets."""

    number: int
    of: Kind
    targets: tuple[str, ...]
    normaliser: float = 0.0


@dataclass(frozen=True, slots=True)
class Settle:
    """The mean is what all my replicas of these segments begin with from now on; `message` has a part of it, if any."""

    segments: tuple[str, ...]
    message: State | None = None
    payload: Value = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Restore:
    """The run begins, or is taken up, as `start` says: become what `save` has of this party; `NEVER`: its beginning.

    What was saved later is void.
    """

    start: Start
    save: int
    members: Mapping[str, Rows]


@dataclass(frozen=True, slots=True)
class Store:
    """Copy this party's part of a save now; answer with `Stored` when it is written."""

    number: int
    round: int
    ends_round: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """All parties have written their parts of a save: it holds, and older ones may go."""

    number: int
    round: int
    ends_round: bool


@dataclass(frozen=True, slots=True)
class Lap:
    """A step with so many micro-batches is through here: note the time."""

    turn: int
    micro_batches: int


@dataclass(frozen=True, slots=True)
class Decide:
    """Conductor: all laps are run: say by `Decided` how many micro-batches are fastest."""


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
class Finish:
    """This party's part of the run is over: write that down, before the others hear of it.

    At a conductor it is over but for the goodbyes, until all have `left`.
    """

    left: bool = True


@dataclass(frozen=True, slots=True)
class Done:
    """The run has ended as planned."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The run has ended with an error. Peers have been told by the `Send`s before it."""

    error: CutlayerError


Movement = Give | Take | Add | Spread | Settle
Lasting = Restore | Store | Commit | Finish
Action = Run | Send | Open | Step | Movement | Lasting | Lap | Decide | Tell | Drop | Done | Fail
