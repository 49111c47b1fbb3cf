"""Flight: who is let in, by name and by key; how a stream breaks and is replaced; what it refuses."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from pyarrow import flight

from cutlayer.errors import ChannelClosed, ChannelError, ChannelTimeout, CredentialError, FrameRefused, PlanError
from cutlayer.keys import Credentials, load_credentials, make_request, public_pin, sign_request
from cutlayer.party.local import read_party_file
from cutlayer.party.network import Network
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import Frame
from cutlayer.transport import Link, Listener, flight_listener
from cutlayer.transport import flight_stream as streams
from cutlayer.transport.flight import FlightListener, dial_flight
from cutlayer.transport.flight_proof import Challenge, Proof, challenge, fault_of, own_key, prove
from cutlayer.transport.flight_words import command_of, read_reply, said
from cutlayer.transport.opening import Opening
from transport.ends import until
from transport.relay import Relay

Listen = Callable[..., FlightListener]
LOOPBACK = "127.0.0.1"
STEADY = Limits(silence_timeout_s=10.0, send_timeout_s=10.0, handshake_timeout_s=5.0, reconnect_timeout_s=10.0)


@pytest.fixture
def listen(kit: Path, limits: Limits) -> Iterator[Listen]:
    with ExitStack() as opened:

        def start(**options: Any) -> FlightListener:
            options = {"party": "lab", "allowed": ["hospital-a", "hospital-b"], "limits": limits, **options}
            return opened.enter_context(closing(FlightListener((LOOPBACK, 0), load_credentials(kit, "lab"), **options)))

        yield start


def call(listener: FlightListener, kit: Path, limits: Limits, party: str = "hospital-a", **options: Any) -> Link:
    return dial_flight(
        (LOOPBACK, options.pop("port", listener.port)),
        load_credentials(kit, party),
        party=options.pop("name", party),
        peer=options.pop("peer", "lab"),
        limits=limits,
        **options,
    )


def reason(listener: FlightListener) -> str:
    until(lambda: listener.refused)
    return listener.refused[0].reason


def second_key(kit: Path, folder: Path, party: str) -> Path:
    """Another key for a party, which the same authority has signed too."""
    sign_request(make_request(folder, party), kit / "authority")
    return folder


# ---------------------------------------------------------------------- who is let in


def test_a_pinned_key_lets_in_only_its_holder(listen: Listen, kit: Path, limits: Limits, tmp_path: Path) -> None:
    listener = listen(pins={"hospital-a": public_pin(kit / "hospital-a.crt")})
    call(listener, kit, limits).close()
    with pytest.raises(CredentialError, match="another public key than the one pinned for hospital-a"):
        call(listener, second_key(kit, tmp_path, "hospital-a"), limits)
    assert "another public key" in reason(listener)


def test_a_pinned_lab_must_show_that_key(listen: Listen, kit: Path, limits: Limits) -> None:
    pins = {"lab": public_pin(kit / "hospital-b.crt")}
    with pytest.raises(CredentialError, match="another public key than the one pinned for lab"):
        call(listen(), kit, limits, pins=pins)


def test_a_certificate_is_good_for_its_own_name_only(listen: Listen, kit: Path, limits: Limits) -> None:
    listener = listen()
    with pytest.raises(CredentialError, match="its certificate names hospital-b first, not hospital-a"):
        call(listener, kit, limits, "hospital-b", name="hospital-a")
    with pytest.raises(CredentialError, match="bears another name"):
        call(listener, kit, limits, peer="clinic")


def test_who_is_no_party_of_the_plan_is_refused(listen: Listen, kit: Path, limits: Limits) -> None:
    with pytest.raises(CredentialError, match="'visitor' is none of the parties that lab waits for"):
        call(listen(), kit, limits, "visitor")


def test_another_authority_is_refused(listen: Listen, foreign_kit: Path, limits: Limits) -> None:
    with pytest.raises(CredentialError, match="was not signed by our authority"):
        call(listen(), foreign_kit, limits)


def test_an_expired_certificate_is_refused_with_the_reason(
    listen: Listen, kit: Path, limits: Limits, tmp_path: Path
) -> None:
    sign_request(make_request(tmp_path, "hospital-a"), kit / "authority", days=0)
    files = [tmp_path / "hospital-a.key", tmp_path / "hospital-a.crt", kit / "ca.crt"]
    expired = Credentials(party="hospital-a", key=files[0], certificate=files[1], authority=files[2])
    brief = replace(limits, join_timeout_s=0.2)
    with pytest.raises(ChannelTimeout, match="lab hung up when it saw our certificate: has it expired"):
        dial_flight((LOOPBACK, listen().port), expired, party="hospital-a", peer="lab", limits=brief)


def test_a_proof_is_good_for_one_challenge_one_listener_and_one_opening(kit: Path, tmp_path: Path) -> None:
    opening, asked = Opening("hospital-a", "to-listener", 1, bytes(16)), challenge()
    ours = load_credentials(kit, "hospital-a")
    key, other_key = own_key(load_credentials(kit, "lab")), own_key(load_credentials(kit, "hospital-b"))
    proof = prove(ours, "lab", key, asked, opening)

    def fault(shown: Proof = proof, pins: dict[str, str] | None = None, **changes: Any) -> str:
        asking: dict[str, Any] = {"listener": "lab", "listener_key": key, "challenge": asked, "opening": opening}
        return fault_of(shown, pins=pins or {}, **(asking | changes))

    assert fault(pins={"hospital-a": public_pin(kit / "hospital-a.crt")}) == ""
    unproven = "it did not prove that it has the key of its certificate"
    assert fault(challenge=challenge()) == unproven
    assert fault(listener="clinic") == fault(listener_key=other_key) == unproven
    assert fault(opening=structs.replace(opening, received=5)) == unproven
    stranger = prove(
        load_credentials(second_key(kit, tmp_path, "hospital-a"), "hospital-a"), "lab", key, asked, opening
    )
    assert fault(structs.replace(stranger, certificate=proof.certificate)) == unproven


class Switch(Relay):
    """Leads the first connection to one listener, and all others to another."""

    def __init__(self, first: int, then: int) -> None:
        self._targets = [first]
        super().__init__(then)

    def __getattribute__(self, name: str) -> Any:
        if name == "target" and self._targets:
            return self._targets.pop()
        return super().__getattribute__(name)


def test_nobody_takes_the_pinned_labs_place_once_it_was_looked_at(
    listen: Listen, kit: Path, limits: Limits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight_listener, "fault_of", lambda proof, **asked: "")  # who wants to be lab asks nothing
    forged = load_credentials(second_key(kit, tmp_path, "lab"), "lab")
    forger = FlightListener((LOOPBACK, 0), forged, party="lab", allowed=["hospital-a"], limits=limits)
    pins = {"lab": public_pin(kit / "lab.crt")}
    with closing(forger), closing(Switch(listen().port, forger.port)) as relay:
        with pytest.raises(CredentialError, match="another public key than the one pinned for lab"):
            call(forger, kit, limits, port=relay.port, pins=pins)
        assert not relay._targets
        with pytest.raises(ChannelTimeout):
            forger.accept(0.2)


def test_plain_text_on_loopback_takes_names_as_claimed(limits: Limits) -> None:
    plain: dict[str, Any] = {"limits": limits, "insecure_plaintext_on_loopback": True}
    with pytest.raises(CredentialError, match="plain text is for loopback addresses only"):
        FlightListener(("0.0.0.0", 0), None, party="lab", allowed=[], **plain)  # noqa: S104
    with closing(FlightListener((LOOPBACK, 0), None, party="lab", allowed=["a"], **plain)) as listener:
        client = dial_flight((LOOPBACK, listener.port), None, party="a", peer="lab", **plain)
        with closing(client), closing(listener.accept(2.0)) as server:
            client.send(Frame(b"x", (memoryview(bytes(700_000)),)))
            assert (server.peer, server.receive(700_000).body_bytes) == ("a", 700_000)


def test_a_port_that_is_taken_is_named(listen: Listen, kit: Path, limits: Limits) -> None:
    taken = listen().port
    with pytest.raises(ChannelError, match=f"cannot listen at 127.0.0.1:{taken}: Address already in use"):
        FlightListener((LOOPBACK, taken), load_credentials(kit, "lab"), party="lab", allowed=[], limits=limits)


# ---------------------------------------------------------------------- both ends use the same transport


def test_a_flight_dialler_is_told_that_lanes_are_spoken(kit: Path, limits: Limits) -> None:
    lab = load_credentials(kit, "lab")
    network = Network(credentials=load_credentials(kit, "hospital-a"), transport="flight")
    with (
        closing(Listener((LOOPBACK, 0), lab, party="lab", allowed=["hospital-a"], limits=limits)) as listener,
        pytest.raises(ChannelError, match=r'lab does not speak Flight.* transport = "flight" in its own file'),
    ):
        network.dial((LOOPBACK, listener.port), party="hospital-a", peer="lab", limits=limits)


def test_a_dialler_of_lanes_is_told_that_flight_is_spoken(listen: Listen, kit: Path, limits: Limits) -> None:
    network = Network(credentials=load_credentials(kit, "hospital-a"))
    address, brief = (LOOPBACK, listen().port), replace(limits, join_timeout_s=0.3)
    with pytest.raises(ChannelError, match=r'lab speaks Flight, not lanes.* transport = "flight" in this party'):
        network.dial(address, party="hospital-a", peer="lab", limits=brief)


# ---------------------------------------------------------------------- how a stream breaks


def test_every_frame_arrives_once_though_the_connection_is_cut(listen: Listen, kit: Path) -> None:
    listener = listen(limits=STEADY)
    with (
        closing(Relay(listener.port)) as relay,
        closing(call(listener, kit, STEADY, port=relay.port)) as client,
        closing(listener.accept(5.0)) as server,
    ):
        for number in range(60):
            client.send(Frame(b"%d" % number, (memoryview(bytes(50_000)),)))
            server.send(Frame(b"back %d" % number))
            if number in (20, 40):
                relay.cut(reset=number == 20)
            frame = server.receive(50_000)
            assert (frame.header, frame.body_bytes) == (b"%d" % number, 50_000)
            assert client.receive(0).header == b"back %d" % number


def test_a_network_that_swallows_everything_is_silence(listen: Listen, kit: Path, limits: Limits) -> None:
    listener = listen(limits=replace(limits, reconnect_timeout_s=0.0))
    with (
        closing(Relay(listener.port)) as relay,
        closing(call(listener, kit, limits, port=relay.port)),
        closing(listener.accept(5.0)) as server,
    ):
        relay.swallow()
        started = time.monotonic()
        with pytest.raises(ChannelTimeout, match=r"hospital-a was silent for 0\.5 s"):
            server.receive(0)
        assert time.monotonic() - started < limits.silence_timeout_s + 1.5


CALLER = """
import sys, time
from pathlib import Path
from cutlayer.keys import load_credentials
from cutlayer.plan.limits import Limits
from cutlayer.transport.flight import dial_flight
kit, port = Path(sys.argv[1]), int(sys.argv[2])
link = dial_flight(("127.0.0.1", port), load_credentials(kit, "hospital-a"), party="hospital-a", peer="lab",
                   limits=Limits(silence_timeout_s=0.5))
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("strike", [signal.SIGSTOP, signal.SIGKILL])
def test_a_party_that_freezes_or_dies_is_lost_and_its_stream_is_cut(
    listen: Listen, kit: Path, limits: Limits, strike: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LINGER_S", 0.5)
    listener = listen()
    process = subprocess.Popen([sys.executable, "-c", CALLER, str(kit), str(listener.port)])
    try:
        with closing(listener.accept(30.0)) as server:
            os.kill(process.pid, strike)
            started = time.monotonic()
            with pytest.raises((ChannelTimeout, ChannelClosed), match="the link did not stand again"):
                server.receive(0)
            assert time.monotonic() - started < limits.silence_timeout_s + limits.reconnect_timeout_s + 1.5
        until(lambda: not listener._streams)  # Flight's thread has left, though a frozen caller ends nothing
    finally:
        process.kill()
        process.wait()


def test_who_calls_and_says_nothing_is_cut(listen: Listen, kit: Path, limits: Limits) -> None:
    listener = listen(limits=replace(limits, handshake_timeout_s=0.3))
    with closing(Raw(listener, kit)) as raw:
        assert isinstance(raw.ask(), Challenge)
        assert reason(listener) == "it hung up, or took over 0.3 s"
        until(lambda: not listener._streams)


# ---------------------------------------------------------------------- what is refused


class Raw:
    """hospital-a without our dialler: a stream on which a test writes what it likes."""

    def __init__(self, listener: FlightListener, kit: Path) -> None:
        self.files = load_credentials(kit, "hospital-a")
        certificate, key, authority = (
            path.read_bytes() for path in (self.files.certificate, self.files.key, self.files.authority)
        )
        self._client = flight.FlightClient(
            f"grpc+tls://{LOOPBACK}:{listener.port}",
            tls_root_certs=authority,
            cert_chain=certificate,
            private_key=key,
            override_hostname="lab",
        )
        self.opening = Opening("hospital-a", "to-listener", 1, bytes(16))

    def call(self, command: bytes) -> None:
        self.writer, self.reader = self._client.do_exchange(flight.FlightDescriptor.for_command(command))

    def ask(self) -> Any:
        self.call(command_of(self.opening))
        return self.hear()

    def hear(self) -> Any:
        return read_reply(bytes(self.reader.read_chunk().app_metadata)[1:])

    def open(self, kit: Path) -> None:
        proof = prove(self.files, "lab", own_key(load_credentials(kit, "lab")), self.ask(), self.opening)
        self.writer.write_metadata(said(proof))
        assert self.hear().refusal == ""

    def close(self) -> None:
        self.reader.cancel()
        with pytest.raises(flight.FlightError):
            self.writer.close()
        self._client.close()


def test_what_is_no_opening_is_turned_away(listen: Listen, kit: Path) -> None:
    listener = listen()
    with closing(Raw(listener, kit)) as raw:
        raw.call(bytes(2000))
        assert reason(listener) == "it opened the stream with no opening of ours"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (streams.DATA + bytes(streams.MESSAGE_BYTES + 1), "message of 262,145 bytes; the limit is 262,144"),
        (streams.DATA + b"GET / HTTP/1.1\r\nHost: lab.example.org\r\n\r\n", "bytes that are no frame"),
        (streams.DATA + Frame(b"", (memoryview(bytes(1001)),)).prelude(1), "body of 1,001 bytes; the limit is 1,000"),
    ],
)
def test_what_no_sender_of_ours_would_send_is_refused(listen: Listen, kit: Path, message: bytes, told: str) -> None:
    listener = listen(limits=STEADY)
    with closing(Raw(listener, kit)) as raw:
        raw.open(kit)
        with closing(listener.accept(5.0)) as server:
            raw.writer.write_metadata(message)
            with pytest.raises(FrameRefused, match=told):
                server.receive(1000)


