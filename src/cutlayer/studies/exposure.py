"""What each peer could learn by a plan, channel by channel, what protects it and what does not; in plain words."""

from collections.abc import Iterator
from dataclasses import dataclass

from cutlayer.defence.registry import build
from cutlayer.party.defences import learns_from_rows, mechanism_of, release_chain
from cutlayer.plan.check import needs_aggregator
from cutlayer.plan.masking import own_masks
from cutlayer.plan.plan import Plan
from cutlayer.plan.terms import Terms, Way
from cutlayer.plan.topology import Edge

SHALLOW = 2
"""A client's segment of at most so many layers with weights is called shallow: see docs/privacy.md for what was read
from behind them."""

MEASURED = (
    "from behind one convolution a decoder rebuilt MNIST digits with an SSIM of 0.91, where the mean image has 0.16 "
    "(docs/privacy.md); `cutlayer attack` measures yours, and a defence or a deeper cut makes it less"
)
HEURISTIC = "makes attacks harder and bounds nothing (ε = ∞)"
NOTHING = "nothing but the cut itself"

TELLS: dict[str, str] = {
    "activations": "what a decoder can rebuild of the rows, and their labels by likeness",
    "gradients": "labels, by their norm and direction",
    "labels": "the labels themselves",
}
"""What a channel tells a curious peer if nothing protects it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """One channel from a sender to a receiver: what could be learned, and what protects it. `bounded`: by an ε."""

    channel: str
    sender: str
    receiver: str
    tells: str
    protected_by: str
    bounded: bool = False


def exposures(plan: Plan) -> list[Exposure]:
    """Of all channels, in the order in which a mini-batch meets them; then of states that move."""
    found = [each for edge in plan.topology.cuts() for each in _of_edge(plan, edge)]
    return [*found, *_of_states(plan)]


def _of_edge(plan: Plan, edge: Edge) -> Iterator[Exposure]:
    below, above = plan.topology.role_of(edge.source), plan.topology.role_of(edge.target)
    returns = any(spec.differentiable for spec in plan.contents.edges[edge.name])
    ways: tuple[Way, ...] = ("forward", "backward") if returns and not plan.topology.source_kind(edge) else ("forward",)
    for way in ways:
        channel = plan.channel(edge.name, way)
        sender, receiver = (below, above) if way == "forward" else (above, below)
        if way == "backward" and not _labels_lie_above(plan, receiver):
            continue
        protected_by, bounded = _protection(plan, edge.name, way, sender)
        yield Exposure(
            channel=f"{channel} ({edge.name})",
            sender=sender,
            receiver=receiver,
            tells=TELLS[channel],
            protected_by=protected_by,
            bounded=bounded,
        )


def _labels_lie_above(plan: Plan, receiver: str) -> bool:
    """Whether who gets gradients does not have the labels anyway."""
    topology = plan.topology
    return not any(source.kind == "labels" and source.role == receiver for source in topology.sources)


def _protection(plan: Plan, edge: str, way: Way, sender: str) -> tuple[str, bool]:
    """What is done about it, and whether that bounds what is told."""
    methods = [each for each in build(plan.defending(edge).methods(way)) if not each.neutral]
    if not methods:
        return NOTHING, False
    rows = plan.terms.training.batch_size
    shapes = [s.for_rows(rows) for s in plan.contents.edges[edge] if s.differentiable or way == "forward"]
    mechanisms = [mechanism_of(release_chain(plan, edge, way), shape) for shape in shapes]
    names = " + ".join(each.name for each in methods)
    mechanism = mechanisms[0] if mechanisms else None
    if mechanism is None or None in mechanisms:
        return f"{names}: {HEURISTIC}", False
    parties = plan.parties_of(sender)
    counts = (
        "a row counts once, however often it is released"
        if mechanism.once
        else "every release of any row counts, since the segment learns from all of them"
        if any(learns_from_rows(plan, party, edge) for party in parties)
        else "a row counts as often as it is released"
    )
    return f"{names}: {mechanism.relation}, sensitivity {mechanism.sensitivity:g}; {counts}", True


def _of_states(plan: Plan) -> Iterator[Exposure]:
    terms = plan.terms
    segments = ", ".join(plan.client_segments)
    learned = " + ".join(each.name for name in plan.client_segments for each in build(plan.learning(name)))
    tells = f"{segments}, trained on the sender's rows"
    if plan.schedule.hands_over:
        yield Exposure(
            channel="weights handed on",
            sender="client",
            receiver="the next client",
            tells=tells,
            protected_by=learned or f"{NOTHING}; {plan.conductor} forwards them unread",
            bounded=bool(learned),
        )
    if needs_aggregator(terms):
        what = "gradients" if plan.schedule.joined else "weights"
        yield Exposure(
            channel=f"{what} to be added up",
            sender="client",
            receiver=terms.aggregator,
            tells=f"the sum of {segments} alone" if terms.secure_aggregation else tells,
            protected_by=" and ".join(filter(None, (learned, _summed(terms)))) or NOTHING,
            bounded=bool(learned),
        )
    yield Exposure(
        channel="the final model",
        sender="all",
        receiver="whoever gets it",
        tells="who was among the rows, by its confidence",
        protected_by=learned or "nothing: noise at a cut does not protect weights",
        bounded=bool(learned),
    )


def _summed(terms: Terms) -> str:
    """What sums under masks protect."""
    once = ", each round's sum opened once: a client lost between that and the save has to come back" * own_masks(terms)
    return f"secure aggregation{once}" if terms.secure_aggregation else ""


def watches(plan: Plan) -> Iterator[str]:
    """What is done so that parties that do not keep to the plan are found, a sentence each."""
    probe, check = plan.terms.probe, plan.terms.training.turn_check
    if probe.share:
        owners = ", ".join(name for name in plan.clients if any(s.kind == "labels" for s in plan.sources_of(name)))
        then = "the run ends" if plan.terms.on_alarm == "end" else "its person is told"
        yield (
            f"probes: from its step {probe.after + 1} on, {probe.share:.0%} of the mini-batches of {owners} have wrong "
            "labels, and only their owner knows which; others train on them. If they are answered like all others, "
            f"{then}"
        )
    if check.window:
        yield (
            f"a check of turns: a shared segment goes back behind a client's turn that is unlike most of the last "
            f"{check.window}"
        )


def warnings(plan: Plan) -> Iterator[str]:
    """What a data owner should know before it agrees, a sentence each."""
    for name in plan.client_segments:
        layers = sum(
            tensor.endswith(".weight") and len(spec.shape) > 1
            for tensor, spec in plan.contents.segments[name].state.items()
        )
        cuts = [edge for edge in plan.topology.cuts() if edge.source == name]
        open_cuts = [edge.name for edge in cuts if not release_chain(plan, edge.name, "forward")]
        if open_cuts and 0 < layers <= SHALLOW:
            what = f"{name} is shallow ({layers} layer(s) with weights) and {open_cuts[0]} is released as it is"
            yield f"{what}: {MEASURED}"
