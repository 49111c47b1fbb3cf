"""Reading a store of saves without believing any file of it: each is what its name and its digest say, or refused."""

import hashlib
import re
from typing import Final

from cutlayer.party.manifest import Manifest, Mark, Note, Object, Owner, Refused, digest_of, whole
from cutlayer.party.place import Place

OBJECTS: Final = "objects"
SAVE = re.compile(r"save-(\d{8,})\.json")
MARK = re.compile(r"save-(\d{8,})\.committed")
NOTE = re.compile(r"note-([a-z0-9-]+)\.json")


def save_name(number: int) -> str:
    return f"save-{number:08d}.json"


def mark_name(number: int) -> str:
    return f"save-{number:08d}.committed"


def note_name(name: str) -> str:
    return f"note-{name}.json"


def object_name(digest: str) -> str:
    return f"{OBJECTS}/{digest}.safetensors"


class Verifier:
    """Reads what is at a place, for its owner. Raises `Refused` with what a file is instead, `OSError` if unreadable.

    `good` are the digests of objects whose bytes were seen to be right, and that nobody removes but who writes here.
    """

    def __init__(self, place: Place, owner: Owner) -> None:
        self._place, self._owner = place, owner
        self.good: set[str] = set()

    def manifest(self, name: str) -> tuple[Manifest, str]:
        """A save's manifest, with its digest; its objects are not looked at."""
        data = self._place.read(name)
        manifest = self._owner.unpack(data, Manifest)
        if save_name(manifest.number) != name:
            raise Refused(f"is save {manifest.number} under another name")
        return manifest, digest_of(data)

    def object(self, entry: Object) -> bytes:
        """An object's bytes."""
        name = object_name(entry.sha256)
        try:
            data = self._place.read(name)
        except FileNotFoundError:
            self.good.discard(entry.sha256)
            raise Refused(f"needs {name}, which is missing") from None
        if len(data) != entry.nbytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            self.good.discard(entry.sha256)
            raise Refused(f"needs {name}, which is cut short or changed")
        return data

    def is_marked(self, number: int, manifest: str) -> bool:
        """Whether the save with this manifest is marked as committed; a mark of an older save of its number is none."""
        try:
            mark = self._owner.unpack(self._place.read(mark_name(number)), Mark)
        except FileNotFoundError:
            return False
        return mark == Mark(number, manifest)

    def note(self, name: str) -> Note:
        """A document beside the saves."""
        note = self._owner.unpack(self._place.read(note_name(name)), Note)
        if note.name != name:
            raise Refused(f"is the note {note.name!r} under another name")
        return note

    def is_foreign(self, name: str) -> bool:
        """Whether there is a whole file of this name that another plan's run, or another party, has written."""
        try:
            self._owner.unpack(self._place.read(name), Note)
        except FileNotFoundError:
            return False
        except Refused as refused:
            return refused.foreign
        return False

    def referred(self, name: str) -> frozenset[str]:
        """The objects that a manifest refers to, whoever's it is; none if it cannot be read."""
        try:
            return frozenset(each["sha256"] for each in whole(self._place.read(name))["objects"].values())
        except (Refused, OSError, AttributeError, KeyError, TypeError):
            return frozenset()
