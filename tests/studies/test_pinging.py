"""Who asks measures what the link is; who answers says no more than was asked; strangers to the words are refused."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import pytest

from cutlayer.errors import RemoteProtocolError
from cutlayer.plan.limits import Limits
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.messages import Ping
from cutlayer.protocol.wire import Frame, encode
from cutlayer.studies import ping
from cutlayer.transport.channel import Channel
from cutlayer.transport.memory import pair

LIMITS = Limits(silence_timeout_s=5.0)
WAIT_S = 20.0


@dataclass
class Slow:
    """A channel whose frames take as long as on a link of so many bytes a second, and so long a way."""

    channel: Channel
    bytes_per_s: float
    delay_s: float

    @property
    def peer(self) -> str:
        return self.channel.peer

    def send(self, frame: Frame) -> int:
        time.sleep(self.delay_s + frame.body_bytes / self.bytes_per_s)
        return self.channel.send(frame)

    def receive(self, limit_bytes: int) -> Frame:
        return self.channel.receive(limit_bytes)


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping, "LONG_ENOUGH_S", 0.1)
    monkeypatch.setattr(ping, "ROUND_TRIPS", 5)


@pytest.mark.usefixtures("shorter")
def test_rate_and_round_trip_are_those_of_the_link_in_each_direction() -> None:
    client, server = pair("hospital-a", "lab", LIMITS)
    up, down = Slow(client, 4e6, 0.02), Slow(server, 1e6, 0.03)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(ping.answer, down)  # type: ignore[arg-type]
        found = ping.measure(up, "hospital-a")  # type: ignore[arg-type]
        assert told.result(WAIT_S) == found
    assert (found.dialler, found.listener) == ("hospital-a", "lab")
    assert found.rtt_s == pytest.approx(0.05, rel=0.3)
    assert found.up_bytes_per_s == pytest.approx(4e6, rel=0.35)
    assert found.down_bytes_per_s == pytest.approx(1e6, rel=0.35)
    assert found.lowest_rtt_s <= found.rtt_s


def spoken(words: Callable[[Channel], object], listening: Callable[[Channel], object]) -> None:
    client, server = pair("hospital-a", "lab", LIMITS)
    speaking = threading.Thread(target=words, args=(client,))
    speaking.start()
    try:
        with pytest.raises(RemoteProtocolError):
            listening(server)
    finally:
        client.close()
        server.close()
        speaking.join(WAIT_S)


def test_a_peer_that_runs_something_else_is_refused_with_what_to_do() -> None:
    client, server = pair("hospital-a", "lab", LIMITS)
    client.send(encode(Ping()))
    client.send(Frame(msgspec.msgpack.encode({"type": "hello"})))
    with pytest.raises(RemoteProtocolError, match="`cutlayer ping` runs at both ends"):
        ping.answer(server)


@pytest.mark.parametrize(
    "word",
    [
        ping.Ask(ping.VERSION + 1, 1, 0),
        ping.Answer(1),
        msgspec.structs.replace(ping.Ask(ping.VERSION, 1, 0), answer_bytes=ping.LARGEST_BYTES + 1),
    ],
)
def test_who_answers_refuses_other_versions_words_and_sizes(word: msgspec.Struct) -> None:
    spoken(lambda channel: channel.send(encode(word)), ping.answer)


def test_an_answer_to_something_else_is_refused() -> None:
    def lie(channel: Channel) -> None:
        channel.receive(ping.LARGEST_BYTES)
        shape = TensorShape("uint8", (64,))
        channel.send(encode(ping.Answer(1, (shape,)), (memoryview(bytes(64)),)))

    spoken(lie, lambda channel: ping.measure(channel, "lab"))
