"""Small numbers and places, packed: known answers, sizes, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.codec.bits import pack, packed_bytes, unpack, width_of
from cutlayer.codec.places import pack_places, place_bytes, unpack_places
from cutlayer.errors import CodecError


@pytest.mark.parametrize(
    ("numbers", "width", "packed"),
    [
        ([1, 0, 0, 0, 0, 0, 0, 1, 1], 1, [0b10000001, 0b1]),
        ([1, 2, 3, 0, 2], 2, [0b00111001, 0b10]),
        ([1, 7, 2], 3, [0b10111001, 0b0]),
        ([1, 15, 8], 4, [0xF1, 0x08]),
        ([1, 255], 8, [1, 255]),
        ([0x123, 0x456], 12, [0x23, 0x61, 0x45]),
        ([0, 0], 0, []),
    ],
)
def test_numbers_are_packed_lowest_bit_first(numbers: list[int], width: int, packed: list[int]) -> None:
    assert pack(torch.tensor(numbers), width).tolist() == packed
    assert unpack(torch.tensor(packed, dtype=torch.uint8), len(numbers), width).tolist() == numbers


@given(st.integers(1, 20), st.lists(st.integers(0, 2**20 - 1), max_size=40))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_numbers_come_back(width: int, numbers: list[int]) -> None:
    cut = [number % 2**width for number in numbers]
    packed = pack(torch.tensor(cut, dtype=torch.int64), width)
    assert packed.numel() == packed_bytes(len(cut), width)
    assert unpack(packed, len(cut), width).tolist() == cut


def test_bits_that_belong_to_no_number_must_be_zero() -> None:
    for width in (1, 3, 4):
        with pytest.raises(CodecError, match="belong to none"):
            unpack(torch.tensor([0x80], dtype=torch.uint8), 1, width)


@pytest.mark.parametrize(
    ("places", "n", "packed"),
    [
        ([[1, 2]], 4, [0b0110]),
        ([[0, 1, 2, 3]], 4, []),
        ([[3, 17]], 32, [0b00000101, 0x13]),
    ],
)
def test_places_have_known_bytes(places: list[list[int]], n: int, packed: list[int]) -> None:
    """4 places: a bitmap. 2 of 32: the upper bits 0 and 1, in unary at 0 + 0 and 1 + 1; the lower four, 3 and 1."""
    assert pack_places(torch.tensor(places), n).tolist() == packed
    assert unpack_places(torch.tensor(packed, dtype=torch.uint8), 1, len(places[0]), n).tolist() == places


@given(st.integers(1, 4), st.integers(1, 300), st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_places_come_back_in_the_bytes_declared(rows: int, n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    places = torch.stack([torch.randperm(n, generator=torch.Generator().manual_seed(row))[:k] for row in range(rows)])
    places = places.sort(1).values
    packed = pack_places(places, n)
    assert packed.numel() == place_bytes(rows, k, n)
    assert torch.equal(unpack_places(packed, rows, k, n), places)
    assert packed.numel() <= packed_bytes(rows * min(n, k * (width_of(n) + 1) + 1), 1) + 1


@pytest.mark.parametrize(
    ("packed", "k", "n", "said"),
    [
        ([0b0111], 2, 4, "does not name 2 places"),
        ([0b0010], 2, 4, "does not name 2 places"),
        ([0b1001, 0b011000], 2, 17, "not below 17"),
        ([0b00000011, 0x33], 2, 32, "not rising"),
        ([0b00000011, 0x13], 2, 32, "not rising"),
    ],
    ids=["too many", "too few", "not below n", "the same twice", "falling"],
)
def test_bytes_that_name_no_rising_places_are_refused(packed: list[int], k: int, n: int, said: str) -> None:
    with pytest.raises(CodecError, match=said):
        unpack_places(torch.tensor(packed, dtype=torch.uint8), 1, k, n)
