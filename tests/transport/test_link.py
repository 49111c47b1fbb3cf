"""Nothing lost: a link outlives its connections, whatever breaks them, and says so where it cannot."""

import gc
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from cutlayer.errors import ChannelClosed, ChannelTimeout
from cutlayer.protocol.wire import Frame
from cutlayer.transport import Link, Listener
from cutlayer.transport.lanes import SendingLane
from transport.ends import LIMITS, Connect, Ends, dial_lab, until

Listen = Callable[..., Listener]
MIB = 2**20


def traffic(seed: int, count: int) -> list[Frame]:
    """Frames of mixed sizes, numbered in their headers."""
    dice = np.random.default_rng(seed)
    sizes = dice.choice([0, 1, 100, 5_000, 40_000, 130_000, 400_000], count, p=[0.2, 0.1, 0.3, 0.2, 0.1, 0.05, 0.05])
    return [Frame(b"%d" % at, (memoryview(dice.bytes(int(size))),)) for at, size in enumerate(sizes)]


def send_all(end: Link, frames: list[Frame]) -> int:
    return sum(end.send(frame) for frame in frames)


def receive_as_sent(end: Link, frames: list[Frame]) -> int:
    """Asserts that exactly these arrive, in order and equal in every bit; returns their bytes."""
    for frame in frames:
        got = end.receive(MIB)
        assert got.header == frame.header
        assert got.parts[0] == frame.parts[0]
    return end.received_bytes


def cross(
    ends: Ends, helpers: ThreadPoolExecutor, count: int, seed: int = 0, calm: Callable[[], object] = lambda: None
) -> None:
    """Traffic in both directions at once; asserts that all of it arrives once, in order, unchanged, and nothing more.

    `calm` is called when all has arrived, and before the link is closed.
    """
    there, back, last = traffic(seed, count), traffic(seed + 1, count), [Frame(b"last", (memoryview(b""),))]
    sending = [helpers.submit(send_all, ends.client, there), helpers.submit(send_all, ends.server, back)]
    counts: list[int] = []

    def receive(end: Link, frames: list[Frame]) -> str:
        for batch in (frames, last):
            receive_as_sent(end, batch)
            counts.append(1)
        with pytest.raises(ChannelClosed) as ended:
            end.receive(MIB)
        return str(ended.value)

    receiving = [helpers.submit(receive, ends.server, there), helpers.submit(receive, ends.client, back)]
    until(lambda: len(counts) == 2 or any(each.done() for each in receiving), 60)
    sent = [each.result(5) for each in sending]
    calm()
    sent = [sent[0] + send_all(ends.client, last), sent[1] + send_all(ends.server, last)]
    until(lambda: len(counts) == 4 or any(each.done() for each in receiving), 20)
    ends.client.close()
    assert [each.result(5) for each in receiving] == ["hospital-a is gone", "the link to lab was closed at this end"]
    assert sent == [ends.server.received_bytes, ends.client.received_bytes]
    assert sent == [ends.client.sent_bytes, ends.server.sent_bytes]


# ---------------------------------------------------------------------- what may befall a connection


@pytest.mark.parametrize("seed", range(4))
def test_every_frame_arrives_once_and_in_order_however_the_connections_are_cut(
    connect: Connect, helpers: ThreadPoolExecutor, seed: int
) -> None:
    ends, dice, over = connect(), random.Random(seed), threading.Event()  # noqa: S311

    def cut() -> int:
        count = 0
        while count < 25 and not over.wait(dice.uniform(0.0, 0.15)):
            wires = ends.relay.wires[-2:]
            for wire in dice.choice([wires, wires[:1], wires[1:]]):
                wire.cut(reset=dice.random() < 0.5)
            count += 1
        return count

    def calm() -> None:
        over.set()
        assert cutting.result(5) > 0

    cutting = helpers.submit(cut)
    cross(ends, helpers, 300, seed, calm)
    assert any("broke" in sentence for sentence in ends.told + ends.heard)


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("harm", ["corrupt", "truncate"])
def test_bytes_that_are_corrupt_or_cut_short_are_sent_again(
    connect: Connect, helpers: ThreadPoolExecutor, direction: str, harm: str
) -> None:
    ends = connect()
    left = [200_000]

    def meddle(piece: bytes) -> bytes | None:
        left[0] -= len(piece)
        if left[0] > 0 or left[0] < -65_536:
            return piece
        left[0] -= 10**9
        if harm == "truncate":
            return None
        return piece[:-1] + bytes([piece[-1] ^ 1])

    for wire in ends.relay.wires:
        setattr(wire, direction, meddle)
    cross(ends, helpers, 100)
    assert left[0] < -(10**9)
    assert any("broke" in sentence for sentence in ends.told + ends.heard)
    assert ends.client.resent_bytes + ends.server.resent_bytes > 0


