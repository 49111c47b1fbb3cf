"""Claims about frames: every message survives the way through bytes, and no bytes do harm."""

import struct
import time
import tracemalloc
from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import FrameRefused
from cutlayer.plan.membership import Membership
from cutlayer.plan.tensors import DTYPE_BYTES, DType, TensorShape
from cutlayer.protocol.messages import (
    MARK_BYTES,
    Backward,
    Bye,
    Control,
    Forward,
    Hello,
    Leave,
    Message,
    Ping,
    Purpose,
    Refuse,
    Report,
    Rows,
    Saved,
    Sealed,
    State,
    StateKind,
    Task,
    Ticket,
    Turn,
    Welcome,
)
from cutlayer.protocol.wire import (
    ALIGNMENT,
    MAGIC,
    PRELUDE_BYTES,
    Frame,
    body_bytes,
    decode,
    encode,
    padded,
    read_prelude,
)

SHAPE = TensorShape("float32", (64, 128))
TICKET = Ticket(1000, "hospital-a", 100_000, 3, "train")

names = st.text(max_size=40)
counts = st.integers(0, 2**53)
numbers = st.floats(allow_nan=False)
rows = st.builds(Rows, counts, counts)
purposes = st.sampled_from(get_args(Purpose))
kinds = st.sampled_from(get_args(StateKind))
marks = st.binary(max_size=MARK_BYTES)
tickets = st.builds(Ticket, counts, names, counts, counts, purposes)
shapes = st.builds(TensorShape, st.sampled_from(get_args(DType)), st.lists(st.integers(0, 9), max_size=4).map(tuple))
tensors = st.lists(shapes, max_size=4).map(tuple)
sums = st.dictionaries(names, numbers, max_size=4)
manifold = st.lists(counts, max_size=4).map(tuple)
saves = st.integers(-1, 2**53)
absent = st.lists(names, max_size=3).map(tuple)
logs = st.lists(
    st.builds(Membership, after=saves, round=counts, absent=absent, returned=absent), min_size=1, max_size=3
).map(tuple)
MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    Hello: st.builds(Hello, counts, names, names, rows, st.sampled_from(get_args(Task)), manifold, saves),
    Welcome: st.builds(Welcome, names, st.dictionaries(names, rows), logs, saves),
    Turn: st.builds(Turn, counts, purposes, st.lists(names).map(tuple), counts),
    Forward: st.builds(Forward, tickets, names, tensors, marks),
    Backward: st.builds(Backward, tickets, names, tensors, numbers),
    State: st.builds(State, counts, kinds, names, names, tensors, numbers),
    Sealed: st.builds(Sealed, names, names, counts, tensors),
    Report: st.builds(Report, counts, st.dictionaries(names, sums, max_size=4)),
    Saved: st.builds(Saved, counts),
    Leave: st.builds(Leave, names),
    Bye: st.builds(Bye, names),
    Ping: st.builds(Ping),
    Refuse: st.builds(Refuse, names, names),
}


def received(frame: Frame) -> Frame:
    """A frame as a channel gives it: one contiguous body."""
    return Frame(frame.header, (memoryview(b"".join(frame.parts)),))


def contents(message: Message | Control) -> list[memoryview]:
    sizes = [tensor.nbytes for tensor in getattr(message, "tensors", ())]
    return [memoryview(bytes([i + 1]) * size) for i, size in enumerate(sizes)]


def header(message: object) -> bytes:
    return msgspec.msgpack.encode(message)


def test_every_message_of_the_protocol_is_tried_below() -> None:
    assert set(MESSAGES) == set(get_args(Message | Control))


@given(st.one_of(*MESSAGES.values()))
def test_a_message_and_its_tensors_survive_the_way_through_bytes(message: Message | Control) -> None:
    payload = contents(message)
    frame = received(encode(message, payload))
    said, views = decode(frame)
    assert said == message
    assert type(said) is type(message)
    assert [bytes(view) for view in views] == [bytes(view) for view in payload]
    assert read_prelude(frame.prelude(), header_limit=10**6, body_limit=10**6) == (len(frame.header), frame.body_bytes)
    assert frame.nbytes == len(frame.prelude() + frame.header) + sum(part.nbytes for part in frame.parts)


