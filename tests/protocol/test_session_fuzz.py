"""Claims about nonsense: whatever a peer says, a session neither breaks nor hangs; it goes on, or fails in words."""

import math
from collections.abc import Iterable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutlayer.errors import CutlayerError
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Broke, Connected, Done, Event, Fail, Lost, Received, Tick
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
    Rows,
    Ticket,
    Turn,
    Welcome,
)
from protocol.joined import LAB, A, B, C, Wire, make_plan

ROWS = {A: Rows(7, 5), B: Rows(4, 0)}
PLANS = {topology: make_plan(topology, rounds=2, micro_batches=2) for topology in ("vanilla", "u_shaped")}
PARTIES = st.sampled_from([A, B, C, LAB])
EDGES = ["x->bottom", "y->top", "y->head", "bottom->top", "bottom->middle", "middle->head", "bottom->attic"]

tickets = st.builds(
    Ticket,
    turn=st.integers(0, 5),
    owner=PARTIES,
    step=st.integers(0, 2),
    micro=st.integers(0, 2),
    purpose=st.sampled_from(["train", "eval"]),
)
tensors = st.lists(
    st.builds(TensorShape, st.just("float64"), st.tuples(st.sampled_from([0, 1, 2, 3, 4]), st.sampled_from([2, 6]))),
    max_size=2,
).map(tuple)
numbers = st.sampled_from([0.0, 1.0, 2.0, 4.0, -1.0, math.nan, math.inf])
sums = st.dictionaries(st.sampled_from(["loss", "normaliser", "correct", "count", "else"]), numbers, max_size=4)
rows = st.builds(Rows, st.sampled_from([0, 4, 7]), st.sampled_from([0, 5]))
digests = st.sampled_from([plan.digest for plan in PLANS.values()] + [""])
sayings = st.one_of(
    st.builds(Hello, st.sampled_from([VERSION, 2]), digests, PARTIES, rows),
    st.builds(Welcome, st.dictionaries(PARTIES, rows)),
    st.builds(
        Turn, st.integers(0, 5), st.sampled_from(["train", "eval"]), st.lists(PARTIES).map(tuple), st.integers(0, 4)
    ),
    st.builds(Forward, tickets, st.sampled_from(EDGES), tensors),
    st.builds(Backward, tickets, st.sampled_from(EDGES), tensors, numbers),
    st.builds(Report, st.integers(0, 5), st.dictionaries(PARTIES, sums, max_size=2)),
    st.builds(Bye, st.sampled_from(["", "tired"])),
    st.builds(Refuse, st.sampled_from(["wrong-shape", ""]), st.just("")),
    st.just(Ping()),
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Received, PARTIES, sayings),
    st.builds(Received, PARTIES, sayings),
    st.builds(Received, PARTIES, sayings),
    st.builds(Connected, PARTIES),
    st.builds(Lost, PARTIES, st.just("gone")),
    st.builds(Tick, st.sampled_from([0.0, 1.0, 1e6])),
    st.just(Broke(CutlayerError("broken"))),
)


def assert_sound(wire: Wire) -> None:
    """Everybody is done or has failed with a sentence, or the lab waits for those that it sent away."""
    for ending in wire.endings().values():
        assert isinstance(ending, Done) or (isinstance(ending, Fail) and str(ending.error))
    if not wire.sessions[LAB].over:
        assert wire.sessions[LAB].waiting_for().endswith("to join")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    topology=st.sampled_from(list(PLANS)),
    seed=st.integers(0, 2**32),
    prompt=st.booleans(),
    interruptions=st.lists(st.tuples(st.integers(0, 60), st.sampled_from([A, B, LAB]), events), max_size=3),
)
def test_no_interruption_breaks_a_session(
    topology: str, seed: int, prompt: bool, interruptions: Iterable[tuple[int, str, Event]]
) -> None:
    wire = Wire(PLANS[topology], ROWS, seed=seed, prompt=prompt).start()
    due = sorted(interruptions, key=lambda each: each[0])
    for moment, party, event in due:
        wire.run(until=lambda wire, moment=moment: wire.events >= moment)  # type: ignore[misc]
        wire.feed(party, event)
    wire.run()
    assert_sound(wire)


@settings(max_examples=150, deadline=None)
@given(
    topology=st.sampled_from(list(PLANS)),
    moment=st.integers(0, 60),
    party=st.sampled_from([A, LAB]),
    said=st.lists(sayings, max_size=30),
)
def test_one_peer_that_talks_nonsense_is_refused_or_right(
    topology: str, moment: int, party: str, said: Iterable[Message | Control]
) -> None:
    wire = Wire(PLANS[topology], ROWS, seed=moment).start().run(until=lambda wire: wire.events >= moment)
    peer = LAB if party == A else A
    for message in said:
        wire.inject(peer, party, message)
    wire.run()
    assert_sound(wire)
