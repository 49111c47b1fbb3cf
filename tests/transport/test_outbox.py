"""The bookkeeping of what was sent: against plain lists."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import FrameRefused
from cutlayer.protocol.wire import Frame
from cutlayer.transport.outbox import RESERVE, Outbox, Posted


def put(outbox: Outbox, header: bytes, *, urgent: bool = False) -> Posted:
    frame = Frame(header)
    return outbox.put(frame, frame.nbytes, urgent=urgent)


MOVES = st.lists(st.tuples(st.sampled_from(["put", "press", "take", "acknowledge", "go back"]), st.integers(0, 9)))
FRAMES = 8


@given(MOVES)
def test_whatever_happens_each_frame_is_written_in_its_place_until_it_is_acknowledged(
    moves: list[tuple[str, int]],
) -> None:
    """Numbered frames keep their places; of those that wait, the first urgent one is next, then the first other one."""
    outbox, count = Outbox(frames=FRAMES, nbytes=10_000), 0
    urgent, ordinary, begun = list[bytes](), list[bytes](), list[bytes]()
    acknowledged = written = 0
    for move, number in moves:
        if move in {"put", "press"} and outbox.has_room(0, urgent=move == "press"):
            (urgent if move == "press" else ordinary).append(b"%d %s" % (count, move.encode()))
            assert put(outbox, b"%d %s" % (count, move.encode()), urgent=move == "press").number == 0
            count += 1
        elif move == "take" and not outbox.flushed:
            if written == len(begun):
                begun.append((urgent or ordinary).pop(0))
            taken = outbox.take()
            assert (taken.frame.header, taken.number) == (begun[written], written + 1)
            written += 1
        elif move == "acknowledge":
            acknowledged = min(acknowledged + number, len(begun))
            written = max(written, acknowledged)
            outbox.acknowledge(acknowledged)
        elif move == "go back":
            received = min(acknowledged + number, len(begun))
            assert outbox.fits(received)
            assert outbox.go_back(received) == len(begun) - received
            acknowledged = written = received
        assert (outbox.reached, outbox.written, outbox.acknowledged) == (len(begun), written, acknowledged)
        assert outbox.flushed == (written == len(begun) and not urgent and not ordinary)
        kept = [*begun[acknowledged:], *urgent, *ordinary]
        pressing = any(header.endswith(b"press") for header in kept)
        assert outbox.has_room(0) == (len(kept) < FRAMES)
        assert outbox.has_room(0, urgent=True) == (not pressing or len(kept) < FRAMES + FRAMES // RESERVE)


def test_frames_that_were_never_written_are_not_acknowledged() -> None:
    outbox = Outbox(frames=5, nbytes=100)
    put(outbox, b"x")
    with pytest.raises(FrameRefused, match="acknowledged frame 1, and 0 were sent"):
        outbox.acknowledge(1)
    assert not outbox.fits(1)
    outbox.take()
    outbox.acknowledge(1)
    assert not outbox.fits(0)


def test_bytes_count_but_one_frame_always_fits() -> None:
    outbox = Outbox(frames=5, nbytes=100)
    assert outbox.has_room(1000)
    put(outbox, b"x" * 60)
    assert not outbox.has_room(60)
    assert outbox.has_room(1)
    outbox.take()
    outbox.acknowledge(1)
    assert outbox.has_room(1000)


def test_urgent_frames_may_take_a_quarter_more_bytes_and_one_of_them_always_fits() -> None:
    outbox = Outbox(frames=50, nbytes=1000)
    outbox.put(Frame(b"full"), 1000)
    assert outbox.has_room(5000, urgent=True)
    outbox.put(Frame(b"urgent"), 100, urgent=True)
    assert outbox.has_room(150, urgent=True)
    assert not outbox.has_room(151, urgent=True)
    assert not outbox.has_room(0)
    outbox.take()
    outbox.acknowledge(1)
    assert outbox.has_room(5000, urgent=True)


def test_what_is_written_again_is_counted_apart() -> None:
    outbox = Outbox(frames=5, nbytes=10_000)
    for _ in range(3):
        put(outbox, b"abc")
        outbox.take()
    assert outbox.resent_bytes == 0
    assert outbox.go_back(1) == 2
    outbox.take()
    assert outbox.resent_bytes == Frame(b"abc").nbytes