@given(tensors)
def test_each_tensor_starts_at_a_multiple_of_64_bytes_and_padding_is_zero(shapes: tuple[TensorShape, ...]) -> None:
    message = Forward(TICKET, "bottom->top", shapes)
    frame = received(encode(message, contents(message)))
    assert frame.body_bytes == body_bytes(shapes)
    assert frame.body_bytes % ALIGNMENT == 0
    start = 0
    for i, shape in enumerate(shapes):
        assert bytes(frame.parts[0][start : start + padded(shape.nbytes)]) == (
            bytes([i + 1]) * shape.nbytes + bytes(padded(shape.nbytes) - shape.nbytes)
        )
        start += padded(shape.nbytes)


def test_tensors_of_no_bytes_need_no_body() -> None:
    message = Forward(TICKET, "bottom->top", (TensorShape("float32", (0, 5)),))
    assert decode(encode(message, [memoryview(b"")])) == (message, [memoryview(b"")])
    assert decode(Frame(header(message))) == (message, [memoryview(b"")])


def test_tensors_are_views_of_the_body_and_not_copies() -> None:
    body = memoryview(bytearray(128))
    message = Forward(TICKET, "bottom->top", (TensorShape("uint8", (60,)), TensorShape("uint8", (3,))))
    _, views = decode(Frame(header(message), (body,)))
    views[1][0] = 7
    assert body[64] == 7


@pytest.mark.parametrize("dtype", get_args(DType))
def test_sizes_of_dtypes_are_right(dtype: DType) -> None:
    names = {"bool": 8, "bfloat16": 16}
    bits = names.get(dtype) or int("".join(filter(str.isdigit, dtype)))
    assert DTYPE_BYTES[dtype] == bits // 8
    assert TensorShape(dtype, (3, 5)).nbytes == 15 * bits // 8


# ---------------------------------------------------------------------- what is refused


def test_lengths_are_refused_from_the_prelude_alone() -> None:
    for lengths, sentence in {(101, 0): "header of 101 bytes", (0, 201): "body of 201 bytes"}.items():
        with pytest.raises(FrameRefused, match=sentence):
            read_prelude(struct.pack("!4sIQQQ", MAGIC, *lengths, 0, 0), header_limit=100, body_limit=200)
    largest = struct.pack("!4sIQQQ", MAGIC, 2**32 - 1, 2**64 - 1, 0, 0)
    with pytest.raises(FrameRefused):
        read_prelude(largest, header_limit=100, body_limit=200)
    assert read_prelude(struct.pack("!4sIQQQ", MAGIC, 100, 200, 0, 0), header_limit=100, body_limit=200) == (100, 200)


@pytest.mark.parametrize("magic", [b"GET ", b"CUT\x01", b"\x16\x03\x01\x02", b"\0\0\0\0"])
def test_what_does_not_start_like_a_frame_is_refused(magic: bytes) -> None:
    with pytest.raises(FrameRefused, match="no frame"):
        read_prelude(magic + bytes(28), header_limit=100, body_limit=100)


@given(st.binary(min_size=PRELUDE_BYTES, max_size=PRELUDE_BYTES))
def test_a_garbage_prelude_is_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(FrameRefused):
        read_prelude(data, header_limit=0, body_limit=0)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_a_garbage_header_is_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(FrameRefused, match="no message"):
        decode(Frame(data, (memoryview(b""),)))


@settings(max_examples=200)
@given(st.one_of(*MESSAGES.values()), st.data())
def test_a_damaged_header_is_read_or_refused_and_nothing_else_happens(
    message: Message | Control, data: st.DataObject
) -> None:
    damaged = bytearray(header(message))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(FrameRefused):
        decode(Frame(bytes(damaged), (memoryview(bytes(body_bytes(getattr(message, "tensors", ())))),)))


@pytest.mark.parametrize("nested", [b"\x91" * 60_000 + b"\xc0", b"\x81\xa1x" * 20_000 + b"\xc0"], ids=["lists", "maps"])
def test_a_header_that_nests_deeply_is_refused(nested: bytes) -> None:
    with pytest.raises(FrameRefused):
        decode(Frame(b"\x82\xa4type\xa4ping\xa1x" + nested))


def plain(message: Message) -> dict[str, Any]:
    """A message as what it is encoded from; bytes stay bytes."""
    return msgspec.to_builtins(message, builtin_types=(bytes,))  # type: ignore[no-any-return]


