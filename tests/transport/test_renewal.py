"""Certificates renewed, expired and revoked while a link lives, and who tries to take up a link that is not theirs."""

import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cutlayer.errors import ChannelClosed
from cutlayer.keys import load_credentials, make_request, public_pin, sign_request
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import Frame
from cutlayer.transport import Link, Listener, dial
from cutlayer.transport.opening import Answer, Deadline, Direction, Opening, hang_up, hear_answer, say
from cutlayer.transport.tls import dialling_context
from transport.relay import Relay

LIMITS = Limits(silence_timeout_s=5.0, send_timeout_s=5.0, handshake_timeout_s=2.0, reconnect_timeout_s=5.0)


@dataclass
class Scene:
    """A link whose ends have folders of their own, and whose listener's guests may be revoked."""

    lab: Path
    hospital: Path
    allowed: set[str]
    listener: Listener
    relay: Relay
    client: Link
    server: Link
    told: list[str] = field(default_factory=list)


@pytest.fixture
def scene(kit: Path, tmp_path: Path) -> Iterator[Scene]:
    lab, hospital, allowed = tmp_path / "lab", tmp_path / "hospital", {"hospital-a", "hospital-b"}
    for folder in (lab, hospital):
        shutil.copytree(kit, folder)
    with ExitStack() as opened:
        credentials = load_credentials(lab, "lab")
        pins = {"hospital-a": public_pin(kit / "hospital-a.crt")}
        listener = Listener(("127.0.0.1", 0), credentials, party="lab", allowed=allowed, limits=LIMITS, pins=pins)
        opened.enter_context(closing(listener))
        relay = opened.enter_context(closing(Relay(listener.port)))
        address, own = ("127.0.0.1", relay.port), load_credentials(hospital, "hospital-a")
        client = dial(address, own, party="hospital-a", peer="lab", limits=LIMITS)
        server = listener.accept(2.0)
        scene = Scene(lab, hospital, allowed, listener, relay, client, server)
        client.on_trouble = scene.told.append
        for end in (client, server):
            opened.enter_context(closing(end))
        yield scene


@pytest.fixture
def waiting(scene: Scene) -> Iterator[ThreadPoolExecutor]:
    """Both ends receive, as they do in a run."""
    with ThreadPoolExecutor(2) as executor:
        yield executor
        scene.client.close()
        scene.server.close()


def renew(folder: Path, kit: Path, party: str, days: int = 30) -> None:
    """A new certificate for the same key."""
    sign_request(folder / f"{party}.csr", kit / "authority", days=days)


def certificate_of(listener: Listener, kit: Path) -> bytes:
    """What the listener shows."""
    context = dialling_context(load_credentials(kit, "hospital-b"))
    with (
        socket.create_connection(("127.0.0.1", listener.port), 2.0) as plain,
        context.wrap_socket(plain, server_hostname="lab") as connection,
    ):
        return connection.getpeercert(binary_form=True) or b""


def test_renewed_certificates_take_effect_without_a_restart(
    scene: Scene, kit: Path, waiting: ThreadPoolExecutor
) -> None:
    before = certificate_of(scene.listener, kit)
    assert certificate_of(scene.listener, kit) == before
    renew(scene.lab, kit, "lab")
    renew(scene.hospital, kit, "hospital-a")
    assert certificate_of(scene.listener, kit) != before
    there, back = waiting.submit(scene.server.receive, 0), waiting.submit(scene.client.receive, 0)
    scene.relay.cut()
    scene.client.send(Frame(b"renewed"))
    assert there.result(5).header == b"renewed"
    scene.server.send(Frame(b"me, too"))
    assert back.result(5).header == b"me, too"


