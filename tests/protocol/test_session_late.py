"""Claims about a quorum: who is waited for and how long, who goes on without whom, and who comes back when."""

from typing import Any

import pytest

from cutlayer.errors import ChannelTimeout, Interrupted
from cutlayer.plan.membership import NEVER, Membership
from cutlayer.protocol.events import (
    Commit,
    Connected,
    Done,
    Drop,
    Event,
    Fail,
    Lost,
    Received,
    Restore,
    Run,
    Send,
    Tick,
)
from cutlayer.protocol.messages import VERSION, Bye, Hello, Refuse, Saved, Welcome
from protocol.claims import assert_all_done
from protocol.joined import Wire
from protocol.lasting import Disk, Lasting, lasting, work
from protocol.late import LIMITS, ROWS, begun_without, connected, of_three, waiting_for_the_next_round
from protocol.plans import LAB, A, B, C

DEADLINE_S = LIMITS.deadline_s
LATE = Tick(DEADLINE_S + 1, DEADLINE_S + 1)


def trained(wire: Wire, party: str) -> set[int]:
    """In which rounds a party's rows were trained on, by its own account."""
    return {tell.round for tell in wire.tells(party) if tell.purpose == "train" and party in tell.sums}


def interrupted(wire: Lasting, party: str = LAB) -> Interrupted:
    ending = wire.endings()[party]
    assert isinstance(ending, Fail)
    assert isinstance(ending.error, Interrupted)
    return ending.error


# ---------------------------------------------------------------------- before the run


def test_the_run_begins_without_who_has_not_come_by_the_deadline_and_all_hear_who_that_is() -> None:
    wire = connected(of_three(), {A, B})
    assert wire.sessions[LAB].feed(Tick(DEADLINE_S)) == []
    wire.feed(LAB, LATE)
    welcomes = [send for send in wire.sent(LAB) if isinstance(send.message, Welcome)]
    assert {send.peer for send in welcomes} == {A, B}
    for send in welcomes:
        assert isinstance(send.message, Welcome)
        assert set(send.message.members) == {A, B, LAB}
        assert (send.message.log, send.message.save) == ((Membership(absent=(C,)),), NEVER)
    wire.run()
    assert {name: type(each) for name, each in wire.endings().items()} == dict.fromkeys((A, B, LAB), Done)
    assert trained(wire, A) == trained(wire, B) == {0, 1, 2}


@pytest.mark.parametrize(("quorum", "there"), [("all", {A, B}), (3, {A, B}), (2, {A}), (1, set[str]())])
def test_under_the_quorum_all_are_waited_for(quorum: Any, there: set[str]) -> None:
    wire = connected(of_three(quorum=quorum), there)
    assert wire.sessions[LAB].feed(LATE) == []
    *_, fail = wire.sessions[LAB].feed(Tick(LIMITS.join_timeout_s + 1))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, ChannelTimeout)


def test_nobody_else_than_a_client_is_done_without() -> None:
    wire = Lasting(of_three("splitfed_v1").plan, dict(zip((A, B, C), ROWS, strict=True)))
    for client in (A, B, C):
        wire.connect(client)
    wire.run()
    assert wire.sessions[LAB].feed(LATE) == [], "the one that sums has not come"


def test_who_is_to_be_done_without_is_not_waited_for_at_all() -> None:
    wire = connected(of_three(), {A, B}, {name: Disk() for name in (A, B, C, LAB)}, without={C})
    assert wire.sessions[LAB].begun
    all_there = connected(of_three(quorum="all"), {A, B}, {name: Disk() for name in (A, B, C, LAB)}, without={C})
    assert not all_there.sessions[LAB].begun


# ---------------------------------------------------------------------- in the run


def stuck(quorum: Any = 2, **how: Any) -> Lasting:
    """`hospital-b` hears nothing any more, and all others have done what they can."""
    wire = lasting(of_three(quorum=quorum), **how)
    wire.run(until=lambda wire: Run in {type(action) for action in wire.actions(B)})
    while (queues := [(me, queue) for me, queue in wire._queues() if me != B]) != []:
        wire.feed(queues[0][0], queues[0][1].popleft())
    return wire


