"""Where a party's Flight stream becomes its link, or takes up the one that broke: `Meeting`, with one stream for two
connections."""

from collections.abc import Callable

from cutlayer.plan.limits import Limits
from cutlayer.transport.flight_lanes import flight_lanes
from cutlayer.transport.flight_stream import Stream
from cutlayer.transport.flight_words import said
from cutlayer.transport.meeting import Meeting, UnwelcomeError
from cutlayer.transport.opening import Opening


class FlightMeeting(Meeting):
    """See `Meeting`; nothing waits here for another half."""

    def __init__(self, party: str, limits: Limits, *, on_trouble: Callable[[str], None]) -> None:
        super().__init__(party, limits, release=lambda connection: None, on_trouble=on_trouble)

    def enter(self, stream: Stream, opening: Opening) -> None:
        """Answers, and makes a link of the stream. Raises `UnwelcomeError`; `OSError` if the peer is gone."""
        with self._lock:
            if self._closed:
                raise UnwelcomeError("the listener was closed", passing=True)
            stream.write([said(self._answer(opening))])
            stream.opened = True
            self._link(opening, flight_lanes(stream, self._limits, self._pool))
