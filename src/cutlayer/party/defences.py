"""What a plan's defences come to: what changes an edge's tensors, what a segment is penalised for, what is at fault."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from cutlayer.defence.defence import Defence, Mechanism
from cutlayer.defence.label_dp import LabelDp
from cutlayer.defence.registry import build, faults
from cutlayer.model.answered import Answered
from cutlayer.model.loss import KINDS
from cutlayer.model.segment import Penalty
from cutlayer.plan.plan import Cutting, Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import WAYS, Channel, Method, Way
from cutlayer.plan.topology import Edge


def release_chain(plan: Plan, edge: str, way: Way) -> tuple[Defence, ...]:
    """What changes an edge's tensors, one way, before they leave; not what has no strength."""
    methods = build(plan.defending(edge).methods(way))
    return tuple(method for method in methods if method.kind == "release" and not method.neutral)


def penalty_of(plan: Plan, segment: str) -> Penalty | None:
    """What is added to the loss for what a segment gives to other parties, if anything is."""
    cuts = {edge.name for edge in plan.topology.cuts()}
    penalties = [
        method
        for edge in plan.topology.outputs(segment)
        if edge.name in cuts
        for method in build(plan.defending(edge.name).forward)
        if method.kind == "penalty" and not method.neutral
    ]
    if not penalties:
        return None

    def total(inputs: Sequence[Tensor], cut: Tensor) -> Tensor:
        first, *others = [each.penalty(inputs, cut) for each in penalties]
        for other in others:
            first = first + other
        return first

    return total


def answered_of(plan: Plan, segment: str) -> Answered | None:
    """How the labels of the loss that a segment ends in are answered, where that is to be corrected."""
    target = plan.topology.target(segment)
    if target is None or target not in plan.topology.cuts():
        return None
    for method in release_chain(plan, target.name, "forward"):
        if isinstance(method, LabelDp) and method.correction:
            classes = plan.contents.classes.get(target.source, 0) or 2
            return Answered(chances=method.chances(classes), backward=method.correction == "backward")
    return None


def mechanism_of(chain: Sequence[Defence], shape: TensorShape) -> Mechanism | None:
    """What the release of one row by a chain tells: what its last method says, since nothing undoes that one."""
    return chain[-1].mechanism(shape) if chain else None


def learns_from_rows(plan: Plan, party: str, edge: str) -> bool:
    """Whether what a party gives on an edge may have learned from other rows of its own, or depends on a whole batch.

    Frozen segments have not, but for layers that normalise over a batch, with running statistics or without; nor do
    those that learn by DP-SGD.
    """
    contents = plan.contents.of(party) if party in plan.terms.parties else plan.contents
    return any(
        (contents.segments[name].parameters > 0 and not plan.learning(name)) or contents.segments[name].mixes_rows
        for name in contents.segments
        if plan.holds(party, plan.topology.segment(name).role)
    )


def gradients_tell(plan: Plan, party: str, segment: str) -> tuple[bool, tuple[Channel, ...]]:
    """Whether the gradient of one row at a segment tells of other rows of the party's, beyond what is counted under
    the channels that are named.

    It does by way of any other segment that has learned of those rows: from activations, or labels, that crossed
    unaccounted, or without DP-SGD beside this one.
    """
    segments = plan.contents.of(party).segments if party in plan.terms.parties else plan.contents.segments
    if any(contents.mixes_rows for contents in segments.values()):
        return True, ()
    learning = [n for n, contents in segments.items() if n != segment and contents.parameters and not plan.learning(n)]
    if not learning:
        return False, ()
    if any(plan.holds(party, plan.topology.segment(name).role) for name in learning):
        return True, ()
    channels: tuple[Channel, ...] = ("activations", "labels")
    sent = [(channel, *place) for channel in channels for place in sent_on(plan, party, channel)]
    rows = plan.terms.training.batch_size
    accounted = all(
        mechanism_of(release_chain(plan, edge, way), spec.for_rows(rows)) is not None
        for _, edge, way in sent
        for spec in plan.contents.of(party).edges[edge]
    )
    return (False, tuple(dict.fromkeys(channel for channel, _, _ in sent))) if accounted else (True, ())


# ---------------------------------------------------------------------- faults


def defence_faults(plan: Plan, cutting: Cutting, classes: Mapping[str, int]) -> Iterator[str]:
    """Why what a plan names cannot defend what crosses, or accounts for less than it says.

    `classes`: of each source of labels, how many there are; 0 where they are no class numbers.
    """
    for edge in plan.topology.cuts():
        for way in WAYS:
            where = f"defence of {edge.name}, {way}"
            methods = plan.defending(edge.name).methods(way)
            if found := faults(methods):
                yield from (f"{where}: {fault}" for fault in found)
                continue
            chain = build(methods)
            yield from (f"{where}: {fault}" for fault in _edge_faults(plan, cutting, edge, way, chain))
            yield from (f"{where}: {fault}" for fault in _label_faults(plan, edge, chain, classes))
    for entry in plan.terms.defence:
        yield from _update_faults(plan, entry.segment, entry.update)
    yield from _budget_faults(plan, cutting)


