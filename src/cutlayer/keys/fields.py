"""Byte strings as one, so that no two lists of them give the same: each after its length, 8 bytes, big-endian."""

import struct


def joined(*fields: bytes | memoryview) -> bytes:
    """The fields one after another, each after its length.

    >>> joined(b"a", b"bc") == joined(b"ab", b"c")
    False
    """
    return b"".join(part for field in fields for part in (struct.pack(">Q", len(field)), field))
