"""The sending half of a link: what it has to send, the lane that it goes on, and who writes there."""

import threading

from cutlayer.plan.limits import Limits
from cutlayer.transport.lanes import SendingLane
from cutlayer.transport.outbox import Outbox, Posted


class Sending:
    """An outbox, and the lane on which its frames leave, one writer at a time.

    A writer claims a frame, writes it, and releases the lane. The link's `lock` guards all this and is held by whoever
    calls, but for `claim` and `release`; nobody holds it over a transfer. `changed` is the link's condition with it.
    """

    def __init__(self, lane: SendingLane, limits: Limits, lock: threading.Lock, changed: threading.Condition) -> None:
        self.lane: SendingLane | None = lane
        """The one that stands, unless the link is detached."""
        self.outbox = Outbox(frames=limits.queued_frames, nbytes=limits.queued_bytes)
        self._lock, self._changed = lock, changed
        self._writing: Posted | None = None
        self._waiting = 0

    @property
    def idle(self) -> bool:
        """Whether a small frame would leave at once, if this thread wrote it."""
        lane = self.lane
        return lane is not None and self._writing is None and self.outbox.flushed and lane.ready

    @property
    def settled(self) -> bool:
        """Whether all that was sent has left, but for a frame whose sender still waits for it."""
        return self.outbox.flushed and (self._writing is None or self._writing.awaited)

    @property
    def progress(self) -> int:
        """A number that grows with every frame that begins to leave or is acknowledged."""
        return self.outbox.reached + self.outbox.acknowledged

    def claim(self, posted: Posted | None, spare: Posted | None) -> tuple[SendingLane, Posted] | None:
        """The lane, and what to write on it next: what waits, in its order, until `posted` has left, or all has.

        `spare` if nothing waits. None if nothing is to be written, or the link is detached.
        """
        with self._lock:
            while self.lane is not None and not self._has_left(posted):
                if self._writing is None:
                    self._writing = spare if self.outbox.flushed else self.outbox.take()
                    return None if self._writing is None else (self.lane, self._writing)
                self.rest()
            return None

    def release(self) -> None:
        """The frame was written, or its lane broke."""
        with self._lock:
            self._writing = None
            self.rouse()

    def rest(self, timeout_s: float | None = None) -> None:
        """Until something may have changed."""
        self._waiting += 1
        try:
            self._changed.wait(timeout_s)
        finally:
            self._waiting -= 1

    def rouse(self) -> None:
        """Wakes whoever rests."""
        if self._waiting:
            self._changed.notify_all()

    def _has_left(self, posted: Posted | None) -> bool:
        return posted is not None and 0 < posted.number <= self.outbox.written and posted is not self._writing
