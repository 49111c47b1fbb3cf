"""The saves of one party: what a run can go on from after a power cut, a crash or a `kill -9`.

    save-00000007.json             a save's manifest: what it is, and the digests of its objects; written last
    save-00000007.committed        all parties have this save: the manifest's digest, in a file of its own
    objects/<sha256>.safetensors   bytes that saves refer to, once however many do
    note-NAME.json                 a small document beside the saves, such as the log of members

A file is written under another name, flushed to the disk and then renamed; what refers to a file is written after it
and removed before it. So a process may be killed between any two calls, and whoever looks next finds every save whole,
or not at all; a damaged one is refused by name, and the one before it counts. A party's secrets never go in here: they
lie in its folder of keys, and whoever calls `write` keeps them out.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutlayer.errors import RunError
from cutlayer.party.manifest import Manifest, Mark, Note, Object, Owner, Refused, digest_of
from cutlayer.party.place import DRAFT, Place, place_of
from cutlayer.party.verifier import MARK, NOTE, OBJECTS, SAVE, Verifier, mark_name, note_name, object_name, save_name

_OTHERS = "is of another plan or party: name a place for these saves alone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A save, read and verified."""

    number: int
    body: Mapping[str, Any]
    objects: Mapping[str, bytes]
    milestone: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """A good save at the place."""

    milestone: bool
    objects: frozenset[str]
    manifest: str
    """Its digest."""
    committed: bool = False