def test_a_live_client_that_is_late_with_its_turn_is_done_without() -> None:
    wire = stuck()
    assert not [a for a in wire.sessions[LAB].feed(Tick(1, DEADLINE_S)) if isinstance(a, Fail)]
    wire.feed(LAB, Tick(1, 1))
    assert interrupted(wire).without == {B}
    assert str(interrupted(wire)) == f"{B} did not answer within 60 s: the others go on"


def test_who_waits_for_anothers_turn_is_not_late() -> None:
    """`hospital-c` was granted its turn ahead, long ago; when `hospital-b` is through, its own time begins."""
    wire = stuck()
    assert {turn.work.parties for turn in wire.sessions[LAB]._works.reports.due.values()} == {(B,), (C,)}
    assert wire.sessions[LAB].feed(Tick(1, DEADLINE_S)) == []
    wire.run(until=lambda wire: bool(wire.tells(B)) and not wire.links[B, LAB])
    assert not any(isinstance(action, Fail) for action in wire.sessions[LAB].feed(Tick(1, 1)))


@pytest.mark.parametrize("schedule", ["splitfed_v1", "splitfed_v3"])
def test_where_clients_train_side_by_side_each_has_its_own_time(schedule: str) -> None:
    wire = lasting(of_three(schedule))
    wire.run(until=lambda wire: Run in {type(action) for action in wire.actions(B)})
    while (queues := [(me, queue) for me, queue in wire._queues() if me != B]) != []:
        wire.feed(queues[0][0], queues[0][1].popleft())
    wire.feed(LAB, Tick(1, DEADLINE_S + 1))
    assert interrupted(wire).without == {B}


@pytest.mark.parametrize("quorum", ["all", 3])
def test_where_it_cannot_be_done_without_it_is_waited_for(quorum: Any) -> None:
    wire = stuck(quorum)
    assert wire.sessions[LAB].feed(LATE) == []
    *_, fail = wire.sessions[LAB].feed(Tick(901, 901))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, ChannelTimeout)


def test_a_client_that_does_not_write_its_part_of_a_save_is_late_too() -> None:
    wire = lasting(of_three())
    while (queues := [each for each in wire._queues() if each[1] is not wire.writing[C]]) != []:
        wire.feed(queues[0][0], queues[0][1].popleft())
    assert not any(isinstance(action, Commit) for action in wire.actions(LAB))
    wire.feed(LAB, Tick(DEADLINE_S + 1, 0))
    assert interrupted(wire).without == {C}


def test_the_others_go_on_from_the_last_save_that_ends_a_round_without_who_was_late() -> None:
    wire = lasting(of_three())
    wire.run(until=lambda wire: any(isinstance(action, Commit) for action in wire.actions(LAB)))
    wire.run(until=lambda wire: wire.events % 10 == 0)
    wire.lose(B)
    wire.run()
    assert interrupted(wire).without == frozenset()
    later = connected(of_three(), {A, C}, wire.disks)
    assert not later.sessions[LAB].begun
    later.feed(LAB, LATE)
    (save,) = later.disks[LAB].committed
    assert later.sessions[LAB].start.save == save
    assert later.sessions[LAB].start.log == (Membership(), Membership(after=save, round=1, absent=(B,)))
    later.run()
    assert trained(later, A) == trained(later, C) == {1, 2}
    assert {name: type(each) for name, each in later.endings().items()} == dict.fromkeys((A, C, LAB), Done)


# ---------------------------------------------------------------------- coming back


def test_who_comes_late_waits_for_the_next_round_and_then_all_take_it_in() -> None:
    wire = waiting_for_the_next_round()
    assert isinstance(wire, Lasting)
    assert wire.sessions[LAB].states[C] == "waiting"
    assert not any(isinstance(send.message, Welcome) for send in wire.sent(LAB, C))
    wire.run()
    error = interrupted(wire)
    assert (str(error), error.without) == (f"{C} came back, for the next round", frozenset())
    (save,) = wire.disks[LAB].committed
    assert [wire.actions(LAB)[-1]] == [Fail(error)]
    later = lasting(of_three(), wire.disks)
    later.run()
    assert_all_done(later)
    back = Membership(after=save, round=1, returned=(C,))
    for session in later.sessions.values():
        assert (session.start.save, session.start.log) == (save, (Membership(absent=(C,)), back))
    restored = {name: [a.save for a in later.actions(name) if isinstance(a, Restore)] for name in later.sessions}
    assert restored == {A: [save], B: [save], LAB: [save], C: [NEVER]}
    assert trained(later, A) == trained(later, C) == {1, 2}


