"""Messages about states that move, each in a scene, which break a rule."""

import math
from collections.abc import Sequence
from typing import Any

from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Event, Received, Take
from cutlayer.protocol.messages import Bye, Forward, Rows, State, StateKind
from protocol.joined import Wire
from protocol.plans import LAB, SUMS, A, B
from protocol.scenes import Case, Scene, begun, until

RELAY: dict[str, Any] = {"schedule": "relay"}
"""0 a trains, 1 a hands over to b, 2 b evaluates, 3 b trains, 4 b hands over to a, 5 both evaluate."""
PARALLEL: dict[str, Any] = {"schedule": "parallel"}
"""0 both train a step, 1 both share gradients, 2 both take the sum, 3, 4, 5 again, 6 both evaluate."""
TOGETHER: dict[str, Any] = PARALLEL | {"sees_weights": True}
"""The same, but the lab sums."""
V1: dict[str, Any] = {"schedule": "splitfed_v1", "straddling": True}
V2: dict[str, Any] = {"schedule": "splitfed_v2"}
"""0 b trains, 1 b shares weights, 2 a trains, 3 a shares weights, 4 both take the mean, 5 both evaluate."""
V2_TOGETHER: dict[str, Any] = V2 | {"sees_weights": True}
MASKED: dict[str, Any] = V2_TOGETHER | {"secure_aggregation": True, "quorum": 1}
"""As V2; at 4 the lab calls for the keys of masks, both give them, and both take the mean."""
JOINT_ROWS = 8.0
"""In the first step of joined batches."""


def state(number: int, kind: StateKind, source: str, target: str, normaliser: float = 0.0, nbytes: int = 16) -> State:
    return State(number, kind, source, target, (TensorShape("uint8", (nbytes,)),), normaliser)


def sent(party: str, plan: dict[str, Any]) -> Scene:
    """The party has just sent its first state, which has not arrived."""
    return until(lambda wire: _states(wire, party) >= 1, **plan)


def coming(hearer: str, plan: dict[str, Any]) -> Scene:
    """The next that the party is to hear from the lab is its first state."""
    return until(lambda wire: _is_state(wire.links[LAB, hearer]), **plan)


def heard(party: str, peer: str, plan: dict[str, Any]) -> Scene:
    """The peer has just got the party's first state."""
    return until(lambda wire: _states(wire, party) >= 1 and not wire.links[party, peer], **plan)


def taken(party: str, plan: dict[str, Any]) -> Scene:
    """The party has just put its first state in place."""
    return until(lambda wire: any(isinstance(action, Take) for action in wire.actions(party)), **plan)


def waiting(party: str, plan: dict[str, Any]) -> Scene:
    """The party has sent its first activation and waits for gradients."""
    return until(lambda wire: any(isinstance(each.message, Forward) for each in wire.sent(party)), **plan)


def _is_state(inbox: Sequence[Event]) -> bool:
    return bool(inbox) and isinstance(inbox[0], Received) and isinstance(inbox[0].message, State)


def _states(wire: Wire, party: str) -> int:
    return sum(isinstance(send.message, State) for send in wire.sent(party))


def at_lab(message: State, scene: Scene, peer: str = A, rule: str = "wrong-state") -> Case:
    return Case(rule, scene, LAB, peer, message)


def at(hearer: str, message: State, scene: Scene, rule: str = "wrong-state") -> Case:
    return Case(rule, scene, hearer, LAB, message)


GIVEN = state(1, "replica", A, B)
NO_STATE = State(1, "replica", A, B, ())
TWO_STATES = State(1, "replica", A, B, 2 * GIVEN.tensors)
SHARE = state(1, "share", A, LAB, JOINT_ROWS)
MEAN = state(2, "mean", LAB, A, JOINT_ROWS)
LIMIT_BYTES = 20_288
"""Of a state of these plans: each has a matrix of 6 by 6 twice."""

