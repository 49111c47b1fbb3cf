"""The documents of a store of saves: a save's manifest, the mark that it is committed, a note. Bytes, no files.

    {"digest":"<sha256 of what follows>","document":{"format": 1, "kind": …, "plan": …, "party": …, …}}

The digest is of the document's own bytes as they stand, so that nothing depends on how JSON is written.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from cutlayer.errors import RunError

FORMAT = 1
_HEAD, _MIDDLE, _TAIL = b'{"digest":"', b'","document":', b"}\n"
_START: Final = len(_HEAD) + 64 + len(_MIDDLE)


class Refused(RunError):
    """A file that is not what it should be, and why, without its name. `foreign`: it is whole, but somebody else's."""

    def __init__(self, why: str, *, foreign: bool = False) -> None:
        self.foreign = foreign
        super().__init__(why)


class Object(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the bytes of one of a save's objects are, and that they are all there."""

    sha256: str
    nbytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A save without its objects' bytes."""

    number: int
    milestone: bool
    objects: dict[str, Object]
    body: dict[str, Any]


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That a save is committed: this manifest and no other of its number."""

    number: int
    manifest: str


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A small document beside the saves."""

    name: str
    body: dict[str, Any]


D = TypeVar("D", Manifest, Mark, Note)


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """Whose documents these are: a party's, in a run of the plan with this digest."""

    plan: str
    party: str

    def pack(self, document: Manifest | Mark | Note) -> bytes:
        """Raises `RunError` for a body that is no JSON data."""
        if not (isinstance(document, Mark) or _has_text_keys(document.body)):
            raise RunError("a body's keys must be text, since JSON has no other: turn them into text")
        whose = {"format": FORMAT, "kind": _kind(type(document)), "plan": self.plan, "party": self.party}
        try:
            text = json.dumps({**whose, **msgspec.structs.asdict(document)}, default=_plain).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RunError(f"a {whose['kind']}'s body is no JSON data ({error}): keep bytes in objects") from error
        return b"".join((_HEAD, hashlib.sha256(text).hexdigest().encode(), _MIDDLE, text, _TAIL))

    def unpack(self, data: bytes, kind: type[D]) -> D:
        """The document in these bytes. Raises `Refused`."""
        fields = whole(data)
        if fields.pop("format") != FORMAT:
            raise Refused("is of another version of cutlayer: resume with the version that wrote it", foreign=True)
        if (plan := fields.pop("plan")) != self.plan:
            raise Refused(f"belongs to another plan ({str(plan)[:12]}…): name this plan's own place", foreign=True)
        if (party := fields.pop("party")) != self.party:
            raise Refused(f"belongs to {party}, not to {self.party}: name {self.party}'s own place", foreign=True)
        return _convert(fields, kind)


def digest_of(data: bytes) -> str:
    """What a packed document says of itself."""
    return data[len(_HEAD) : len(_HEAD) + 64].decode()


def whole(data: bytes) -> dict[str, Any]:
    """The fields of a packed document whose digest is right. Raises `Refused`."""
    text = data[_START : -len(_TAIL)]
    expected = b"".join((_HEAD, hashlib.sha256(text).hexdigest().encode(), _MIDDLE, text, _TAIL))
    if data != expected:
        raise Refused("is cut short or changed: its digest is not its own")
    fields = json.loads(text)
    if not isinstance(fields, dict) or not {"format", "kind", "plan", "party"} <= fields.keys():
        raise Refused("is no document of a run")
    return fields


def _convert(fields: dict[str, Any], kind: type[D]) -> D:
    if (said := fields.pop("kind")) != _kind(kind):
        raise Refused(f"is a {said}, not a {_kind(kind)}")
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise Refused(f"is no {_kind(kind)} ({error})") from error


def _kind(kind: type) -> str:
    return kind.__name__.lower()


def _has_text_keys(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(_has_text_keys, value.values()))
    return not isinstance(value, list | tuple) or all(map(_has_text_keys, value))


def _plain(value: Any) -> Any:
    if isinstance(value, Object):
        return msgspec.structs.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} in it")
