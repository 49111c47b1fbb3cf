"""Payloads that no codec made: each becomes a finite tensor of the shape, or a `CodecError`; nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codec.codecs import CODECS, LOSSY, SHAPES, stage
from cutlayer.codec.codec import Codec
from cutlayer.codec.registry import build
from cutlayer.codec.sections import FLOATS
from cutlayer.errors import CodecError
from cutlayer.plan.tensors import DType, TensorShape

shapes = st.builds(TensorShape, st.sampled_from(FLOATS), st.sampled_from(SHAPES))


def of(data: bytes) -> Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def tried(codec: Codec, payload: Tensor, shape: TensorShape) -> None:
    try:
        back = codec.decode(payload, shape)
    except CodecError:
        return
    assert (back.dtype, tuple(back.shape)) == (getattr(torch, shape.dtype), shape.shape)
    assert codec.lossless or bool(torch.isfinite(back).all())


@given(shape=shapes, data=st.binary(min_size=1, max_size=24), off=st.sampled_from([0, 0, 0, -1, 1]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_bytes_become_a_finite_tensor_or_a_codec_error(shape: TensorShape, data: bytes, off: int) -> None:
    """The drawn bytes over and over, as many as each codec has for the shape, or one more or less."""
    for codec in CODECS:
        size = max(codec.most_bytes(shape) + off, 0)
        tried(codec, of((data * (size // len(data) + 1))[:size]), shape)


@given(dtype=st.sampled_from(FLOATS), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_payload_with_some_bytes_changed_does_too(dtype: DType, changes: list[tuple[float, int]]) -> None:
    shape = TensorShape(dtype, (4, 6, 3))
    tensor = torch.randn(shape.shape, generator=torch.Generator().manual_seed(4)).to(getattr(torch, dtype))
    for codec in CODECS:
        payload = codec.encode(tensor, 1).payload.clone()
        for place, byte in changes:
            payload[int(place * (payload.numel() - 1))] = byte
        tried(codec, payload, shape)
        tried(codec, payload[: int(len(payload) * sum(place for place, _ in changes) / 5)], shape)


@pytest.mark.parametrize("codec", LOSSY, ids=lambda codec: codec.name)
def test_a_payload_of_another_size_is_refused_by_name(codec: Codec) -> None:
    shape = TensorShape("float32", (4, 6, 3))
    payload = codec.encode(torch.ones(shape.shape), 1).payload
    with pytest.raises(CodecError):
        codec.decode(torch.cat((payload, payload[:1])), shape)
    with pytest.raises(CodecError):
        codec.decode(payload[:-1], shape)


@pytest.mark.parametrize("name", ["zstd", "lz4"])
def test_a_payload_that_would_grow_beyond_the_shape_is_refused(name: str) -> None:
    codec, small = build([stage(name)]), TensorShape("float32", (1024,))
    bomb = codec.encode(torch.zeros(1 << 24), 0).payload
    with pytest.raises(CodecError):
        codec.decode(bomb, small)
    with pytest.raises(CodecError):
        codec.decode(codec.encode(torch.zeros(1000), 0).payload, small)


def test_a_frame_that_claims_a_terabyte_is_refused_before_anything_is_allocated() -> None:
    """A zstd frame of one segment: magic number, an eight-byte size of 2^40, and an empty last block."""
    frame = bytes.fromhex("28b52ffd e0") + (2**40).to_bytes(8, "little") + bytes.fromhex("010000")
    with pytest.raises(CodecError, match="1099511627776 bytes, and it must be 4096"):
        build([stage("zstd")]).decode(of(b"\x01" + frame), TensorShape("float32", (1024,)))


def test_int8_refuses_the_number_that_none_is_encoded_as() -> None:
    payload = torch.tensor([0, 0, 128, 63, 128], dtype=torch.uint8)
    with pytest.raises(CodecError, match="-128"):
        build([stage("int8")]).decode(payload, TensorShape("float32", (1,)))


def test_truth_values_are_zeros_and_ones_only() -> None:
    with pytest.raises(CodecError, match="neither 0 nor 1"):
        build([]).decode(of(b"\x00\x02"), TensorShape("bool", (2,)))
