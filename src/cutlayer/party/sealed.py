"""What a party does to a state that another one forwards: seal it and open it; in a simulation, keep its size only."""

from collections.abc import Mapping
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cutlayer.errors import RunError
from cutlayer.keys.masking import KEY_BYTES, Agreements
from cutlayer.keys.sealing import SEAL_BYTES


class Seals(Protocol):
    """A party's hand at sealing: `keys.sealing.Sealer`, or `Unsealed` where all parties are one process."""

    def seal(self, receiver: str, data: bytes | memoryview, *, context: bytes) -> bytes: ...

    def open(self, sender: str, sealed: bytes | memoryview, *, context: bytes) -> bytes: ...

    def mask_key(self, peer: str, *, context: bytes) -> bytes: ...


class Unsealed:
    """As many bytes as sealed ones, open to all: nobody else is in this process. Masks need `agreements`."""

    agreements: Agreements | None = None

    def seal(self, receiver: str, data: bytes | memoryview, *, context: bytes) -> bytes:
        return bytes(SEAL_BYTES) + data

    def open(self, sender: str, sealed: bytes | memoryview, *, context: bytes) -> bytes:
        if len(sealed) < SEAL_BYTES:
            raise RunError(f"a state from {sender} is shorter than its seal")
        return bytes(sealed[SEAL_BYTES:])

    def mask_key(self, peer: str, *, context: bytes) -> bytes:
        if self.agreements is None:
            raise RunError(f"there are no keys here by which masks could be agreed on with {peer}")
        return self.agreements.key(peer, context=context)


def unsealed(secrets: Mapping[str, bytes]) -> dict[str, Unsealed]:
    """For each party of a simulation, with a key pair made from its secret, for masks."""
    label = b"cutlayer simulation: sealing key"
    private = {
        name: X25519PrivateKey.from_private_bytes(HKDF(SHA256(), KEY_BYTES, None, label).derive(secret))
        for name, secret in secrets.items()
    }
    public = {name: key.public_key() for name, key in private.items()}
    seals = {name: Unsealed() for name in secrets}
    for name, key in private.items():
        seals[name].agreements = Agreements(name, key, public)
    return seals
