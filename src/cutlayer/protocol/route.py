"""The topology as one party sees it when the rows of one owner travel through it."""

from dataclasses import dataclass

from cutlayer.plan.plan import Plan
from cutlayer.plan.schedule import SCHEDULES
from cutlayer.plan.tensors import TensorShape, TensorSpec
from cutlayer.protocol.events import Replica
from cutlayer.protocol.wire import body_bytes


@dataclass(frozen=True, slots=True)
class EdgeRoute:
    """An edge with the parties at its ends. `returns` says whether a gradient comes back on it."""

    name: str
    source: str
    target: str
    source_party: str
    target_party: str
    tensors: tuple[TensorSpec, ...]
    returns: bool

    def shapes(self, rows: int) -> tuple[TensorShape, ...]:
        """What an activation of so many rows looks like."""
        return tuple(spec.for_rows(rows) for spec in self.tensors)

    def gradient_shapes(self, rows: int) -> tuple[TensorShape, ...]:
        """What its gradient looks like: the differentiable tensors only."""
        return tuple(spec.for_rows(rows) for spec in self.tensors if spec.differentiable)


class Route:
    """Who holds which node, which edges meet where, and which replica a segment is, for one owner of rows."""

    def __init__(self, plan: Plan, me: str, owner: str) -> None:
        topology = plan.topology
        nodes = topology.nodes
        self.owner = owner
        self.party_of = {node.name: _holder(plan, node.role, owner) for node in nodes}
        self.sources = tuple(s.name for s in topology.sources if self.party_of[s.name] == me)
        self.segments = tuple(s.name for s in topology.segments if self.party_of[s.name] == me)
        self.losses = frozenset(s.name for s in topology.segments if s.loss)
        self.edges = {edge.name: self._edge(plan, edge.source, edge.target) for edge in topology.edges}
        self.inputs = {n.name: tuple(e for e in self.edges.values() if e.target == n.name) for n in nodes}
        self.outputs = {n.name: tuple(e for e in self.edges.values() if e.source == n.name) for n in nodes}
        self.returning = {n.name: tuple(e for e in self.outputs[n.name] if e.returns) for n in nodes}
        self.replicas = {name: self._replica(plan, name) for name in self.segments}
        self.parties = frozenset(self.party_of.values())

    def _edge(self, plan: Plan, source: str, target: str) -> EdgeRoute:
        name = f"{source}->{target}"
        tensors = plan.contents.edges[name]
        is_segment = any(source == segment.name for segment in plan.topology.segments)
        return EdgeRoute(
            name=name,
            source=source,
            target=target,
            source_party=self.party_of[source],
            target_party=self.party_of[target],
            tensors=tensors,
            returns=is_segment and any(spec.differentiable for spec in tensors),
        )

    def _replica(self, plan: Plan, segment: str) -> Replica:
        shared = plan.topology.segment(segment).role == "server" and SCHEDULES[plan.terms.schedule].server_shared
        return segment, self.party_of[segment] if shared else self.owner


def _holder(plan: Plan, role: str, owner: str) -> str:
    filling = plan.terms.filling(role)
    return owner if owner in filling else filling[0]


def largest_body_bytes(plan: Plan) -> int:
    """The largest body that any message of this plan may carry; a channel refuses more from the prelude alone."""
    rows = plan.terms.training.batch_size
    return max(
        body_bytes([spec.for_rows(rows) for spec in specs]) for specs in plan.contents.edges.values()
    )  # fmt: skip