def test_who_returns_begins_with_what_all_have() -> None:
    scenario = of_three("splitfed_v2")
    wire = begun_without(C, scenario=scenario)
    wire.run(until=lambda wire: wire.events > 20)
    wire.connect(C)
    wire.run()
    interrupted(wire)
    later = lasting(scenario, wire.disks)
    later.run()
    assert_all_done(later)
    runs = {
        name: [a for a in later.actions(name) if isinstance(a, Run) and a.direction == "forward"] for name in (A, C)
    }
    met = {name: later.words(name).used[run[0].ticket, "bottom", "forward"] for name, run in runs.items()}
    assert "initial" not in met.values()
    assert trained(later, C) == {1, 2}


def test_who_comes_in_the_last_round_is_too_late_and_stops_nobody() -> None:
    wire = begun_without(C, scenario=of_three(rounds=1))
    wire.run(until=lambda wire: wire.events > 20)
    wire.connect(C)
    wire.run()
    ends = wire.endings()
    assert {name: type(ends[name]) for name in (A, B, LAB)} == dict.fromkeys((A, B, LAB), Done)
    assert not work(wire.actions(C))


GIVING_UP: dict[str, Event] = {
    "its link": Lost(C, "gone"),
    "with a reason": Received(C, Bye("stopped by hand")),
    "with a refusal": Received(C, Refuse("wrong-plan", "no")),
    "with what breaks a rule": Received(C, Saved(3)),
    "with another version": Received(C, Hello(VERSION + 1, "", C, ROWS[2])),
}


@pytest.mark.parametrize("event", GIVING_UP.values(), ids=GIVING_UP.keys())
def test_who_waits_for_the_next_round_may_give_up_and_the_run_goes_on(event: Event) -> None:
    wire = waiting_for_the_next_round()
    actions = wire.sessions[LAB].feed(event)
    assert not any(isinstance(action, Fail) for action in actions)
    assert [action.peer for action in actions if isinstance(action, Drop)] == ([] if isinstance(event, Lost) else [C])
    assert all(action.peer == C for action in actions if isinstance(action, Send))
    assert C not in wire.sessions[LAB].states
    for link in [link for link in wire.links if C in link]:
        del wire.links[link]
    wire.run()
    ends = wire.endings()
    assert {name: type(ends[name]) for name in (A, B, LAB)} == dict.fromkeys((A, B, LAB), Done)


def test_who_gave_up_waiting_may_come_once_more() -> None:
    wire = waiting_for_the_next_round()
    wire.sessions[LAB].feed(Lost(C, "gone"))
    wire.feed(LAB, Connected(C))
    assert wire.sessions[LAB].states[C] == "waiting"


def test_membership_changes_at_saves_that_end_a_round_only() -> None:
    """A save within a round is gone on from by the same members alone."""
    scenario = of_three(save_every=1)
    whole = lasting(scenario)
    whole.run()
    in_round, ends = (
        next(number for number in whole.disks[LAB].committed if (number in whole.disks[LAB].rounds) == does)
        for does in (False, True)
    )
    assert in_round < ends
    for save, due in ((in_round, NEVER), (ends, ends)):
        disks = {name: disk.as_of(save) for name, disk in whole.disks.items()}
        same = lasting(scenario, {name: disk.as_of(save) for name, disk in whole.disks.items()})
        same.run(until=lambda wire: wire.sessions[LAB].begun)
        assert same.sessions[LAB].start.save == save
        fewer = connected(scenario, {A, B}, disks)
        standing = disks[LAB].standing()
        start = standing.start({name: disk.saves for name, disk in disks.items() if name != C}, [C])
        assert start.save == due
        assert start.log[-1].absent == (C,)
        assert not fewer.sessions[LAB].begun
