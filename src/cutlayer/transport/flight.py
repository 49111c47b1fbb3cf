"""Frames over Arrow Flight (gRPC), for networks that let only HTTP/2 through. Slower than lanes; see docs/flight.md.

A link is one `DoExchange` stream, under the same `Link` as two lanes: numbered frames, heartbeats, a new stream where
one broke.
"""

from cutlayer.transport.flight_dialler import dial_flight
from cutlayer.transport.flight_listener import FlightListener

__all__ = ["FlightListener", "dial_flight"]
