"""Sending beside computing: who writes a frame, what goes ahead of what, and what becomes of what was handed over."""

import random
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from cutlayer.errors import ChannelClosed, ChannelTimeout
from cutlayer.protocol.wire import Frame
from cutlayer.transport import Link, link
from cutlayer.transport.call import Call
from cutlayer.transport.lanes import SendingLane
from cutlayer.transport.link import HANDED_BYTES
from transport.ends import Connect, Ends, until

MIB = 2**20


def large(header: bytes, nbytes: int = HANDED_BYTES) -> Frame:
    """More than a sender that does not wait writes itself."""
    return Frame(header, (memoryview(bytes(nbytes)),))


class Gate:
    """Writes of one end stop before the frame with the header `stops`, until it is opened; `writes` has all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end: Link, stops: bytes = b"stop") -> None:
        self.writes: list[tuple[bytes, int]] = []
        self.threads: list[str] = []
        self.reached, self.opened = threading.Event(), threading.Event()
        write, lane_of = SendingLane.write, end._sending

        def gated(lane: SendingLane, frame: Frame, number: int, acknowledged: int) -> None:
            if lane is lane_of.lane and number:
                self.writes.append((frame.header, number))
                self.threads.append(threading.current_thread().name)
                if frame.header == stops:
                    self.reached.set()
                    assert self.opened.wait(10)
            write(lane, frame, number, acknowledged)

        monkeypatch.setattr(SendingLane, "write", gated)

    @property
    def headers(self) -> list[bytes]:
        return [header for header, _ in self.writes]


@contextmanager
def stopped(monkeypatch: pytest.MonkeyPatch, end: Link) -> Iterator[Gate]:
    """One frame has been handed over and is being written, until the end of this block."""
    gate = Gate(monkeypatch, end)
    end.send(large(b"stop"), wait=False)
    assert gate.reached.wait(5)
    try:
        yield gate
    finally:
        gate.opened.set()


def received(end: Link, count: int) -> list[bytes]:
    return [end.receive(64 * MIB).header for _ in range(count)]


# ---------------------------------------------------------------------- who writes


def test_who_does_not_wait_goes_on_while_its_frame_leaves(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = connect()
    with stopped(monkeypatch, ends.client):
        started = time.monotonic()
        for number in range(10):
            ends.client.send(large(b"%d" % number), wait=False)
        ends.client.send(Frame(b"small"), wait=False)
        assert time.monotonic() - started < 1.0
    assert received(ends.server, 12) == [b"stop", *(b"%d" % number for number in range(10)), b"small"]


def test_who_waits_comes_back_when_its_frame_has_left(
    connect: Connect, helpers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect()
    with stopped(monkeypatch, ends.client) as gate:
        mine = Gate(monkeypatch, ends.client, stops=b"mine")
        waiting = helpers.submit(ends.client.send, Frame(b"mine"))
        time.sleep(0.1)
        assert not waiting.done()
    assert mine.reached.wait(5)
    time.sleep(0.1)
    assert not waiting.done()
    mine.opened.set()
    waiting.result(5)
    assert gate.headers == [b"stop", b"mine"]


def test_a_small_frame_on_an_idle_link_and_one_that_is_waited_for_are_written_by_their_sender(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect()
    gate = Gate(monkeypatch, ends.client)
    for frame, wait in [(large(b"", HANDED_BYTES // 2), False), (large(b""), True), (large(b""), False)]:
        ends.client.send(frame, wait=wait)
        received(ends.server, 1)
    me = threading.current_thread().name
    assert gate.threads == [me, me, "cutlayer-link-lab"]


def test_a_small_frame_is_handed_over_where_the_line_takes_nothing(connect: Connect) -> None:
    ends = connect()
    opened = hold(ends)
    content = memoryview(bytes(HANDED_BYTES - 1000))
    started = time.monotonic()
    for number in range(100):  # more than all the kernel's buffers take
        ends.client.send(Frame(b"%d" % number, (content,)), wait=False)
    assert time.monotonic() - started < 2.0
    opened.set()
    assert received(ends.server, 100) == [b"%d" % number for number in range(100)]


def hold(ends: Ends) -> threading.Event:
    """Nothing gets through to the server until this is set."""
    opened = threading.Event()

    def held(piece: bytes) -> bytes:
        opened.wait(20)
        return piece

    for wire in ends.relay.wires:
        wire.up = held
    return opened


def test_what_arrives_is_received_and_let_go_while_a_frame_leaves(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect(queued_frames=4)
    for _ in range(3):
        ends.client.send(Frame(b"early"))
    received(ends.server, 3)
    with stopped(monkeypatch, ends.client):
        ends.server.send(Frame(b"thanks"))
        assert received(ends.client, 1) == [b"thanks"]
        started = time.monotonic()
        for _ in range(3):
            ends.client.send(Frame(b"late"), wait=False)  # there is room only if the three were let go
        assert time.monotonic() - started < 1.0
    received(ends.server, 4)


def test_a_link_needs_no_thread_more_for_what_is_handed_over(connect: Connect) -> None:
    ends = connect()
    for _ in range(20):
        ends.client.send(large(b""), wait=False)
    received(ends.server, 20)
    names = [thread.name for thread in threading.enumerate() if thread.name.startswith("cutlayer-link")]
    assert sorted(names) == ["cutlayer-link-hospital-a", "cutlayer-link-lab"]


def test_what_is_sent_while_the_link_is_detached_dials_no_more_often(
    connect: Connect, helpers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, again, tries = connect(), Call.again, list[float]()

    def counted(call: Call, received: int, timeout_s: float) -> object:
        tries.append(time.monotonic())
        return again(call, received, timeout_s)

    monkeypatch.setattr(Call, "again", counted)
    helpers.submit(ends.client.receive, 0)
    port, ends.relay.target = ends.relay.target, 1
    ends.relay.cut()
    until(lambda: not ends.client.stands)
    for _ in range(50):
        ends.client.send(large(b""), wait=False)
        time.sleep(0.004)
    assert len(tries) < 10
    ends.relay.target = port
    received(ends.server, 50)
    ends.client.close()


# ---------------------------------------------------------------------- what goes ahead


def test_urgent_frames_go_ahead_of_those_that_wait_and_all_else_keeps_its_order(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect()
    with stopped(monkeypatch, ends.client) as gate:
        for header, urgent in [(b"a", False), (b"U", True), (b"b", False), (b"V", True), (b"c", False)]:
            ends.client.send(large(header), wait=False, urgent=urgent)
    assert received(ends.server, 6) == [b"stop", b"U", b"V", b"a", b"b", b"c"]
    assert [number for _, number in gate.writes] == [1, 2, 3, 4, 5, 6]


def test_who_waits_for_an_urgent_frame_does_not_wait_for_those_behind_it(
    connect: Connect, helpers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect()
    first = Gate(monkeypatch, ends.client)
    ends.client.send(large(b"stop"), wait=False)
    assert first.reached.wait(5)
    second = Gate(monkeypatch, ends.client, stops=b"behind")
    ends.client.send(large(b"behind"), wait=False)
    waiting = helpers.submit(ends.client.send, large(b"urgent"), urgent=True)
    until(lambda: ends.client.sent_bytes == sum(large(each).nbytes for each in (b"stop", b"behind", b"urgent")))
    first.opened.set()
    assert second.reached.wait(5)
    waiting.result(5)
    assert not second.opened.is_set()
    second.opened.set()
    assert received(ends.server, 3) == [b"stop", b"urgent", b"behind"]


def test_a_full_outbox_holds_who_does_not_wait_but_not_an_urgent_frame(
    connect: Connect, helpers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect(queued_frames=8)
    helpers.submit(ends.client.receive, 0)
    with stopped(monkeypatch, ends.client):
        for number in range(7):
            ends.client.send(large(b"%d" % number), wait=False)
        held = helpers.submit(ends.client.send, large(b"held"), wait=False)
        for header in (b"U", b"V"):  # a quarter of eight
            helpers.submit(ends.client.send, large(header), wait=False, urgent=True).result(2)
        held_too = helpers.submit(ends.client.send, large(b"W"), wait=False, urgent=True)
        time.sleep(0.1)
        assert not held.done()
        assert not held_too.done()
    got = received(ends.server, 12)
    assert got[:3] == [b"stop", b"U", b"V"]
    assert [header for header in got if header.isdigit()] == [b"%d" % number for number in range(7)]
    assert {b"held", b"W"} < set(got)
    held.result(5)
    held_too.result(5)
    ends.client.close()


def test_a_sender_that_does_not_wait_keeps_no_more_than_the_limit_says(
    connect: Connect, helpers: ThreadPoolExecutor
) -> None:
    ends = connect(queued_bytes=4 * HANDED_BYTES)
    helpers.submit(ends.client.receive, 0)
    frames = [large(b"%d" % number) for number in range(40)]
    sending = helpers.submit(lambda: [ends.client.send(frame, wait=False) for frame in frames])
    time.sleep(0.2)
    assert not sending.done()
    assert ends.client.sent_bytes <= 4 * HANDED_BYTES
    assert received(ends.server, 40) == [frame.header for frame in frames]
    sending.result(5)
    ends.client.close()


# ---------------------------------------------------------------------- what breaks


def test_what_had_begun_is_sent_again_in_its_place_and_urgent_frames_come_after_it(
    connect: Connect, helpers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect()
    helpers.submit(ends.client.receive, 0)
    with stopped(monkeypatch, ends.client) as gate:
        ends.client.send(large(b"behind"), wait=False)
        ends.client.send(large(b"urgent"), wait=False, urgent=True)
        ends.relay.cut()
        until(lambda: not ends.client.stands)
    assert received(ends.server, 3) == [b"stop", b"urgent", b"behind"]
    assert {(b"stop", 1), (b"urgent", 2), (b"behind", 3)} == set(gate.writes)
    ends.client.close()


def send_mixed(end: Link, urgent: list[int], seed: int) -> None:
    """Frames of mixed sizes with their place as header, urgent where it says so, some of them waited for."""
    luck = random.Random(seed)  # noqa: S311
    for at, now in enumerate(urgent):
        frame = large(b"%d" % at, luck.choice([0, 5000, HANDED_BYTES]))
        end.send(frame, wait=luck.random() < 0.3, urgent=bool(now))


def receive_into(got: list[int], end: Link) -> None:
    with suppress(ChannelClosed):
        while True:
            got.append(int(end.receive(MIB).header))


def cut_often(ends: Ends, over: threading.Event, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311
    while not over.wait(dice.uniform(0.0, 0.1)):
        ends.relay.wires[dice.choice([-1, -2])].cut(reset=dice.random() < 0.5)


def of_kind(kind: int, places: Iterable[int], urgent: list[int]) -> list[int]:
    return [at for at in places if urgent[at] == kind]


@pytest.mark.parametrize("seed", range(3))
def test_every_frame_arrives_once_and_the_order_of_each_kind_holds_however_the_connections_are_cut(
    connect: Connect, helpers: ThreadPoolExecutor, seed: int
) -> None:
    ends, over = connect(queued_frames=20), threading.Event()
    there, back = np.random.default_rng(seed).integers(0, 2, (2, 300)).tolist()
    at_server, at_client = list[int](), list[int]()
    work = [
        helpers.submit(send_mixed, ends.client, there, seed),
        helpers.submit(send_mixed, ends.server, back, seed),
        helpers.submit(receive_into, at_server, ends.server),
        helpers.submit(receive_into, at_client, ends.client),
        helpers.submit(cut_often, ends, over, seed),
    ]
    try:
        until(lambda: len(at_server) == len(at_client) == 300, 30)
    finally:
        over.set()
        ends.client.close()
        ends.server.close()
    for each in work:
        each.result(5)
    for urgent, arrived in ((there, at_server), (back, at_client)):
        for kind in (0, 1):
            assert of_kind(kind, arrived, urgent) == of_kind(kind, range(300), urgent)
    assert ends.told


def test_who_sends_or_receives_next_is_told_that_a_frame_did_not_leave(connect: Connect) -> None:
    ends = connect(send_timeout_s=0.3)
    opened = hold(ends)
    ends.client.send(large(b"", 24 * MIB), wait=False)
    until(lambda: not ends.client.open)
    for _ in range(2):
        with pytest.raises(ChannelTimeout, match=r"lab took no whole frame for 0\.3 s"):
            ends.client.send(Frame(b"x"), wait=False)
        with pytest.raises(ChannelTimeout, match=r"lab took no whole frame for 0\.3 s"):
            ends.client.receive(0)
    opened.set()


def test_whatever_fails_in_the_thread_that_writes_ends_the_link(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect()
    lane, write = ends.client._sending.lane, SendingLane.write

    def fail(to: SendingLane, frame: Frame, number: int, acknowledged: int) -> None:
        if to is lane:
            raise MemoryError
        write(to, frame, number, acknowledged)

    monkeypatch.setattr(SendingLane, "write", fail)
    ends.client.send(large(b""), wait=False)
    with pytest.raises(ChannelClosed, match=r"sending to lab failed: MemoryError\(\)"):
        ends.client.receive(0)
    with pytest.raises(ChannelClosed, match=r"sending to lab failed: MemoryError\(\)"):
        ends.client.send(Frame(b"x"))


# ---------------------------------------------------------------------- how it ends


def test_a_close_waits_for_all_that_was_handed_over_as_long_as_it_moves(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LINGER_S", 0.4)
    ends = connect()

    def slowly(piece: bytes) -> bytes:
        time.sleep(0.003)
        return piece

    for wire in ends.relay.wires:
        wire.up = slowly
    for number in range(2):
        ends.client.send(large(b"%d" % number, 12 * MIB), wait=False)
    with ThreadPoolExecutor(1) as helper:
        arriving = helper.submit(received, ends.server, 2)
        started = time.monotonic()
        ends.client.close()
        took_s = time.monotonic() - started
        assert arriving.result(10) == [b"0", b"1"]
    assert took_s > 0.45
    with pytest.raises(ChannelClosed, match=r"hospital-a is gone$"):
        ends.server.receive(0)


def test_a_close_does_not_wait_for_a_peer_that_takes_nothing(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "LINGER_S", 0.3)
    ends = connect()
    opened = hold(ends)
    ends.client.send(large(b"", 24 * MIB), wait=False)
    started = time.monotonic()
    ends.client.close()
    assert 0.2 < time.monotonic() - started < 2.0
    opened.set()


def test_a_close_does_not_wait_for_who_waits_itself(connect: Connect, helpers: ThreadPoolExecutor) -> None:
    ends = connect()
    opened = hold(ends)
    waiting = helpers.submit(ends.client.send, large(b"", 24 * MIB))
    time.sleep(0.2)
    started = time.monotonic()
    ends.client.close()
    assert time.monotonic() - started < 1.0
    with pytest.raises(ChannelClosed, match="closed at this end"):
        waiting.result(2)
    opened.set()


def test_nothing_is_taken_once_the_close_has_begun(
    connect: Connect, helpers: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = connect(queued_frames=2)
    with stopped(monkeypatch, ends.client):
        ends.client.send(large(b"last"), wait=False)
        held = helpers.submit(ends.client.send, large(b"held"), wait=False)
        closing = helpers.submit(ends.client.close)
        with pytest.raises(ChannelClosed, match="closed at this end"):
            held.result(1)
        with pytest.raises(ChannelClosed, match="closed at this end"):
            ends.client.send(Frame(b"late"), wait=False, urgent=True)  # for which there would be room
    assert received(ends.server, 2) == [b"stop", b"last"]
    with pytest.raises(ChannelClosed, match=r"hospital-a is gone$"):
        ends.server.receive(0)
    closing.result(5)
