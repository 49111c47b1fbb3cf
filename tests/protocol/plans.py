"""Plans made by hand, and what a run of one should come to, counted without the code under test."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from cutlayer.plan.check import needs_aggregator
from cutlayer.plan.course import Course
from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import Contents, Cutting, Plan, SegmentContents
from cutlayer.plan.schedule import LEGAL, Evaluate, Train, TurnUnit, Work, works
from cutlayer.plan.tensors import TensorShape, TensorSpec
from cutlayer.plan.terms import TOGETHER, InputTerms, Method, ModelTerms, PartyTerms, Quorum, SaveTerms, Terms, Training
from cutlayer.plan.topology import OWN, Edge, SegmentNode, Source, Topology
from cutlayer.protocol.agenda import numbered
from cutlayer.protocol.messages import Rows

LAB = "lab"
SUMS = "sums"
"""The party that fills the role of aggregator."""
CLIENTS = ("hospital-a", "hospital-b", "hospital-c", "hospital-d")
A, B, C, D = CLIENTS

HUB, BUREAU, LAB_2, HOPS = "hub", "bureau", "lab-2", ("hop-1", "hop-2")

FEATURES = TensorSpec(dtype="float64", shape=("B", 4), differentiable=False)
HIDDEN = TensorSpec(dtype="float64", shape=("B", 6))
FROZEN = TensorSpec(dtype="float64", shape=("B", 6), differentiable=False)
ANSWERS = TensorSpec(dtype="float64", shape=("B", 2), differentiable=False)
LAYER = TensorShape("float64", (6, 6))

OTHERS: dict[str, dict[str, str]] = {
    "vertical": {BUREAU: "labels"},
    "vertical_u_shaped": {BUREAU: "labels"},
    "extended_vanilla": {HUB: "middle"},
    "multi_task": {LAB_2: "server"},
    "multi_hop": dict.fromkeys(HOPS, "hop"),
    "own": {HUB: "member"},
}
"""Who else takes part in a topology, by role: a party with labels alone, one that joins, another server, hops."""
OWN_GRAPH = Topology(
    name="own",
    sources=(
        Source(name="x_a", role=A, kind="rows"),
        Source(name="x_b", role=B, kind="rows"),
        Source(name="y", role=B, kind="labels"),
    ),
    segments=(
        SegmentNode(name="bottom_a", role=A),
        SegmentNode(name="bottom_b", role=B),
        SegmentNode(name="probe", role=A, loss=True, auxiliary=True),
        SegmentNode(name="mixer", role=HUB, join="sum"),
        SegmentNode(name="top", role=LAB, join="sum"),
        SegmentNode(name="head", role=B, loss=True),
    ),
    edges=(
        Edge(source="x_a", target="bottom_a"),
        Edge(source="x_b", target="bottom_b"),
        Edge(source="bottom_a", target="probe", every=2),
        Edge(source="y", target="probe", every=2),
        Edge(source="bottom_a", target="mixer"),
        Edge(source="bottom_b", target="mixer"),
        Edge(source="mixer", target="top"),
        Edge(source="bottom_a", target="top", gradient=False, every=3),
        Edge(source="top", target="head"),
        Edge(source="bottom_b", target="head"),
        Edge(source="y", target="head"),
    ),
)
"""Two clients and a hub that talk by the lab, a way round the middle, two losses, and edges that are often silent."""


def make_plan(
    topology: str = "vanilla",
    *,
    schedule: str = "",
    clients: int | tuple[str, ...] = 2,
    rounds: int = 1,
    batch_size: int = 4,
    turn: TurnUnit = "epoch",
    seed: int = 0,
    frozen: bool = False,
    straddling: bool = False,
    sees_weights: bool = False,
    others: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    quorum: Quorum = "all",
    save_every: int = 0,
    secure_aggregation: bool = False,
    **training: Any,
) -> Plan:
    """A plan for `hospital-a` … and `lab`, and `sums` where something of the clients' is summed.

    With `frozen` bottoms have nothing to learn, so no gradient comes back. With `straddling` the model is cut earlier
    for the first client. With `sees_weights` the lab sums itself, if something is summed. `others`: who else takes
    part, by role. `training`: further terms. The schedule is the first that goes with the topology, unless it is said.
    """
    names = CLIENTS[:clients] if isinstance(clients, int) else clients
    own = topology == OWN
    roles = OTHERS.get(topology, {}) if others is None else others
    terms = Terms(
        topology=topology,
        schedule=schedule or ("alternating" if "alternating" in LEGAL[topology] and not own else "joint"),
        turn=turn,
        seed=seed,
        model=ModelTerms(),
        input=InputTerms(shape=(4,), dtype="float64"),
        labels_leave=topology in ("vertical", OWN),
        source=OWN_GRAPH.sources if own else (),
        segment=OWN_GRAPH.segments if own else (),
        edge=OWN_GRAPH.edges if own else (),
        training=Training(
            loss=Method(name="mse_loss"),
            optimizer=Method(name="SGD"),
            batch_size=batch_size,
            rounds=rounds,
            **training,
        ),
        parties={
            name: PartyTerms(role=role)
            for name, role in [*((n, "client") for n in names), (LAB, "server"), *roles.items()]
        },
        aggregator_sees_weights=sees_weights,
        quorum=quorum,
        secure_aggregation=secure_aggregation,
        saves=SaveTerms(every_steps=save_every),
        limits=limits or Limits(),
    )
    if not needs_aggregator(terms):
        terms = replace(terms, aggregator_sees_weights=False)
    elif not sees_weights:
        terms = replace(terms, parties=terms.parties | {SUMS: PartyTerms(role="aggregator")})
    return Plan(terms=terms, contents=_contents(terms.drawn(), frozen, names[0] if straddling else ""))


def _contents(shape: Topology, frozen: bool, elsewhere: str) -> Contents:
    """Each segment has a layer; the first another one, which with `elsewhere` is in that client's next segment."""
    carried = {source.name: FEATURES if source.kind == "rows" else ANSWERS for source in shape.sources}
    bottoms = [edge.target for edge in shape.edges if shape.source_kind(edge) == "rows"]
    carried |= dict.fromkeys(bottoms, FROZEN if frozen else HIDDEN)
    edges: dict[str, tuple[TensorSpec, ...]] = {
        edge.name: (carried.get(edge.source, HIDDEN) if edge.gradient else FROZEN,) for edge in shape.edges
    }
    layers = {segment.name: {f"{segment.name}.weight": LAYER} for segment in shape.segments}
    first, above = shape.segments[0].name, shape.segments[1].name

    def segments(holder: str) -> dict[str, SegmentContents]:
        held = {name: state | ({"second.weight": LAYER} if name == holder else {}) for name, state in layers.items()}
        return {name: SegmentContents(state=state, parameters=0) for name, state in held.items()}

    return Contents(
        segments=segments(first),
        edges=edges,
        classes={},
        model_digest="",
        weights_digest="",
        cuttings={elsewhere: Cutting(segments=segments(above), edges=edges)} if elsewhere else {},
    )


