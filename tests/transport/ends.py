"""Both ends of a link by way of a relay, and how to wait for what happens there."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cutlayer.keys import load_credentials
from cutlayer.plan.limits import Limits
from cutlayer.transport import Link, Listener, dial
from transport.relay import Relay

LIMITS = Limits(silence_timeout_s=10.0, send_timeout_s=10.0, handshake_timeout_s=5.0, reconnect_timeout_s=10.0)


@dataclass
class Ends:
    """A link by way of a relay: hospital-a's end and lab's, and what each was told of troubles."""

    client: Link
    server: Link
    relay: Relay
    listener: Listener
    told: list[str]
    heard: list[str]


Connect = Callable[..., Ends]


def dial_lab(kit: Path, port: int, limits: Limits) -> Link:
    credentials = load_credentials(kit, "hospital-a")
    return dial(("127.0.0.1", port), credentials, party="hospital-a", peer="lab", limits=limits)


def until(holds: Callable[[], object], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)
