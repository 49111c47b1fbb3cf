"""Claims about taking a run up again: what is left of it is done as if nothing had happened, from any save."""

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import ChannelClosed, ChannelTimeout, Interrupted
from cutlayer.plan.limits import Limits
from cutlayer.plan.membership import NEVER
from cutlayer.plan.schedule import Train
from cutlayer.plan.terms import TOGETHER
from cutlayer.protocol.agenda import numbered
from cutlayer.protocol.events import (
    Commit,
    Connected,
    Done,
    Fail,
    Finish,
    Lost,
    Received,
    Restore,
    Send,
    Store,
    Tick,
)
from cutlayer.protocol.messages import Bye, Rows, Welcome
from cutlayer.protocol.session import Session
from protocol.claims import assert_all_done, assert_nothing_is_kept
from protocol.lasting import Disk, Lasting, final, lasting, saving, used, work
from protocol.plans import LAB, A, owned, schedule_of
from protocol.scenarios import EVERY, UNEQUAL, Scenario

SAVING = {name: saving(scenario, 3) for name, scenario in EVERY.items()}
SOME = (
    *("alternating, vanilla", "relay by batches, u_shaped", "parallel, vanilla", "splitfed_v1 with cuts, vanilla"),
    *("splitfed_v2, u_shaped", "splitfed_v3 of two, vanilla", "vertical", "multi_hop", "decoupled", "own"),
)


@cache
def undisturbed(name: str) -> Lasting:
    wire = lasting(SAVING[name], shared=True)
    wire.run()
    assert_all_done(wire)
    return wire


def saves_of(wire: Lasting) -> list[int]:
    return [action.number for action in wire.actions(LAB) if isinstance(action, Commit)]


def disks_as_of(wire: Lasting, save: int) -> dict[str, Disk]:
    return {name: disk.as_of(save) for name, disk in wire.disks.items()}


def after(wire: Lasting, party: str, save: int) -> list[Any]:
    """What a party did after it had copied its part of a save."""
    actions = wire.actions(party)
    (at,) = [place for place, action in enumerate(actions) if isinstance(action, Store) and action.number == save]
    return actions[at + 1 :]


def again(name: str, save: int, seed: int | None = None) -> Lasting:
    wire = lasting(SAVING[name], disks_as_of(undisturbed(name), save), seed=seed, shared=seed is None)
    wire.run()
    return wire


@pytest.mark.parametrize("name", SAVING)
def test_from_each_save_on_a_run_does_exactly_what_the_undisturbed_one_did_after_it(name: str) -> None:
    """The same work on the same states, in the same order, by the same numbers; the order of rows is told again."""
    whole = undisturbed(name)
    assert saves_of(whole)
    for save in saves_of(whole):
        wire = again(name, save)
        assert_all_done(wire)
        assert_nothing_is_kept(wire)
        assert {session.start.save for session in wire.sessions.values()} == {save}
        for party in wire.sessions:
            assert work(_but_the_order(wire, wire.actions(party))) == work(after(whole, party, save))
            assert used(wire, party).items() <= used(whole, party).items()
            assert final(wire, party) == final(whole, party)
            if save != saves_of(whole)[-1]:
                assert wire.words(party).order == whole.words(party).order
            assert {tell.turn: tell for tell in wire.tells(party)}.items() <= {
                t.turn: t for t in whole.tells(party)
            }.items()
        assert saves_of(wire) == [number for number in saves_of(whole) if number > save]


def _but_the_order(wire: Lasting, actions: list[Any]) -> list[Any]:
    """Without what is said of the key of the order of rows."""
    return [
        action
        for action in actions
        if "order" not in (getattr(action, "kind", ""), getattr(getattr(action, "message", None), "kind", ""))
    ]


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(SAVING)), st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_it_does_so_in_any_order_of_delivery(name: str, chance: random.Random, seed: int) -> None:
    whole = undisturbed(name)
    wire = again(name, chance.choice(saves_of(whole)), seed)
    assert_all_done(wire)
    for party in wire.sessions:
        assert used(wire, party).items() <= used(whole, party).items()
        assert final(wire, party) == final(whole, party)


@pytest.mark.parametrize("name", ["alternating, vanilla", "vertical", "splitfed_v3 of two, vanilla"])
def test_steps_that_lie_behind_are_counted_as_done(name: str) -> None:
    whole = undisturbed(name)
    for save in saves_of(whole):
        behind = dict.fromkeys(owned(whole.plan, whole.rows), 0)
        for number, done in numbered(schedule_of(whole.plan, whole.rows)):
            if isinstance(done, Train) and number <= save:
                behind |= {owner: behind[owner] + done.steps for owner in done.parties}
        session = again(name, save).sessions[LAB]
        assert {owner: session.steps_behind(owner) for owner in behind} == behind
        if whole.plan.schedule.together:
            assert behind.keys() == {TOGETHER}


