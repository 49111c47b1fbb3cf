"""What only the channel in memory does: polling, and a queue without a bound."""

import time

import pytest

from cutlayer.errors import ChannelClosed, ChannelTimeout, FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.protocol.messages import Ping
from cutlayer.protocol.wire import Frame, encode
from cutlayer.transport import pair

LIMITS = Limits(silence_timeout_s=0.2, send_timeout_s=0.2)


def test_poll_returns_what_is_there_and_never_waits() -> None:
    a, b = pair("a", "b", LIMITS)
    assert b.poll(0) is None
    a.send(encode(Ping()))
    assert b.poll(0) is None
    a.send(Frame(b"x"))
    a.close()
    assert b.poll(0) == Frame(b"x", (memoryview(b""),))
    with pytest.raises(ChannelClosed, match="a is gone"):
        b.poll(0)


def test_poll_refuses_a_body_over_its_limit() -> None:
    a, b = pair("a", "b", LIMITS)
    a.send(Frame(b"x", (memoryview(b"abc"),)))
    with pytest.raises(FrameRefused, match="the limit is 2"):
        b.poll(2)


def test_a_frame_larger_than_the_queue_passes_alone() -> None:
    a, b = pair("a", "b", LIMITS, queue_bytes=10)
    a.send(Frame(b"x", (memoryview(bytes(1000)),)))
    with pytest.raises(ChannelTimeout, match="b took nothing"):
        a.send(Frame(b"y"))
    b.receive(1000)
    a.send(Frame(b"y"))
    assert b.receive(0).header == b"y"


def test_a_single_thread_can_queue_without_bound() -> None:
    a, b = pair("a", "b", LIMITS, queue_bytes=None)
    for _ in range(100):
        a.send(Frame(b"x", (memoryview(bytes(100_000)),)))
    assert sum(b.receive(100_000).body_bytes for _ in range(100)) == 10_000_000


def test_without_heartbeats_an_idle_peer_is_a_frozen_one() -> None:
    _, b = pair("a", "b", LIMITS, heartbeats=False)
    started = time.monotonic()
    with pytest.raises(ChannelTimeout, match=r"a was silent for 0\.2 s"):
        b.receive(0)
    assert time.monotonic() - started < 1.0


def test_an_urgent_frame_passes_a_full_queue_in_its_place() -> None:
    a, b = pair("a", "b", LIMITS, queue_bytes=1000)
    a.send(Frame(b"full", (memoryview(bytes(900)),)))
    a.send(Frame(b"urgent", (memoryview(bytes(900)),)), urgent=True)
    for urgent in (False, True):
        with pytest.raises(ChannelTimeout, match="b took nothing"):
            a.send(Frame(b"x", (memoryview(bytes(300)),)), urgent=urgent)
    assert [b.receive(1000).header for _ in range(2)] == [b"full", b"urgent"]
    a.send(Frame(b"x", (memoryview(bytes(300)),)), wait=False)
    a.send(Frame(b"y", (memoryview(bytes(800)),)), urgent=True)
    assert [b.receive(1000).header for _ in range(2)] == [b"x", b"y"]
