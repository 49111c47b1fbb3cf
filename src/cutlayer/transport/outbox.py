"""What this end of a link was given to send: what waits to be written, and what the peer has not acknowledged.

A frame gets its number when it begins to be written, so urgent ones can go ahead of others that still wait. From then
on its place is fixed: it is kept, in case it must be sent again.
"""

from collections import deque
from dataclasses import dataclass

from cutlayer.errors import FrameRefused
from cutlayer.protocol.wire import Frame

RESERVE = 4
"""Urgent frames may take one part in so many more than the limits say, where the others take all of them."""


@dataclass(slots=True, eq=False)
class Posted:
    """A frame in the outbox, and its bytes on the wire."""

    frame: Frame
    nbytes: int
    urgent: bool = False
    number: int = 0
    """Its place among all that were written, from 1; 0 while it waits."""
    awaited: bool = False
    """Whether its sender stands and waits until it is written."""


class Outbox:
    """Frames that wait, and frames that are numbered from 1 as they are written, each kept until it is acknowledged.

    Ordinary frames keep their order, and so do urgent ones; an urgent one goes ahead of all ordinary ones that wait.
    It keeps references, never copies. Not thread-safe.

    >>> outbox = Outbox(frames=2, nbytes=1000)
    >>> posted = [outbox.put(Frame(b"one"), 35), outbox.put(Frame(b"two"), 35)]
    >>> outbox.has_room(1), outbox.has_room(1, urgent=True)
    (False, True)
    >>> posted.append(outbox.put(Frame(b"three"), 37, urgent=True))
    >>> outbox.take().frame.header, [each.number for each in posted]
    (b'three', [0, 0, 1])
    >>> outbox.acknowledge(1)
    >>> outbox.take().frame.header, outbox.written, outbox.flushed
    (b'one', 2, False)
    """

    def __init__(self, *, frames: int, nbytes: int) -> None:
        self.written = 0
        """The last number that was written on the connection that stands now, or is being written."""
        self.acknowledged = 0
        self.reached = 0
        """The last number that was written on any connection."""
        self.resent_bytes = 0
        self._urgent: deque[Posted] = deque()
        self._ordinary: deque[Posted] = deque()
        self._numbered: deque[Posted] = deque()
        self._nbytes = self._urgent_kept = 0
        self._most_frames, self._most_bytes = frames, nbytes

    @property
    def flushed(self) -> bool:
        """Whether nothing is left to begin on the connection that stands now."""
        return self.written == self.reached and not self._ordinary and not self._urgent

    def has_room(self, nbytes: int, *, urgent: bool = False) -> bool:
        """Whether a frame of `nbytes` may be put: one always may, and one urgent one besides."""
        frames = len(self._numbered) + len(self._urgent) + len(self._ordinary)
        if not frames or (urgent and not self._urgent_kept):
            return True
        most_frames, most_bytes = self._most_frames, self._most_bytes
        if urgent:
            most_frames, most_bytes = most_frames + most_frames // RESERVE, most_bytes + most_bytes // RESERVE
        return frames < most_frames and self._nbytes + nbytes <= most_bytes

    def put(self, frame: Frame, nbytes: int, *, urgent: bool = False) -> Posted:
        """Keeps a frame of `nbytes`."""
        posted = Posted(frame, nbytes, urgent)
        (self._urgent if urgent else self._ordinary).append(posted)
        self._urgent_kept += urgent
        self._nbytes += nbytes
        return posted

    def take(self) -> Posted:
        """The next frame to write; its number is `written` from then on."""
        if self.written < self.reached:
            posted = self._numbered[self.written - self.acknowledged]
            self.resent_bytes += posted.nbytes
        else:
            posted = (self._urgent or self._ordinary).popleft()
            self._numbered.append(posted)
            self.reached = posted.number = self.reached + 1
        self.written = posted.number
        return posted

    def acknowledge(self, number: int) -> None:
        """Lets go of all frames up to this one. Raises `FrameRefused` for one that was never written."""
        if number > self.reached:
            raise FrameRefused(f"the peer acknowledged frame {number:,}, and {self.reached:,} were sent")
        while self.acknowledged < number:
            posted = self._numbered.popleft()
            self._nbytes -= posted.nbytes
            self._urgent_kept -= posted.urgent
            self.acknowledged += 1
        self.written = max(self.written, number)  # what arrived over the older connection need not be written again

    def fits(self, received: int) -> bool:
        """Whether a peer that has received so many frames can be sent the rest."""
        return self.acknowledged <= received <= self.reached

    def go_back(self, received: int) -> int:
        """A new connection, whose other end has received so many: the rest is to be written. Returns how many again."""
        self.acknowledge(received)
        self.written = received
        return self.reached - received

    def clear(self) -> None:
        """Nothing will be sent any more."""
        for frames in (self._urgent, self._ordinary, self._numbered):
            frames.clear()
        self._nbytes = self._urgent_kept = 0
        self.acknowledged = self.written = self.reached
