"""Claims about who is let in: whom the run waits for, but for those that a person has revoked, then or later."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cutlayer.errors import ChannelClosed, CredentialError, CutlayerError, Interrupted
from cutlayer.party.guard import FRESH_S, Guard
from cutlayer.party.local import DenyList
from cutlayer.party.loop import Loop
from cutlayer.party.party import Party
from cutlayer.party.replicas import Replicas
from cutlayer.plan.plan import Plan
from cutlayer.transport.memory import pair
from party.test_party import SECRETS, mlp, run
from protocol.plans import LAB, A, B, C, make_plan


class Clock:
    """The guard's clock; `reads` counts how often the list was read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.reads = 100.0, 0
        self.denied: list[str] = []
        monkeypatch.setattr("cutlayer.party.guard.time", SimpleNamespace(monotonic=lambda: self.now))

    def read(self) -> list[str]:
        self.reads += 1
        return self.denied

    def guard(self, plan: Plan | None = None) -> Guard:
        return Guard(plan or make_plan(clients=3), self.read)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_parties_of_the_plan_may_have_a_link_and_nobody_else(clock: Clock) -> None:
    guard = clock.guard()
    assert all(party in guard for party in (A, B, C, LAB))
    assert "nobody" not in guard
    assert 7 not in guard


def test_a_new_link_is_for_those_whom_the_run_waits_for(clock: Clock) -> None:
    guard = clock.guard()
    newcomers = guard.newcomers
    assert A in newcomers
    guard.admits = {B}
    assert B in newcomers
    assert A not in newcomers
    assert A in guard, "the link that it has may stand again"
    clock.denied, clock.now = [B], clock.now + FRESH_S + 0.1
    assert B not in newcomers


def test_the_list_is_read_at_most_once_a_second_and_heeded_then(clock: Clock) -> None:
    guard = clock.guard()
    assert clock.reads == 1
    clock.denied = [B]
    for _ in range(50):
        assert not guard.denies(B)
        clock.now += FRESH_S / 51
    assert clock.reads == 1
    clock.now += FRESH_S
    assert guard.denied == {B}
    assert all(guard.denies(B) and B not in guard for _ in range(50))
    assert clock.reads == 2
    clock.denied, clock.now = [], clock.now + 2 * FRESH_S
    assert B in guard


def test_without_a_list_nobody_is_revoked() -> None:
    guard = Guard(make_plan())
    assert guard.denied == frozenset()


def test_a_run_goes_on_without_who_is_revoked_only_where_a_quorum_is_left(clock: Clock) -> None:
    enough = clock.guard(make_plan(clients=3, quorum=2))
    error = enough.revoked(B, ())
    assert isinstance(error, Interrupted)
    assert str(error) == f"{B} is revoked by this party's deny list"
    assert error.without == {B}
    for guard, party, absent in ((enough, B, [C]), (enough, LAB, []), (clock.guard(), B, [])):
        refused = guard.revoked(party, absent)
        assert isinstance(refused, CredentialError)
        assert f"{party} is revoked by this party's deny list, and the run cannot go on without it" in str(refused)


def test_a_deny_list_follows_its_file_and_stays_as_it_was_while_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "party.toml"
    file.write_text('deny = ["a"]\n')
    denied = DenyList(file, ["a"])
    assert denied() == ("a",)
    file.write_text('deny = ["a", "hospital-b"]\n')
    assert denied() == ("a", "hospital-b")
    file.write_text("deny = [")
    assert denied() == ("a", "hospital-b")
    file.unlink()
    assert denied() == ("a", "hospital-b")
    file.write_text("deny = []\n")
    assert denied() == ()


def test_who_is_revoked_in_the_run_is_cut_off_and_the_others_hear_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits for both; its person revokes one, whose link it closes at once."""
    monkeypatch.setattr("cutlayer.party.loop.TICK_S", 0.05)
    monkeypatch.setattr("cutlayer.party.guard.FRESH_S", 0.05)
    agreement = run(mlp()).agreement
    plan, denied = agreement.plan, list[str]()
    party = Party(plan, "server", replicas=Replicas(plan, agreement.parts_of), secret=SECRETS["server"])
    ends = {name: pair(name, "server", plan.terms.limits) for name in ("a", "b")}
    loop, errors = Loop(plan, "server", Guard(plan, lambda: denied)), list[CutlayerError]()

    def work() -> None:
        try:
            loop.run(party, [theirs for _, theirs in ends.values()])
        except CutlayerError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for mine, _ in ends.values():
        mine.receive(2**20)
    denied.append("b")
    heard: dict[str, Any] = {name: _last_words(mine) for name, (mine, _) in ends.items()}
    thread.join(20)
    loop.close()
    (error,) = errors
    assert isinstance(error, CredentialError)
    assert "b is revoked by this party's deny list" in str(error)
    assert "revoked" in heard["a"]
    assert "revoked" not in heard["b"]


def _last_words(channel: Any) -> str:
    """All that comes on a link until it ends, as text."""
    said = b""
    while True:
        try:
            said += bytes(channel.receive(2**20).header)
        except ChannelClosed:
            return said.decode(errors="replace")
