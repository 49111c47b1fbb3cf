"""Where a party keeps its saves: a folder of this machine, or whatever fsspec can reach by a URL.

Names are relative to the place, with `/` between a folder and a file. What fails raises `OSError`.
"""

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

FILE_MODE, FOLDER_MODE = 0o600, 0o700
DRAFT = re.compile(r"\..+\.draft")
"""A file that was begun and never finished."""


class Place(Protocol):
    """Few calls, in the order in which a store makes them: a test counts them, and stops at each."""

    def prepare(self, folder: str = "") -> None:
        """Make a folder of the place, or the place itself, if it is not there."""

    def names(self, folder: str = "") -> list[str]:
        """The files of a folder, in order; none if there is no such folder."""

    def read(self, name: str) -> bytes:
        """A whole file. Raises `FileNotFoundError` if it is not there."""

    def write(self, name: str, data: bytes) -> None:
        """A whole file, in place of an older one if there is one: whoever looks sees the one or the other."""

    def remove(self, name: str) -> None:
        """Without a word if it is gone already."""

    def sync(self, folder: str = "") -> None:
        """Return when what was written and removed in a folder would outlive a power cut."""


class Folder:
    """A folder of this machine, for its owner alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def prepare(self, folder: str = "") -> None:
        target = self.path / folder
        missing = [path for path in (target, *target.parents) if not path.exists()]
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir(mode=FOLDER_MODE)
            _sync(path.parent)

    def names(self, folder: str = "") -> list[str]:
        try:
            entries = sorted(os.scandir(self.path / folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        return [f"{folder}/{entry.name}" if folder else entry.name for entry in entries if entry.is_file()]

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        folder, _, file = name.rpartition("/")
        draft = f"{folder}/" * bool(folder) + f".{file}.{secrets.token_hex(4)}.draft"
        self.draft(draft, data)
        self.rename(draft, name)

    def draft(self, name: str, data: bytes) -> None:
        """A new file, its bytes on the disk."""
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, draft: str, name: str) -> None:
        """Give a draft its name, in one step."""
        (self.path / draft).replace(self.path / name)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def sync(self, folder: str = "") -> None:
        _sync(self.path / folder)


class Remote:
    """Files behind a URL. That a file appears whole, and lasts, is the promise of whoever keeps them."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        self._files, self._root = url_to_fs(url)

    def __str__(self) -> str:
        return self.url

    def prepare(self, folder: str = "") -> None:
        self._call("makedirs", self._path(folder), exist_ok=True)

    def names(self, folder: str = "") -> list[str]:
        self._files.invalidate_cache()
        try:
            entries = self._call("ls", self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        files = sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "file")
        return [f"{folder}/{file}" if folder else file for file in files]

    def read(self, name: str) -> bytes:
        return bytes(self._call("cat_file", self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        self._call("pipe_file", self._path(name), data)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._call("rm_file", self._path(name))

    def sync(self, folder: str = "") -> None:
        """Nothing to do: a write returns when the file is kept."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _call(self, what: str, path: str, *args: Any, **options: Any) -> Any:
        """Each kind of store has errors of its own kind."""
        try:
            return getattr(self._files, what)(path, *args, **options)
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error


def place_of(where: str | Path) -> Folder | Remote:
    """The place that a path or a URL names; `file://` is a folder of this machine."""
    text = str(where)
    if isinstance(where, Path) or "://" not in text:
        return Folder(Path(where))
    if text.startswith("file://"):
        return Folder(Path(text.removeprefix("file://")))
    return Remote(text)


def _sync(folder: Path) -> None:
    if os.name == "nt":
        return  # a folder cannot be opened there, and a rename is written through
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
