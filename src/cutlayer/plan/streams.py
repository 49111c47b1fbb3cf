"""Random streams as a rule: every stream is a function of a key and of where it is used, so none has a state to save.

The key is a party's own secret (dropout, row order) or, for what all parties must know (initial weights, turn order),
the plan's public seed. The same key, purpose and place give the same stream on any machine.
"""

from functools import lru_cache
from hashlib import blake2b


def stream_seed(key: bytes, purpose: str, *where: str | int) -> int:
    """A 63-bit seed for one use of randomness, e.g. `stream_seed(secret, "forward", "bottom", turn, step, micro)`.

    >>> stream_seed(b"k", "order", 1) == stream_seed(b"k", "order", 1)
    True
    >>> stream_seed(b"k", "order", 1) == stream_seed(b"k", "order", "1")
    False
    """
    place = repr((purpose, *where)).encode()
    digest = blake2b(place, key=_short(key), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@lru_cache(maxsize=4096)
def _short(key: bytes) -> bytes:
    """A key of any length as one that the hash takes."""
    return blake2b(key, digest_size=32).digest()