def _edge_faults(plan: Plan, cutting: Cutting, edge: Edge, way: Way, chain: Sequence[Defence]) -> Iterator[str]:
    shapes = _shapes(plan, cutting, edge.name, way)
    labels = plan.topology.source_kind(edge) == "labels"
    for place, method in enumerate(chain):
        if method.kind == "update" or way not in method.ways:
            yield f"{method.word} does not defend this way: see docs/privacy.md for what it is for"
            continue
        if method.for_labels != labels:
            what = "labels" if method.for_labels else "activations and gradients"
            yield f"{method.word} is for {what}: name its edge"
            continue
        yield from (fault for shape in shapes if (fault := method.fault(shape)) is not None)
        if method.needs_labels and not _sender_knows_labels(plan, edge, way):
            yield f"{method.word} needs the labels, which who sends here does not have: use another method"
        if method.kind == "penalty":
            yield from _penalty_faults(plan, method)
        if place + 1 < len(chain) and any(method.mechanism(shape) for shape in shapes):
            yield f"{method.word} must come last: what is done after it cannot be accounted for"


def _label_faults(plan: Plan, edge: Edge, chain: Sequence[Defence], classes: Mapping[str, int]) -> Iterator[str]:
    """Why methods do not go with the labels that they look at, or with the loss that labels are for."""
    training = plan.terms.training
    parts = training.micro_batches if isinstance(training.micro_batches, int) else 1
    for method in chain:
        if method.needs_labels:
            known = next(filter(None, classes.values()), 0)
            if fault := method.labels_fault(known, training.batch_size // parts):
                yield fault
        if isinstance(method, LabelDp) and method.correction:
            loss = plan.loss_of(edge.target)
            if KINDS[loss.name].by_class is None or loss.options:
                told = ", ".join(name for name, kind in KINDS.items() if kind.by_class)
                yield f"label_dp corrects {told}, without options: leave its correction out, or the loss' options"


def _penalty_faults(plan: Plan, method: Defence) -> Iterator[str]:
    training = plan.terms.training
    if training.micro_batches != 1:
        yield f"{method.word} is a statistic of the whole batch: say training.micro_batches = 1"
    if training.cached_steps or training.staleness:
        yield f"{method.word} knows no cached or stale steps: leave training.cached_steps and staleness at 0"


def _sender_knows_labels(plan: Plan, edge: Edge, way: Way) -> bool:
    topology = plan.topology
    sender = topology.role_of(edge.source if way == "forward" else edge.target)
    return any(
        sender in (topology.role_of(each.source), topology.role_of(each.target))
        for each in topology.edges
        if topology.source_kind(each) == "labels"
    )


def _update_faults(plan: Plan, segment: str, methods: Sequence[Method]) -> Iterator[str]:
    where = f"defence of the segment {segment}"
    if methods and segment not in {each.name for each in plan.topology.segments}:
        yield f"{where}: there is none of this name in {plan.topology.name}"
    if segment and not methods:
        yield f"{where}: say update = …, or name an edge instead"
    if found := faults(methods):
        yield from (f"{where}: {fault}" for fault in found)
        return
    for method in build(methods):
        if method.kind != "update":
            yield f"{where}: {method.word} defends what crosses: name an edge, with forward or backward"
    if methods and plan.schedule.joined and plan.terms.training.client_segments == "equal":
        yield f'{where}: its gradients are summed with other clients\': say training.client_segments = "own"'
    if methods:
        yield from (f"{where}: {fault}" for fault in _step_faults(plan, segment))


def _step_faults(plan: Plan, segment: str) -> Iterator[str]:
    """What does not go with steps that are made of single rows' gradients."""
    training = plan.terms.training
    if training.cached_steps or training.staleness:
        yield "leave training.cached_steps and training.staleness at 0"
    if segment in training.compiled:
        yield "what is compiled gives no gradients of single rows: leave it out of training.compiled"
    weighted = [
        loss for loss in (training.loss, *training.losses.values()) if {"weight", "ignore_index"} & loss.options.keys()
    ]
    if weighted or training.loss_weights:
        yield "a step's divisor must be its rows: leave class weights, ignore_index and training.loss_weights out"
    cuts = plan.topology.outputs(segment)
    if any(method.kind == "penalty" for edge in cuts for method in build(plan.defending(edge.name).forward)):
        yield "a penalty is of the whole batch, and has no gradients of single rows: leave it out"


def _budget_faults(plan: Plan, cutting: Cutting) -> Iterator[str]:
    for budget in plan.terms.budget:
        where = f"budget of {budget.party} for {budget.channel}"
        if budget.party not in plan.terms.parties:
            yield f"{where}: no party has this name"
            continue
        if not 0 < budget.epsilon < float("inf") or not 0 < budget.delta < 1:
            yield f"{where}: epsilon = {budget.epsilon}, delta = {budget.delta}: ε above 0, δ between 0 and 1"
        if budget.channel == "weights":
            continue
        for edge, way in sent_on(plan, budget.party, budget.channel):
            chain = release_chain(plan, edge, way)
            shapes = _shapes(plan, cutting, edge, way)
            if any(mechanism_of(chain, shape) is None for shape in shapes):
                told = "+".join(each.name for each in chain) or "nothing"
                yield f"{where}: {edge} is defended by {told}, of which no ε can be said: add gaussian or laplace there"


def _shapes(plan: Plan, cutting: Cutting, edge: str, way: Way) -> list[TensorShape]:
    """What a full mini-batch is on an edge, one way."""
    rows = plan.terms.training.batch_size
    return [spec.for_rows(rows) for spec in cutting.edges[edge] if spec.differentiable or way == "forward"]


def sent_on(plan: Plan, party: str, channel: str) -> Iterator[tuple[str, Way]]:
    """The edges, and ways, on which a party sends something of this channel."""
    for edge in plan.topology.cuts():
        for way in WAYS:
            sender = plan.topology.role_of(edge.source if way == "forward" else edge.target)
            if plan.holds(party, sender) and plan.channel(edge.name, way) == channel:
                yield edge.name, way