def test_half_a_renewal_leaves_the_older_certificate_in_use(scene: Scene, kit: Path) -> None:
    told: list[str] = []
    scene.listener.on_trouble = told.append
    before = certificate_of(scene.listener, kit)
    (scene.lab / "lab.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    assert certificate_of(scene.listener, kit) == before
    assert "lab goes on with its older certificate" in told[0]


def test_an_expired_certificate_is_told_at_both_ends_and_mended_by_a_new_one(
    scene: Scene, kit: Path, waiting: ThreadPoolExecutor
) -> None:
    there, back = waiting.submit(scene.server.receive, 0), waiting.submit(scene.client.receive, 0)
    renew(scene.hospital, kit, "hospital-a", days=0)
    scene.relay.cut()
    for _ in range(200):
        if scene.listener.refused:
            break
        time.sleep(0.01)
    assert scene.listener.refused[0].reason == "its certificate has expired: that party needs a new one"
    renew(scene.hospital, kit, "hospital-a")
    scene.client.send(Frame(b"x"))
    assert there.result(5).header == b"x"
    assert not back.done()


def test_a_certificate_that_stays_expired_is_the_reason_given_in_the_end(scene: Scene, kit: Path) -> None:
    renew(scene.hospital, kit, "hospital-a", days=0)
    scene.relay.cut()
    with pytest.raises(ChannelClosed, match="lab refused our certificate: it has expired; ask the authority that lab"):
        scene.client.receive(0)


def test_a_certificate_for_another_key_than_the_pinned_one_does_not_take_a_link_up(
    scene: Scene, kit: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    sign_request(make_request(other, "hospital-a"), kit / "authority")
    for name in ("hospital-a.key", "hospital-a.crt"):
        shutil.copy(other / name, scene.hospital / name)
    scene.relay.cut()
    with pytest.raises(ChannelClosed, match="another public key than the one pinned for hospital-a"):
        scene.client.receive(0)


def test_a_revoked_party_is_cut_off_told_why_and_cannot_come_again(scene: Scene, waiting: ThreadPoolExecutor) -> None:
    there, back = waiting.submit(scene.server.receive, 0), waiting.submit(scene.client.receive, 0)
    scene.allowed.remove("hospital-a")
    scene.listener.cut_off("hospital-a", "its certificate was revoked")
    scene.listener.cut_off("hospital-b", "it never came")
    with pytest.raises(ChannelClosed, match=r"lab is gone: its certificate was revoked$"):
        back.result(1)
    with pytest.raises(ChannelClosed, match="the link to hospital-a was cut off: its certificate was revoked"):
        there.result(1)


def test_a_party_that_was_revoked_while_its_link_was_broken_is_refused(scene: Scene) -> None:
    scene.allowed.remove("hospital-a")
    scene.relay.cut()
    with pytest.raises(ChannelClosed, match="lab is gone from this link: 'hospital-a' is none of the parties"):
        scene.client.receive(0)


class Impostor:
    """Says what it likes on connections of its own."""

    def __init__(self, listener: Listener, kit: Path, party: str) -> None:
        self._port, self._context = listener.port, dialling_context(load_credentials(kit, party))

    def answers(self, opening: Opening) -> list[Answer]:
        """What it hears on both lanes."""
        with ExitStack() as opened:
            lanes = []
            directions: tuple[Direction, Direction] = ("to-listener", "to-dialler")
            for direction in directions:
                plain = socket.create_connection(("127.0.0.1", self._port), 2.0)
                lane = self._context.wrap_socket(plain, server_hostname="lab")
                opened.callback(hang_up, lane)
                said = Opening(
                    opening.party, direction, opening.incarnation, opening.life, opening.resumes, opening.received
                )
                say(lane, said, Deadline(2.0))
                lanes.append(lane)
            return [hear_answer(lane, Deadline(4.0)) for lane in lanes]


NEVER = 2**62


@pytest.mark.parametrize(
    ("who", "incarnation", "life", "received", "refusal", "passing"),
    [
        ("hospital-b", NEVER, None, 0, "its certificate names hospital-b, not hospital-a", False),
        ("hospital-a", 1, None, 0, "a newer link of this party is already open", True),
        ("hospital-a", NEVER, bytes(16), 0, "its process is a new one, or it has given up the run", False),
        ("hospital-a", NEVER, None, 5, "its process is a new one, or it has given up the run", False),
    ],
    ids=["another-party", "an-older-incarnation", "another-life", "more-than-was-sent"],
)
def test_nobody_takes_up_a_link_that_is_not_theirs(
    scene: Scene,
    kit: Path,
    who: str,
    incarnation: int,
    life: bytes | None,
    received: int,
    refusal: str,
    passing: bool,
) -> None:
    opening = Opening("hospital-a", "to-listener", incarnation, life or scene.client.life, True, received)
    answers = Impostor(scene.listener, kit, who).answers(opening)
    assert [(answer.refusal, answer.passing) for answer in answers] == [(refusal, passing)] * 2
    scene.client.send(Frame(b"undisturbed"))
    assert scene.server.receive(0).header == b"undisturbed"
    assert scene.told == []
