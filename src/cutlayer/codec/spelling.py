"""How a codec is written: `topk(share=0.01)+int8(scale='row')+zstd`."""

from dataclasses import fields
from typing import Any

INNER = "inner"
"""The field of a reducer or a packer that holds the codec of what it leaves."""


def spelled(codec: Any) -> str:
    """Its stages in the order in which they work, each with the options that are not the default ones."""
    inner = getattr(codec, INNER, None)
    own = _stage(codec)
    if inner is None:
        return own
    rest = inner.name
    if rest == "raw":
        return own
    return f"{rest}+{own}" if codec.packs else f"{own}+{rest}"


def _stage(codec: Any) -> str:
    told = [
        f"{field.name}={getattr(codec, field.name)!r}"
        for field in fields(codec)
        if field.name != INNER and getattr(codec, field.name) != field.default
    ]
    return f"{codec.word}({', '.join(told)})" if told else str(codec.word)
