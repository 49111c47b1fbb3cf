"""The bookkeeping of what was sent: against a plain list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import FrameRefused
from cutlayer.protocol.wire import Frame
from cutlayer.transport.outbox import Outbox


def put(outbox: Outbox, header: bytes) -> int:
    frame = Frame(header)
    return outbox.put(frame, frame.nbytes)


MOVES = st.lists(st.tuples(st.sampled_from(["put", "take", "acknowledge", "go back"]), st.integers(0, 9)), max_size=60)


@given(MOVES)
def test_whatever_happens_each_frame_is_written_in_its_place_until_it_is_acknowledged(
    moves: list[tuple[str, int]],
) -> None:
    outbox, sent, reached, acknowledged, written = Outbox(frames=5, nbytes=10_000), list[bytes](), 0, 0, 0
    for move, number in moves:
        if move == "put" and outbox.has_room(0):
            sent.append(b"%d" % len(sent))
            assert put(outbox, sent[-1]) == len(sent)
        elif move == "take" and written < len(sent):
            assert outbox.take() == (Frame(sent[written]), written + 1)
            written += 1
            reached = max(reached, written)
        elif move == "acknowledge":
            acknowledged = min(acknowledged + number, reached)
            written = max(written, acknowledged)
            outbox.acknowledge(acknowledged)
        elif move == "go back":
            received = min(acknowledged + number, reached)
            assert outbox.fits(received)
            assert outbox.go_back(received) == reached - received
            acknowledged = written = received
        assert (outbox.numbered, outbox.written, outbox.acknowledged) == (len(sent), written, acknowledged)
        assert outbox.has_room(0) == (len(sent) - acknowledged < 5)


def test_frames_that_were_never_sent_are_not_acknowledged() -> None:
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


def test_what_is_written_again_is_counted_apart() -> None:
    outbox = Outbox(frames=5, nbytes=10_000)
    for _ in range(3):
        put(outbox, b"abc")
        outbox.take()
    assert outbox.resent_bytes == 0
    assert outbox.go_back(1) == 2
    outbox.take()
    assert outbox.resent_bytes == Frame(b"abc").nbytes
