"""The raw codec: a tensor's own bytes, there and back, without a copy."""

import gc
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cutlayer.codec import raw
from cutlayer.plan.tensors import DType, TensorShape
from cutlayer.protocol import wire

DTYPES = get_args(DType)
SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (3, 5), (2, 1, 4), (0,), (4, 0, 2)]


def example(dtype: str, shape: tuple[int, ...]) -> Tensor:
    numbers = torch.arange(math.prod(shape)).reshape(shape) % 5
    return (numbers - (2 if dtype not in ("uint8", "bool") else 0)).to(getattr(torch, dtype))


def through_a_frame(tensor: Tensor) -> Tensor:
    """Over the bytes of a body, as it arrives: one buffer that is written to once."""
    shape = TensorShape(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))  # type: ignore[arg-type]
    payload = raw.encode(tensor)
    assert payload.nbytes == shape.nbytes
    body = bytearray(wire.body_bytes([shape]))
    body[: payload.nbytes] = payload
    return raw.decode(memoryview(body)[: shape.nbytes], shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back_bit_by_bit(dtype: str, shape: tuple[int, ...]) -> None:
    tensor = example(dtype, shape)
    back = through_a_frame(tensor)
    assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)
    assert back.is_contiguous()


@given(st.lists(st.floats(width=32), max_size=9))
def test_every_float_keeps_its_bits_nan_and_minus_zero_too(numbers: list[float]) -> None:
    for dtype, whole in ((torch.float64, torch.int64), (torch.float32, torch.int32), (torch.bfloat16, torch.int16)):
        tensor = torch.tensor(numbers, dtype=dtype)
        assert torch.equal(through_a_frame(tensor).view(whole), tensor.view(whole))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(12.0)[::3],
        torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1)[1:],
        torch.ones(1).expand(3, 4),
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ],
    ids=["transposed", "strided", "permuted", "expanded", "channels last"],
)
def test_tensors_that_are_not_contiguous_are_sent_row_by_row(tensor: Tensor) -> None:
    assert not tensor.is_contiguous()
    assert torch.equal(through_a_frame(tensor), tensor)


def test_a_contiguous_tensor_is_not_copied_to_be_sent() -> None:
    tensor = torch.zeros(4)
    payload = raw.encode(tensor)
    tensor[1] = 1.0
    assert torch.equal(torch.frombuffer(bytearray(payload), dtype=torch.float32), tensor)


def test_a_tensor_with_a_graph_can_be_sent() -> None:
    tensor = torch.ones(3, requires_grad=True) * 2
    assert torch.equal(through_a_frame(tensor), tensor.detach())


def test_decoding_copies_nothing_and_keeps_the_buffer_alive() -> None:
    body = bytearray(raw.encode(torch.arange(4.0)))
    view = memoryview(body)
    tensor = raw.decode(view, TensorShape("float32", (2, 2)))
    body[:4] = raw.encode(torch.tensor([9.0]))
    assert tensor[0, 0] == 9.0
    with pytest.raises(BufferError):
        body.extend(b"more")
    del view
    gc.collect()
    with pytest.raises(BufferError):
        body.extend(b"more")
    assert tensor.tolist() == [[9.0, 1.0], [2.0, 3.0]]


def test_the_buffer_is_free_again_when_the_last_tensor_over_it_is_gone() -> None:
    body = bytearray(raw.encode(torch.arange(4.0)))
    tensor = raw.decode(memoryview(body), TensorShape("float32", (4,)))
    part = tensor[2:]
    del tensor
    gc.collect()
    with pytest.raises(BufferError):
        body.extend(b"more")
    del part
    gc.collect()
    body.extend(b"more")
