"""A duplex stream of Arrow Flight, made to end as a connection does: at once, at both ends, and with nothing lost.

Flight's calls block without a time limit, and only the end that called can end a stream. So a thread reads ahead,
another watches for what takes too long, and whoever leaves says so. Each message begins with a byte of its kind.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import flight

from cutlayer.errors import FrameRefused
from cutlayer.plan.limits import Limits

DATA, WORD, END = b"\0", b"\1", b"\2"
"""Bytes of frames; what is said before there are frames; nothing more comes, and nothing more is read."""
MESSAGE_BYTES = 256 * 1024
"""The most bytes of frames in a message. A link on which one takes longer than the silence limit cannot live."""
AHEAD_BYTES = 4 * 2**20
"""How much is read ahead of whoever receives; then the peer must wait."""
WORDS = 4
LINGER_S = 10.0
"""How long the peer may take to end a stream that this end has left; then it is cut."""
PART_S = 0.1
"""How long one that leaves waits for another thread that is still writing; then the stream is cut."""
ENDING_S = 0.5
"""How long closes wait in all for the end of the stream."""
_KIND_BYTES = 1
_LOOKS = 8  # in the shortest of the times that are watched over
_LONGEST_LOOK_S = 1.0

FAULTS = (pa.ArrowException, flight.FlightError, OSError, ValueError)
"""What Flight raises where a stream broke, among others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """What can be done with a stream; at the two ends it is done in different ways.

    `read` returns the next message and raises `StopIteration` at the end; `finish` says that nothing more is written;
    `cut` ends the stream at both ends and may come from any thread; `release` lets go of what is left once it is over;
    whoever closes it calls `settle` last.
    """

    read: Callable[[], memoryview]
    write: Callable[[bytes], None]
    finish: Callable[[], None]
    cut: Callable[[], None]
    release: Callable[[], None] = lambda: None
    settle: Callable[[], None] = lambda: None


