"""What a codec would make of what crosses: bytes, and the time to encode and decode, tried on real tensors."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.codec.codec import Codec
from cutlayer.codec.registry import build
from cutlayer.plan.methods import methods_from, words_of
from cutlayer.plan.tensors import TensorShape

RAW = "raw"
TRIES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """Of all tensors that cross one way, once: bytes, and seconds at the sender and at the receiver."""

    nbytes: int
    encode_s: float
    decode_s: float


def named(text: str) -> dict[str, Codec | None]:
    """The codecs of `raw,half,topk(share=0.01)+zstd`, by how they were written; None for raw. Raises `PlanError`."""
    return {word: None if word == RAW else build(methods_from(word)) for word in words_of(text)}


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
