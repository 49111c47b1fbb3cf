"""The codecs that every claim is tried on, and tensors to try them with."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from cutlayer.codec.codec import Codec
from cutlayer.codec.registry import build
from cutlayer.codec.sections import shape_of
from cutlayer.plan.terms import Method, Option


def stage(name: str, **options: Option) -> Method:
    return Method(name=name, options=options)


CHAINS: list[list[Method]] = [
    [stage("raw")],
    [stage("half")],
    [stage("half", kind="bf16")],
    [stage("fp8")],
    [stage("fp8", kind="e5m2", scale="row")],
    [stage("int8")],
    [stage("int8", scale="row", rounding="random")],
    [stage("int8", scale="tensor")],
    [stage("int4")],
    [stage("int4", scale="row")],
    [stage("int4", scale="tensor", rounding="random")],
    [stage("sign")],
    [stage("sign", scale="row")],
    [stage("topk", share=0.1)],
    [stage("topk", share=0.5)],
    [stage("topk", share=0.1, across="tensor"), stage("int8", scale="tensor"), stage("zstd")],
    [stage("random_topk", share=0.2, alpha=0.3)],
    [stage("random_topk", share=0.2, across="tensor", masked=False), stage("sign", scale="row")],
    [stage("pq", part=1, words=3)],
    [stage("pq", part=1, words=5, strength=0.1), stage("half", kind="bf16"), stage("lz4")],
    [stage("feature_dropout", share=0.3)],
    [stage("feature_dropout", share=0.5), stage("adaptive", bits=3)],
    [stage("adaptive")],
    [stage("adaptive", bits=0.7)],
    [stage("zstd")],
    [stage("lz4")],
    [stage("int8"), stage("zstd", level=9)],
    [stage("sign", scale="tensor"), stage("lz4", level=6)],
]
"""Every registered method at least once: a new one gets a line here."""

CODECS: list[Codec] = [build(chain) for chain in CHAINS]
LOSSLESS = [codec for codec in CODECS if codec.lossless]
LOSSY = [codec for codec in CODECS if not codec.lossless]
FLOATS = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (1, 1), (3, 5), (4, 2, 3, 3), (0,), (0, 4), (3, 0, 2), (1, 6, 2)]


def through(codec: Codec, tensor: Tensor, seed: int = 0) -> Tensor:
    return codec.decode(codec.encode(tensor, seed).payload, shape_of(tensor))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(bits(one), bits(other))


@st.composite
def tensors(draw: Any) -> Tensor:
    """Of any float dtype, up to 4 dimensions; numbers of one size or of many, with zeros, contiguous or not."""
    shape = draw(st.lists(st.integers(0, 5), max_size=4).map(tuple))
    dtype = draw(st.sampled_from(list(FLOATS.values())))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([1e-40, 1e-7, 1.0, 300.0, 6e4]))
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64) * size / 8
    match draw(st.sampled_from(["even", "relu", "wild", "equal"])):
        case "relu":
            tensor = tensor.relu()
        case "wild":
            tensor = tensor * torch.rand(shape, generator=generator) ** 20
        case "equal":
            tensor = torch.full(shape, size)
    if len(shape) > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, -1)
    limited: Tensor = tensor.clamp(-6e4, 6e4).to(dtype)
    return limited
