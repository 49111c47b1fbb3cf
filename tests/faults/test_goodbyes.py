"""The end of a run that lasts: whoever did not hear that all is over is told again."""

import pytest

from cutlayer.protocol.events import Connected, Lost, Received, Send
from cutlayer.protocol.messages import Bye, Hello, Rows, Welcome
from cutlayer.protocol.resuming import Standing
from cutlayer.protocol.session import Session
from protocol.joined import Wire
from protocol.plans import LAB, A, B, make_plan

ROWS = {A: Rows(8, 3), B: Rows(5, 2)}


def closing() -> Wire:
    """All is over, the lab has said so, and nobody has heard it."""
    plan = make_plan()
    wire = Wire(plan, ROWS)
    wire.sessions = {
        name: Session(plan, name, ROWS.get(name, Rows()), standing=Standing(lasting=True)) for name in wire.sessions
    }
    return wire.start().run(until=lambda wire: any(isinstance(send.message, Bye) for send in wire.sent(LAB)))


@pytest.mark.parametrize("noticed", [True, False], ids=["after the link was lost", "before"])
def test_a_client_that_is_killed_before_it_says_goodbye_is_told_again_that_all_is_over(noticed: bool) -> None:
    lab = closing().sessions[LAB]
    if noticed:
        assert lab.feed(Lost(A, "it was killed")) == []
    (hello,) = lab.feed(Connected(A))
    assert isinstance(hello, Send)
    assert isinstance(hello.message, Hello)
    told = lab.feed(Received(A, Hello(hello.message.version, lab.plan.digest, A, ROWS[A])))
    assert [type(each.message) for each in told if isinstance(each, Send)] == [Welcome, Bye]
    assert not lab.over
