"""Claims about sums under own masks: when keys are called for and told, and without whom a round is not done again."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import ChannelTimeout, Interrupted
from cutlayer.plan.membership import NEVER
from cutlayer.protocol.events import Add, Commit, Connected, Fail, Give, Received, Send, Spread, Store, Take, Tick
from cutlayer.protocol.messages import VERSION, Hello, Welcome
from cutlayer.protocol.resuming import Standing
from cutlayer.protocol.session import Session
from protocol.claims import assert_all_done
from protocol.lasting import lasting
from protocol.late import LIMITS, ROWS, of_three
from protocol.plans import LAB, SUMS, A, B, C

LATE = Tick(LIMITS.deadline_s + 1, LIMITS.deadline_s + 1)
MASKED: dict[str, Any] = {"secure_aggregation": True}
SCHEDULES: dict[str, dict[str, Any]] = {"parallel": {"local_steps": 1}, "splitfed_v1": {}, "splitfed_v2": {}}


@pytest.mark.parametrize("sees_weights", [False, True], ids=["an aggregator", "the lab"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_keys_are_called_for_when_all_shares_are_there_and_the_save_before_holds(
    schedule: str, sees_weights: bool, seed: int
) -> None:
    """Whatever the order of delivery, and however long a part of a save takes to be written."""
    more = MASKED | SCHEDULES[schedule] | {"sees_weights": sees_weights}
    wire = lasting(of_three(schedule, **more), seed=seed)
    wire.run()
    assert_all_done(wire)
    aggregator = LAB if sees_weights else SUMS
    for party in (A, B, C, aggregator):
        said = [_said(each) for each in wire.actions(party) if _said(each)]
        adds = ["add"] * 3 + ["call"] * 3 + ["unmasked"] * 3 + ["spread", "save"]
        due = adds if party == aggregator else ["share", "called", "unmask", "save"]
        assert [each for each in said if each != "holds"] == 3 * due
        for at, each in enumerate(said):
            if each in ("call", "called", "unmask"):
                assert said[:at].count("save") == said[:at].count("holds")


def _said(action: Any) -> str:
    if isinstance(action, Give):
        return action.kind
    if isinstance(action, Take):
        return {"call": "called", "unmask": "unmasked"}.get(action.message.kind, "")
    words: dict[type, str] = {Add: "add", Spread: "spread", Store: "save", Commit: "holds"}
    return "" if isinstance(action, Add) and action.message is None else words.get(type(action), "")


# ---------------------------------------------------------------------- without whom a round is not done again


def lab(
    *said: tuple[str, int, tuple[str, ...]], rounds: dict[int, int] | None = None, without: tuple[str, ...] = ()
) -> tuple[Session, list[Any]]:
    """The lab, to which these have said of which sum they have opened their part; all have the save that holds."""
    plan = of_three("splitfed_v2", **MASKED).plan
    saves = tuple(rounds or ())
    standing = Standing(
        lasting=True, again=True, saves=saves, committed=saves, rounds=rounds or {}, without=frozenset(without)
    )
    session = Session(plan, LAB, standing=standing)
    rows, actions = dict(zip((A, B, C), ROWS, strict=True)), []
    for peer, opened, among in (*said, (SUMS, NEVER, ())):
        session.feed(Connected(peer))
        own = rows.get(peer, type(ROWS[0])())
        hello = Hello(VERSION, plan.digest, peer, own, "train", saves, max(saves, default=NEVER), opened, among)
        actions += session.feed(Received(peer, hello))
    return session, actions


def welcomed(actions: list[Any]) -> set[str]:
    return {send.peer for send in actions if isinstance(send, Send) and isinstance(send.message, Welcome)}


def test_who_took_part_in_an_opened_sum_whose_round_has_not_ended_is_waited_for() -> None:
    session, _ = lab((A, 1, (A, B, C)), (B, NEVER, ()), rounds={9: 0})
    assert welcomed(session.feed(LATE)) == set()
    assert session.waiting_for() == (
        f"{C} to join, as a sum was opened when {C} took part, and its round has not ended"
    )
    (*_, fail) = session.feed(Tick(LIMITS.rejoin_timeout_s + 1, 1))
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, ChannelTimeout)
    assert f"{C} to join, as a sum was opened" in str(fail.error)


@pytest.mark.parametrize("opened", [(0, (A, B, C)), (1, (A, B)), (NEVER, ())], ids=str)
def test_others_are_done_without(opened: tuple[int, tuple[str, ...]]) -> None:
    """A save holds behind the round of their sum, or they were not in it."""
    session, _ = lab((A, *opened), (B, NEVER, ()), rounds={9: 0})
    assert welcomed(session.feed(LATE)) == {A, B, SUMS}


def test_who_was_to_be_done_without_is_waited_for_all_the_same() -> None:
    """It was slow, say, but the round's sum is open."""
    assert welcomed(lab((A, 1, (A, B)), (B, NEVER, ()), rounds={9: 0}, without=(C,))[1]) == {A, B, SUMS}
    session, actions = lab((A, 1, (A, B, C)), (B, NEVER, ()), rounds={9: 0}, without=(C,))
    assert welcomed(actions) == set()
    assert welcomed(session.feed(LATE)) == set()


def test_who_came_before_that_was_known_is_taken_in() -> None:
    session, actions = lab((C, NEVER, ()), (A, 1, (A, B, C)), (B, NEVER, ()), rounds={9: 0}, without=(C,))
    assert welcomed(actions) == set()
    (*_, fail) = session.feed(LATE)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Interrupted)
    assert str(fail.error) == f"{C} can take the place of those who are missing"


def test_who_was_not_there_when_the_sum_was_opened_waits_for_its_round_to_end() -> None:
    said = (A, 1, (A, B)), (B, NEVER, ()), (C, NEVER, ())
    _, actions = lab(*said, rounds={9: 0})
    fail = actions[-1]
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, Interrupted)
    assert fail.error.without == {C}
    session, actions = lab(*said, rounds={9: 0}, without=(C,))
    assert welcomed(actions) == {A, B, SUMS}
    assert session._waiting == {C}


def test_a_client_cannot_hold_others_off_by_what_it_says() -> None:
    """It says that it was alone, where a quorum is two: all take part, and it can refuse."""
    assert welcomed(lab((A, 1, (A,)), (B, NEVER, ()), (C, NEVER, ()), rounds={9: 0})[1]) == {A, B, C, SUMS}