FORWARDED = {
    "a state of nobody, since nothing moves": at_lab(GIVEN, begun(LAB)),
    "a state of another": at_lab(GIVEN, sent(A, RELAY), B),
    "a state to the lab instead": at_lab(state(1, "replica", A, LAB), sent(A, RELAY)),
    "a state to its own source": at_lab(state(1, "replica", A, A), sent(A, RELAY)),
    "a state to a stranger": at_lab(state(1, "replica", A, "nobody"), sent(A, RELAY)),
    "a state of another kind": at_lab(state(1, "share", A, B), sent(A, RELAY)),
    "a state of another movement": at_lab(state(4, "replica", A, B), sent(A, RELAY)),
    "a state at a turn": at_lab(state(0, "replica", A, B), sent(A, RELAY)),
    "a state at no number": at_lab(state(2**53, "replica", A, B), sent(A, RELAY)),
    "a state whose time has not come": at_lab(state(4, "replica", B, A), begun(LAB, **RELAY, turns_ahead=1), B),
    "a state forwarded already": at_lab(GIVEN, heard(A, LAB, RELAY)),
    "a state too large": at_lab(state(1, "replica", A, B, nbytes=LIMIT_BYTES + 1), sent(A, RELAY)),
    "a state without end": at_lab(state(1, "replica", A, B, nbytes=2**62), sent(A, RELAY)),
    "no state": at_lab(NO_STATE, sent(A, RELAY)),
    "two states": at_lab(TWO_STATES, sent(A, RELAY)),
    "a mean of a client's making": at_lab(state(2, "mean", SUMS, B), sent(A, PARALLEL)),
    "a share to another client": at_lab(state(1, "share", A, B, JOINT_ROWS), sent(A, PARALLEL)),
    "a mean before its shares": at_lab(state(4, "mean", SUMS, A), begun(LAB, **V2, turns_ahead=1), SUMS),
    "a mean twice": at_lab(state(2, "mean", SUMS, A, JOINT_ROWS), heard(SUMS, LAB, PARALLEL), SUMS),
}
SUMMED = {
    "a share twice": at_lab(SHARE, heard(A, LAB, TOGETHER)),
    "a share before its turn": at_lab(state(3, "share", A, LAB), begun(LAB, **V2_TOGETHER, turns_ahead=1)),
    "a share of who shares nothing now": at_lab(state(1, "share", A, LAB), sent(B, V2_TOGETHER)),
    "a share for another": at_lab(state(1, "share", B, LAB, JOINT_ROWS), sent(A, TOGETHER)),
    "a share that is a replica": at_lab(state(1, "replica", A, LAB, JOINT_ROWS), sent(A, TOGETHER)),
    "a mean to who sums": at_lab(state(2, "mean", A, LAB, JOINT_ROWS), sent(A, TOGETHER)),
    "a share of no rows": at_lab(state(1, "share", A, LAB), sent(A, TOGETHER), rule="wrong-normaliser"),
    "a share of fewer rows than none": at_lab(
        state(1, "share", A, LAB, -1.0), sent(A, TOGETHER), rule="wrong-normaliser"
    ),
    "a share of endless rows": at_lab(state(1, "share", A, LAB, math.inf), sent(A, TOGETHER), rule="wrong-normaliser"),
    "a share of no number of rows": at_lab(
        state(1, "share", A, LAB, math.nan), sent(A, TOGETHER), rule="wrong-normaliser"
    ),
    "a share of other rows than the first": at_lab(
        state(1, "share", B, LAB, 9.0), heard(A, LAB, TOGETHER), B, rule="wrong-normaliser"
    ),
    "weights with a normaliser": at_lab(
        state(1, "share", B, LAB, 5.0), sent(B, V2_TOGETHER), B, rule="wrong-normaliser"
    ),
    "an aggregator is sent a share of another's": at(SUMS, state(1, "share", LAB, SUMS), coming(SUMS, V2)),
    "an aggregator is sent a share too early": at(SUMS, state(1, "share", LAB, SUMS), begun(SUMS, **V2)),
    "an aggregator is sent a mean": at(SUMS, state(1, "mean", B, SUMS), coming(SUMS, V2)),
    "an aggregator is sent weights with a normaliser": at(
        SUMS, state(1, "share", B, SUMS, 5.0), coming(SUMS, V2), "wrong-normaliser"
    ),
    "an aggregator is sent a share twice": at(SUMS, state(1, "share", A, SUMS, JOINT_ROWS), heard(LAB, SUMS, PARALLEL)),
    "the lab's own layers twice": at(SUMS, state(1, "share", LAB, SUMS), heard(LAB, SUMS, V1)),
}
TAKEN = {
    "a client is sent a state, but nothing moves": at(A, state(1, "replica", B, A), begun(A)),
    "a client is sent its own state": at(A, GIVEN, sent(A, RELAY)),
    "a client is sent another's": at(B, state(1, "replica", A, SUMS), coming(B, RELAY)),
    "a client is sent the lab's state": at(B, state(1, "replica", LAB, B), coming(B, RELAY)),
    "a client is sent a share": at(B, state(1, "share", A, B), coming(B, RELAY)),
    "a client is sent a state of another movement": at(B, state(4, "replica", A, B), coming(B, RELAY)),
    "a client is sent a state whose time has not come": at(A, state(4, "replica", B, A), begun(A, **RELAY)),
    "a client is sent a state too large": at(B, state(1, "replica", A, B, nbytes=LIMIT_BYTES + 1), coming(B, RELAY)),
    "a client is sent no state": at(B, NO_STATE, coming(B, RELAY)),
    "a client is sent a state twice": at(B, GIVEN, taken(B, RELAY)),
    "a client is sent a state with a normaliser": at(
        B, state(1, "replica", A, B, 5.0), coming(B, RELAY), "wrong-normaliser"
    ),
    "a client is sent a mean of nobody's": at(A, state(2, "mean", B, A, JOINT_ROWS), sent(A, TOGETHER)),
    "a client is sent a mean before it has shared": at(A, MEAN, waiting(A, TOGETHER)),
    "a client is sent a mean of other rows": at(
        A, state(2, "mean", LAB, A, 9.0), sent(A, TOGETHER), "wrong-normaliser"
    ),
    "a client is sent a mean of no rows": at(A, state(2, "mean", LAB, A, 0.0), sent(A, TOGETHER), "wrong-normaliser"),
    "a client is sent a mean of weights with a normaliser": at(
        A, state(4, "mean", LAB, A, 13.0), sent(A, V2_TOGETHER), "wrong-normaliser"
    ),
    "a client is sent a mean twice": at(A, MEAN, taken(A, TOGETHER)),
}


