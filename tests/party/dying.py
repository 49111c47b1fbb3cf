"""Places for saves that die at a given call, or lose their power, and a course of saves to die in.

As a script: `dying.py FOLDER K` goes through the course in a folder and kills itself at its k-th call.
"""

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from cutlayer.party.checkpoint import Checkpoints
from cutlayer.party.place import Folder

PLAN, PARTY = "5" * 64, "hospital-a"


class Died(BaseException):
    """The process ends here, without another word: no `except Exception` may catch it."""


def die() -> NoReturn:
    raise Died


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Dying(Folder):
    """A folder that counts calls and dies at the k-th, before it is done; `torn`: when a draft is half written."""

    def __init__(self, path: Path, *, at: int = -1, torn: bool = False, die: Callable[[], NoReturn] = die) -> None:
        super().__init__(path)
        self.calls: list[str] = []
        self.at = at
        self._torn, self._die = torn, die

    def _count(self, what: str) -> bool:
        self.calls.append(what)
        return len(self.calls) - 1 == self.at

    def prepare(self, folder: str = "") -> None:
        if self._count("prepare"):
            self._die()
        super().prepare(folder)

    def names(self, folder: str = "") -> list[str]:
        if self._count("names"):
            self._die()
        return super().names(folder)

    def read(self, name: str) -> bytes:
        if self._count("read"):
            self._die()
        return super().read(name)

    def draft(self, name: str, data: bytes) -> None:
        if self._count("draft"):
            if self._torn:
                super().draft(name, data[: len(data) // 2])
            self._die()
        super().draft(name, data)

    def rename(self, draft: str, name: str) -> None:
        if self._count("rename"):
            self._die()
        super().rename(draft, name)

    def remove(self, name: str) -> None:
        if self._count("remove"):
            self._die()
        super().remove(name)

    def sync(self, folder: str = "") -> None:
        if self._count("sync"):
            self._die()
        super().sync(folder)


class Powered:
    """A disk in memory that may lose its power: what was written or removed in a folder and not synced is in doubt."""

    def __init__(self, files: Mapping[str, bytes] | None = None, *, at: int = -1) -> None:
        self.files, self.calls = dict(files or {}), 0
        self._kept, self._at = dict(self.files), at

    def _count(self) -> None:
        self.calls += 1
        if self.calls - 1 == self._at:
            raise Died

    def prepare(self, folder: str = "") -> None:
        self._count()

    def names(self, folder: str = "") -> list[str]:
        self._count()
        return sorted(name for name in self.files if name.rpartition("/")[0] == folder)

    def read(self, name: str) -> bytes:
        self._count()
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def write(self, name: str, data: bytes) -> None:
        self._count()
        self.files[name] = data

    def remove(self, name: str) -> None:
        self._count()
        self.files.pop(name, None)

    def sync(self, folder: str = "") -> None:
        self._count()
        self._kept = {name: data for name, data in self._kept.items() if name.rpartition("/")[0] != folder}
        self._kept |= {name: data for name, data in self.files.items() if name.rpartition("/")[0] == folder}

    def after_power_cut(self, choose: Callable[[str], bool]) -> dict[str, bytes]:
        """What is there when the power is back: of names in doubt as they were last, where `choose` says so."""
        found: dict[str, bytes] = {}
        for name in sorted({*self.files, *self._kept}):
            data = (self.files if choose(name) else self._kept).get(name)
            if data is not None:
                found[name] = data
        return found


def choices() -> Iterator[Callable[[str], bool]]:
    """All that is in doubt is lost; all is kept; and some of it, at random."""
    yield lambda _: False
    yield lambda _: True
    for seed in range(4):
        draw = random.Random(seed)  # noqa: S311 (not a secret)
        yield partial(_at_random, draw)


def _at_random(draw: random.Random, _: str) -> bool:
    return draw.random() < 0.5


# ---------------------------------------------------------------------- a course of saves


@dataclass(frozen=True)
class Content:
    """What a save says."""

    body: Mapping[str, Any]
    objects: Mapping[str, bytes]
    milestone: bool = False


@dataclass
class Truth:
    """What must be at the place after each step: numbers with what they say, and whether they are committed."""

    keep: int = 2
    saves: dict[int, tuple[Content, bool]] = field(default_factory=dict)
    note: dict[str, Any] | None = None

    def copy(self) -> "Truth":
        return Truth(self.keep, dict(self.saves), self.note)

    def commit(self, number: int) -> None:
        self.saves[number] = (self.saves[number][0], True)
        committed = sorted(each for each, (_, done) in self.saves.items() if done)
        milestones = [each for each in committed if self.saves[each][0].milestone]
        stay = {*committed[-self.keep :], *milestones[-1:]}
        self.saves = {
            each: state for each, state in self.saves.items() if each in stay or each > committed[-1]
        }  # fmt: skip


def content(number: int, version: int = 0, *, milestone: bool = False) -> Content:
    """A bottom that changes in each save, a top that changes in every third, and what never changes."""
    body = {"turn": number, "loss": 0.1 + number / 3, "version": version, "members": ["lab", "hospital-a"]}
    objects = {
        "bottom": f"bottom {number} {version}".encode() * 50,
        "top": f"{number // 3}".encode() * 99,
        "rows": b"r",
    }
    return Content(body, objects, milestone)


def course() -> Iterator[tuple[Callable[[Checkpoints], None], Callable[[Truth], None]]]:
    """Steps: what a run does to its store, and what must have become of it."""

    def write(number: int, said: Content) -> tuple[Callable[[Checkpoints], None], Callable[[Truth], None]]:
        def tell(truth: Truth) -> None:
            truth.saves[number] = (said, False)

        return lambda store: store.write(number, said.body, said.objects, milestone=said.milestone), tell

    def commit(number: int) -> tuple[Callable[[Checkpoints], None], Callable[[Truth], None]]:
        return lambda store: store.commit(number), lambda truth: truth.commit(number)

    def note(body: dict[str, Any]) -> tuple[Callable[[Checkpoints], None], Callable[[Truth], None]]:
        return lambda store: store.note("members", body), lambda truth: setattr(truth, "note", body)

    def forget_after(number: int) -> tuple[Callable[[Checkpoints], None], Callable[[Truth], None]]:
        def tell(truth: Truth) -> None:
            truth.saves = {each: state for each, state in truth.saves.items() if each <= number}

        return lambda store: store.forget_after(number), tell

    yield write(0, content(0))
    yield commit(0)
    yield note({"joined": ["hospital-a"]})
    yield write(1, content(1, milestone=True))
    yield commit(1)
    for number in (2, 3, 4):
        yield write(number, content(number))
        yield commit(number)
    yield write(5, content(5))
    yield note({"joined": ["hospital-a"], "dropped": ["hospital-b"]})
    yield write(5, content(5, 1))
    yield write(6, content(6))
    yield commit(5)
    yield forget_after(4)
    yield write(5, content(5, 2, milestone=True))
    yield commit(5)
    yield write(6, content(6, 1))
    yield commit(6)


def go_through(store: Callable[[], Checkpoints], truths: list[Truth]) -> None:
    """The whole course; `truths` ends with what was true before the step that it died in, and what would be after."""
    truths[:] = [Truth(), Truth()]
    opened = store()
    for act, tell in course():
        truths[:] = [truths[-1], truths[-1].copy()]
        tell(truths[-1])
        act(opened)


if __name__ == "__main__":
    place = Dying(Path(sys.argv[1]), at=int(sys.argv[2]), torn=int(sys.argv[2]) % 2 == 0, die=kill)
    go_through(lambda: Checkpoints(place, plan=PLAN, party=PARTY), [])
