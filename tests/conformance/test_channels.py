"""Every channel keeps the same promises: one suite for the memory and for the network."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cutlayer.errors import ChannelClosed, ChannelTimeout, FrameRefused
from cutlayer.keys import load_credentials, make_demo_kit
from cutlayer.plan.limits import Limits
from cutlayer.protocol.messages import Ping
from cutlayer.protocol.wire import PRELUDE_BYTES, Frame, encode
from cutlayer.transport import Channel, Listener, dial, pair
from cutlayer.transport.flight import FlightListener, dial_flight

MIB = 2**20
QUICK = Limits(silence_timeout_s=0.5, send_timeout_s=0.5, handshake_timeout_s=5.0)
PATIENT = Limits(silence_timeout_s=20.0, send_timeout_s=20.0, handshake_timeout_s=5.0)

Link = tuple[Channel, Channel]
Connect = Callable[[Limits], Link]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_kit(tmp_path_factory.mktemp("keys"), ["lab", "hospital-a"])


@pytest.fixture(params=["memory", "lanes", "flight"])
def connect(request: pytest.FixtureRequest, kit: Path) -> Iterator[Connect]:
    """Makes links of hospital-a and lab: (hospital-a's end, lab's end)."""
    opened: list[Channel | Listener | FlightListener] = []

    def in_memory(limits: Limits) -> Link:
        return pair("hospital-a", "lab", limits, queue_bytes=4 * MIB)

    def over_network(limits: Limits) -> Link:
        listen, call = (FlightListener, dial_flight) if request.param == "flight" else (Listener, dial)
        listener = listen(
            ("127.0.0.1", 0), load_credentials(kit, "lab"), party="lab", allowed=["hospital-a"], limits=limits
        )
        opened.append(listener)
        address = ("127.0.0.1", listener.port)
        client = call(address, load_credentials(kit, "hospital-a"), party="hospital-a", peer="lab", limits=limits)
        return client, listener.accept(5.0)

    def make(limits: Limits) -> Link:
        link = in_memory(limits) if request.param == "memory" else over_network(limits)
        opened.extend(link)
        return link

    yield make
    for each in opened:
        each.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("cutlayer")] == []


@pytest.fixture
def helpers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def noise(nbytes: int, seed: int = 0) -> memoryview:
    return memoryview(np.random.default_rng(seed).bytes(nbytes))


def body(frame: Frame) -> bytes:
    return b"".join(frame.parts)


def address_of(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def send_many(end: Channel, count: int) -> None:
    """`count` frames of 1 MiB, numbered in their headers."""
    content = noise(MIB)
    for number in range(count):
        end.send(Frame(b"%d" % number, (content,)))


def send_slowly(end: Channel, count: int) -> None:
    for _ in range(count):
        end.send(Frame(b"x"))
        time.sleep(0.01)


def test_each_end_knows_its_peer(connect: Connect) -> None:
    a, b = connect(PATIENT)
    assert (a.peer, b.peer) == ("lab", "hospital-a")


def test_frames_arrive_whole_and_in_order(connect: Connect) -> None:
    a, b = connect(PATIENT)
    sizes = [0, 1, 63, 64, 65, 4096, 16_384, 65_450, 65_536, 70_000, 300_000, 0, 1_000_003]
    for number, size in enumerate(sizes):
        a.send(Frame(b"%d" % number, (noise(size, number),)))
    for number, size in enumerate(sizes):
        frame = b.receive(2 * MIB)
        assert frame.header == b"%d" % number
        assert body(frame) == bytes(noise(size, number))


def test_a_body_of_many_parts_arrives_as_one_aligned_buffer(connect: Connect) -> None:
    a, b = connect(PATIENT)
    parts = (noise(1), noise(0), noise(300_000), noise(63), np.arange(5.0).data, noise(5000), noise(64))
    a.send(Frame(b"many", parts))
    frame = b.receive(MIB)
    (whole,) = frame.parts
    assert bytes(whole) == b"".join(part.tobytes() for part in parts)
    assert whole.contiguous
    assert address_of(whole) % 64 == 0


@pytest.mark.parametrize("size", [1, 100, 16_384, 65_537, 500_000])
def test_every_body_is_aligned_and_writable(connect: Connect, size: int) -> None:
    a, b = connect(PATIENT)
    for _ in range(3):
        a.send(Frame(b"x", (noise(size),)))
        (whole,) = b.receive(MIB).parts
        assert (address_of(whole) % 64, whole.readonly, whole.nbytes) == (0, False, size)


def test_an_empty_body_arrives_as_one_empty_part(connect: Connect) -> None:
    a, b = connect(PATIENT)
    a.send(Frame(b"head only"))
    frame = b.receive(0)
    assert (frame.header, frame.body_bytes, len(frame.parts)) == (b"head only", 0, 1)


def test_what_was_sent_is_let_go_once_the_peer_has_answered(connect: Connect) -> None:
    a, b = connect(PATIENT)
    sent = np.arange(100_000.0)
    gone = weakref.ref(sent)
    a.send(Frame(b"x", (sent.data,)))
    del sent
    b.receive(MIB)
    b.send(Frame(b"y"))
    a.receive(0)
    gc.collect()
    assert gone() is None


def test_large_frames_cross_in_both_directions_at_once(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    a, b = connect(PATIENT)
    there, back = Frame(b"there", (noise(8 * MIB, 1),)), Frame(b"back", (noise(8 * MIB, 2),))
    senders = [helpers.submit(end.send, frame) for end, frame in [(a, there), (b, back)] * 3]
    received_by_a = helpers.submit(lambda: [body(a.receive(8 * MIB)) == back.parts[0] for _ in range(3)])
    received_by_b = helpers.submit(lambda: [body(b.receive(8 * MIB)) == there.parts[0] for _ in range(3)])
    assert received_by_a.result(20) == received_by_b.result(20) == [True] * 3
    for sender in senders:
        sender.result(20)


def test_both_ends_count_the_same_bytes(connect: Connect) -> None:
    a, b = connect(QUICK)
    frame = Frame(b"header", (noise(100), noise(70_000)))
    time.sleep(0.3)  # heartbeats are not counted
    returned = [a.send(frame), a.send(Frame(b"h"))]
    b.receive(MIB)
    b.receive(MIB)
    assert returned == [PRELUDE_BYTES + 6 + 70_100, PRELUDE_BYTES + 1]
    assert a.sent_bytes == b.received_bytes == sum(returned)
    assert b.sent_bytes == a.received_bytes == 0


def test_a_heartbeat_is_never_handed_over(connect: Connect) -> None:
    a, b = connect(PATIENT)
    a.send(encode(Ping()))
    a.send(Frame(b"word"))
    assert b.receive(0).header == b"word"


def test_what_was_sent_before_a_close_still_arrives(connect: Connect) -> None:
    a, b = connect(PATIENT)
    for number in range(20):
        a.send(Frame(b"%d" % number, (noise(10_000),)))
        b.send(Frame(b"never received"))
    a.close()
    assert [b.receive(MIB).header for _ in range(20)] == [b"%d" % number for number in range(20)]
    with pytest.raises(ChannelClosed, match="hospital-a is gone"):
        b.receive(MIB)


def test_close_wakes_a_waiting_peer(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    a, b = connect(PATIENT)
    waiting = helpers.submit(b.receive, MIB)
    time.sleep(0.05)
    a.close()
    with pytest.raises(ChannelClosed, match="hospital-a is gone"):
        waiting.result(2)


def test_close_wakes_this_ends_own_receiver(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    a, _ = connect(PATIENT)
    waiting = helpers.submit(a.receive, MIB)
    time.sleep(0.05)
    a.close()
    with pytest.raises(ChannelClosed, match="closed at this end"):
        waiting.result(2)


def test_close_wakes_this_ends_own_sender(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    a, _ = connect(PATIENT)
    waiting = helpers.submit(send_many, a, 1000)
    time.sleep(0.3)
    a.close()
    with pytest.raises(ChannelClosed):
        waiting.result(2)


def test_a_closed_channel_says_so_however_often_it_is_asked(connect: Connect) -> None:
    a, _ = connect(PATIENT)
    a.close()
    a.close()
    for _ in range(2):
        with pytest.raises(ChannelClosed, match="closed at this end"):
            a.send(Frame(b"x"))
        with pytest.raises(ChannelClosed, match="closed at this end"):
            a.receive(0)


def test_sending_to_a_peer_that_closed_fails(connect: Connect) -> None:
    a, b = connect(PATIENT)
    b.close()
    with pytest.raises(ChannelClosed, match="lab is gone"):
        send_slowly(a, 100)  # the network needs a moment to tell


def test_a_body_over_the_limit_is_refused(connect: Connect) -> None:
    a, b = connect(PATIENT)
    a.send(Frame(b"x", (noise(1000),)))
    with pytest.raises(FrameRefused, match=r"body of 1,000 bytes; the limit is 999"):
        b.receive(999)


def test_an_oversized_header_is_refused(connect: Connect) -> None:
    a, b = connect(PATIENT)
    a.send(Frame(bytes(PATIENT.header_bytes + 1)))
    with pytest.raises(FrameRefused, match=r"header of 65,537 bytes; the limit is 65,536"):
        b.receive(MIB)


def test_the_largest_header_is_taken(connect: Connect) -> None:
    a, b = connect(PATIENT)
    for _ in range(3):
        a.send(Frame(bytes(PATIENT.header_bytes), (noise(10),)))
        assert b.receive(10).header == bytes(PATIENT.header_bytes)


def test_after_a_refusal_nothing_more_is_received_but_a_last_word_can_leave(connect: Connect) -> None:
    a, b = connect(PATIENT)
    a.send(Frame(b"x", (noise(1000),)))
    a.send(Frame(b"y"))
    with pytest.raises(FrameRefused):
        b.receive(999)
    with pytest.raises(ChannelClosed, match="limit"):
        b.receive(MIB)
    b.send(Frame(b"bye"))
    assert a.receive(0).header == b"bye"


def test_a_slow_consumer_holds_the_producer(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    a, b = connect(PATIENT)
    sending = helpers.submit(send_many, a, 40)
    time.sleep(0.5)
    assert a.sent_bytes < 20 * MIB
    assert not sending.done()
    assert [b.receive(MIB).header for _ in range(40)] == [b"%d" % number for number in range(40)]
    sending.result(5)


def test_a_consumer_that_takes_nothing_is_given_up(connect: Connect) -> None:
    a, _ = connect(QUICK)
    started = time.monotonic()
    with pytest.raises(ChannelTimeout, match=r"0\.5 s"):
        send_many(a, 40)
    assert 0.4 < time.monotonic() - started < 3.0


def test_an_idle_link_outlives_the_silence_limit(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    a, b = connect(QUICK)
    waiting = helpers.submit(b.receive, MIB)
    time.sleep(2 * QUICK.silence_timeout_s)
    a.send(Frame(b"late"))
    assert waiting.result(2).header == b"late"


def test_a_buffer_is_not_used_again_while_anything_refers_to_it(connect: Connect) -> None:
    a, b = connect(PATIENT)
    kept: dict[int, memoryview] = {}
    for number in range(24):
        a.send(Frame(b"x", (noise(150_000, number),)))
        (whole,) = b.receive(MIB).parts
        if number % 3 == 0:
            kept[number] = whole[1000:2000]
    for number, view in kept.items():
        assert view == noise(150_000, number)[1000:2000]


def test_a_buffer_is_used_again_when_nothing_refers_to_it(connect: Connect) -> None:
    a, b = connect(PATIENT)
    addresses = set()
    for _ in range(10):
        a.send(Frame(b"x", (noise(150_000),)))
        addresses.add(address_of(b.receive(MIB).parts[0]))
    assert len(addresses) == 1
