"""Messages about tickets, turns and reports that break a rule, each in a scene."""

import math

from msgspec import structs

from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Run, Step, Tell
from cutlayer.protocol.messages import VERSION, Backward, Bye, Forward, Report, Rows, Turn, Welcome
from protocol.plans import LAB, A, B, C
from protocol.scenes import (
    MEMBERS,
    ROWS,
    SUMS_OF_LOSS,
    after,
    ahead,
    at_client,
    at_lab,
    backward,
    begun,
    forward,
    granted,
    greeted,
    hello,
    in_eval,
    joined,
    joining,
    reported,
    ticket,
    whole,
)

FIRST_TURN = Turn(0, "train", (A,), 2)
NO_TENSORS = Backward(ticket(), "bottom->top", (), 2.0)
NO_ACTIVATION = Forward(ticket(), "bottom->top", ())
TWO_TENSORS = Forward(ticket(), "bottom->top", 2 * (TensorShape("float64", (2, 6)),))

U = "u_shaped"
CASES = {
    "a client of another version": at_lab("wrong-version", hello(B, joining, VERSION + 1), joining, B),
    "a lab of another version": at_client("wrong-version", hello(LAB, greeted, VERSION + 1), greeted),
    "a client with another plan": at_lab("wrong-plan", hello(B, joining, plan="0" * 64), joining, B),
    "a lab with another plan": at_client("wrong-plan", hello(LAB, greeted, plan="0" * 64), greeted),
    "a client by another's name": at_lab("wrong-name", hello(C, joining), joining, B),
    "a lab by a client's name": at_client("wrong-name", hello(A, greeted), greeted),
    "an activation before the welcome": at_lab("out-of-order", forward(), joining),
    "an activation on no edge": at_lab("unknown-edge", forward(edge="bottom->attic")),
    "a gradient on no edge": at_client("unknown-edge", backward(edge="bottom->attic")),
    "an activation of the receiver's": at_lab("not-your-edge", forward(edge="middle->head"), begun(LAB, U)),
    "an activation for another's rows": at_lab("not-your-edge", forward(ticket(1, owner=B))),
    "a gradient of the receiver's": at_lab("not-your-edge", backward()),
    "the receiver's own activation back": at_client("not-your-edge", forward()),
    "an activation of the sender's alone": at_lab("not-my-edge", forward(edge="x->bottom")),
    "a gradient of the sender's alone": at_lab("not-my-edge", backward(edge="y->head"), begun(LAB, U)),
    "another's activation": at_client(
        "not-my-edge", forward(in_eval(0, B), "middle->head", rows=4), after(A, Forward, 2, U, turn=2)
    ),
    "a turn that is not granted": at_lab("unexpected-ticket", forward(ticket(3))),
    "a turn without end": at_lab("unexpected-ticket", forward(ticket(2**53))),
    "a turn that is over": at_lab("unexpected-ticket", forward(), after(LAB, Tell)),
    "a step of the future": at_lab("unexpected-ticket", forward(ticket(step=1))),
    "a step of the past": at_lab("unexpected-ticket", forward(), after(LAB, Step)),
    "a step that the turn has not": at_lab("unexpected-ticket", forward(ticket(step=2))),
    "a part that the step has not": at_lab("unexpected-ticket", forward(ticket(micro=2))),
    "a part that a small last step has not": at_lab(
        "unexpected-ticket", forward(ticket(1, 1, 1, B), rows=0), after(LAB, Step, 3), B
    ),
    "evaluation in a turn of training": at_lab("unexpected-ticket", forward(ticket(purpose="eval"))),
    "training in a turn of evaluation": at_lab("unexpected-ticket", forward(ticket(2))),
    "rows of a stranger": at_lab("unexpected-ticket", forward(ticket(owner="nobody"))),
    "rows of a client whose turn it is not": at_lab("unexpected-ticket", forward(ticket(owner=B)), peer=B),
    "more of an evaluation than was answered": at_lab("unexpected-ticket", forward(in_eval(2), rows=2)),
    "a gradient for a step of the past": at_client("unexpected-ticket", backward(), after(A, Step)),
    "a gradient for a step of the future": at_client("unexpected-ticket", backward(ticket(step=1))),
    "a gradient for another's rows": at_client("unexpected-ticket", backward(ticket(owner=B))),
    "an activation twice": at_lab("duplicate", forward(), after(LAB, Backward)),
    "labels twice": at_lab("duplicate", forward(edge="y->top", width=2), after(LAB, Backward)),
    "a gradient twice": at_client("duplicate", backward(), after(A, Run, direction="backward")),
    "an activation twice in evaluation": at_lab("duplicate", forward(in_eval(0), rows=4), after(LAB, Backward, turn=2)),
    "an answer twice in evaluation": at_client(
        "duplicate", Backward(in_eval(0), "bottom->top", (), 0.0), after(A, Run, direction="load", turn=2, step=2)
    ),
    "a gradient before its activation": at_lab(
        "gradient-before-activation", backward(edge="middle->head"), begun(LAB, U)
    ),
    "a gradient for what waits for its turn": at_lab(
        "gradient-before-activation", backward(ticket(1, owner=B), "middle->head"), ahead, B
    ),
    "a gradient of labels": at_client("no-gradient-here", backward(edge="y->top")),
    "too many rows": at_lab("wrong-shape", forward(rows=4)),
    "too wide": at_lab("wrong-shape", forward(width=7)),
    "another dtype": at_lab("wrong-shape", forward(dtype="float32")),
    "no tensors": at_lab("wrong-shape", NO_ACTIVATION),
    "two tensors": at_lab("wrong-shape", TWO_TENSORS),
    "encoded without a codec": at_lab("wrong-size", structs.replace(forward(), sizes=(96,))),
    "a gradient encoded without a codec": at_client("wrong-size", structs.replace(backward(), sizes=(8,))),
    "a gradient of too many rows": at_client("wrong-shape", backward(rows=3)),
    "an answer instead of a gradient": at_client("wrong-shape", NO_TENSORS),
    "a gradient in evaluation": at_client(
        "wrong-shape", backward(in_eval(0), rows=4, normaliser=0.0), after(A, Forward, 2, turn=2)
    ),
    "a normaliser of nothing": at_client("wrong-normaliser", backward(rows=4, normaliser=0.0), whole),
    "a negative normaliser": at_client("wrong-normaliser", backward(normaliser=-2.0)),
    "an infinite normaliser": at_client("wrong-normaliser", backward(normaliser=math.inf)),
    "a normaliser that is no number": at_client("wrong-normaliser", backward(normaliser=math.nan)),
    "another normaliser than the loss's": at_client(
        "wrong-normaliser", backward(edge="bottom->middle", normaliser=3.0), after(A, Backward, topology=U)
    ),
    "a normaliser in evaluation": at_client(
        "wrong-normaliser", Backward(in_eval(0), "bottom->top", (), 4.0), after(A, Forward, 2, turn=2)
    ),
    "a member missing": at_client("wrong-members", Welcome("", {A: ROWS[A], LAB: Rows()}), joined),
    "a member too many": at_client("wrong-rows", Welcome("", MEMBERS | {"nobody": Rows()}), joined),
    "other rows than announced": at_client("wrong-rows", Welcome("", MEMBERS | {A: Rows(9, 10)}), joined),
    "a report of no turn": at_lab("wrong-report", Report(9, {})),
    "a report of another's turn": at_lab("wrong-report", Report(1, {})),
    "a report twice": at_lab("wrong-report", Report(2, {}), reported),
    "a report after the turn": at_lab("wrong-report", Report(0, {}), after(LAB, Tell, 2)),
    "losses that the lab holds": at_lab("wrong-report", Report(0, {A: SUMS_OF_LOSS})),
    "losses of another": at_lab("wrong-report", Report(2, {B: SUMS_OF_LOSS}), begun(LAB, U)),
    "losses of one too many": at_lab("wrong-report", Report(2, {A: SUMS_OF_LOSS, B: SUMS_OF_LOSS}), begun(LAB, U)),
    "losses withheld": at_lab("wrong-report", Report(0, {}), begun(LAB, U)),
    "a loss that is no number": at_lab(
        "wrong-report", Report(0, {A: SUMS_OF_LOSS | {"loss": math.nan}}), begun(LAB, U)
    ),
    "a normaliser below nothing": at_lab(
        "wrong-report", Report(0, {A: SUMS_OF_LOSS | {"normaliser": -1.0}}), begun(LAB, U)
    ),
    "sums without a normaliser": at_lab("wrong-report", Report(0, {A: {"loss": 1.0}}), begun(LAB, U)),
    "right answers without a count": at_lab(
        "wrong-report", Report(0, {A: SUMS_OF_LOSS | {"correct": 1.0}}), begun(LAB, U)
    ),
    "sums of nobody knows what": at_lab("wrong-report", Report(0, {A: SUMS_OF_LOSS | {"[red]": 1.0}}), begun(LAB, U)),
    "sums of nothing": at_lab("wrong-report", Report(0, {A: {}}), begun(LAB, U)),
    "the lab reports a turn that is not mine": at_client("wrong-report", Report(1, {A: SUMS_OF_LOSS})),
    "the lab reports twice": at_client("wrong-report", Report(0, {A: SUMS_OF_LOSS}), after(A, Tell)),
    "the lab reports another's losses": at_client("wrong-report", Report(0, {B: SUMS_OF_LOSS})),
    "the lab reports what the client holds": at_client("wrong-report", Report(0, {A: SUMS_OF_LOSS}), granted(U)),
    "the lab reports no number": at_client("wrong-report", Report(0, {A: SUMS_OF_LOSS | {"loss": math.inf}})),
    "a turn by another number": at_client("off-schedule", Turn(1, "train", (A,), 2), begun(A)),
    "a turn of other work": at_client("off-schedule", Turn(0, "eval", (A,), 2), begun(A)),
    "a turn of another party": at_client("off-schedule", Turn(0, "train", (B,), 2), begun(A)),
    "a turn of more parties": at_client("off-schedule", Turn(0, "train", (A, B), 2), begun(A)),
    "a turn of more steps": at_client("off-schedule", Turn(0, "train", (A,), 3), begun(A)),
    "a turn left out": at_client("off-schedule", Turn(2, "eval", (A, B), 3), begun(A)),
    "a turn twice": at_client("off-schedule", FIRST_TURN),
    "a turn after the last": at_client("off-schedule", Turn(3, "train", (A,), 2), after(A, Report, turn=2)),
    "a goodbye before the first turn": at_client("early-bye", Bye(), begun(A)),
    "a goodbye in a turn": at_client("early-bye", Bye()),
    "a goodbye before the last losses": at_client("early-bye", Bye(), after(A, Report, turn=2)),
}
