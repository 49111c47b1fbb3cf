"""Claims about states on the move: the conductor passes on what is not its own unread, and nobody acts too early."""

from typing import Any

import pytest

from cutlayer.plan.schedule import HandOver
from cutlayer.protocol.events import Action, Add, Give, Received, Run, Send, Spread, Step, Take
from cutlayer.protocol.messages import State
from protocol.cases_of_states import GIVEN, NO_EVALUATION, RELAY, SHARE, TOGETHER, V2, V2_TOGETHER, coming, sent, state
from protocol.joined import Wire
from protocol.plans import LAB, SUMS, A, B, make_plan, schedule_of
from protocol.scenes import ROWS, Untouchable, until


def test_the_conductor_passes_a_state_on_unread() -> None:
    payload = Untouchable()
    (send,) = sent(A, RELAY)().sessions[LAB].feed(Received(A, GIVEN, payload))
    assert isinstance(send, Send)
    assert (send.peer, send.message) == (B, GIVEN)
    assert send.payload is payload


def test_a_replica_that_was_handed_over_goes_to_work_at_its_new_place_only_when_it_has_come() -> None:
    wire = coming(B, RELAY)()
    assert [action for action in wire.actions(B) if _works(action)] == []
    wire.run()
    done = [type(action) for action in wire.actions(B) if isinstance(action, Take) or _works(action)]
    assert done[:2] == [Take, Run]


def _works(action: Action) -> bool:
    return isinstance(action, Step) or (isinstance(action, Run) and action.direction != "load")


def test_a_replica_is_given_away_after_its_last_step_and_not_before() -> None:
    wire = sent(A, RELAY)()
    done = [type(action) for action in wire.actions(A) if isinstance(action, Give | Step)]
    assert done == [Step, Step, Give]


def test_a_share_that_comes_early_waits_for_those_before_it() -> None:
    wire = until(lambda wire: bool(wire.links[A, LAB]) and _shares(wire, A), **TOGETHER)()
    session = wire.sessions[LAB]
    assert session.feed(Received(B, state(1, "share", B, LAB, 8.0), "of b")) == []
    actions = session.feed(Received(A, SHARE, "of a"))
    added = [(action.owner, action.payload) for action in actions if isinstance(action, Add)]
    assert added == [(A, "of a"), (B, "of b")]
    assert [type(action) for action in actions[:3]] == [Add, Add, Spread]


def _shares(wire: Wire, party: str) -> bool:
    return any(isinstance(send.message, State) for send in wire.sent(party))


@pytest.mark.parametrize("plan", [V2, V2_TOGETHER], ids=["an aggregator", "the lab"])
def test_after_the_last_turn_the_lab_waits_for_what_moves_and_names_who_owes_it(plan: dict[str, Any]) -> None:
    wire = Wire(make_plan(clients=1, **plan), NO_EVALUATION).start()
    wire.run(until=lambda wire: _shares(wire, A) and len(wire.links[A, LAB]) == 1)
    assert wire.sessions[LAB].waiting_for() == f"{A} to send what moves"
    if SUMS in wire.sessions:
        wire.run(until=lambda wire: _shares(wire, LAB))
        assert wire.sessions[LAB].waiting_for() == f"{SUMS} to send what moves"


def test_whoever_waits_for_a_mean_waits_for_the_lab() -> None:
    wire = until(lambda wire: _shares(wire, A), **TOGETHER)()
    assert wire.sessions[A].waiting_for() == f"{LAB} to grant a turn"


def test_states_travel_by_the_lab_alone_and_each_once() -> None:
    wire = Wire(make_plan(**RELAY), ROWS).start().run()
    moves = [(work.source, work.target) for work in schedule_of(wire.plan, ROWS) if isinstance(work, HandOver)]
    for party in (A, B):
        given = [send for send in wire.sent(party) if isinstance(send.message, State)]
        assert {send.peer for send in given} == {LAB}
    forwarded = [send for send in wire.sent(LAB) if isinstance(send.message, State)]
    assert [(send.message.source, send.peer) for send in forwarded] == moves  # type: ignore[union-attr]


def test_the_aggregator_hears_of_nothing_but_states() -> None:
    wire = Wire(make_plan(**V2), ROWS).start().run()
    heard = {type(send.message).__name__ for send in wire.sent(LAB, SUMS)}
    assert heard == {"Hello", "Welcome", "State", "Saved", "Bye"}
    assert not any(isinstance(action, Run | Step) for action in wire.actions(SUMS))
