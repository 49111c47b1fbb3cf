"""What this end of a link has sent and the peer has not acknowledged: kept, in case it must be sent again."""

from collections import deque

from cutlayer.errors import FrameRefused
from cutlayer.protocol.wire import Frame


class Outbox:
    """Frames, numbered from 1 in the order they were sent. It keeps references, never copies. Not thread-safe.

    >>> outbox = Outbox(frames=2, nbytes=1000)
    >>> outbox.put(Frame(b"one"), 35), outbox.put(Frame(b"two"), 35)
    (1, 2)
    >>> outbox.has_room(1)
    False
    >>> outbox.take()[1]
    1
    >>> outbox.acknowledge(1)
    >>> outbox.has_room(1), outbox.written, outbox.numbered
    (True, 1, 2)
    """

    def __init__(self, *, frames: int, nbytes: int) -> None:
        self.numbered = 0
        self.written = 0
        """The last number that was written on the connection that stands now."""
        self.acknowledged = 0
        self.reached = 0
        """The last number that was written on any connection."""
        self.resent_bytes = 0
        self._frames: deque[tuple[Frame, int]] = deque()  # each with its bytes
        self._nbytes = 0
        self._most_frames, self._most_bytes = frames, nbytes

    @property
    def flushed(self) -> bool:
        """Whether everything has been written on the connection that stands now."""
        return self.written == self.numbered

    def has_room(self, nbytes: int) -> bool:
        """Whether a frame of `nbytes` may be put: one always may."""
        if not self._frames:
            return True
        return len(self._frames) < self._most_frames and self._nbytes + nbytes <= self._most_bytes

    def put(self, frame: Frame, nbytes: int) -> int:
        """Keeps a frame of `nbytes` and returns its number."""
        self._frames.append((frame, nbytes))
        self._nbytes += nbytes
        self.numbered += 1
        return self.numbered

    def take(self) -> tuple[Frame, int]:
        """The next frame to write, and its number, which is `written` from then on."""
        frame, nbytes = self._frames[self.written - self.acknowledged]
        self.written += 1
        if self.written > self.reached:
            self.reached = self.written
        else:
            self.resent_bytes += nbytes
        return frame, self.written

    def acknowledge(self, number: int) -> None:
        """Lets go of all frames up to this one. Raises `FrameRefused` for one that was never written."""
        if number > self.reached:
            raise FrameRefused(f"the peer acknowledged frame {number:,}, and {self.reached:,} were sent")
        while self.acknowledged < number:
            self._nbytes -= self._frames.popleft()[1]
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
        self._frames.clear()
        self._nbytes = 0
        self.acknowledged = self.written = self.numbered
