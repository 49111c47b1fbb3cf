"""What a party does to a state that another one forwards: seal it and open it; in a simulation, keep its size only."""

from typing import Protocol

from cutlayer.errors import RunError
from cutlayer.keys.sealing import SEAL_BYTES


class Seals(Protocol):
    """A party's hand at sealing: `keys.sealing.Sealer`, or `Unsealed` where all parties are one process."""

    def seal(self, receiver: str, data: bytes | memoryview, *, context: bytes) -> bytes: ...

    def open(self, sender: str, sealed: bytes | memoryview, *, context: bytes) -> bytes: ...


class Unsealed:
    """As many bytes as sealed ones, open to all: nobody else is in this process."""

    def seal(self, receiver: str, data: bytes | memoryview, *, context: bytes) -> bytes:
        return bytes(SEAL_BYTES) + data

    def open(self, sender: str, sealed: bytes | memoryview, *, context: bytes) -> bytes:
        if len(sealed) < SEAL_BYTES:
            raise RunError(f"a state from {sender} is shorter than its seal")
        return bytes(sealed[SEAL_BYTES:])
