"""A lab that listens, with its authority; and another authority, of strangers."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest

from cutlayer.keys import load_credentials, make_demo_kit
from cutlayer.plan.limits import Limits
from cutlayer.transport import Listener
from transport.ends import LIMITS, Connect, Ends, dial_lab
from transport.relay import Relay


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_kit(tmp_path_factory.mktemp("keys"), ["lab", "hospital-a", "hospital-b", "visitor"])


@pytest.fixture(scope="session")
def foreign_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_kit(tmp_path_factory.mktemp("foreign"), ["lab", "hospital-a"])


@pytest.fixture
def limits() -> Limits:
    return Limits(
        silence_timeout_s=0.5,
        send_timeout_s=2.0,
        handshake_timeout_s=1.0,
        join_timeout_s=5.0,
        reconnect_timeout_s=1.0,
    )


@pytest.fixture
def listen(kit: Path, limits: Limits) -> Iterator[Callable[..., Listener]]:
    """Starts listeners of the lab; at the end none of them has left a thread behind."""
    listeners: list[Listener] = []

    def start(port: int = 0, limits: Limits = limits, **options: dict[str, str]) -> Listener:
        credentials = load_credentials(kit, "lab")
        allowed = ["hospital-a", "hospital-b"]
        listener = Listener(
            ("127.0.0.1", port), credentials, party="lab", allowed=allowed, limits=limits, pins=options.get("pins")
        )
        listeners.append(listener)
        return listener

    yield start
    for listener in listeners:
        listener.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("cutlayer")] == []


@pytest.fixture
def connect(listen: Callable[..., Listener], kit: Path) -> Iterator[Connect]:
    """Links of hospital-a to the lab, by way of a relay."""
    with ExitStack() as opened:

        def start(limits: Limits = LIMITS, **changes: float) -> Ends:
            limits = replace(limits, **changes)  # type: ignore[arg-type]
            listener = listen(limits=limits)
            told: list[str] = []
            heard: list[str] = []
            listener.on_trouble = heard.append
            relay = opened.enter_context(closing(Relay(listener.port)))
            client = dial_lab(kit, relay.port, limits)
            client.on_trouble = told.append
            server = listener.accept(5.0)
            for end in (client, server):
                opened.enter_context(closing(end))
            return Ends(client, server, relay, listener, told, heard)

        yield start


@pytest.fixture
def helpers() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    executor.shutdown(wait=False, cancel_futures=True)  # what a failed test left waiting ends as its links are closed
