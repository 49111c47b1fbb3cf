"""The closed set of messages, one set per protocol version. Headers only: tensors travel beside them as raw bytes.

A message moves the run; a control frame (`Ping`, `Leave`, `Refuse`) concerns only the link it arrives on. What is not
in this file cannot be said: the decoder refuses it by name before anything else looks at it.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from cutlayer.plan.membership import ALL, NEVER, Membership
from cutlayer.plan.tensors import TensorShape

VERSION = 6

SENTENCE = 4096

Name = Annotated[str, Meta(max_length=128)]
Sentence = Annotated[str, Meta(max_length=SENTENCE)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Numbers = Annotated[tuple[Count, ...], Meta(max_length=256)]
Tensors = Annotated[tuple[TensorShape, ...], Meta(max_length=64)]
Sizes = Annotated[tuple[Count, ...], Meta(max_length=64)]
Sums = Annotated[dict[Name, float], Meta(max_length=64)]
Purpose = Literal["train", "eval", "predict"]
Task = Literal["train", "predict"]
StateKind = Literal["replica", "share", "call", "unmask", "mean", "order"]
MARK_BYTES = 24
RUN_NAME_LETTERS = 32
NONCE_BYTES = 16
Nonce = Annotated[bytes, Meta(max_length=NONCE_BYTES)]
Mark = Annotated[bytes, Meta(max_length=MARK_BYTES)]


SCORES = ({"loss", "normaliser"}, {"loss", "normaliser", "correct", "count"})
"""What a loss adds up: without, or with, a count of right answers."""


class Ticket(Struct, frozen=True, forbid_unknown_fields=True, array_like=True, order=True):
    """One micro-batch in flight: whose rows (`owner`), in which turn, step of the turn, and part of the step."""

    turn: Count
    owner: Name
    step: Count
    micro: Count
    purpose: Purpose

    def __str__(self) -> str:
        return f"turn {self.turn}, {self.owner}, step {self.step}.{self.micro} ({self.purpose})"


class Rows(Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """How many rows a party brings."""

    train: Count = 0
    held_out: Count = 0
    nonce: Nonce = b""
    """Drawn anew for each run by the party: the run's name is made of all of them, so that nobody chooses it alone."""


class Hello(Struct, frozen=True, forbid_unknown_fields=True, tag="hello"):
    """The first message on a link: I speak this version, of this plan, as this party, and bring so many rows."""

    version: Count
    plan: Name
    party: Name
    rows: Rows
    task: Task = "train"
    saves: Numbers = ()
    """The saves of this run that I have whole, so that it can be taken up from one."""
    holds: Annotated[int, Meta(ge=NEVER, le=2**53)] = NEVER
    """The newest save that I know to hold, if any."""
    opened: Annotated[int, Meta(ge=NEVER, le=2**53)] = NEVER
    present: Annotated[tuple[Name, ...], Meta(max_length=65_536)] = ()
    """The last round of which I opened a sum under masks, and the run's clients then: I do not do it with others."""


class Welcome(Struct, frozen=True, forbid_unknown_fields=True, tag="welcome"):
    """From the conductor: all are here; these are the members and their rows. The schedule follows from it.

    `run` tells this run of the plan from others: what was sealed for another one cannot be played again in this, not
    even by the conductor, since each party's nonce is part of it.
    """

    run: Name
    members: Annotated[dict[Name, Rows], Meta(max_length=65_536)]
    log: Annotated[tuple[Membership, ...], Meta(max_length=4096)] = ALL
    save: Annotated[int, Meta(ge=NEVER, le=2**53)] = NEVER
    """Who took part so far, and the save from which the run is taken up; where it begins, none."""


class Turn(Struct, frozen=True, forbid_unknown_fields=True, tag="turn"):
    """From the conductor: this turn may begin. The receiver's own schedule must say the same."""

    number: Count
    work: Purpose
    parties: Annotated[tuple[Name, ...], Meta(max_length=65_536)]
    steps: Count
    parts: Count = 0
    """How many micro-batches each step has, where the conductor has decided that; else 0."""