STATE = plain(State(3, "share", "hospital-a", "sums", (SHAPE,), 8.0))
FORWARD = plain(Forward(TICKET, "bottom->top", (SHAPE,), bytes(MARK_BYTES)))
SEALED = plain(Sealed("hospital-a", "hop", 0, (SHAPE,)))
FAULTS: dict[str, object] = {
    "an unknown message": {"type": "shutdown"},
    "no type": {"reason": ""},
    "no message": [1, 2],
    "nothing": None,
    "an unknown dtype": FORWARD | {"tensors": [["complex64", [2]]]},
    "an object dtype": FORWARD | {"tensors": [["O", [2]]]},
    "a negative size": FORWARD | {"tensors": [["float32", [-1]]]},
    "a size without end": FORWARD | {"tensors": [["float32", [2**63]]]},
    "a size that is no whole number": FORWARD | {"tensors": [["float32", [1.5]]]},
    "too many dimensions": FORWARD | {"tensors": [["float32", [1] * 17]]},
    "too many tensors": FORWARD | {"tensors": [["float32", [0]]] * 65},
    "a missing field": {"type": "forward", "edge": "bottom->top", "tensors": []},
    "a field too many": FORWARD | {"run": "import os"},
    "a ticket's field too many": FORWARD | {"ticket": [*FORWARD["ticket"], 1]},
    "a negative turn": FORWARD | {"ticket": [-1, "a", 0, 0, "train"]},
    "another purpose": FORWARD | {"ticket": [1, "a", 0, 0, "spy"]},
    "a long name": FORWARD | {"edge": "x" * 129},
    "a long sentence": {"type": "bye", "reason": "x" * 4097},
    "a number in words": {"type": "turn", "number": "0", "work": "train", "parties": [], "steps": 1},
    "another kind of state": STATE | {"kind": "secret"},
    "a state without a source": {key: value for key, value in STATE.items() if key != "source"},
    "a state at a negative number": STATE | {"number": -1},
    "a state's field too many": STATE | {"optimizer": "Adam"},
    "a mark too long": FORWARD | {"mark": bytes(MARK_BYTES + 1)},
    "a mark in words": FORWARD | {"mark": "x"},
    "a sealed message without a number": {key: value for key, value in SEALED.items() if key != "number"},
    "a sealed message's field too many": SEALED | {"edge": "bottom->top"},
    "another task": plain(Hello(3, "", "a", Rows())) | {"task": "spy"},
    "a welcome without a run": {"type": "welcome", "members": {}},
    "a sum that is no number": {"type": "report", "turn": 0, "sums": {"a": {"loss": "1"}}},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_header_that_says_what_cannot_be_said_is_refused(fault: object) -> None:
    for sound in (FORWARD, STATE, SEALED):
        assert decode(Frame(header(sound), (memoryview(bytes(SHAPE.nbytes)),)))
    with pytest.raises(FrameRefused, match="no message"):
        decode(Frame(header(fault), (memoryview(bytes(SHAPE.nbytes)),)))


@pytest.mark.parametrize("nbytes", [0, SHAPE.nbytes - 1, SHAPE.nbytes + 1, SHAPE.nbytes + 64])
def test_a_body_that_the_header_does_not_declare_is_refused(nbytes: int) -> None:
    with pytest.raises(FrameRefused, match=f"body of {nbytes:,} bytes under a header that declares {SHAPE.nbytes:,}"):
        decode(Frame(header(Forward(TICKET, "e", (SHAPE,))), (memoryview(bytes(nbytes)),)))
    with pytest.raises(FrameRefused, match=f"body of {nbytes:,} bytes under a header that declares {SHAPE.nbytes:,}"):
        decode(Frame(header(STATE), (memoryview(bytes(nbytes)),)))
    with pytest.raises(FrameRefused, match="declares 0"):
        decode(Frame(header(Bye()), (memoryview(bytes(64)),)))


def test_huge_shapes_are_refused_without_allocating_anything() -> None:
    huge = tuple(TensorShape("float64", (2**40,) * 16) for _ in range(64))
    frame = Frame(header(Forward(TICKET, "bottom->top", huge)), (memoryview(b""),))
    tracemalloc.start()
    try:
        with pytest.raises(FrameRefused):
            decode(frame)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------- what it costs


@pytest.mark.parametrize(
    "message", [Forward(TICKET, "bottom->middle", (SHAPE,)), Backward(TICKET, "middle->head", (SHAPE, SHAPE), 1 / 3)]
)
def test_headers_are_small(message: Forward | Backward) -> None:
    assert len(encode(message).header) < 200


@pytest.mark.alone
def test_a_frame_costs_a_few_microseconds() -> None:
    message = Forward(TICKET, "bottom->top", (SHAPE,))
    payload = contents(message)
    frame = received(encode(message, payload))
    best = min(_seconds(lambda: decode(frame) and encode(message, payload)) for _ in range(5))
    print(f"encode and decode a frame: {best * 1e6:.1f} µs")
    assert best < 60e-6


def _seconds(work: Any, times: int = 1000) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times
