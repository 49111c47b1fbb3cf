"""The end of a run that lasts: whoever did not hear that all is over is told again, by whichever process is there."""

from collections.abc import Iterator

import pytest

from cutlayer.plan.membership import ALL, Start
from cutlayer.protocol.agenda import Agenda, Numbered
from cutlayer.protocol.events import Action, Connected, Done, Finish, Lost, Received, Send, Tick
from cutlayer.protocol.messages import Bye, Hello, Rows, Saved, Welcome
from cutlayer.protocol.resuming import Standing
from cutlayer.protocol.session import Session
from equivalence.topology_jobs import JOBS
from protocol.joined import Wire
from protocol.plans import LAB, A, B, make_plan

ROWS = {A: Rows(8, 3), B: Rows(5, 2)}


def lasting() -> Wire:
    plan = make_plan()
    wire = Wire(plan, ROWS)
    wire.sessions = {
        name: Session(plan, name, ROWS.get(name, Rows()), standing=Standing(lasting=True)) for name in wire.sessions
    }
    return wire.start()


def closing() -> Session:
    """The lab as all is over: it has said so, and nobody has heard it."""
    wire = lasting().run(until=lambda wire: any(isinstance(send.message, Bye) for send in wire.sent(LAB)))
    return wire.sessions[LAB]


def last_save() -> int:
    return max(send.message.number for send in lasting().run().sent(LAB) if isinstance(send.message, Saved))


def hello(lab: Session, peer: str, saves: tuple[int, ...] = ()) -> list[Action]:
    """What the lab says to a member that connects and introduces itself."""
    (send,) = lab.feed(Connected(peer))
    assert isinstance(send, Send)
    assert isinstance(send.message, Hello)
    return lab.feed(Received(peer, Hello(send.message.version, lab.plan.digest, peer, ROWS[peer], "train", saves)))


def messages(actions: list[Action]) -> list[object]:
    return [each.message for each in actions if isinstance(each, Send)]


@pytest.mark.parametrize("noticed", [True, False], ids=["after its loss was noticed", "before"])
def test_a_client_that_is_killed_before_it_says_goodbye_is_told_again_that_all_is_over(noticed: bool) -> None:
    lab = closing()
    if noticed:
        assert lab.feed(Lost(A, "it was killed")) == []
    welcome, bye = messages(hello(lab, A))
    assert isinstance(welcome, Welcome)
    assert (welcome.save, bye) == (last_save(), Bye())
    assert not lab.over


def test_so_it_is_where_the_run_was_taken_up_from_its_last_save() -> None:
    last, plan = last_save(), make_plan()
    standing = Standing(lasting=True, again=True, saves=(last,), committed=(last,), rounds={last: 1})
    lab = Session(plan, LAB, standing=standing)
    for peer in (A, B):
        actions = hello(lab, peer, (last,))
    assert Bye() in messages(actions)
    welcome, bye = messages(hello(lab, A, (last,)))
    assert isinstance(welcome, Welcome)
    assert (welcome.save, bye) == (last, Bye())


def over() -> Session:
    last = last_save()
    standing = Standing(lasting=True, again=True, saves=(last,), committed=(last,), over={LAB: Rows(), **ROWS})
    return Session(make_plan(), LAB, standing=standing)


def test_a_conductor_that_is_killed_as_it_says_goodbye_waits_for_nobody_to_join_and_tells_who_comes() -> None:
    lab = over()
    welcome, bye = messages(hello(lab, A, (last_save(),)))
    assert isinstance(welcome, Welcome)
    assert (welcome.save, set(welcome.members), bye) == (last_save(), {LAB, A, B}, Bye())
    assert lab.feed(Received(A, Bye())) == []
    assert lab.feed(Tick(lab.limits.reconnect_timeout_s + lab.limits.silence_timeout_s)) == []
    assert lab.feed(Tick(lab.limits.reconnect_timeout_s + lab.limits.silence_timeout_s + 1)) == [Finish(), Done()]


def test_it_is_done_as_soon_as_all_have_come_and_left() -> None:
    lab = over()
    for peer in (A, B):
        hello(lab, peer, (last_save(),))
        told = lab.feed(Received(peer, Bye()))
    assert told == [Finish(), Done()]


def test_a_lasting_conductor_writes_down_that_all_is_over_before_it_says_so() -> None:
    wire = lasting().run()
    at_the_lab = [each.action for each in wire.trace if each.party == LAB]
    first_bye = next(n for n, each in enumerate(at_the_lab) if isinstance(each, Send) and each.message == Bye())
    assert at_the_lab.index(Finish(left=False)) < first_bye
    assert at_the_lab[-2:] == [Finish(), Done()]


def test_nobody_waits_for_the_order_of_rows_after_the_last_save() -> None:
    """Whoever tells it may be gone."""
    plan = JOBS["vertical, a party with labels only"].agreement().plan
    members = {name: Rows(19, 4) if name != "server" else Rows() for name in plan.terms.parties}
    all_works = list(works_of(Agenda(plan, members, ["a"])))
    last, _ = all_works[-1]
    assert list(works_of(Agenda(plan, members, ["a"], "train", Start(ALL, last)))) == []
    assert list(works_of(Agenda(plan, members, ["a"], "train", Start(ALL, last - 1)))) == [
        all_works[0],
        *(each for each in all_works if each[0] == last),
    ]


def works_of(agenda: Agenda) -> Iterator[Numbered]:
    while agenda.peek("a") is not None:
        yield agenda.pop("a")
