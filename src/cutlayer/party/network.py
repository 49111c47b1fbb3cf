"""Where a party is reached or dials, and with which keys."""

from dataclasses import dataclass
from typing import Any, Literal, cast

from cutlayer.errors import ChannelError, ChannelTimeout, PlanError
from cutlayer.party.sealed import Seals
from cutlayer.transport.dialler import dial
from cutlayer.transport.link import Link
from cutlayer.transport.listener import Listener
from cutlayer.transport.tls import KeyFiles

Address = tuple[str, int]
Transport = Literal["lanes", "flight"]
"""How frames travel; see docs/flight.md. It changes no bit of what they carry, so a party's own file says which. Both
ends of a link must say the same."""


EXPLAIN_S = 5.0
"""How long it may take to find out why nobody answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """Where a party is reached or dials, and what it shows. Servers `listen`, clients `connect`.

    Addresses default to the plan's. Without credentials nothing is encrypted: on loopback only, and only if
    `insecure_plaintext_on_loopback` says so.
    """

    credentials: KeyFiles | None
    seals: Seals | None = None
    """The party's hand at sealing (`keys.sealing.load_sealer`), where the plan has states forwarded."""
    listen: Address | None = None
    connect: Address | None = None
    insecure_plaintext_on_loopback: bool = False
    transport: Transport = "lanes"

    def listener(self, address: Address, **options: Any) -> Listener:
        """One for the party, with these options of `Listener`. Raises `ChannelError`, `CredentialError`."""
        if self.transport == "flight":
            from cutlayer.transport.flight import FlightListener  # gRPC is loaded only where it is used

            return cast(Listener, FlightListener(address, self.credentials, **options))
        return Listener(address, self.credentials, **options)

    def dial(self, address: Address, **options: Any) -> Link:
        """A link to a listener, with these options of `dial`. Raises `ChannelError`, `CredentialError`."""
        if self.transport == "flight":
            from cutlayer.transport.flight import dial_flight

            return dial_flight(address, self.credentials, **options)
        try:
            return dial(address, self.credentials, **options)
        except ChannelTimeout as error:
            self._explain(address, options["peer"], error)
            raise

    def _explain(self, address: Address, peer: str, error: ChannelTimeout) -> None:
        """Raises a `ChannelError` if nobody answered over lanes because Flight is spoken there."""
        from cutlayer.transport.flight_dialler import answers_flight

        if self.credentials is None or not answers_flight(address, self.credentials, peer, EXPLAIN_S):
            return
        raise ChannelError(
            f"{peer} speaks Flight, not lanes: both ends of a link need the same transport; "
            'write transport = "flight" in this party\'s own file too'
        ) from error


def address_of(text: str, party: str) -> Address:
    """Host and port of `host:port`. Raises `PlanError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise PlanError(f"{text!r} is no address for {party}: write host:port, such as lab.example.org:7443")
    return host.strip("[]"), int(port)
