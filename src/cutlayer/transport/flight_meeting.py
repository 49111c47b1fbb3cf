"""Where a party's Flight stream becomes its link, or takes up the one that broke: `Meeting`, with one stream for two
connections."""

from collections.abc import Callable

from cutlayer.plan.limits import Limits
from cutlayer.transport.flight_lanes import flight_lanes
from cutlayer.transport.flight_stream import Stream
from cutlayer.transport.flight_words import said
from cutlayer.transport.link import Link
from cutlayer.transport.meeting import Meeting, UnwelcomeError
from cutlayer.transport.opening import Answer, Opening


class FlightMeeting(Meeting):
    """See `Meeting`; nothing waits here for another half."""

    def __init__(self, party: str, limits: Limits, *, on_trouble: Callable[[str], None]) -> None:
        super().__init__(party, limits, release=lambda connection: None, on_trouble=on_trouble)

    def enter(self, stream: Stream, opening: Opening) -> None:
        """Answers, and makes a link of the stream. Raises `UnwelcomeError`; `OSError` if the peer is gone."""
        with self._lock:
            if self._closed:
                raise UnwelcomeError("the listener was closed", passing=True)
            newest, older = self._links.get(opening.party, (-1, None))
            if older and older.open and opening.incarnation <= newest:
                raise UnwelcomeError("a newer link of this party is already open", passing=True)
            if opening.resumes and not (older and older.life == opening.life and older.fits(opening.received)):
                raise UnwelcomeError("its process is a new one, or it has given up the run")
            received = older.received if older and opening.resumes else 0
            stream.write([said(Answer(self._party, received=received))])
            stream.opened = True
            pair = flight_lanes(stream, self._limits, self._pool)
            if older and opening.resumes:
                self._links[opening.party] = opening.incarnation, older
                older.attach(pair, opening.received)
                return
            if older:
                older.end(f"{opening.party} opened a newer link in this one's place")
            link = Link(opening.party, opening.life, pair, self._limits)
            link.on_trouble = self._on_trouble
            self._links[opening.party] = opening.incarnation, link
            self._arrived.put(link)
