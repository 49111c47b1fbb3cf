"""Where a party is reached or dials, and with which keys."""

from dataclasses import dataclass

from cutlayer.errors import PlanError
from cutlayer.party.sealed import Seals
from cutlayer.transport.tls import KeyFiles

Address = tuple[str, int]


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


def address_of(text: str, party: str) -> Address:
    """Host and port of `host:port`. Raises `PlanError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise PlanError(f"{text!r} is no address for {party}: write host:port, such as lab.example.org:7443")
    return host.strip("[]"), int(port)
