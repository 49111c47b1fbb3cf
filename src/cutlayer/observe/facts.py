"""Facts: something that happened at a party, told to observers. Plain data without tensors, one version per file.

An observer is `Callable[[Fact], Stop | None]`: it is asked after each fact, and may end the run before the next
release by returning a `Stop`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from cutlayer.plan.schedule import Kind
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.topology import SourceKind
from cutlayer.protocol.messages import Purpose, StateKind, Ticket

VERSION = 7

Way = Literal["forward", "backward"]
Statistic = Literal["distance_correlation", "decoder", "label_auc", "hijack", "probe"]
"""What a monitor measures, and what probes find."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossed:
    """A message with tensors crossed this party's border. `carries` is None for activations and gradients.

    `digest` is of the payload's bytes as they crossed, equal at both ends; empty where nobody keeps an audit.
    """

    party: str
    peer: str
    edge: str
    way: Way
    sent: bool
    purpose: Purpose
    rows: int
    carries: SourceKind | None
    shapes: tuple[TensorShape, ...]
    payload_bytes: int
    frame_bytes: int
    run: str
    ticket: Ticket
    codec: str = "raw"
    defence: str = "none"
    digest: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """A state crossed this party's border between turns: a replica handed on, a share of an average, or the mean.

    `source` and `target` are its first sender and last receiver, of which this party is one; `sealed` says that a third
    one forwards it unread. `number` is the movement's place in the schedule; `digest` as in `Crossed`.
    """

    party: str
    source: str
    target: str
    what: StateKind
    of: Kind
    sent: bool
    sealed: bool
    payload_bytes: int
    frame_bytes: int
    run: str
    number: int
    digest: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Time that this party's thread spent: loading, computing, sending, or waiting for a peer."""

    party: str
    on: Literal["load", "forward", "backward", "step", "move", "wire", "save", "wait"]
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Progressed:
    """A step of training on `owner`'s rows is through at this party: `done` of `total` steps of the run.

    `stale`: by how many steps the weights that it was computed with were older than those that it changed.
    """

    party: str
    owner: str
    round: int
    done: int
    total: int
    stale: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A turn's result on one owner's rows: `loss`, and `accuracy` where answers are right or wrong."""

    party: str
    owner: str
    turn: int
    round: int
    purpose: Purpose
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """All parties have written their parts of a save, in or after `round`: the run can be taken up from there."""

    party: str
    number: int
    round: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """The run begins, or is taken up, from a save (-1: from its beginning), with the scores of the turns before it.

    Since `round`, parties are `absent`; those `returned` were absent before.
    """

    party: str
    save: int
    round: int
    absent: tuple[str, ...]
    returned: tuple[str, ...]
    scored: tuple[Scored, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Noticed:
    """Something a person may want to know, in a sentence."""

    party: str
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Paced:
    """The conductor has tried how long a step takes with each number of micro-batches, in seconds, and keeps one."""

    party: str
    micro_batches: int
    seconds: Mapping[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cached:
    """After a step the segment took further ones by itself, on mini-batches that it had kept; `stale`: of each, by how
    many steps the weights were older that made what it had of others.
    """

    party: str
    segment: str
    round: int
    stale: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Leaked:
    """How much a cut tells, measured at its owner's side: `value` beside what `chance` gives.

    `threshold`: above it (for `hijack` and `probe`, below it) scores speak for an alarm; None where there is none.
    """

    party: str
    edge: str
    statistic: Statistic
    value: float
    chance: float
    threshold: float | None = None
    alarm: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarmed:
    """A cut tells more than it should, or a server does not do what it should.

    `false_alarms`: the chance that a run without fault would say this too; None where it is not known.
    """

    party: str
    edge: str
    statistic: Statistic
    batches: int
    false_alarms: float | None
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnedDown:
    """The turn of `owner` in `round` was taken back: the server's segment is what it was before, or before that."""

    party: str
    segment: str
    owner: str
    round: int


Fact = (
    Crossed | Moved | Spent | Progressed | Scored | Saved | Resumed | Cached | Paced | Leaked | Alarmed | TurnedDown
    | Noticed
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """An observer's wish to end the run, with the reason that peers will be told."""

    reason: str


Observer = Callable[[Fact], Stop | None]


def metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means from sums: `loss`, and `accuracy` and `rows` where answers were counted.

    Where there are several losses, those of one begin with its segment's name, in sums and means.

    >>> metrics({"top_2.loss": 3.0, "top_2.normaliser": 2.0})
    {'top_2.loss': 1.5}
    """
    means: dict[str, float] = {}
    for loss in dict.fromkeys(name[: name.rfind(".") + 1] for name in sums):
        if normaliser := sums[f"{loss}normaliser"]:
            means[f"{loss}loss"] = sums[f"{loss}loss"] / normaliser
        if count := sums.get(f"{loss}count"):
            means |= {f"{loss}accuracy": sums[f"{loss}correct"] / count, f"{loss}rows": count}
    return means
