"""What parties say to align their rows: a closed set of its own. Headers only, as in `messages`.

`Join`, `Gathered`, `Parcel`, `Finished` and `Bye` travel on a link to the conductor. A `Parcel` carries a note from one
party to another; sealed, where the conductor is neither of them.

    a parcel's body, opened = length of the note's header (4 bytes) || header (msgpack, a `Note`) || points or codes
"""

import struct
from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from cutlayer.errors import FrameRefused
from cutlayer.protocol.messages import Bye, Count, Name, Tensors

VERSION = 1
POINT_BYTES = 32
CODE_BYTES = 16
PART_ROWS = 16_384
"""Points, or codes, in one note."""
MOST_IDS = 2**27
"""A larger set is not taken from anybody."""

Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Kind = Literal["int", "text"]
KINDS: dict[Kind, str] = {"int": "whole numbers", "text": "texts"}


class AlignTerms(Struct, frozen=True, forbid_unknown_fields=True):
    """What all who align must have asked for. `holders` have a table, in party order, which is the ring's.

    A row is common if all hold it; with `at_least`, if `labels` and so many others do. `comparer` compares.
    """

    holders: Annotated[tuple[Name, ...], Meta(min_length=2, max_length=1024)]
    comparer: Name
    labels: Name = ""
    at_least: Count = 0

    def holder_after(self, party: str) -> str:
        """Who masks a list after this holder."""
        return self.holders[(self.holders.index(party) + 1) % len(self.holders)]

    def holder_before(self, party: str) -> str:
        return self.holders[self.holders.index(party) - 1]

    def masks(self, owner: str, party: str) -> int:
        """How many have masked the owner's list when it comes to this holder; all, when it comes back round."""
        steps = self.holders.index(party) - self.holders.index(owner)
        return steps % len(self.holders) or len(self.holders)


class Join(Struct, frozen=True, forbid_unknown_fields=True, tag="join"):
    """The first message on a link: I want to align the rows of this plan, in this way. `nonce` is drawn anew."""

    version: Count
    plan: Name
    terms: AlignTerms
    nonce: Hex


class Gathered(Struct, frozen=True, forbid_unknown_fields=True, tag="gathered"):
    """From the conductor: all are here. The alignment's name follows from everybody's nonce, by party."""

    nonces: Annotated[dict[Name, Hex], Meta(max_length=1024)]


class Parcel(Struct, frozen=True, forbid_unknown_fields=True, tag="parcel"):
    """A note from `source` to `target`, the `number`th between these two; its one tensor is the note as bytes."""

    source: Name
    target: Name
    number: Count
    tensors: Tensors


class Finished(Struct, frozen=True, forbid_unknown_fields=True, tag="finished"):
    """I have all that I need, and did all that others need of me. A `Bye` ends it for all."""


class Commit(Struct, frozen=True, forbid_unknown_fields=True, tag="commit"):
    """My set has so many ids, of this kind; the digest is of my shuffled list, masked by me. Before any list moves."""

    run: Hex
    size: Annotated[int, Meta(ge=1, le=MOST_IDS)]
    kind: Kind
    digest: Hex


class Points(Struct, frozen=True, forbid_unknown_fields=True, tag="points"):
    """The next part of the owner's list, masked by so many."""

    owner: Name
    masks: Count


class Codes(Struct, frozen=True, forbid_unknown_fields=True, tag="codes"):
    """The next part of the codes for the owner's list, on their way back to the owner: one for each id."""

    owner: Name


class Order(Struct, frozen=True, forbid_unknown_fields=True, tag="order"):
    """The next part of the common order, for the receiver alone: of `rows` codes, each of a row of its, or zero."""

    rows: Annotated[int, Meta(ge=0, le=MOST_IDS)]


Note = Commit | Points | Codes | Order
Message = Join | Gathered | Parcel | Finished | Bye

message_decoder = msgspec.msgpack.Decoder(Message)
_note_decoder = msgspec.msgpack.Decoder(Note)
_encoder = msgspec.msgpack.Encoder()
_LENGTH = struct.Struct("!I")


def pack(note: Note, body: bytes | memoryview = b"") -> bytes:
    """A note and its points or codes as bytes."""
    header = _encoder.encode(note)
    return b"".join((_LENGTH.pack(len(header)), header, body))


def unpack(data: bytes | memoryview) -> tuple[Note, memoryview]:
    """The note, and a view of its points or codes. Raises `FrameRefused`."""
    view = memoryview(data)
    try:
        (length,) = _LENGTH.unpack_from(view)
        end = _LENGTH.size + length
        if end > view.nbytes:
            raise FrameRefused("the peer sent a note that ends in its header")
        return _note_decoder.decode(view[_LENGTH.size : end]), view[end:]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, struct.error) as error:
        raise FrameRefused(f"the peer sent a note that is none of an alignment's: {error}") from error


def run_of(plan: str, terms: AlignTerms, nonces: Mapping[str, str]) -> str:
    """The alignment's name, the same for all who asked for the same and were told the same nonces; new each time."""
    return sha256(msgspec.json.encode(("cutlayer align", plan, terms, sorted(nonces.items())))).hexdigest()


def seal_context(plan: str, run: str, parcel: Parcel) -> bytes:
    """What a seal is bound to: a parcel cannot be played again elsewhere, to another, or at another time."""
    return msgspec.json.encode(("cutlayer align", plan, run, parcel.source, parcel.target, parcel.number))
