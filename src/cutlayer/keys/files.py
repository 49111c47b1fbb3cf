"""Files in a keys folder. A private one is made for its owner alone, from its first byte on."""

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from cutlayer.errors import CredentialError

PRIVATE_MODE = 0o600
PRIVATE_ENDINGS = (".key", ".secret")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def check_party(party: str) -> None:
    """Raises `CredentialError` unless `party` can be a DNS name of one label, and a file's name beside the ca's."""
    if not _LABEL.fullmatch(party):
        raise CredentialError(
            f"{party!r} cannot be a party's name: use 1 to 63 of the characters a-z, 0-9 and '-', "
            "beginning and ending with a letter or a digit"
        )
    if party == "ca":
        raise CredentialError("no party can be called 'ca', since the authority's files are; choose another name")


def write_private(path: Path, data: bytes, *, mend: str) -> None:
    """A new file with mode 0600. Raises `CredentialError` with `mend` if there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_MODE)
    except FileExistsError as error:
        raise CredentialError(f"{path} is there already and is never overwritten; {mend}") from error
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_private_once(path: Path, data: bytes) -> None:
    """Like `write_private`, but who comes second keeps the first one's file. It appears whole or not at all."""
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    write_private(draft, data, mend="try again")
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def write_public(path: Path, data: bytes) -> None:
    """Replaces the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    draft.write_bytes(data)
    draft.replace(path)


def hand_over(kit: Path, folder: Path, party: str) -> None:
    """Moves all of one party's files out of a kit into the party's own folder, and a copy of `ca.crt`.

    Nothing of the party stays in the kit. Raises `CredentialError` if the kit has none of its files, or the folder has.
    """
    check_party(party)
    files = sorted(kit.glob(f"{party}.*"))  # a party's name has no dot: these are its own and nobody else's
    if not files:
        raise CredentialError(f"{kit} has no files of {party}; make them with `cutlayer keys request {party}`")
    if taken := [path.name for path in files if (folder / path.name).exists()]:
        raise CredentialError(f"{folder / taken[0]} is there already and is never overwritten; choose an empty folder")
    write_public(folder / "ca.crt", read(kit / "ca.crt", mend="ask the authority for its ca.crt"))
    for path in files:
        data = read(path, mend="it is its owner's alone")
        if path.suffix in PRIVATE_ENDINGS:
            write_private(folder / path.name, data, mend="choose an empty folder")
        else:
            write_public(folder / path.name, data)
        path.unlink()


def read(path: Path, *, mend: str) -> bytes:
    """Raises `CredentialError` with `mend` if the file is not there or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CredentialError(f"{path} cannot be read ({error.strerror}); {mend}") from error


def exposure(path: Path) -> str:
    """A warning with its mend if others may read or change a private file, else ""."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "nt" or not mode & 0o077:
        return ""
    return f"{path.name} can be read by others (mode {mode:04o}): chmod 600 {path}"