class Stream:
    """One end of a stream. One thread calls `pump` until it returns; any may call the rest.

    It is cut if its opening is not over (`opened`) within `limits.handshake_timeout_s`, and if a write takes longer
    than `limits.send_timeout_s`.
    """

    def __init__(self, ends: Ends, limits: Limits, peer: str) -> None:
        self.wrote_at = self._began = time.monotonic()
        self.opened = False
        self.over = threading.Event()
        """Set when nothing more comes: the peer has ended the stream, or it broke."""
        self._ends, self._limits, self._peer = ends, limits, peer
        self._changed = threading.Condition()
        self._arrived: deque[memoryview] = deque()
        self._words: deque[bytes] = deque()
        self._ahead_bytes = 0
        self._ended = False
        self._refused = ""
        self._writing = threading.Lock()
        self._writing_since = self._left_at = 0.0
        self._broken = self._stuck = False
        self._parted = threading.Event()
        self._threads: list[threading.Thread] = []
        self._start(self._look, "watch")

    def start(self) -> None:
        """`pump`, in a thread of the stream's own."""
        self._start(self.pump, "flight")

    # ------------------------------------------------------------------ receiving

    def pump(self) -> None:
        """Reads ahead until the stream is over."""
        try:
            while not self._refused:
                self._take_in(self._ends.read())
        except (StopIteration, *FAULTS):
            pass
        finally:
            self._end()
            self._broken = True
            self.leave()
            self._parted.wait()
            with suppress(*FAULTS):
                self._ends.release()
            self.over.set()

    def word(self, timeout_s: float) -> bytes:
        """The next word of the opening. Raises `TimeoutError`; `EOFError` if the peer is gone."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._words or self._ended, timeout_s):
                raise TimeoutError
            if not self._words:
                raise EOFError
            return self._words.popleft()

    def read_into(self, view: memoryview) -> int:
        """As many bytes of frames as are there, at least one; 0 at the end.

        Raises `TimeoutError` after `limits.silence_timeout_s`; `FrameRefused` for a message that no sender of ours
        would make.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._arrived or self._ended, self._limits.silence_timeout_s):
                raise TimeoutError
            if not self._arrived:
                if self._refused:
                    raise FrameRefused(self._refused)
                return 0
            message = self._arrived[0]
            nbytes = min(len(view), len(message))
            view[:nbytes] = message[:nbytes]
            if nbytes < len(message):
                self._arrived[0] = message[nbytes:]
            else:
                self._arrived.popleft()
            self._ahead_bytes -= nbytes
            self._changed.notify_all()
            return nbytes

    def stop_reading(self) -> None:
        """Nobody wants what arrives any more. Wakes whoever waits for it."""
        with self._changed:
            self._ended = True
            self._arrived.clear()
            self._ahead_bytes = 0
            self._changed.notify_all()

    def _take_in(self, message: memoryview) -> None:
        kind, content = bytes(message[:_KIND_BYTES]), message[_KIND_BYTES:]
        if kind == END:
            self._end()
            self._broken = True
            self.leave()
        elif len(content) > MESSAGE_BYTES or kind not in (DATA, WORD):
            self._refused = f"the peer sent a message of {len(content):,} bytes; the limit is {MESSAGE_BYTES:,}"
        elif kind == WORD:
            with self._changed:
                if len(self._words) < WORDS:
                    self._words.append(bytes(content))
                self._changed.notify_all()
        elif content:
            self._put(content)

    def _put(self, content: memoryview) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._ahead_bytes < AHEAD_BYTES)
            if not self._ended:
                self._arrived.append(content)
                self._ahead_bytes += len(content)
                self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    # ------------------------------------------------------------------ sending

    @property
    def writing(self) -> bool:
        """Whether somebody writes just now."""
        return self._writing.locked()

    def write(self, messages: Iterable[bytes]) -> None:
        """Hands all of them to gRPC. Raises `OSError`; `TimeoutError` if that took longer than the limit."""
        with self._writing:
            if self._left_at:
                raise BrokenPipeError
            self._write(messages)

    def _write(self, messages: Iterable[bytes]) -> None:
        self._writing_since = time.monotonic()
        try:
            for message in messages:
                if self._broken:
                    raise BrokenPipeError
                self._ends.write(message)
                self.wrote_at = time.monotonic()
        except FAULTS as error:
            self._broken = True
            if self._stuck:
                raise TimeoutError from error
            raise BrokenPipeError from error
        finally:
            self._writing_since = 0.0

    # ------------------------------------------------------------------ the end

    def leave(self, last: tuple[bytes, ...] = (), timeout_s: float = 0.0) -> None:
        """Says that this end leaves, after a `last` word. Returns when it was said, or after so long. Idempotent."""
        with self._changed:
            first, self._left_at = not self._left_at, self._left_at or time.monotonic()
        if first:
            self._start(lambda: self._part(last), "leave")
        self._parted.wait(timeout_s)

    def close(self) -> None:
        """`leave`, and wait a moment for the end of the stream. Idempotent."""
        self.leave()
        if self.over.wait(max(0.0, self._left_at + ENDING_S - time.monotonic())):
            for thread in self._threads:
                thread.join()
            self._ends.settle()

    def _start(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, daemon=True, name=f"cutlayer-{name}-{self._peer}")
        thread.start()
        self._threads.append(thread)

    def _part(self, last: tuple[bytes, ...]) -> None:
        if not self._writing.acquire(timeout=PART_S):
            self._ends.cut()
            self._writing.acquire()
        with suppress(*FAULTS):
            self._write((*last, END))
        with suppress(*FAULTS):
            self._ends.finish()
        self._broken = True
        self._writing.release()
        self._parted.set()

    def _look(self) -> None:
        limits = self._limits
        shortest_s = min(limits.send_timeout_s, limits.handshake_timeout_s, LINGER_S)
        while not self.over.wait(min(_LONGEST_LOOK_S, shortest_s / _LOOKS)):
            now, since = time.monotonic(), self._writing_since
            stuck = since > 0 and now - since > limits.send_timeout_s
            late = not self.opened and now - self._began > limits.handshake_timeout_s
            lingers = self._left_at > 0 and now - self._left_at > LINGER_S
            self._stuck = self._stuck or stuck
            if stuck or late or lingers:
                with suppress(*FAULTS):
                    self._ends.cut()