def called(party: str) -> Scene:
    """The party has just been asked for the key of its mask, and given it."""
    return until(lambda wire: _states(wire, party) >= 2, **MASKED)


MASKS = {
    "a key before it was called for": at_lab(state(4, "unmask", A, LAB), sent(A, MASKED)),
    "a key of nobody's": at_lab(state(4, "unmask", SUMS, LAB), called(A)),
    "a key for another": at_lab(state(4, "unmask", B, LAB), called(A)),
    "a key that is a share": at_lab(state(4, "share", A, LAB), called(A)),
    "a key with a normaliser": at_lab(state(4, "unmask", A, LAB, 5.0), called(A), rule="wrong-normaliser"),
    "a call of a client's making": at_lab(state(4, "call", A, LAB), called(A)),
    "a call to another client": at_lab(state(4, "call", A, B), called(A)),
    "a client is called twice": at(A, state(4, "call", LAB, A), called(A)),
    "a client is called before its last turn": at(A, state(4, "call", LAB, A), begun(A, **MASKED)),
    "a client is sent a key": at(A, state(4, "unmask", LAB, A), called(A)),
    "a client is sent a mean before it was called": at(A, state(4, "mean", LAB, A), sent(A, MASKED)),
    "a key to be forwarded twice": at_lab(
        state(4, "unmask", A, SUMS),
        until(lambda wire: _states(wire, A) >= 2 and not wire.links[A, LAB], **MASKED | {"sees_weights": False}),
    ),
}
NO_EVALUATION = {A: Rows(8, 0), B: Rows(5, 0)}
EARLY = {
    "a goodbye before the mean has come": Case(
        "early-bye", until(lambda wire: _states(wire, LAB) >= 2, rows=NO_EVALUATION, **V2_TOGETHER), A, LAB, Bye()
    ),
    "a goodbye before the last state has come": Case(
        "early-bye", until(lambda wire: _states(wire, B) >= 1, rows=NO_EVALUATION, **RELAY), A, LAB, Bye()
    ),
    "a goodbye before the last share has come": Case(
        "early-bye", until(lambda wire: _is_state(wire.links[LAB, SUMS]), rows=NO_EVALUATION, **V2), SUMS, LAB, Bye()
    ),
}
CASES_OF_STATES: dict[str, Case] = FORWARDED | SUMMED | TAKEN | MASKS | EARLY