@pytest.mark.parametrize("fault", ["twice", "never", "swapped"])
def test_a_frame_written_twice_or_never_or_too_early_is_delivered_once_and_in_its_place(
    connect: Connect, helpers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    ends, write, kept = connect(), SendingLane.write, list[tuple[Frame, int, int]]()

    def faulty(lane: SendingLane, frame: Frame, number: int, acknowledged: int) -> None:
        if number not in {20, 60} or frame in [each[0] for each in kept]:
            write(lane, frame, number, acknowledged)
            if fault == "swapped" and kept and number == kept[-1][1] + 1:
                write(lane, *kept[-1])
            return
        kept.append((frame, number, acknowledged))
        for _ in range(2 if fault == "twice" else 0):
            write(lane, frame, number, acknowledged)

    monkeypatch.setattr(SendingLane, "write", faulty)
    cross(ends, helpers, 100)
    assert len(kept) == 4
    assert bool(ends.told or ends.heard) == (fault != "twice")


def test_a_half_open_link_is_noticed_within_the_silence_limit(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    ends = connect(silence_timeout_s=0.5)
    ends.relay.swallow()
    started = time.monotonic()
    waiting = helpers.submit(ends.client.receive, MIB)
    ends.server.send(Frame(b"hello"))
    helpers.submit(ends.server.receive, MIB)
    assert waiting.result(5).header == b"hello"
    assert 0.3 < time.monotonic() - started < 2.0
    until(lambda: len(ends.told) == 2)
    assert ends.told[0] == "the link to lab broke (lab was silent for 0.5 s): dialling again"
    assert "the link to lab stands again after 0." in ends.told[1]
    until(lambda: len(ends.heard) == 2)
    assert ends.heard[1].endswith("1 frame sent again")
    ends.client.close()


def test_what_is_sent_while_the_link_is_detached_arrives_later(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    ends = connect()
    waiting, port = helpers.submit(ends.client.receive, 0), ends.relay.target
    ends.relay.target = 1
    ends.relay.cut()
    until(lambda: ends.told)
    frames = traffic(3, 50)
    assert send_all(ends.client, frames) == ends.client.sent_bytes
    ends.relay.target = port
    receive_as_sent(ends.server, frames)
    ends.server.send(Frame(b"thanks"))
    assert waiting.result(5).header == b"thanks"


def test_a_close_waits_a_little_for_what_was_sent_while_the_link_was_detached(
    connect: Connect, helpers: ThreadPoolExecutor
) -> None:
    ends = connect()
    helpers.submit(ends.client.receive, 0)
    port, ends.relay.target = ends.relay.target, 1
    ends.relay.cut()
    until(lambda: not ends.client.stands)
    ends.client.send(Frame(b"bye"))
    parting = helpers.submit(ends.client.close)
    ends.relay.target = port
    assert ends.server.receive(0).header == b"bye"
    with pytest.raises(ChannelClosed, match=r"hospital-a is gone$"):
        ends.server.receive(0)
    parting.result(5)


# ---------------------------------------------------------------------- where it ends


def test_a_link_that_cannot_stand_again_is_over_after_the_limit(connect: Connect) -> None:
    ends = connect(reconnect_timeout_s=0.5)
    ends.relay.target = 1
    ends.relay.cut()
    started = time.monotonic()
    with pytest.raises(ChannelClosed, match=r"lab is gone.*, and the link did not stand again within 0\.5 s; the last"):
        ends.client.receive(0)
    with pytest.raises(ChannelClosed, match=r"hospital-a is gone, and the link did not stand again within 0\.5 s$"):
        ends.server.receive(0)
    assert 0.3 < time.monotonic() - started < 2.0
    with pytest.raises(ChannelClosed, match="did not stand again"):
        ends.client.send(Frame(b"x"))


def test_the_time_to_stand_again_begins_anew_with_each_break(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    ends = connect(reconnect_timeout_s=0.6)
    there, back = helpers.submit(ends.server.receive, 0), helpers.submit(ends.client.receive, 0)
    for number in (1, 2):
        time.sleep(1.1)
        ends.relay.cut()
        until(lambda number=number: len(ends.told) == len(ends.heard) == 2 * number)  # type: ignore[misc]
    ends.client.send(Frame(b"x"))
    assert there.result(5).header == b"x"
    ends.client.close()
    assert back.exception(5) is not None


def test_a_link_that_stands_only_to_break_again_is_given_up(connect: Connect) -> None:
    ends = connect(reconnect_timeout_s=0.8)
    ends.client.on_trouble = lambda sentence: ends.relay.cut() if "stands" in sentence else None
    started = time.monotonic()
    ends.relay.cut()
    with pytest.raises(ChannelClosed, match=r"did not stand again within 0\.8 s"):
        ends.client.receive(0)
    assert time.monotonic() - started < 4.0


def test_with_no_time_to_reconnect_a_broken_link_is_over_at_once(connect: Connect) -> None:
    ends = connect(reconnect_timeout_s=0.0)
    ends.relay.cut()
    started = time.monotonic()
    for end in (ends.client, ends.server):
        with pytest.raises(ChannelClosed, match=r"is gone$"):
            end.receive(0)
    assert time.monotonic() - started < 1.0


def test_a_close_is_told_at_once_and_a_cut_is_not(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    ends = connect()
    waiting, here = helpers.submit(ends.server.receive, 0), helpers.submit(ends.client.receive, 0)
    ends.relay.cut()
    until(lambda: ends.told)
    time.sleep(0.1)
    assert not waiting.done()
    until(lambda: ends.client.stands)
    started = time.monotonic()
    ends.client.close()
    with pytest.raises(ChannelClosed, match=r"hospital-a is gone$"):
        waiting.result(2)
    assert time.monotonic() - started < 0.5
    with pytest.raises(ChannelClosed, match="closed at this end"):
        here.result(2)


def test_a_restarted_listener_does_not_know_the_link_and_says_so_at_once(connect: Connect, listen: Listen) -> None:
    ends = connect()
    ends.relay.target = listen(limits=LIMITS).port
    ends.relay.cut()
    started = time.monotonic()
    with pytest.raises(ChannelClosed, match="lab is gone from this link: its process is a new one, or it has given up"):
        ends.client.receive(0)
    assert time.monotonic() - started < 1.0


def test_a_restarted_dialler_takes_the_place_of_the_link_that_waits_for_it(
    connect: Connect, kit: Path, helpers: ThreadPoolExecutor
) -> None:
    ends = connect()
    waiting = helpers.submit(ends.server.receive, 0)
    port, ends.relay.target = ends.relay.target, 1
    ends.relay.cut()
    until(lambda: ends.heard)
    with closing(dial_lab(kit, port, LIMITS)) as newer, closing(ends.listener.accept(2.0)) as server:
        with pytest.raises(ChannelClosed, match="hospital-a opened a newer link in this one's place"):
            waiting.result(1)
        ends.relay.target = port
        with pytest.raises(ChannelClosed, match="lab is gone from this link"):
            ends.client.receive(0)
        newer.send(Frame(b"still here"))
        assert server.receive(0).header == b"still here"


def test_where_the_listener_was_closed_nobody_is_waited_for(connect: Connect) -> None:
    ends = connect()
    ends.listener.close()
    ends.client.send(Frame(b"x"))
    assert ends.server.receive(0).header == b"x"
    ends.relay.cut()
    started = time.monotonic()
    with pytest.raises(ChannelClosed, match=r"hospital-a is gone$"):
        ends.server.receive(0)
    assert time.monotonic() - started < 0.5


# ---------------------------------------------------------------------- how much is kept


def test_a_sender_keeps_no_more_than_the_limit_says(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    ends = connect(queued_frames=10)
    sending = helpers.submit(send_all, ends.client, [Frame(b"%d" % number) for number in range(1000)])
    helpers.submit(ends.client.receive, 0)
    time.sleep(0.3)
    assert not sending.done()
    assert ends.client.sent_bytes <= 10 * Frame(b"1").nbytes
    assert [ends.server.receive(0).header for _ in range(1000)] == [b"%d" % number for number in range(1000)]
    assert sending.result(5) == ends.client.sent_bytes
    ends.client.close()


def test_bytes_are_limited_too_but_one_frame_always_fits(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    ends = connect(queued_bytes=100_000)
    frames = [Frame(b"%d" % number, (memoryview(bytes(90_000 + number)),)) for number in range(30)]
    sending = helpers.submit(send_all, ends.client, frames)
    helpers.submit(ends.client.receive, 0)
    time.sleep(0.2)
    assert ends.client.sent_bytes < 100_000
    receive_as_sent(ends.server, frames)
    sending.result(5)
    ends.client.send(Frame(b"large", (memoryview(bytes(500_000)),)))
    assert ends.server.receive(MIB).header == b"large"
    ends.client.close()


def test_who_leaves_everything_unacknowledged_is_given_up(connect: Connect) -> None:
    ends = connect(queued_frames=5, send_timeout_s=0.4)
    with pytest.raises(ChannelTimeout, match=r"lab took no whole frame for 0\.4 s"):
        send_all(ends.client, [Frame(b"x")] * 6)


def test_a_request_and_its_answer_cost_no_frame_more(
    connect: Connect, helpers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, write, numbers = connect(), SendingLane.write, list[int]()

    def counted(lane: SendingLane, frame: Frame, number: int, acknowledged: int) -> None:
        numbers.append(number)
        write(lane, frame, number, acknowledged)

    monkeypatch.setattr(SendingLane, "write", counted)
    for _ in range(100):
        ends.client.send(Frame(b"ask"))
        question = ends.server.receive(0)
        time.sleep(0.001)  # long enough for an acknowledgement of its own to leave, if one were due
        ends.server.send(question)
        ends.client.receive(0)
    assert len(numbers) == 200


def test_what_was_acknowledged_is_kept_no_longer(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    ends = connect(queued_frames=4)
    helpers.submit(ends.client.receive, 0)
    arrays = [np.arange(50_000.0) + number for number in range(8)]
    gone = [weakref.ref(array) for array in arrays]
    receiving = helpers.submit(lambda: [ends.server.receive(MIB) for _ in range(8)])
    for array in arrays:
        ends.client.send(Frame(b"x", (array.data,)))
    del array, arrays
    receiving.result(5)
    until(lambda: sum(ref() is not None for ref in gone) == 0)
    ends.client.close()


# ---------------------------------------------------------------------- nothing piles up


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def break_often(ends: Ends, helpers: ThreadPoolExecutor, times: int) -> tuple[int, int]:
    """Threads and descriptors after so many reconnections, with a frame each way at every one."""
    for number in range(times):
        there, back = helpers.submit(ends.server.receive, 1000), helpers.submit(ends.client.receive, 0)
        ends.relay.cut(reset=number % 2 == 0)
        ends.client.send(Frame(b"%d" % number, (memoryview(bytes(1000)),)))
        assert there.result(10).header == b"%d" % number
        ends.server.send(Frame(b"back"))
        assert back.result(10).header == b"back"
    gc.collect()
    time.sleep(0.2)
    return threading.active_count(), descriptors()


@pytest.mark.parametrize("times", [300, pytest.param(3000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_reconnecting_leaves_no_thread_and_no_descriptor_behind(
    connect: Connect, helpers: ThreadPoolExecutor, times: int
) -> None:
    ends = connect()
    before = break_often(ends, helpers, 20)
    resident = memory()
    after = break_often(ends, helpers, times)
    assert after == before
    assert memory() - resident < 16 * MIB
    assert len(ends.told) >= times


def memory() -> int:
    """Bytes resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
