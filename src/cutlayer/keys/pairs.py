"""A party's two key pairs for sealed messages: Ed25519 signs, X25519 unseals.

`NAME.seal.key` holds both private keys, two blocks of plain PEM; it never leaves the party's folder. `NAME.pub` shows
the public keys, which the plan pins.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from cutlayer.errors import CredentialError
from cutlayer.keys.files import read, write_private, write_public

_BLOCK = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\s*", re.DOTALL)
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicKeys:
    """What a plan pins for a party: raw Ed25519 (`signing`) and X25519 (`sealing`) public keys, 64 hex digits each."""

    signing: str
    sealing: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateKeys:
    """The other halves. They never leave the party that made them, and have no text form."""

    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey

    def __repr__(self) -> str:
        return f"PrivateKeys({self.public()})"

    def public(self) -> PublicKeys:
        return PublicKeys(
            signing=self.signing.public_key().public_bytes_raw().hex(),
            sealing=self.sealing.public_key().public_bytes_raw().hex(),
        )


def new_pairs() -> PrivateKeys:
    return PrivateKeys(signing=Ed25519PrivateKey.generate(), sealing=X25519PrivateKey.generate())


def pairs_path(folder: Path, party: str) -> Path:
    """No party's name has a dot, so no party's `NAME.key` can be another's `NAME.seal.key`."""
    return folder / f"{party}.seal.key"


def make_pairs(folder: Path, party: str) -> tuple[Path, ...]:
    """Makes what is missing of `NAME.seal.key` and `NAME.pub`; returns what it made. Raises `CredentialError`."""
    private, public = pairs_path(folder, party), folder / f"{party}.pub"
    if private.exists() and public.exists():
        return ()
    if private.exists():
        _write_public_keys(public, party, read_pairs(private, party).public())
        return (public,)
    keys = new_pairs()
    blocks = (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in (keys.signing, keys.sealing)
    )
    write_private(private, b"".join(blocks), mend="move it away first")
    _write_public_keys(public, party, keys.public())
    return (private, public)


def read_pairs(path: Path, party: str) -> PrivateKeys:
    """A party's `NAME.seal.key`. Raises `CredentialError` if it is not there or damaged."""
    data = read(
        path,
        mend=f"restore it, or make it with `cutlayer keys request {party}`, which adds what is missing and keeps "
        f"{party}.key, and have {party}.pub pinned with `cutlayer keys pin`",
    )
    try:
        keys = [load_pem_private_key(block, password=None) for block in _BLOCK.findall(data)]
    except (ValueError, TypeError):
        keys = []  # the reason is left out: it may quote the file
    match keys:
        case [Ed25519PrivateKey() as signing, X25519PrivateKey() as sealing]:
            return PrivateKeys(signing=signing, sealing=sealing)
    raise CredentialError(
        f"{path} is damaged: it does not hold an Ed25519 and an X25519 key in plain PEM; restore it, or move it away, "
        f"make another with `cutlayer keys request {party}` and have its new {party}.pub pinned in the plan"
    )


def read_public_keys(path: Path, party: str) -> PublicKeys:
    """A party's `NAME.pub`. Raises `CredentialError` if it is not there, no such file, or another party's."""
    mend = f"ask {party} for the {party}.pub that `cutlayer keys request {party}` made"
    try:
        table = tomllib.loads(read(path, mend=mend).decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CredentialError(f"{path} is not valid TOML; {mend}") from error
    keys = [table.get("signing_key"), table.get("sealing_key")]
    if not all(isinstance(key, str) and _HEX.fullmatch(key) for key in keys):
        raise CredentialError(f"{path} has no signing_key and sealing_key of 64 hexadecimal digits each; {mend}")
    if table.get("party") != party:
        raise CredentialError(f"{path} holds the keys of {table.get('party')!r}, not of {party}; {mend}")
    return PublicKeys(signing=table["signing_key"], sealing=table["sealing_key"])


def _write_public_keys(path: Path, party: str, keys: PublicKeys) -> None:
    text = f'party = "{party}"\nsigning_key = "{keys.signing}"\nsealing_key = "{keys.sealing}"\n'
    write_public(path, text.encode())