def owned(plan: Plan, rows: Mapping[str, Rows]) -> dict[str, Rows]:
    """The rows that travel under each owner's name."""
    if plan.schedule.together:
        return {TOGETHER: rows[plan.row_owners[0]]}
    return {name: rows[name] for name in plan.terms.filling("client")}


def schedule_of(plan: Plan, rows: Mapping[str, Rows]) -> list[Work]:
    """The works of a whole run."""
    own = owned(plan, rows)
    course = Course.of(plan, {n: each.train for n, each in own.items()}, {n: each.held_out for n, each in own.items()})
    return list(works(course, plan.schedule))


def turns_of(plan: Plan, rows: Mapping[str, Rows]) -> dict[int, Train | Evaluate]:
    """The turns among them, by number."""
    return {n: work for n, work in numbered(schedule_of(plan, rows)) if isinstance(work, Train | Evaluate)}


def steps_of(work: Train, party: str, rows: Mapping[str, Rows], plan: Plan) -> Iterator[int]:
    """The rows of a party in each step of a training turn."""
    training, count = plan.terms.training, owned(plan, rows)[party].train
    size = training.batch_size
    epoch = [min(size, count - start) for start in range(0, count, size)]
    if training.drop_last and epoch and epoch[-1] < size:
        epoch.pop()
    for step in range(work.first, work.first + work.steps):
        yield epoch[(step + work.round * training.local_steps) % len(epoch)]