class Checkpoints:
    """The saves of `party` in a run of the plan with this digest, at a place: a folder, or any fsspec URL.

    The newest `keep` committed ones stay, the newest committed milestone, and whatever is newer than those. One thread
    writes at a time; others may look meanwhile.
    """

    def __init__(self, place: str | Path | Place, *, plan: str, party: str, keep: int = 2) -> None:
        """Makes the folder if need be, and verifies all that is there. Raises `RunError` if it cannot be reached."""
        if keep < 1:
            raise RunError(f"a run cannot keep {keep} saves: keep 1, or 2 to be safe from a damaged one")
        self._place = place_of(place) if isinstance(place, str | Path) else place
        self._owner, self._keep = Owner(plan=plan, party=party), keep
        self._verifier = Verifier(self._place, self._owner)
        self._writing = threading.Lock()
        self._saves: dict[int, _Known] = {}
        """Replaced, never changed: whoever looks sees one state or the next."""
        self._refused: dict[str, frozenset[str]] = {}
        """Manifests that are refused, or not ours; and the objects that they refer to."""
        self._foreign: set[str] = set()
        self._refusals: list[str] = []
        with self._telling("be read"):
            for folder in ("", OBJECTS):
                self._place.prepare(folder)
            names = self._place.names()
            self._begun = [each for each in (*names, *self._place.names(OBJECTS)) if _is_draft(each)]
            for name in names:
                self._examine(name)

    # ------------------------------------------------------------------ what is there

    @property
    def numbers(self) -> tuple[int, ...]:
        """The good saves, ascending: whole, this plan's, this party's, each object with the right digest."""
        return tuple(sorted(self._saves))

    @property
    def committed(self) -> tuple[int, ...]:
        """The good saves that are committed, ascending."""
        return tuple(number for number, known in sorted(self._saves.items()) if known.committed)

    @property
    def refusals(self) -> tuple[str, ...]:
        """One sentence for each file that was refused at the start: its name, and why."""
        return tuple(self._refusals)

    def read(self, number: int) -> Saved:
        """A save, all of it verified again. Raises `RunError` by the file's name."""
        name = save_name(number)
        with self._telling("be read"):
            try:
                manifest, _ = self._verifier.manifest(name)
                objects = {each: self._verifier.object(entry) for each, entry in manifest.objects.items()}
            except FileNotFoundError as error:
                raise RunError(f"{name} is not at {self._place}: the good saves there are {self._listed()}") from error
            except Refused as error:
                raise RunError(f"{name} at {self._place} {error}: go on from an earlier save") from error
        return Saved(number=number, body=manifest.body, objects=objects, milestone=manifest.milestone)

    def read_note(self, name: str) -> dict[str, Any] | None:
        """A document beside the saves; None if there is none. Raises `RunError` if it is damaged or not this run's."""
        with self._telling("be read"):
            try:
                return self._verifier.note(name).body
            except FileNotFoundError:
                return None
            except Refused as error:
                where = f"{note_name(name)} at {self._place}"
                raise RunError(f"{where} {error}: restore it, or begin anew in an empty folder") from error

    def _examine(self, name: str) -> None:
        """Know a good save, or put down a sentence why it is none."""
        if not (found := SAVE.fullmatch(name)):
            return
        number = int(found[1])
        try:
            manifest, digest = self._verifier.manifest(name)
            for entry in manifest.objects.values():
                if entry.sha256 not in self._verifier.good:
                    self._verifier.object(entry)
                    self._verifier.good.add(entry.sha256)
        except (Refused, OSError) as error:
            self._refuse(name, error)
            return
        self._know(*_known(manifest, digest, committed=self._is_committed(number, digest)))

    def _is_committed(self, number: int, digest: str) -> bool:
        try:
            return self._verifier.is_marked(number, digest)
        except (Refused, OSError) as error:
            self._refusals.append(f"{mark_name(number)} {_why(error)}; {save_name(number)} counts as not committed")
            return False

    def _refuse(self, name: str, error: Refused | OSError) -> None:
        self._refusals.append(f"{name} {_why(error)}")
        self._refused[name] = self._verifier.referred(name)
        if isinstance(error, Refused) and error.foreign:
            self._foreign.add(name)

    # ------------------------------------------------------------------ writing

    def write(
        self, number: int, body: Mapping[str, Any], objects: Mapping[str, bytes], *, milestone: bool = False
    ) -> None:
        """Keep a save, not yet committed: it would outlive a power cut when this returns.

        `body` is JSON data with text as keys: numbers come back exactly, tuples as lists. An older save of this number
        gives way. Raises `RunError` if it cannot be written, or if another plan's or party's would give way.
        """
        if number < 0:
            raise RunError(f"a save cannot have the number {number}: count from 0")
        name = save_name(number)
        with self._writing, self._telling("be written"):
            self._check_ours(name)
            digests = {each: hashlib.sha256(data).hexdigest() for each, data in objects.items()}
            entries = {each: Object(digests[each], len(data)) for each, data in objects.items()}
            manifest = Manifest(number, milestone, entries, dict(body))
            packed = self._owner.pack(manifest)
            self._write_objects({digests[each]: data for each, data in objects.items()})
            self._write_durably(name, packed)
            self._refused.pop(name, None)
            self._know(*_known(manifest, digest_of(packed)))

    def commit(self, number: int) -> None:
        """All parties have this save: make that outlive a power cut, then remove what need not be kept."""
        self.mark(number)
        self.prune()

    def mark(self, number: int) -> None:
        """All parties have this save: make that outlive a power cut."""
        with self._writing, self._telling("be written"):
            known = self._saves.get(number)
            if known is None:
                raise RunError(f"{save_name(number)} is no good save at {self._place}: write it before it is committed")
            self._write_durably(mark_name(number), self._owner.pack(Mark(number, known.manifest)))
            self._saves = {**self._saves, number: replace(known, committed=True)}

    def prune(self) -> None:
        """Remove what need not be kept."""
        with self._writing, self._telling("be removed"):
            if self.committed:
                self._prune()

    def forget_after(self, number: int) -> None:
        """The run goes on from this save: newer ones are of a course that it has left."""
        with self._writing, self._telling("be removed"):
            self._remove(lambda each: each > number)

    def note(self, name: str, body: Mapping[str, Any]) -> None:
        """Keep a small document beside the saves, in place of its older version; whole or not at all."""
        file = note_name(name)
        if not NOTE.fullmatch(file):
            raise RunError(f"{name!r} cannot be a note's name: use a-z, 0-9 and '-'")
        with self._telling("be written"):
            self._check_ours(file)
            self._write_durably(file, self._owner.pack(Note(name, dict(body))))

    def clear(self) -> None:
        """Remove all that is this run's, since it is finished. What is of other plans or parties stays."""
        with self._writing, self._telling("be removed"):
            self._remove(lambda _: True)
            for name in self._place.names():
                if NOTE.fullmatch(name) and not self._verifier.is_foreign(name):
                    self._place.remove(name)
            self._place.sync()

    def _check_ours(self, name: str) -> None:
        if self._verifier.is_foreign(name):
            raise RunError(f"{name} at {self._place} {_OTHERS}")

    def _write_objects(self, objects: Mapping[str, bytes]) -> None:
        """Those that were not seen to be good: a file left by a killed process may have the name and not the bytes."""
        new = [digest for digest in objects if digest not in self._verifier.good]
        for digest in new:
            self._place.write(object_name(digest), objects[digest])
        if new:
            self._place.sync(OBJECTS)
        self._verifier.good.update(new)

    def _write_durably(self, name: str, data: bytes) -> None:
        self._place.write(name, data)
        self._place.sync()

    def _know(self, number: int, known: _Known) -> None:
        self._saves = {**self._saves, number: known}

    # ------------------------------------------------------------------ removing

    def _prune(self) -> None:
        committed = self.committed
        milestones = [number for number in committed if self._saves[number].milestone]
        kept = {*committed[-self._keep :], *milestones[-1:]}
        self._remove(lambda number: number not in kept and number < committed[-1])

    def _remove(self, is_doomed: Callable[[int], bool]) -> None:
        """Forget, then remove: manifests first, each a whole save, the newest first; when that is durable, objects."""
        names = self._place.names()
        doomed = [each for each in names if each not in self._foreign and _is_doomed(SAVE.fullmatch(each), is_doomed)]
        self._saves = {number: known for number, known in self._saves.items() if not is_doomed(number)}
        for name in reversed(doomed):
            self._place.remove(name)
        self._refused = {name: objects for name, objects in self._refused.items() if name not in doomed}
        left = set(names) - set(doomed)
        for name in names:
            if (found := MARK.fullmatch(name)) and save_name(int(found[1])) not in left:
                self._place.remove(name)
        self._place.sync()
        self._remove_objects()

    def _remove_objects(self) -> None:
        needed = {digest for known in self._saves.values() for digest in known.objects}.union(*self._refused.values())
        files = {object_name(digest) for digest in needed}
        for name in (*self._begun, *(each for each in self._place.names(OBJECTS) if each not in files)):
            self._place.remove(name)
        self._begun = []
        self._verifier.good &= needed

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"saves at {self._place} cannot {what} ({error}): make room or mend its rights, or name another place"
            ) from error

    def _listed(self) -> str:
        return ", ".join(map(str, self.numbers)) or "none"


def _known(manifest: Manifest, digest: str, *, committed: bool = False) -> tuple[int, _Known]:
    objects = frozenset(each.sha256 for each in manifest.objects.values())
    return manifest.number, _Known(milestone=manifest.milestone, objects=objects, manifest=digest, committed=committed)


def _is_doomed(save: re.Match[str] | None, is_doomed: Callable[[int], bool]) -> bool:
    return save is not None and is_doomed(int(save[1]))


def _is_draft(name: str) -> bool:
    return DRAFT.fullmatch(name.rpartition("/")[2]) is not None


def _why(error: Refused | OSError) -> str:
    return str(error) if isinstance(error, Refused) else f"cannot be read ({error})"
