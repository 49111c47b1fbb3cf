"""How a party gets in: patience with a server that is late, none with one that is not who it should be."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cutlayer.errors import ChannelTimeout, CredentialError
from cutlayer.keys import load_credentials, make_request, public_pin, sign_request
from cutlayer.keys.certificates import Credentials
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import Frame
from cutlayer.transport import Channel, Listener, dial

Listen = Callable[..., Listener]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def dial_lab(port: int, kit: Path, limits: Limits, *, party: str = "hospital-a", **options: float) -> Channel:
    credentials = load_credentials(kit, party)
    return dial(("127.0.0.1", port), credentials, party=party, peer="lab", limits=limits, **options)  # type: ignore[arg-type]


def reasons(listener: Listener, count: int) -> list[str]:
    """Why the listener refused, once it has refused `count` connections."""
    for _ in range(200):
        if len(listener.refused) >= count:
            break
        time.sleep(0.01)
    return [refusal.reason for refusal in listener.refused]


def test_dialling_before_the_listener_is_up_succeeds(listen: Listen, kit: Path, limits: Limits) -> None:
    port = free_port()
    later = threading.Timer(0.4, listen, [port])
    later.start()
    with closing(dial_lab(port, kit, limits)) as channel:
        assert channel.peer == "lab"
    later.join()


def test_an_unreachable_server_is_given_up_with_how_long_it_was_tried(kit: Path, limits: Limits) -> None:
    port, started = free_port(), time.monotonic()
    message = rf"hospital-a tried for 0\.3 s to reach lab at 127\.0\.0\.1:{port}; .*refused"
    with pytest.raises(ChannelTimeout, match=message):
        dial_lab(port, kit, limits, give_up_after_s=0.3)
    assert time.monotonic() - started < 1.0


def test_a_server_that_never_answers_is_given_up(kit: Path, limits: Limits) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(ChannelTimeout, match="no answer"):
        dial_lab(mute.getsockname()[1], kit, limits, give_up_after_s=0.3)


def test_a_server_that_speaks_no_tls_is_named_at_once(kit: Path, limits: Limits) -> None:
    with socket.create_server(("127.0.0.1", 0)) as web:

        def answer() -> None:
            connection, _ = web.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(CredentialError, match="does not speak TLS; check the address"):
            dial_lab(web.getsockname()[1], kit, limits)
        thread.join()


def test_a_stranger_of_another_authority_is_refused(
    listen: Listen, kit: Path, foreign_kit: Path, limits: Limits
) -> None:
    listener = listen()
    foreign = load_credentials(foreign_kit, "hospital-a")
    stranger = Credentials(
        party="hospital-a", key=foreign.key, certificate=foreign.certificate, authority=kit / "ca.crt"
    )
    with pytest.raises(CredentialError, match="lab refused our certificate: it was signed by an authority that"):
        dial(("127.0.0.1", listener.port), stranger, party="hospital-a", peer="lab", limits=limits)
    assert "its certificate was not signed by our authority" in reasons(listener, 1)


def test_a_lab_of_another_authority_is_not_trusted(listen: Listen, foreign_kit: Path, limits: Limits) -> None:
    listener, started = listen(), time.monotonic()
    with pytest.raises(CredentialError, match=r"not signed by our authority; both parties need the same ca\.crt"):
        dial_lab(listener.port, foreign_kit, limits)
    assert time.monotonic() - started < 1.0
    assert "it refused our certificate: it was signed by an authority that the peer does not trust" in reasons(
        listener, 1
    )


def test_a_lab_under_another_name_is_not_trusted(listen: Listen, kit: Path, limits: Limits) -> None:
    listener = listen()
    credentials = load_credentials(kit, "hospital-a")
    with pytest.raises(CredentialError, match="whoever answers is not clinic: the certificate shown bears another"):
        dial(("127.0.0.1", listener.port), credentials, party="hospital-a", peer="clinic", limits=limits)


def test_a_party_outside_the_plan_is_refused(listen: Listen, kit: Path, limits: Limits) -> None:
    listener = listen()
    with pytest.raises(CredentialError, match="lab does not let visitor in: 'visitor' is none of the parties"):
        dial_lab(listener.port, kit, limits, party="visitor")


def test_the_right_certificate_under_a_wrong_name_is_refused(listen: Listen, kit: Path, limits: Limits) -> None:
    listener = listen()
    credentials = load_credentials(kit, "hospital-a")
    with pytest.raises(CredentialError, match="its certificate names hospital-a, not hospital-b"):
        dial(("127.0.0.1", listener.port), credentials, party="hospital-b", peer="lab", limits=limits)
    assert reasons(listener, 2) == ["its certificate names hospital-a, not hospital-b"] * 2


@pytest.mark.parametrize("expired_end", ["dialler", "listener"])
def test_an_expired_certificate_is_refused(
    listen: Listen, kit: Path, limits: Limits, tmp_path: Path, expired_end: str
) -> None:
    party = "hospital-a" if expired_end == "dialler" else "lab"
    sign_request(make_request(tmp_path, party), kit / "authority", days=0)
    expired = Credentials(
        party=party, key=tmp_path / f"{party}.key", certificate=tmp_path / f"{party}.crt", authority=kit / "ca.crt"
    )
    if expired_end == "dialler":
        with pytest.raises(CredentialError, match="lab refused our certificate: it has expired"):
            dial(("127.0.0.1", listen().port), expired, party="hospital-a", peer="lab", limits=limits)
        return
    listener = Listener(("127.0.0.1", 0), expired, party="lab", allowed=["hospital-a"], limits=limits)
    with closing(listener), pytest.raises(CredentialError, match="has expired; lab needs a new one"):
        dial_lab(listener.port, kit, limits)


def test_a_pinned_key_lets_in_only_its_holder(listen: Listen, kit: Path, limits: Limits, tmp_path: Path) -> None:
    listener = listen(pins={"hospital-a": public_pin(kit / "hospital-a.crt")})
    dial_lab(listener.port, kit, limits).close()
    sign_request(make_request(tmp_path, "hospital-a"), kit / "authority")  # the authority was talked into a second one
    with pytest.raises(CredentialError, match="another public key than the one pinned for hospital-a"):
        dial_lab(listener.port, tmp_path, limits)


def test_a_pinned_lab_must_show_that_key(listen: Listen, kit: Path, limits: Limits) -> None:
    listener, credentials = listen(), load_credentials(kit, "hospital-a")
    address, pins = ("127.0.0.1", listener.port), {"lab": public_pin(kit / "hospital-b.crt")}
    with pytest.raises(CredentialError, match="another public key than the one pinned for lab"):
        dial(address, credentials, party="hospital-a", peer="lab", limits=limits, pins=pins)


def test_plain_text_is_for_loopback_only(limits: Limits) -> None:
    with pytest.raises(CredentialError, match="plain text is for loopback addresses only"):
        Listener(("0.0.0.0", 0), None, party="lab", allowed=[], limits=limits, insecure_plaintext_on_loopback=True)  # noqa: S104
    with pytest.raises(CredentialError, match=r"and example\.org is none"):
        dial(("example.org", 1), None, party="a", peer="lab", limits=limits, insecure_plaintext_on_loopback=True)
    with pytest.raises(CredentialError, match="needs a key and certificates"):
        dial(("127.0.0.1", 1), None, party="a", peer="lab", limits=limits)


def test_plain_text_on_loopback_takes_names_as_claimed(kit: Path, limits: Limits) -> None:
    listener = Listener(
        ("127.0.0.1", 0), None, party="lab", allowed=["a"], limits=limits, insecure_plaintext_on_loopback=True
    )
    address = ("127.0.0.1", listener.port)
    with closing(listener):
        client = dial(address, None, party="a", peer="lab", limits=limits, insecure_plaintext_on_loopback=True)
        with closing(client), closing(listener.accept(2.0)) as server:
            client.send(Frame(b"x", (memoryview(bytes(200_000)),)))
            assert (server.peer, server.receive(200_000).body_bytes) == ("a", 200_000)
        with pytest.raises(CredentialError, match=r"lab answers at .*, not clinic"):
            dial(address, None, party="a", peer="clinic", limits=limits, insecure_plaintext_on_loopback=True)
        with pytest.raises(ChannelTimeout, match="the connection broke off"):
            dial_lab(listener.port, kit, limits, give_up_after_s=0.5)
