"""What a party is told of its surroundings."""

from collections.abc import Sequence
from dataclasses import dataclass

from cutlayer.defence.ledger import Ledger
from cutlayer.observe.tap import Tap
from cutlayer.party.defending import Hijack
from cutlayer.party.keeping import Post
from cutlayer.party.openings import Openings
from cutlayer.party.saver import Saver
from cutlayer.protocol.agenda import Agendas
from cutlayer.protocol.messages import Task
from cutlayer.protocol.resuming import Standing


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a session is told of its surroundings: what it has drawn for the run's name; and what simulations share."""

    nonce: bytes = b""
    agendas: Agendas | None = None
    ahead: int = 0
    task: Task = "train"
    standing: Standing = Standing()  # noqa: RUF009 (frozen)
    """What the party has of the run already."""
    saver: Saver | None = None
    """What keeps the party's saves, if it has any."""
    micro_batches: int = 0
    """How many a step has where the conductor is to decide that; 0: it measures."""
    ledger: Ledger | None = None
    """Where the party writes down what it releases; without, it remembers it for as long as it lives."""
    openings: Openings | None = None
    """Where the party writes down of which sums it has told the keys; as with the ledger."""
    taps: Sequence[Tap] = ()
    """Who is shown the party's tensors at its cuts."""
    hijack: Hijack | None = None
    """In a run of one's own: what the party sends instead of what it should."""
    post: Post | None = None
    """Where another thread may put an event for this party; without, it waits for what is written."""
