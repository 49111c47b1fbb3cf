"""What the lines of a ledger's file say, and how."""

from typing import Final

import numpy as np
from blake3 import blake3
from msgspec import DecodeError, Struct, json

from cutlayer.defence.accountant import Places, Release
from cutlayer.defence.defence import Mechanism
from cutlayer.plan.terms import Channel

VERSION: Final = 1


class Opened(Struct, frozen=True, kw_only=True, tag="opened", tag_field="entry"):
    """The file's first line: whose record it is, under which plan."""

    party: str
    plan: str
    version: int = VERSION


class Kind(Struct, frozen=True, kw_only=True, tag="kind", tag_field="entry"):
    """A kind of release: all but its rows. Kinds are numbered from 0 as they come. `placed`: its rows are known."""

    channel: Channel
    edge: str
    mechanism: Mechanism | None
    table: str
    trained: bool
    through: tuple[Channel, ...]
    placed: bool

    @classmethod
    def of(cls, release: Release) -> "Kind":
        return cls(
            channel=release.channel,
            edge=release.edge,
            mechanism=release.mechanism,
            table=release.table,
            trained=release.trained,
            through=release.through,
            placed=release.places is not None,
        )

    def release(self, rows: int, places: Places | None = None) -> Release:
        """One of so many rows; without places it may be of any."""
        return Release(
            channel=self.channel,
            edge=self.edge,
            mechanism=self.mechanism,
            rows=rows,
            places=places,
            table=self.table,
            trained=self.trained,
            through=self.through,
        )

    @property
    def by_rows(self) -> bool:
        """Whether each row's releases count by themselves, so that it matters whose they are."""
        return self.placed and (not self.trained or (self.mechanism is not None and self.mechanism.once))


class Made(Struct, frozen=True, kw_only=True, tag="made", tag_field="entry"):
    """A release; `reserved`: under a reservation, so that this line was not flushed."""

    kind: int
    rows: int
    mark: bytes
    places: bytes | None
    reserved: bool


class Reserved(Struct, frozen=True, kw_only=True, tag="reserved", tag_field="entry"):
    """So many releases, of at most so many rows each, may follow unflushed; what was reserved before is done."""

    kind: int
    releases: int
    rows: int


class Done(Struct, frozen=True, kw_only=True, tag="done", tag_field="entry"):
    """No more will follow under this kind's reservation."""

    kind: int


class Lost(Struct, frozen=True, kw_only=True):
    """Releases of any rows that may have been made, and count as if they were."""

    kind: int
    rows: int
    times: int


class Recovered(Struct, frozen=True, kw_only=True, tag="recovered", tag_field="entry"):
    """After a crash: the lines before were torn by so many bytes. All reservations are done."""

    torn: int
    lost: tuple[Lost, ...]


Entry = Opened | Kind | Made | Reserved | Done | Recovered


class Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Lines are numbered from 1."""

    n: int
    said: Entry


_encoder, _decoder = json.Encoder(), json.Decoder(Line)


def line_of(number: int, entry: Entry) -> bytes:
    """A checksum, a space and a JSON object."""
    said = _encoder.encode(Line(n=number, said=entry))
    return _checksum(said) + b" " + said + b"\n"


def line_from(line: bytes) -> Line | None:
    """What a line with its end says; None if it is not whole."""
    checksum, _, said = line[:-1].partition(b" ")
    if checksum != _checksum(said):
        return None
    try:
        return _decoder.decode(said)
    except DecodeError:
        return None


def packed(places: Places) -> bytes:
    """4 bytes a place where that is enough, else 8."""
    narrow = not len(places) or int(places.max()) < 2**31
    return places.astype("<i4" if narrow else "<i8").tobytes()


def unpacked(places: bytes, rows: int) -> Places:
    return np.frombuffer(places, "<i4" if len(places) == 4 * rows else "<i8").astype(np.int64)


def _checksum(said: bytes) -> bytes:
    return blake3(said).hexdigest(8).encode()
