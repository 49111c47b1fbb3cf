"""A party's signature of a statement, with the key that the plan pins for it (`signing_key`)."""

from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cutlayer.keys.files import check_party
from cutlayer.keys.pairs import pairs_path, read_pairs


def load_signer(folder: Path, party: str) -> Callable[[bytes], bytes]:
    """Signs statements, each of which must begin with what it is good for. Raises `CredentialError` without a key."""
    check_party(party)
    return read_pairs(pairs_path(folder, party), party).signing.sign


def is_signed(key: str, signature: bytes, statement: bytes) -> bool:
    """Whether who has the private half of this public key (64 hexadecimal digits) has signed the statement."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True
