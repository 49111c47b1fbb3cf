"""Claims about the door: who may come in before the run, who is sent away, and what changes nothing."""

import pytest

from cutlayer.errors import ChannelClosed
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Connected, Done, Drop, Fail, Lost, Received, Send
from cutlayer.protocol.messages import VERSION, Bye, Forward, Hello, Ping, Refuse, Rows
from protocol.joined import Wire
from protocol.plans import LAB, A, B, C, make_plan
from protocol.scenes import PLAN, ROWS, Scene, Untouchable, after, begun, forward, joining, ticket


def test_a_client_that_was_sent_away_may_come_again_and_the_run_goes_on() -> None:
    wire = joining()
    wire.inject(B, LAB, Hello(VERSION, "another plan", B, ROWS[B]))
    assert wire.sessions[LAB].states == {A: "joined"}
    for late in (Forward(ticket(), "bottom->top", ()), Refuse("wrong-plan", ""), Bye("stopped"), Ping()):
        assert wire.sessions[LAB].feed(Received(B, late, Untouchable())) == []
    assert wire.sessions[LAB].feed(Lost(B, "closed")) == []
    wire.connect(B)
    wire.connect(C)
    wire.run()
    assert {type(ending) for ending in wire.endings().values()} == {Done}
    assert len(wire.endings()) == 4


def test_a_client_that_is_lost_before_the_run_may_come_again_with_other_rows() -> None:
    wire = joining()
    assert wire.sessions[LAB].feed(Lost(A, "no route")) == []
    assert wire.sessions[LAB].states == {B: "connected"}
    wire.sessions[A] = type(wire.sessions[A])(wire.plan, A, Rows(3, 1))
    for client in (A, B, C):
        wire.connect(client)
    wire.run()
    assert wire.sessions[B].members[A] == Rows(3, 1)
    assert len([ending for ending in wire.endings().values() if isinstance(ending, Done)]) == 4


@pytest.mark.parametrize("scene", [joining, begun(LAB)], ids=["joining", "running"])
def test_a_stranger_is_sent_away_at_the_door_and_changes_nothing(scene: Scene) -> None:
    session = scene().sessions[LAB]
    before = dict(session.states)
    actions = session.feed(Connected("nobody"))
    assert [type(action) for action in actions] == [Drop]
    for message in (Hello(VERSION, PLAN.digest, "nobody", Rows()), forward(), Bye("no"), Refuse("no", "no")):
        assert session.feed(Received("nobody", message, Untouchable())) == []
    assert session.feed(Lost("nobody", "gone")) == []
    assert session.states == before
    assert not session.over


def test_a_lone_client_that_is_refused_and_lost_does_not_end_the_run_as_done() -> None:
    wire = Wire(make_plan(clients=1), {A: Rows(4)})
    session = wire.sessions[LAB]
    session.feed(Connected(A))
    session.feed(Received(A, Hello(VERSION, "another plan", A, Rows(4))))
    assert session.feed(Lost(A, "it closed")) == []
    assert not session.over


def test_a_party_that_connects_anew_in_the_run_ends_it_with_a_reason() -> None:
    wire = begun(LAB)()
    actions = wire.feed(LAB, Connected(A))
    last = actions[-1]
    assert isinstance(last, Fail)
    assert isinstance(last.error, ChannelClosed)
    assert {action.peer for action in actions if isinstance(action, Send)} == {A, B}


def test_a_party_that_connects_anew_after_its_goodbye_changes_nothing() -> None:
    wire = after(LAB, Bye)()
    wire.feed(LAB, Connected(A))
    wire.links.pop((A, LAB), None)
    wire.run()
    assert isinstance(wire.endings()[LAB], Done)


def test_refusals_and_reasons_fit_their_messages() -> None:
    many = tuple(TensorShape("bfloat16", (2**40,) * 16) for _ in range(64))
    session = begun(LAB)().sessions[LAB]
    actions = session.feed(Received(A, Forward(ticket(), "bottom->top", many), Untouchable()))
    for action in actions[:-1]:
        assert isinstance(action, Send)
        assert isinstance(action.message, Refuse | Bye)
        assert len(getattr(action.message, "detail", "") + getattr(action.message, "reason", "")) == 4096
