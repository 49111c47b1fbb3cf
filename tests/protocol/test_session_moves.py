"""Claims about the table of moves: what is not in it is out of order, but anyone may give up at any time."""

from typing import get_args

import pytest

from cutlayer.errors import PeerStopped, RemoteProtocolError
from cutlayer.protocol.events import Drop, Fail, Received, Send
from cutlayer.protocol.messages import (
    VERSION,
    Backward,
    Bye,
    Control,
    Forward,
    Hello,
    Message,
    Ping,
    Refuse,
    Report,
    Saved,
    Sealed,
    State,
    Turn,
    Welcome,
)
from cutlayer.protocol.rules import MOVES
from cutlayer.protocol.session import Session
from protocol.cases import FIRST_TURN
from protocol.late import away, waiting_for_the_next_round
from protocol.plans import HOPS, LAB, A, B, C
from protocol.scenes import (
    MEMBERS,
    PLAN,
    ROWS,
    Scene,
    Untouchable,
    after,
    backward,
    begun,
    forward,
    granted,
    greeted,
    joined,
    joining,
    until,
)

STATES: dict[tuple[str, str], tuple[Scene, str, str]] = {
    ("member", "connected"): (joining, LAB, B),
    ("member", "joined"): (joining, LAB, A),
    ("member", "running"): (begun(LAB), LAB, A),
    ("member", "closing"): (after(LAB, Bye), LAB, A),
    ("member", "waiting"): (waiting_for_the_next_round, LAB, C),
    ("member", "away"): (away, LAB, A),
    ("member", "gone"): (until(lambda wire: wire.sessions[LAB].states.get(A) == "gone"), LAB, A),
    ("conductor", "connected"): (greeted, A, LAB),
    ("conductor", "joined"): (joined, A, LAB),
    ("conductor", "running"): (granted(), A, LAB),
    ("fellow", "running"): (begun(HOPS[0], "multi_hop"), HOPS[0], A),
}
"""How each state of a peer comes about: the scene, who hears, who the peer is."""
SAYINGS: dict[type, Message] = {
    Hello: Hello(VERSION, PLAN.digest, A, ROWS[A]),
    Welcome: Welcome("", MEMBERS),
    Turn: FIRST_TURN,
    Forward: forward(),
    Backward: backward(),
    State: State(1, "replica", A, B, ()),
    Sealed: Sealed(A, B, 0, ()),
    Report: Report(0, {}),
    Saved: Saved(3),
    Bye: Bye(),
}


def standing(session: Session, peer: str) -> str | None:
    """What a peer is at; a fellow runs as soon as the party itself does."""
    return session.states.get(peer) or ("running" if peer in session.fellows and session.begun else None)


def test_all_messages_are_among_the_sayings() -> None:
    assert SAYINGS.keys() == set(get_args(Message))


@pytest.mark.parametrize("saying", SAYINGS.values(), ids=lambda saying: type(saying).__name__)
@pytest.mark.parametrize(("kinship", "state"), STATES.keys())
def test_what_is_not_in_the_table_of_moves_is_out_of_order(kinship: str, state: str, saying: Message) -> None:
    scene, hearer, peer = STATES[kinship, state]
    session = scene().sessions[hearer]
    assert standing(session, peer) == state
    actions = session.feed(Received(peer, saying, Untouchable()))
    refusals = [a.message.rule for a in actions if isinstance(a, Send) and isinstance(a.message, Refuse)]
    if kinship == "fellow":  # to whom there is no link: it hears of it by the conductor
        assert refusals == []
        refusals = [a.error.rule for a in actions if isinstance(a, Fail) and isinstance(a.error, RemoteProtocolError)]
    if (kinship, state, type(saying)) in MOVES:
        assert refusals != ["out-of-order"]
    else:
        assert refusals == ["out-of-order"]


def test_the_states_above_are_those_of_the_table() -> None:
    reached = {(kinship, following) for (kinship, _, _), following in MOVES.items()}
    reached |= {(kinship, state) for kinship, state, _ in MOVES}
    reached.remove(("conductor", "gone"))  # then the member's run is over, and it hears nothing
    assert reached == STATES.keys()


@pytest.mark.parametrize(("kinship", "state"), STATES.keys())
def test_a_heartbeat_is_never_out_of_order(kinship: str, state: str) -> None:
    scene, hearer, peer = STATES[kinship, state]
    session = scene().sessions[hearer]
    assert session.feed(Received(peer, Ping())) == []
    assert standing(session, peer) == state


GIVING_UP: dict[str, Message | Control] = {
    "goodbye": Bye("its disk is \x1b[31mfull"),
    "refusal": Refuse("wrong-shape", "its disk is \x1b[31mfull"),
}


@pytest.mark.parametrize("message", GIVING_UP.values(), ids=GIVING_UP.keys())
@pytest.mark.parametrize(("kinship", "state"), STATES.keys())
def test_anyone_may_give_up_at_any_time_and_the_reason_is_plain_text(
    kinship: str, state: str, message: Message | Control
) -> None:
    scene, hearer, peer = STATES[kinship, state]
    session = scene().sessions[hearer]
    actions = session.feed(Received(peer, message))
    if scene in (joining, waiting_for_the_next_round):  # the others wait, or go, on
        (drop,) = actions
        assert isinstance(drop, Drop)
        assert drop.peer == peer
        assert "its disk is  [31mfull" in drop.reason
    else:
        last = actions[-1]
        assert isinstance(last, Fail)
        assert isinstance(last.error, PeerStopped)
        assert "its disk is  [31mfull" in str(last.error)
        assert peer in str(last.error)
        assert peer not in {action.peer for action in actions if isinstance(action, Send)}