def test_a_dialler_takes_no_larger_message_than_ours(listen: Listen, kit: Path) -> None:
    brief = replace(STEADY, reconnect_timeout_s=0.0)
    listener = listen(limits=brief)
    with closing(call(listener, kit, brief)) as client, closing(listener.accept(5.0)):
        (stream,) = listener._streams
        stream.write([streams.DATA + bytes(2 * streams.MESSAGE_BYTES)])  # gRPC itself refuses it
        with pytest.raises(ChannelClosed, match="lab is gone"):
            client.receive(10**9)


def test_no_more_strangers_wait_than_the_limit_says(listen: Listen, kit: Path) -> None:
    listener = listen(limits=replace(STEADY, connections=1))
    with closing(Raw(listener, kit)) as first, closing(Raw(listener, kit)) as second:
        first.ask()
        second.call(command_of(second.opening))
        assert reason(listener) == "1 other connections have not said yet whose they are"


def test_a_partys_own_file_says_how_frames_travel(tmp_path: Path) -> None:
    path = tmp_path / "hospital-a.toml"
    path.write_text('data = "rows.csv"\n')
    assert read_party_file(path).transport == "lanes"
    path.write_text('data = "rows.csv"\ntransport = "flight"\n')
    assert read_party_file(path).transport == "flight"
    path.write_text('data = "rows.csv"\ntransport = "pigeon"\n')
    with pytest.raises(PlanError, match="transport"):
        read_party_file(path)
