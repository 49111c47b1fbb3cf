"""Masks between pairs of parties that cancel in the sum over all of them: Bonawitz et al. 2017, section 4.0.1.

    secret(u, v)  = X25519 between the sealing keys that the plan pins (RFC 7748); no party else can compute it
    key(u, v)     = HKDF-SHA256(secret, info = fields("cutlayer mask 1", context, first name, second name)), 32 bytes
    stream(u, v)  = AES-256-CTR under that key from counter 0, read as 64-bit words, little-endian
    mask(u)       = Σ_{v > u} stream(u, v) − Σ_{v < u} stream(u, v)  modulo 2^64, names in alphabetical order

Where a sum may have to be made again without a party, each adds a mask of its own as well (section 4.0.3 there), the
stream under 32 random bytes, which it tells the aggregator when all shares have come. Until then nobody can read a sum,
and a sum of fewer parties may take its place.

A key must serve one sum only: two shares under one mask give away their difference. So the context names the plan, the
run, for which every party draws a nonce anew each time it joins, the place in it, and who takes part with which weight;
two parties that were told different things have masks that do not cancel.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from cutlayer.errors import CredentialError
from cutlayer.keys.fields import joined

Words = NDArray[np.uint64]
"""Numbers modulo 2^64."""

KEY_BYTES = 32
WORD_BYTES = 8
_LABEL = b"cutlayer mask 1"
_PIN = "put its keys there with `cutlayer keys pin`, and all accept the plan again"
_BLOCK = bytes(1 << 20)


class Agreements:
    """What party `party` has agreed on with each other one by their key pairs alone: no message is needed."""

    def __init__(self, party: str, private: X25519PrivateKey, public: Mapping[str, X25519PublicKey]) -> None:
        self._party, self._private, self._public = party, private, public
        self._secrets: dict[str, bytes] = {}

    def key(self, peer: str, *, context: bytes) -> bytes:
        """A key that only this party and `peer` have, for this context; both get the same. `KEY_BYTES` long.

        Raises `CredentialError` if no key of the peer is pinned, or one that makes every secret the same.
        """
        if peer not in self._public or peer == self._party:
            raise CredentialError(f"the plan pins no sealing key by which {self._party} and {peer} agree: {_PIN}")
        if peer not in self._secrets:
            try:
                self._secrets[peer] = self._private.exchange(self._public[peer])
            except ValueError as error:
                raise CredentialError(
                    f"the sealing key that the plan pins for {peer} is no usable X25519 key; {_PIN}"
                ) from error
        first, second = sorted((self._party, peer))
        info = joined(_LABEL, context, first.encode(), second.encode())
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._secrets[peer])


def mask(party: str, keys: Mapping[str, bytes], words: int) -> Words:
    """What `party` adds to its words, given the key that it has with each of the others; all masks sum to 0."""
    total = np.zeros(words, dtype=np.uint64)
    for peer, key in keys.items():
        for place, stream in _streams(key, words):
            part = total[place : place + len(stream)]
            if party < peer:
                part += stream
            else:
                part -= stream
    return total


def own_mask(key: bytes, words: int) -> Words:
    """What a party adds to its words beside the masks that cancel; whoever is told the key can take it off."""
    total = np.zeros(words, dtype=np.uint64)
    for place, stream in _streams(key, words):
        total[place : place + len(stream)] += stream
    return total


def _streams(key: bytes, words: int) -> Iterator[tuple[int, Words]]:
    """The key's stream, a block after another, each with the place of its first word."""
    encryptor = Cipher(AES256(key), CTR(bytes(16))).encryptor()
    left = words * WORD_BYTES
    while left:
        block = encryptor.update(_BLOCK[:left])
        yield words - left // WORD_BYTES, np.frombuffer(block, dtype="<u8")
        left -= len(block)