# ---------------------------------------------------------------------- killed at any moment


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SOME), st.integers(0, 2**32), st.booleans(), st.data())
def test_whoever_is_killed_whenever_the_run_ends_as_the_undisturbed_one(
    name: str, seed: int, prompt: bool, data: st.DataObject
) -> None:
    """All others are interrupted, or have ended; from what the disks have, the run goes on to the same states."""
    whole = undisturbed(name)
    wire = lasting(SAVING[name], seed=seed, prompt=prompt)
    victim = data.draw(st.sampled_from(sorted(wire.sessions)))
    count = data.draw(st.integers(0, int(1.1 * whole.events)))
    wire.run(until=lambda wire: wire.events >= count)
    wire.lose(victim)
    wire.run()
    finished = [name for name, disk in wire.disks.items() if disk.finished]
    for party, ending in wire.endings().items():
        assert isinstance(ending, Done) or (isinstance(ending, Fail) and isinstance(ending.error, Interrupted))
        assert isinstance(ending, Fail) or party in finished
    if LAB in finished:
        assert_all_hear_of_the_end(wire, victim)
        return
    assert not finished, "nobody's part is over before the lab's is"
    held = max(wire.disks[LAB].committed, default=NEVER)
    taken_up = lasting(SAVING[name], wire.disks, seed=seed, prompt=prompt)
    taken_up.run()
    assert_all_done(taken_up)
    for party in taken_up.sessions:
        assert used(taken_up, party).items() <= used(whole, party).items()
        assert final(taken_up, party) == final(whole, party)
    assert {session.start.save for session in taken_up.sessions.values()} == {held}, "nothing that held is done again"


def assert_all_hear_of_the_end(wire: Lasting, victim: str) -> None:
    """All was over at the lab when one was killed: it comes back, or the lab does, and nothing is done again."""
    left = [name for name, disk in wire.disks.items() if not disk.finished]
    if victim == LAB and wire.disks[LAB].over:
        wire.sessions[LAB] = Session(wire.plan, LAB, wire.rows.get(LAB, Rows()), standing=wire.disks[LAB].standing())
    before = len(wire.trace)
    for name in left if LAB in wire.sessions else ():
        rows = wire.rows.get(name, Rows())
        wire.sessions[name] = Session(wire.plan, name, rows, standing=wire.disks[name].standing())
        wire.connect(name)
    wire.run()
    assert all(disk.finished for disk in wire.disks.values())
    for traced in wire.trace[before:]:
        assert not work([traced.action])
        assert not isinstance(traced.action, Fail)


@pytest.mark.parametrize("lost", [LAB, A])
@pytest.mark.parametrize("keeps", [True, False], ids=["lasting", "not"])
def test_a_lost_party_interrupts_all_where_saves_are_kept_and_ends_the_run_where_not(lost: str, keeps: bool) -> None:
    scenario = saving(Scenario("vanilla", UNEQUAL[:2], micro_batches=2), 2)
    for count in range(12, 40, 3):
        wire = lasting(scenario) if keeps else scenario.wire()
        wire.run(until=lambda wire, count=count: wire.events >= count)  # type: ignore[misc]
        survivor = A if lost == LAB else LAB
        actions = wire.sessions[survivor].feed(Lost(lost, "it is gone"))
        last = actions[-1]
        assert isinstance(last, Fail)
        assert isinstance(last.error, Interrupted if keeps else ChannelClosed)
        assert str(last.error) == f"{lost} is lost: it is gone"
        goodbyes = [action for action in actions if isinstance(action, Send)]
        assert bool(goodbyes) == (survivor == LAB and not keeps), "who waits for it is not told that all is over"


def test_who_comes_back_while_the_run_goes_on_interrupts_it() -> None:
    wire = lasting(saving(Scenario("vanilla", UNEQUAL[:2]), 2))
    wire.run(until=lambda wire: wire.events >= 20)
    *_, fail = wire.sessions[LAB].feed(Connected(A))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Interrupted)
    assert str(fail.error) == f"{A} came back, and goes on from a save"


# ---------------------------------------------------------------------- the end


def ending() -> Lasting:
    """The lab has said goodbye to all, and nobody has heard it."""
    wire = lasting(saving(Scenario("vanilla", UNEQUAL[:2]), 2))
    wire.run(until=lambda wire: any(isinstance(send.message, Bye) for send in wire.sent(LAB)))
    return wire


