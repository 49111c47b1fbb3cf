"""Bytes that pass an emulated link: how long a piece stays, what befalls it, and the threads that carry it."""

import random
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

PIECE_S = 0.005  # a piece passes as a whole, so it may not take longer than this on the wire
SMALLEST_PIECE, LARGEST_PIECE = 1024, 256 * 1024
QUEUE_BYTES = 256 * 1024  # waits before a slow link, besides what is on its way
UNLIMITED_QUEUE_BYTES = 64 * 2**20
MOST_EARLY_S, LEARNED = 0.001, 0.1
POLL_S = 0.05
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset

Direction = Literal["to-target", "to-caller"]
End = Literal["end", "close", "reset"]
"""Of one direction, of the connection as planned, of the connection as if it had broken."""

_dice = random.Random()  # noqa: S311 (jitter is no secret)


@dataclass(frozen=True, slots=True)
class Fault:
    at: int
    """The place of the byte that it befalls, in all that passes in its direction."""
    kind: Literal["corrupt", "truncate"]


class Way:
    """One direction of the link, for all connections: when a piece may leave, and what befalls it."""

    def __init__(self, delay_s: float, jitter_s: float, bytes_per_s: float) -> None:
        self._delay_s, self._jitter_s, self._rate = delay_s, jitter_s, bytes_per_s
        self.piece_bytes = LARGEST_PIECE
        self.queue_bytes = UNLIMITED_QUEUE_BYTES
        if bytes_per_s:
            self.piece_bytes = round(min(LARGEST_PIECE, max(SMALLEST_PIECE, bytes_per_s * PIECE_S)))
            self.queue_bytes = round(QUEUE_BYTES + bytes_per_s * (delay_s + jitter_s))
        self.passed = 0
        self._faults: list[Fault] = []
        self._free_at = 0.0
        self._lock = threading.Lock()

    def befall(self, after_bytes: int, kind: Literal["corrupt", "truncate"]) -> None:
        with self._lock:
            self._faults.append(Fault(self.passed + after_bytes, kind))

    def enter(self, data: bytes) -> tuple[float, bytes, bool]:
        """When the piece leaves, as what, and whether its connection ends there."""
        with self._lock:
            start, self.passed = self.passed, self.passed + len(data)
            due = [fault for fault in self._faults if fault.at < self.passed]
            self._faults = [fault for fault in self._faults if fault.at >= self.passed]
            at = time.monotonic()
            if self._rate:
                at = self._free_at = max(at, self._free_at) + len(data) / self._rate
        at += max(0.0, self._delay_s + _dice.uniform(-self._jitter_s, self._jitter_s))
        for fault in sorted(due, key=lambda fault: fault.at):
            place = fault.at - start
            if fault.kind == "truncate":
                return at, data[:place], True
            data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        return at, data, False


class Flow:
    """One direction of one connection: a thread takes pieces in, another lets them go when their time has come."""

    def __init__(self, source: socket.socket, sink: socket.socket, way: Way, connection: "Connection") -> None:
        self._source, self._sink, self._way, self._connection = source, sink, way, connection
        self._queue: deque[tuple[float, bytes | End]] = deque()
        self._queued = 0
        self._last = 0.0
        self._early_s = 0.0
        self._changed = threading.Condition()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._take_in, self._let_go)]

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _take_in(self) -> None:
        try:
            while data := self._source.recv(self._way.piece_bytes):
                if self._connection.silent:
                    continue
                at, data, ends = self._way.enter(data)
                self._put(at, data)
                if ends:
                    self._put(at, "close")
                    return
            self._put(self._way.enter(b"")[0], "end")
        except OSError:
            self._put(self._way.enter(b"")[0], "reset")
        finally:
            self._connection.left()

    def _put(self, at: float, data: bytes | End) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._connection.over or self._queued < self._way.queue_bytes)
            self._last = max(at, self._last)  # jitter changes no order
            self._queue.append((self._last, data))
            self._queued += len(data)
            self._changed.notify_all()

    def _let_go(self) -> None:
        try:
            while not self._connection.over:
                data = self._next()
                if isinstance(data, bytes):
                    self._send(data)
                else:
                    self._finish(data)
                    return
        except OSError:
            self._connection.end("reset")
        finally:
            self._connection.left()

    def _next(self) -> bytes | End:
        """The next piece, when its time has come. A thread wakes late, so it aims early by how late it was before."""
        wait_s: float | None = None
        with self._changed:
            while not self._connection.over:
                due_s = self._due_s()
                if due_s is not None and due_s <= self._early_s:
                    if wait_s is not None:
                        self._early_s = min(MOST_EARLY_S, max(0.0, self._early_s - LEARNED * due_s))
                    _, data = self._queue.popleft()
                    self._queued -= len(data)
                    self._changed.notify_all()
                    return data
                wait_s = None if due_s is None else due_s - self._early_s
                self._changed.wait(wait_s)
        return "close"

    def _due_s(self) -> float | None:
        """How long the next piece has to stay, or None if there is none."""
        return max(self._queue[0][0], self._connection.held_until()) - time.monotonic() if self._queue else None

    def _send(self, data: bytes) -> None:
        left = memoryview(data)
        while left and not (self._connection.over or self._connection.silent):
            with suppress(BlockingIOError):  # nothing left for `POLL_S`
                left = left[self._sink.send(left) :]

    def _finish(self, end: End) -> None:
        if self._connection.silent:
            self._connection.ended()
        elif end == "end":
            self._sink.shutdown(socket.SHUT_WR)
            self._connection.ended()
        else:
            self._connection.end(end)


class Connection:
    """A caller's connection and ours to the target. Whichever thread leaves last closes both."""

    def __init__(
        self,
        caller: socket.socket,
        target: socket.socket,
        ways: Mapping[Direction, Way],
        *,
        held_until: Callable[[], float],
        forget: Callable[["Connection"], None],
    ) -> None:
        self.over = self.silent = False
        self.held_until = held_until
        self._forget, self._ends = forget, (caller, target)
        self._how: End = "close"
        self._lock = threading.Lock()
        self._flows = (Flow(caller, target, ways["to-target"], self),
                       Flow(target, caller, ways["to-caller"], self))  # fmt: skip
        self._inside, self._ended = 4, 0
        for end in self._ends:
            end.settimeout(None)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, round(POLL_S * 1e6)))

    def start(self) -> None:
        for flow in self._flows:
            for thread in flow.threads:
                thread.start()

    def ended(self) -> None:
        """One direction has come to its end."""
        with self._lock:
            self._ended += 1
            both = self._ended == len(self._flows)
        if both:
            self.end("close")

    def cut(self, *, silently: bool) -> None:
        if silently:
            self.silent = True
        else:
            self.end("reset")

    def end(self, how: End) -> None:
        """Wake all threads, so that they leave."""
        with self._lock:
            if self.over:
                return
            self.over, self._how = True, how
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RD)  # wakes who reads, and says nothing to the other end
        for flow in self._flows:
            flow.wake()

    def left(self) -> None:
        with self._lock:
            self._inside -= 1
            last = not self._inside
        if last:
            for end in self._ends:
                if self._how == "reset":
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.close()
            self._forget(self)

    def join(self, deadline: float) -> None:
        for flow in self._flows:
            for thread in flow.threads:
                thread.join(max(0.0, deadline - time.monotonic()))
