"""A list of points or codes that comes in parts."""

import numpy as np

from cutlayer.data.align import Bytes2d
from cutlayer.errors import RemoteProtocolError
from cutlayer.protocol.aligning import PART_ROWS


class Rows:
    """A list from one party, `[count, width]`, as far as it has come."""

    def __init__(self, sender: str, what: str, count: int, width: int) -> None:
        self.data: Bytes2d = np.empty((count, width), np.uint8)
        self.count = count
        self._sender, self._what, self._width = sender, what, width
        self._taken = self._put = 0

    def take(self, body: memoryview) -> slice:
        """Where the part belongs. Raises `RemoteProtocolError` if it is none, or more than was announced."""
        rows, rest = divmod(body.nbytes, self._width)
        if rest or rows > PART_ROWS or (not rows and self.count):
            raise RemoteProtocolError("parts", self._sender, f"{body.nbytes:,} bytes are no part of {self._what}")
        place = slice(self._taken, self._taken + rows)
        if place.stop > self.count:
            raise RemoteProtocolError(
                "sizes", self._sender, f"{self._what} is longer than the {self.count:,} that were announced"
            )
        self._taken = place.stop
        return place

    def put(self, place: slice, rows: Bytes2d) -> bool:
        """Whether that was the last part."""
        self.data[place] = rows
        self._put += len(rows)
        return self.full

    @property
    def full(self) -> bool:
        return self._put == self.count

    def drop(self) -> None:
        """The rows are needed no more; that they came is still known."""
        self.data = self.data[:0].copy()
