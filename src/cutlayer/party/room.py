"""How much of one link may lie in a party's inbox."""

import threading


class Room:
    """Room for so many frames, and so many bytes of them; whatever its size, one frame fits into an empty room.

    A frame's bytes are known only when it has come, so that the last one may go beyond `nbytes`.
    """

    def __init__(self, frames: int, nbytes: int) -> None:
        self._frames, self._nbytes = frames, nbytes
        self._left = threading.Condition()
        self._inside = self._inside_bytes = 0

    def wait(self, timeout_s: float) -> bool:
        """Whether there is room for one more frame within this time."""
        with self._left:
            return self._left.wait_for(self._has_room, timeout_s)

    def _has_room(self) -> bool:
        return self._inside < self._frames and (self._inside_bytes < self._nbytes or not self._inside)

    def enter(self, nbytes: int) -> None:
        with self._left:
            self._inside += 1
            self._inside_bytes += nbytes

    def leave(self, nbytes: int) -> None:
        with self._left:
            self._inside -= 1
            self._inside_bytes -= nbytes
            self._left.notify()
