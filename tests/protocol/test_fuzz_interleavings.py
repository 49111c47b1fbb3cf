"""Claim: whatever comes in whatever order, twice, broken or not at all, a run ends as ever or in a named error.

Hypothesis chooses each delivery and each fault. What a party had done by then is always the beginning of what it does
in an undisturbed run, on the same states.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from cutlayer.errors import ChannelTimeout, CutlayerError, RemoteProtocolError
from cutlayer.protocol.events import Action, Done, Drop, Event, Fail, Lost, Received, Send, Tick
from cutlayer.protocol.messages import (
    Backward,
    Bye,
    Control,
    Forward,
    Hello,
    Message,
    Refuse,
    Report,
    Rows,
    Sealed,
    State,
    Turn,
)
from protocol.claims import assert_all_done, assert_nothing_is_kept, order
from protocol.joined import Wire
from protocol.plans import LAB
from protocol.scenarios import Scenario, states_used

ROWS = (Rows(6, 3), Rows(5, 0))
SCENARIOS: dict[str, Scenario] = {
    "alternating": Scenario("vanilla", ROWS, micro_batches=2),
    "alternating, three clients": Scenario("vanilla", (*ROWS, Rows(3, 2)), turn="batch"),
    "relay": Scenario("u_shaped", ROWS, schedule="relay", turn="batch", rounds=2),
    "parallel": Scenario("vanilla", ROWS, schedule="parallel", micro_batches=2),
    "splitfed_v1": Scenario("vanilla", ROWS, schedule="splitfed_v1", rounds=2),
    "splitfed_v2": Scenario("u_shaped", ROWS, schedule="splitfed_v2", rounds=2),
    "splitfed_v3": Scenario("vanilla", ROWS, schedule="splitfed_v3", rounds=2),
    "vertical": Scenario("vertical", ROWS, micro_batches=2),
    "multi_hop": Scenario("multi_hop", ROWS),
    "decoupled": Scenario("decoupled", ROWS, rounds=2, more={"upload_every": 2}),
}
FAULTS = ("none", "duplicate", "forget", "garble", "lose", "lose patience")
FOREVER = Tick(1e9)
MOST_EVENTS = 20_000
FAR = 1000
Queue = deque[Event]


@cache
def undisturbed(name: str) -> Wire:
    wire = SCENARIOS[name].play()
    assert_all_done(wire)
    return wire


def _elsewhere(message: Forward | Backward) -> list[Message | Control]:
    wrong: list[Message | Control] = [
        replace(message, ticket=replace(message.ticket, turn=message.ticket.turn + FAR)),
        replace(message, edge="bottom->attic"),
    ]
    return [*wrong, replace(message, tensors=message.tensors * 2)] if message.tensors else wrong


def _misdirected(message: State | Sealed) -> list[Message | Control]:
    return [replace(message, number=message.number + FAR), replace(message, target=message.source)]


GARBLED: dict[type, Callable[[Any], list[Message | Control]]] = {
    Hello: lambda said: [replace(said, plan="another"), replace(said, party="nobody"), replace(said, version=99)],
    Turn: lambda said: [replace(said, number=said.number + FAR), replace(said, steps=said.steps + 1)],
    Forward: _elsewhere,
    Backward: lambda said: [*_elsewhere(said), replace(said, normaliser=math.nan)],
    State: _misdirected,
    Sealed: _misdirected,
    Report: lambda said: [replace(said, turn=said.turn + FAR), replace(said, sums={"nobody": {"loss": 1.0}})],
}
"""What is nearly a message, and must be refused at any moment."""


def only_refuses(action: Action) -> bool:
    if isinstance(action, Send):
        return isinstance(action.message, Refuse) or (isinstance(action.message, Bye) and bool(action.message.reason))
    return isinstance(action, Drop | Fail)


class Interleavings(RuleBasedStateMachine):
    """Sessions of a run, their links, and one or two faults of one kind, from a moment on."""

    @initialize(
        name=st.sampled_from(sorted(SCENARIOS)),
        prompt=st.booleans(),
        fault=st.sampled_from(FAULTS),
        moment=st.integers(0, 150),
        choice=st.integers(0, 9),
        way=st.integers(0, 3),
    )
    def begin(self, name: str, prompt: bool, fault: str, moment: int, choice: int, way: int) -> None:
        self.name, self.fault, self.moment, self.last = name, fault, moment, (choice, way)
        self.wire = SCENARIOS[name].wire(prompt=prompt)
        self.faults = 0

    @property
    def queues(self) -> list[tuple[str, Queue]]:
        """What may be delivered next, to whom."""
        links = [(me, events) for (_, me), events in self.wire.links.items() if events]
        return links + [(me, events) for me, events in self.wire.results.items() if events]

    @property
    def messages(self) -> list[tuple[str, Queue]]:
        """Links in which a message is next."""
        links = self.wire.links.items()
        return [(me, events) for (_, me), events in links if events and isinstance(events[0], Received)]

    def deliver_from(self, party: str, events: Queue) -> None:
        self.wire.feed(party, events.popleft())
        assert self.wire.events < MOST_EVENTS, "the run never ends"

    # ------------------------------------------------------------------ what goes as it should

    @rule(choices=st.lists(st.integers(0, 9), min_size=5, max_size=25))
    def deliver(self, choices: list[int]) -> None:
        for choice in choices:
            if queues := self.queues:
                self.deliver_from(*queues[choice % len(queues)])

    @rule(choice=st.integers(0, 4))
    def let_a_moment_pass(self, choice: int) -> None:
        assert self.wire.feed(self.party(choice), Tick(1.0)) == []

    @precondition(lambda self: self.away)
    @rule(choice=st.integers(0, 9))
    def come_back(self, choice: int) -> None:
        self.wire.connect(self.away[choice % len(self.away)])

    def party(self, choice: int) -> str:
        return sorted(self.wire.sessions)[choice % len(self.wire.sessions)]

    @property
    def away(self) -> list[str]:
        """Who has no link and could have one again."""
        if self.wire.sessions[LAB].over:
            return []
        others = (name for name, session in self.wire.sessions.items() if name != LAB and not session.over)
        return sorted(name for name in others if (LAB, name) not in self.wire.links)

    # ------------------------------------------------------------------ what goes wrong

    @property
    def may_go_wrong(self) -> bool:
        if self.fault == "none" or self.wire.events < self.moment:
            return False
        there = {"lose": self.linked, "lose patience": self.wire.sessions}.get(self.fault, self.messages)
        return bool(there) and self.faults < 2

    @property
    def linked(self) -> list[str]:
        return sorted(me for peer, me in self.wire.links if peer == LAB)

    @precondition(lambda self: self.may_go_wrong)
    @rule(choice=st.integers(0, 9), way=st.integers(0, 3))
    def go_wrong(self, choice: int, way: int) -> None:
        if self.fault == "lose":
            self.lose(self.linked[choice % len(self.linked)], client_first=bool(way % 2))
        elif self.fault == "lose patience":
            self.lose_patience(self.party(choice))
        else:
            party, events = self.messages[choice % len(self.messages)]
            {"duplicate": self.duplicate, "forget": self.forget, "garble": self.garble}[self.fault](party, events, way)

    def duplicate(self, party: str, events: Queue, _: int) -> None:
        event = events[0]
        self.deliver_from(party, events)
        self.faults += 1
        assert all(map(only_refuses, self.wire.feed(party, event))), f"{event} was taken twice"

    def forget(self, _party: str, events: Queue, _: int) -> None:
        events.popleft()
        self.faults += 1

    def garble(self, party: str, events: Queue, way: int) -> None:
        event = events[0]
        assert isinstance(event, Received)
        if type(event.message) not in GARBLED:
            self.deliver_from(party, events)
            return
        events.popleft()
        self.faults += 1
        wrong = GARBLED[type(event.message)](event.message)
        message = wrong[way % len(wrong)]
        actions = self.wire.feed(party, Received(event.peer, message, event.payload))
        assert all(map(only_refuses, actions)), f"{message} was not refused"
        for action in actions:
            assert not isinstance(action, Fail) or isinstance(action.error, RemoteProtocolError)

    def lose(self, client: str, *, client_first: bool) -> None:
        """A link breaks with all that is under way on it."""
        ends = [(client, LAB), (LAB, client)]
        for each in ends:
            self.wire.links.pop(each)
        self.faults += 1
        for me, peer in ends if client_first else ends[::-1]:
            self.wire.feed(me, Lost(peer, "it went away"))

    def lose_patience(self, party: str) -> None:
        self.faults += 1
        for action in self.wire.feed(party, FOREVER):
            assert not isinstance(action, Fail) or isinstance(action.error, ChannelTimeout)

    # ------------------------------------------------------------------ what must hold

    def teardown(self) -> None:
        if not hasattr(self, "wire"):
            return
        self.drain()
        if not self.faults:
            self.assert_ended_as_ever()
            return
        for _ in self.wire.sessions:
            for party, session in self.wire.sessions.items():
                if not session.over:
                    self.wire.feed(party, FOREVER)
                    self.drain()
        self.assert_ended_in_words()
        self.assert_all_that_was_done_is_as_ever()

    def drain(self) -> None:
        while queues := self.queues:
            if self.may_go_wrong and not self.faults:
                self.go_wrong(*self.last)
            else:
                self.deliver_from(*queues[0])

    def assert_ended_as_ever(self) -> None:
        assert_all_done(self.wire)
        assert_nothing_is_kept(self.wire)
        usual = undisturbed(self.name)
        for direction in ("forward", "backward"):
            assert order(self.wire, direction) == order(usual, direction)
        assert states_used(self.wire) == states_used(usual)

    def assert_ended_in_words(self) -> None:
        endings = self.wire.endings()
        assert endings.keys() == self.wire.sessions.keys(), "somebody waits for ever"
        for ending in endings.values():
            assert isinstance(ending, Done) or (isinstance(ending, Fail) and isinstance(ending.error, CutlayerError))
            assert isinstance(ending, Done) or str(ending.error)

    def assert_all_that_was_done_is_as_ever(self) -> None:
        usual = undisturbed(self.name)
        for direction in ("forward", "backward"):
            due = order(usual, direction)
            for place, done in order(self.wire, direction).items():
                assert done == due[place][: len(done)]
        states: dict[str, Any] = states_used(usual)
        for party, (used, _) in states_used(self.wire).items():
            assert used.items() <= states[party][0].items()


def play(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )  # fmt: skip


def test_a_run_ends_as_ever_or_in_a_named_error() -> None:
    play(40, 25)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_runs_end_as_ever_or_in_a_named_error() -> None:
    play(600, 40)
