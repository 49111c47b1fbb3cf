"""Plans made by hand, and what a run of one should come to, counted without the code under test."""

from collections.abc import Iterator, Mapping
from typing import Any

from cutlayer.plan.check import needs_aggregator
from cutlayer.plan.course import Course
from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import (
    Contents,
    Cutting,
    InputTerms,
    Method,
    ModelTerms,
    PartyTerms,
    Plan,
    SegmentContents,
    Terms,
    Training,
)
from cutlayer.plan.schedule import SCHEDULES, Evaluate, Train, TurnUnit, Work
from cutlayer.plan.tensors import TensorShape, TensorSpec
from cutlayer.plan.topology import TOPOLOGIES
from cutlayer.protocol.messages import Rows

LAB = "lab"
SUMS = "sums"
"""The party that fills the role of aggregator."""
CLIENTS = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
A, B, C, D = CLIENTS

FEATURES = TensorSpec(dtype="float64", shape=("B", 4), differentiable=False)
HIDDEN = TensorSpec(dtype="float64", shape=("B", 6))
FROZEN = TensorSpec(dtype="float64", shape=("B", 6), differentiable=False)
ANSWERS = TensorSpec(dtype="float64", shape=("B", 2), differentiable=False)
LAYER = TensorShape("float64", (6, 6))


def make_plan(
    topology: str = "vanilla",
    *,
    schedule: str = "alternating",
    clients: int | tuple[str, ...] = 2,
    rounds: int = 1,
    batch_size: int = 4,
    turn: TurnUnit = "epoch",
    seed: int = 0,
    frozen: bool = False,
    straddling: bool = False,
    sees_weights: bool = False,
    limits: Limits | None = None,
    **training: Any,
) -> Plan:
    """A plan for `hospital-a` … and `lab`, and `sums` where something of the clients' is summed.

    With `frozen` the bottom has nothing to learn, so no gradient comes back. With `straddling` the model is cut earlier
    for the first client. With `sees_weights` the lab sums itself, if something is summed. `training`: further terms.
    """
    names = CLIENTS[:clients] if isinstance(clients, int) else clients
    terms = Terms(
        topology=topology,
        schedule=schedule,
        turn=turn,
        seed=seed,
        model=ModelTerms(),
        input=InputTerms(shape=(4,), dtype="float64"),
        training=Training(
            loss=Method(name="mse_loss"),
            optimizer=Method(name="SGD"),
            batch_size=batch_size,
            rounds=rounds,
            **training,
        ),
        parties={name: PartyTerms(role="client") for name in names} | {LAB: PartyTerms(role="server")},
        aggregator_sees_weights=sees_weights,
        limits=limits or Limits(),
    )
    if not needs_aggregator(terms):
        terms = _with(terms, aggregator_sees_weights=False)
    elif not sees_weights:
        terms = _with(terms, parties=terms.parties | {SUMS: PartyTerms(role="aggregator")})
    return Plan(terms=terms, contents=_contents(topology, frozen, names[0] if straddling else ""))


def _with(terms: Terms, **changed: Any) -> Terms:
    return Terms(**{name: getattr(terms, name) for name in terms.__dataclass_fields__} | changed)


def _contents(topology: str, frozen: bool, elsewhere: str) -> Contents:
    """Each segment has a layer; the bottom another one, which with `elsewhere` is in that client's next segment."""
    shape = TOPOLOGIES[topology]()
    carried = {"x": FEATURES, "y": ANSWERS, "bottom": FROZEN if frozen else HIDDEN}
    edges: dict[str, tuple[TensorSpec, ...]] = {edge.name: (carried.get(edge.source, HIDDEN),) for edge in shape.edges}
    layers = {segment.name: {f"{segment.name}.weight": LAYER} for segment in shape.segments}
    above = shape.segments[1].name

    def segments(holder: str) -> dict[str, SegmentContents]:
        held = {name: state | ({"second.weight": LAYER} if name == holder else {}) for name, state in layers.items()}
        return {name: SegmentContents(state=state, parameters=0) for name, state in held.items()}

    return Contents(
        segments=segments("bottom"),
        edges=edges,
        classes=0,
        model_digest="",
        weights_digest="",
        cuttings={elsewhere: Cutting(segments=segments(above), edges=edges)} if elsewhere else {},
    )


def schedule_of(plan: Plan, rows: Mapping[str, Rows]) -> list[Work]:
    """The works of a whole run."""
    clients = plan.terms.filling("client")
    course = Course.of(plan, {n: rows[n].train for n in clients}, {n: rows[n].held_out for n in clients})
    return list(SCHEDULES[plan.terms.schedule].turns(course))


def turns_of(plan: Plan, rows: Mapping[str, Rows]) -> dict[int, Train | Evaluate]:
    """The turns among them, by number."""
    return {n: work for n, work in enumerate(schedule_of(plan, rows)) if isinstance(work, Train | Evaluate)}


def steps_of(work: Train, party: str, rows: Mapping[str, Rows], plan: Plan) -> Iterator[int]:
    """The rows of a party in each step of a training turn."""
    training, count = plan.terms.training, rows[party].train
    size = training.batch_size
    epoch = [min(size, count - start) for start in range(0, count, size)]
    if training.drop_last and epoch and epoch[-1] < size:
        epoch.pop()
    for step in range(work.first, work.first + work.steps):
        yield epoch[(step + work.round * training.local_steps) % len(epoch)]
