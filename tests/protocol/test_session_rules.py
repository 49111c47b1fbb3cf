"""Claims about illegal messages: each is refused by the name of its rule, undecoded, and everybody hears of it."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import cutlayer.party
import cutlayer.protocol
from cutlayer.errors import RemoteProtocolError
from cutlayer.protocol.events import Action, Connected, Drop, Fail, Lost, Ran, Received, Run, Send, Tick
from cutlayer.protocol.messages import Bye, Refuse
from cutlayer.protocol.rules import RULES
from protocol.cases import CASES
from protocol.cases_of_saves import CASES_OF_SAVES
from protocol.cases_of_states import CASES_OF_STATES
from protocol.cases_of_topologies import CASES_OF_TOPOLOGIES
from protocol.plans import LAB, A
from protocol.scenes import Case, Untouchable, backward, forward, granted, joining, ticket

ALL = CASES | CASES_OF_SAVES | CASES_OF_STATES | CASES_OF_TOPOLOGIES


def test_a_part_of_a_step_may_count_for_nothing() -> None:
    wire = granted()()
    actions = wire.sessions[A].feed(Received(LAB, backward(normaliser=0.0), None))
    assert [type(action) for action in actions] == [Run]


@pytest.mark.parametrize("case", ALL.values(), ids=ALL.keys())
def test_an_illegal_message_is_refused_by_its_rule_undecoded_and_everybody_hears_of_it(case: Case) -> None:
    wire = case.scene()
    session = wire.sessions[case.hearer]
    others = [peer for peer, state in session.states.items() if peer != case.peer and state != "gone"]
    actions = session.feed(Received(case.peer, case.message, Untouchable()))
    assert_refused(actions, case.rule, case.peer)
    if session.over:
        assert_ended(actions, case.peer, others)
        assert_deaf(session.feed, case.peer)
    else:
        assert case.scene is joining
        assert [action.peer for action in actions if isinstance(action, Drop)] == [case.peer]
        assert len(actions) == 2


def assert_refused(actions: list[Action], rule: str, peer: str) -> None:
    first = actions[0]
    assert isinstance(first, Send)
    assert isinstance(first.message, Refuse)
    assert (first.peer, first.message.rule, first.payload) == (peer, rule, None)
    assert first.message.detail


def assert_ended(actions: list[Action], peer: str, others: list[str]) -> None:
    """The others are told why, the peer only that it was refused, and the party itself fails."""
    goodbyes, last = actions[1:-1], actions[-1]
    assert [action.peer for action in goodbyes if isinstance(action, Send)] == others
    for action in goodbyes:
        assert isinstance(action, Send)
        assert isinstance(action.message, Bye)
        assert peer in action.message.reason
    assert isinstance(last, Fail)
    assert isinstance(last.error, RemoteProtocolError)
    refused = actions[0]
    assert isinstance(refused, Send)
    assert isinstance(refused.message, Refuse)
    assert (last.error.rule, last.error.peer, last.error.detail) == (refused.message.rule, peer, refused.message.detail)


def assert_deaf(feed: Callable[..., list[Action]], peer: str) -> None:
    for event in (
        Connected(peer),
        Received(peer, forward(), Untouchable()),
        Received(peer, Bye()),
        Ran(ticket(), "bottom", "forward", Untouchable()),
        Lost(peer, "gone"),
        Tick(1e9),
    ):
        assert feed(event) == []


OF_PAYLOADS = {"no-message", "not-finite", "wrong-payload"}
"""Rules about what a session never sees: bytes that are no message, and what is in tensors. The party enforces them."""


def test_every_rule_can_be_broken_and_no_other_is_named() -> None:
    assert {case.rule for case in ALL.values()} == set(RULES) - OF_PAYLOADS
    assert _named_in(cutlayer.protocol) == set(RULES) - OF_PAYLOADS
    assert _named_in(cutlayer.party) <= set(RULES)
    assert _named_in(cutlayer.party) >= OF_PAYLOADS


def _named_in(room: ModuleType) -> set[str]:
    return {
        rule
        for file in Path(room.__path__[0]).glob("*.py")
        for rule in re.findall(r'RemoteProtocolError\(\s*"(.+?)"', file.read_text())
    }
