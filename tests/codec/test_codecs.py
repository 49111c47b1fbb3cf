"""What every codec, alone or in a chain, must do: its size, its error, what it refuses."""

import math
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from codec.codecs import CHAINS, CODECS, FLOATS, LOSSLESS, LOSSY, SHAPES, same_bits, stage, tensors, through
from cutlayer.codec import registry
from cutlayer.codec.codec import Codec
from cutlayer.codec.sections import shape_of
from cutlayer.errors import CodecError
from cutlayer.plan.tensors import DType

every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
every_lossy = pytest.mark.parametrize("codec", LOSSY, ids=lambda codec: codec.name)


def test_every_registered_method_is_tried() -> None:
    assert {stage.name for chain in CHAINS for stage in chain} == registry.METHODS.keys()


@given(tensor=tensors())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_codec_keeps_to_its_size_and_its_error_bound(tensor: Tensor) -> None:
    """All of them in one test, since drawing tensors takes longer than encoding them."""
    before = tensor.clone()
    for codec in CODECS:
        payload = codec.encode(tensor, 3).payload
        assert same_bits(tensor, before), codec.name
        assert (payload.dtype, payload.dim(), payload.is_contiguous()) == (torch.uint8, 1, True), codec.name
        most = codec.most_bytes(shape_of(tensor))
        assert payload.numel() == most or (
            payload.numel() < most and codec.name.count("zstd") + codec.name.count("lz4")
        )
        back = codec.decode(payload, shape_of(tensor))
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape), codec.name
        if codec.lossless:
            assert same_bits(back, tensor), codec.name
        if tensor.numel():
            error = float((back.double() - tensor.double()).abs().max())
            assert error <= codec.error_bound(tensor), codec.name


@every_codec
def test_any_shape_comes_back(codec: Codec) -> None:
    for shape, dtype in product(SHAPES, FLOATS.values()):
        tensor = torch.linspace(-1, 2, math.prod(shape)).view(shape).to(dtype)
        back = through(codec, tensor)
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert bool(torch.isfinite(back).all()), shape


@every_codec
def test_the_order_in_memory_changes_nothing(codec: Codec) -> None:
    tensor = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(1))
    for other in (tensor.to(memory_format=torch.channels_last), tensor.transpose(0, 3).contiguous().transpose(0, 3)):
        assert not other.is_contiguous()
        assert torch.equal(codec.encode(other, 5).payload, codec.encode(tensor, 5).payload)


@every_codec
def test_equal_seeds_give_equal_payloads(codec: Codec) -> None:
    tensor = torch.randn(8, 40, generator=torch.Generator().manual_seed(2))
    assert torch.equal(codec.encode(tensor, 7).payload, codec.encode(tensor.clone(), 7).payload)


@every_codec
def test_a_tensor_with_a_graph_can_be_encoded(codec: Codec) -> None:
    tensor = torch.ones(3, 4, requires_grad=True) * 2
    assert not codec.encode(tensor, 0).payload.requires_grad
    assert not through(codec, tensor).requires_grad


@every_lossy
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(codec: Codec, value: float) -> None:
    for shape in ((), (1,), (3, 7), (2, 3, 4)):
        tensor = torch.ones(shape)
        tensor.view(-1)[-1] = value
        with pytest.raises(CodecError, match=codec.name.split("(")[0].split("+")[0]):
            codec.encode(tensor, 0)


INTEGERS = [
    (torch.arange(12).view(3, 4) % 2).to(getattr(torch, dtype)) for dtype in get_args(DType) if dtype not in FLOATS
]


@pytest.mark.parametrize("codec", LOSSLESS, ids=lambda codec: codec.name)
def test_integers_are_carried_by_lossless_codecs(codec: Codec) -> None:
    for tensor in INTEGERS:
        assert codec.fault(shape_of(tensor)) is None
        assert same_bits(through(codec, tensor), tensor)


@every_lossy
def test_integers_are_refused_by_lossy_codecs(codec: Codec) -> None:
    payload = codec.encode(torch.ones(3, 4), 0).payload
    for tensor in INTEGERS:
        assert "say raw, zstd or lz4" in str(codec.fault(shape_of(tensor)))
        with pytest.raises(CodecError, match="carries floats"):
            codec.encode(tensor, 0)
        with pytest.raises(CodecError, match="carries floats"):
            codec.decode(payload, shape_of(tensor))


@pytest.mark.parametrize("codec", LOSSLESS, ids=lambda codec: codec.name)
def test_lossless_codecs_carry_any_bits(codec: Codec) -> None:
    tensor = torch.tensor([[float("nan"), -0.0, float("inf")], [1e-45, -float("nan"), 3.4e38]])
    assert same_bits(through(codec, tensor), tensor)


def test_a_dtype_that_no_plan_knows_is_refused_by_name() -> None:
    with pytest.raises(CodecError, match="complex64"):
        through(CODECS[1], torch.ones(2, dtype=torch.complex64))


@pytest.mark.parametrize("word", ["int8", "fp8", "int4", "sign", "adaptive"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_and_the_smallest_numbers_stay_finite(word: str, dtype: str) -> None:
    codec = registry.build([stage(word)])
    kind = torch.finfo(FLOATS[dtype])
    for value in (kind.max, kind.tiny, kind.smallest_normal * kind.eps):
        tensor = torch.tensor([[value, 0.0], [value / 2, value / 3]], dtype=torch.float64).to(FLOATS[dtype])
        error = (through(codec, tensor).double() - tensor.double()).abs().max()
        assert float(error) <= codec.error_bound(tensor)


def test_fp16_refuses_what_it_would_make_infinite() -> None:
    with pytest.raises(CodecError, match="bf16"):
        CODECS[1].encode(torch.tensor([1.0, -70000.0]), 0)
    many = torch.full((4, 40_000), 3.0)
    assert same_bits(through(CODECS[1], many), many)