def test_the_end_lasts_before_anybody_hears_of_it() -> None:
    wire = ending()
    kinds = [
        type(action.message) if isinstance(action, Send) else type(action)
        for action in wire.actions(LAB)
        if isinstance(action, Finish | Commit) or (isinstance(action, Send) and isinstance(action.message, Bye))
    ]
    assert kinds[-4:] == [Commit, Finish, Bye, Bye]
    wire.run()
    assert_all_done(wire)
    for name in wire.sessions:
        assert [type(action) for action in wire.actions(name) if isinstance(action, Finish | Done)][-2:] == [
            Finish,
            Done,
        ]


def test_who_was_lost_before_it_heard_of_the_end_comes_back_and_hears_of_it() -> None:
    wire = ending()
    wire.lose(A)
    last = max(wire.disks[A].saves)
    wire.run()
    assert wire.sessions[LAB].states[A] == "away"
    assert LAB not in wire.endings()
    wire.sessions[A] = Session(wire.plan, A, wire.rows[A], standing=wire.disks[A].standing())
    before = len(wire.trace)
    wire.connect(A)
    wire.run()
    assert {name: type(action) for name, action in wire.endings().items()} == dict.fromkeys(
        wire.plan.terms.parties, Done
    )
    came = [traced.action for traced in wire.trace[before:] if traced.party == A]
    assert [action.save for action in came if isinstance(action, Restore)] == [last]
    assert not work(came)
    assert wire.disks[A].finished
    welcomes = [s.message for s in wire.sent(LAB, A) if isinstance(s.message, Welcome)]
    assert (welcomes[-1].save, welcomes[-1].log) == (last, welcomes[0].log)


def test_the_lab_waits_for_who_has_not_heard_of_the_end_and_then_ends_content() -> None:
    wire = ending()
    limits = wire.plan.terms.limits
    wire.sessions[LAB].feed(Lost(A, "gone"))
    assert wire.sessions[LAB].feed(Tick(limits.rejoin_timeout_s)) == []
    assert [type(action) for action in wire.sessions[LAB].feed(Tick(limits.rejoin_timeout_s + 1))][-1] is Done


def test_who_has_heard_of_the_end_may_be_lost() -> None:
    wire = ending()
    wire.run(until=lambda wire: wire.sessions[LAB].states[A] == "gone")
    assert wire.sessions[LAB].feed(Lost(A, "gone")) == []
    assert wire.sessions[LAB].states[A] == "gone"


# ---------------------------------------------------------------------- waiting to begin again


@pytest.mark.parametrize(("is_again", "lab_s", "client_s"), [(False, 300, 86_400), (True, 3600, 86_400)])
def test_all_wait_longer_for_a_run_to_be_taken_up_than_for_one_to_begin(
    is_again: bool, lab_s: float, client_s: float
) -> None:
    limits = Limits(join_timeout_s=300, rejoin_timeout_s=3600, turn_timeout_s=86_400)
    scenario = saving(Scenario("vanilla", UNEQUAL[:2], more={"limits": limits}))
    wire = lasting(scenario, {name: Disk() for name in scenario.plan.terms.parties} if is_again else None)
    wire.feed(A, Connected(LAB))
    for party, limit_s in ((LAB, lab_s), (A, client_s)):
        assert wire.sessions[party].feed(Tick(limit_s)) == []
        *_, fail = wire.sessions[party].feed(Tick(limit_s + 1))
        assert isinstance(fail, Fail)
        assert isinstance(fail.error, ChannelTimeout)


def test_a_save_that_one_party_lacks_gives_way_to_the_newest_that_all_have() -> None:
    whole = undisturbed("alternating, vanilla")
    disks = disks_as_of(whole, saves_of(whole)[-1])
    second, last = saves_of(whole)[-2:]
    del disks[A].saves[last]
    disks[A].committed.remove(last)
    wire = lasting(SAVING["alternating, vanilla"], disks)
    wire.run()
    assert_all_done(wire)
    assert {session.start.save for session in wire.sessions.values()} == {second}
    assert final(wire, A) == final(whole, A)


def test_a_save_that_holds_nowhere_is_not_gone_on_from_though_all_wrote_it() -> None:
    """Somebody may have gone past it only if the lab has said so: only the lab's word counts."""
    whole = undisturbed("alternating, vanilla")
    first, second = saves_of(whole)[:2]
    disks = disks_as_of(whole, second)
    disks[LAB].committed.remove(second)
    wire = lasting(SAVING["alternating, vanilla"], disks)
    wire.run(until=lambda wire: wire.sessions[LAB].begun)
    assert wire.sessions[LAB].start.save == first


def test_who_has_no_part_in_the_run_any_more_hears_nothing_of_it() -> None:
    wire = ending()
    wire.run()
    assert wire.sessions[LAB].over
    assert wire.sessions[LAB].feed(Received(A, Bye("late"))) == []