class Forward(Struct, frozen=True, forbid_unknown_fields=True, tag="forward"):
    """An activation (or, from a source, labels) on its way along an edge.

    `mark`: where several parties bring columns of the same rows, the HMAC of the ticket and of the ids of its rows
    under the key that only those parties have. All marks of a ticket are equal.
    """

    ticket: Ticket
    edge: Name
    tensors: Tensors
    mark: Mark = b""
    sizes: Sizes = ()
    """Where the edge has a codec: the bytes that each of the tensors became."""


class Backward(Struct, frozen=True, forbid_unknown_fields=True, tag="backward"):
    """The gradient of the loss *sum* on its way back along an edge, with the ticket's loss normaliser.

    It answers a `Forward`. Where there is no gradient (evaluation, a frozen segment) it carries no tensors and only
    says that the activation was used; in evaluation the normaliser is 0.
    """

    ticket: Ticket
    edge: Name
    tensors: Tensors
    normaliser: float
    sizes: Sizes = ()
    """As in `Forward`."""


class State(Struct, frozen=True, forbid_unknown_fields=True, tag="state"):
    """What moves between turns, from `source` to `target`; the conductor forwards it unread where it is neither.

    `number` is the place of the movement in the schedule. `replica`: a replica whole, handed on. `share`: weights or
    gradients to be averaged or summed. `call`: all shares of a sum have come. `unmask`: the key of the source's own
    mask in it. `mean`: what came of it. `order`: the key of the order of rows. The one tensor is the state as bytes,
    sealed to the target where somebody forwards it. `normaliser` goes with gradients of a sum; else it is 0.
    """

    number: Count
    kind: StateKind
    source: Name
    target: Name
    tensors: Tensors
    normaliser: float = 0.0


class Sealed(Struct, frozen=True, forbid_unknown_fields=True, tag="sealed"):
    """A message between two parties that have no link: the conductor forwards it unread.

    The one tensor is the whole frame as bytes, sealed to the target. `number` counts what `source` has sent to
    `target` in this run, so that nothing can be left out, repeated or reordered on the way.
    """

    source: Name
    target: Name
    number: Count
    tensors: Tensors


class Report(Struct, frozen=True, forbid_unknown_fields=True, tag="report"):
    """My part of a turn is done; `sums` are the losses and counts that I saw, by owner of the rows."""

    turn: Count
    sums: Annotated[dict[Name, Sums], Meta(max_length=65_536)]


class Saved(Struct, frozen=True, forbid_unknown_fields=True, tag="saved"):
    """From a member: my part of the save with this number is written. From the conductor: so are all; it holds."""

    number: Count


class Bye(Struct, frozen=True, forbid_unknown_fields=True, tag="bye"):
    """The run is over: as planned if `reason` is empty, else because of it. Only a `Bye` ends a run."""

    reason: Sentence = ""


class Ping(Struct, frozen=True, forbid_unknown_fields=True, tag="ping"):
    """I am alive. Control: answered by no one, since any arriving byte counts as life."""


class Leave(Struct, frozen=True, forbid_unknown_fields=True, tag="leave"):
    """Control: I close this link on purpose and shall not take it up again. `reason` is empty if nothing is amiss."""

    reason: Sentence = ""


class Refuse(Struct, frozen=True, forbid_unknown_fields=True, tag="refuse"):
    """Control: your last message broke this rule; I did not decode it."""

    rule: Name
    detail: Sentence


def run_name(plan: str, task: Task, members: Mapping[str, Rows]) -> str:
    """The name of a run of a plan (its digest), which follows from what all members have drawn for it."""
    drawn = [(name, members[name].nonce.hex()) for name in sorted(members)]
    return hashlib.sha256(repr(("run", plan, task, drawn)).encode()).hexdigest()[:RUN_NAME_LETTERS]


def is_sound(sums: Mapping[str, float]) -> bool:
    """Whether these can be the sums of losses: known ones, finite, and where they count something not negative.

    Where a topology has several losses, those of one begin with its segment's name: `top_2.loss`.
    """
    losses: dict[str, set[str]] = {}
    for name in sums:
        loss, _, what = name.rpartition(".")
        losses.setdefault(loss, set()).add(what)
    counts = [value for name, value in sums.items() if not name.endswith("loss")]
    known = bool(losses) and all(what in SCORES for what in losses.values())
    return known and all(map(math.isfinite, sums.values())) and min(counts) >= 0


Message = Hello | Welcome | Turn | Forward | Backward | State | Sealed | Report | Saved | Bye
Control = Ping | Leave | Refuse
