"""What a codec would make of what crosses: bytes, and the time to encode and decode, tried on real tensors."""

import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from cutlayer.codec.codec import Codec
from cutlayer.codec.registry import build
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import Method, Option

RAW = "raw"
TRIES = 5
_STAGE = re.compile(r"([a-z0-9_]+)(?:\((.*)\))?", re.DOTALL)
_BETWEEN = re.compile(r",(?![^()]*\))")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Of all tensors that cross one way, once: bytes, and seconds at the sender and at the receiver."""

    nbytes: int
    encode_s: float
    decode_s: float


def named(text: str) -> dict[str, Codec | None]:
    """The codecs of `raw,half,topk(share=0.01)+zstd`, by how they were written; None for raw. Raises `PlanError`."""
    words = [word.strip() for word in _BETWEEN.split(text)]
    return {word: None if word == RAW else build([stage(part) for part in word.split("+")]) for word in words if word}


def stage(text: str) -> Method:
    """`topk(share=0.01)` as a plan would have it. Raises `PlanError`.

    >>> stage("topk(share=0.01)").options
    {'share': 0.01}
    """
    found = _STAGE.fullmatch(text.strip())
    if found is None:
        raise PlanError(f"{text!r} is no codec: write its name, such as half or topk(share=0.01)")
    options = {}
    for pair in filter(None, (found[2] or "").split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise PlanError(f"{pair!r} in {text!r} is no option: write name=value")
        options[name.strip()] = _value(value.strip())
    return Method(name=found[1], options=options)


def _value(text: str) -> Option:
    try:
        return msgspec.json.decode(text.encode(), type=bool | int | float | str)
    except msgspec.DecodeError:
        return text.strip("'\"")


def fault(codec: Codec | None, tensors: Sequence[Tensor]) -> str | None:
    """Why the codec cannot carry tensors like these, or None."""
    return None if codec is None else next(filter(None, (codec.fault(shape_of(tensor)) for tensor in tensors)), None)


def passage(codec: Codec | None, tensors: Sequence[Tensor]) -> Passage:
    """Measured, the receiver's check for unsound numbers included. Raises `CodecError`."""
    if codec is None:
        nbytes = sum(tensor.nbytes for tensor in tensors)
        return Passage(nbytes=nbytes, encode_s=0.0, decode_s=_median([_checked(tensors) for _ in range(TRIES)]))
    encodings, decodings, nbytes = [], [], 0
    for seed in range(TRIES):
        start = time.perf_counter()
        payloads = [codec.encode(tensor, seed).payload for tensor in tensors]
        encoded = time.perf_counter()
        back = [codec.decode(each, shape_of(tensor)) for each, tensor in zip(payloads, tensors, strict=True)]
        encodings.append(encoded - start)
        decodings.append(time.perf_counter() - encoded + _checked(back))
        nbytes = sum(each.nbytes for each in payloads)
    return Passage(nbytes=nbytes, encode_s=_median(encodings), decode_s=_median(decodings))


def shape_of(tensor: Tensor) -> TensorShape:
    return TensorShape(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))  # type: ignore[arg-type]


def _checked(tensors: Sequence[Tensor]) -> float:
    """Seconds of one pass over the numbers, as `party.received` makes it."""
    start = time.perf_counter()
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            torch.linalg.vector_norm(tensor, dtype=torch.float32).item()
    return time.perf_counter() - start


def _median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) if seconds else 0.0
