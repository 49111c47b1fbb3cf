"""Claims about nonsense: whatever a peer says, a session neither breaks nor hangs; it goes on, or fails in words."""

import math
from collections.abc import Iterable
from typing import Any, get_args

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutlayer.errors import CutlayerError
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import TOGETHER
from cutlayer.plan.topology import OWN
from cutlayer.protocol.events import Broke, Connected, Done, Event, Fail, Lost, Received, Tick
from cutlayer.protocol.messages import (
    MARK_BYTES,
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
    Sealed,
    State,
    StateKind,
    Ticket,
    Turn,
    Welcome,
)
from protocol.joined import SEALED, Wire, mark_of
from protocol.plans import LAB, A, B, C, make_plan
from protocol.scenarios import PAIRS

MORE: dict[str, dict[str, Any]] = {"decoupled": {"upload_every": 2}}
OWN_ROWS = {A: Rows(7, 5), B: Rows(4, 0)}
PLANS = {
    (topology, schedule): make_plan(topology, schedule=schedule, rounds=2, micro_batches=2, **MORE.get(topology, {}))
    for topology, schedule in PAIRS
    if topology != OWN or schedule == "joint"
}
NAMES = sorted({name for plan in PLANS.values() for name in plan.terms.parties} - {A, LAB})
PARTIES = st.sampled_from([A, LAB, TOGETHER, C, *NAMES])
EDGES = sorted({edge.name for plan in PLANS.values() for edge in plan.topology.edges} | {"bottom->attic"})


def rows_of(plan: Plan) -> dict[str, Rows]:
    return dict.fromkeys(plan.row_owners, Rows(7, 5)) if plan.schedule.together else OWN_ROWS


tickets = st.builds(
    Ticket,
    turn=st.integers(0, 5),
    owner=PARTIES,
    step=st.integers(0, 2),
    micro=st.integers(0, 2),
    purpose=st.sampled_from(["train", "eval", "predict"]),
)
tensors = st.lists(
    st.builds(TensorShape, st.just("float64"), st.tuples(st.sampled_from([0, 1, 2, 3, 4]), st.sampled_from([2, 6]))),
    max_size=2,
).map(tuple)
marks = st.one_of(st.just(b""), st.binary(max_size=MARK_BYTES), tickets.map(mark_of))
numbers = st.sampled_from([0.0, 1.0, 2.0, 4.0, -1.0, math.nan, math.inf])
SCORES = ["loss", "normaliser", "correct", "count", "else", "top_lab.loss", "top_lab_2.normaliser", "."]
sums = st.dictionaries(st.sampled_from(SCORES), numbers, max_size=4)
rows = st.builds(Rows, st.sampled_from([0, 4, 7]), st.sampled_from([0, 5]))
digests = st.sampled_from([plan.digest for plan in PLANS.values()] + [""])
sayings = st.one_of(
    st.builds(Hello, st.sampled_from([VERSION, VERSION + 1]), digests, PARTIES, rows),
    st.builds(Welcome, st.just(""), st.dictionaries(PARTIES, rows)),
    st.builds(
        Turn, st.integers(0, 5), st.sampled_from(["train", "eval"]), st.lists(PARTIES).map(tuple), st.integers(0, 4)
    ),
    st.builds(Forward, tickets, st.sampled_from(EDGES), tensors, marks),
    st.builds(Backward, tickets, st.sampled_from(EDGES), tensors, numbers),
    st.builds(State, st.integers(0, 8), st.sampled_from(get_args(StateKind)), PARTIES, PARTIES, tensors, numbers),
    st.builds(Sealed, PARTIES, PARTIES, st.integers(0, 3), st.just(SEALED)),
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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=st.sampled_from(list(PLANS.values())),
    seed=st.integers(0, 2**32),
    prompt=st.booleans(),
    interruptions=st.lists(st.tuples(st.integers(0, 90), st.sampled_from([A, LAB, *NAMES]), events), max_size=3),
)
def test_no_interruption_breaks_a_session(
    plan: Plan, seed: int, prompt: bool, interruptions: Iterable[tuple[int, str, Event]]
) -> None:
    wire = Wire(plan, rows_of(plan), seed=seed, prompt=prompt).start()
    due = sorted(interruptions, key=lambda each: each[0])
    for moment, party, event in due:
        if party not in wire.sessions:
            continue
        wire.run(until=lambda wire, moment=moment: wire.events >= moment)  # type: ignore[misc]
        wire.feed(party, event)
    wire.run()
    assert_sound(wire)


@settings(max_examples=300, deadline=None)
@given(
    plan=st.sampled_from(list(PLANS.values())),
    moment=st.integers(0, 120),
    party=st.sampled_from([A, LAB, *NAMES]),
    said=st.lists(sayings, max_size=30),
)
def test_one_peer_that_talks_nonsense_is_refused_or_right(
    plan: Plan, moment: int, party: str, said: Iterable[Message | Control]
) -> None:
    wire = Wire(plan, rows_of(plan), seed=moment).start().run(until=lambda wire: wire.events >= moment)
    party = party if party in wire.sessions else LAB
    peer = A if party == LAB else LAB
    for message in said:
        wire.inject(peer, party, message)
    wire.run()
    assert_sound(wire)
