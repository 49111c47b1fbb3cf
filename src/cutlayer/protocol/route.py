"""The topology as one party sees it when the rows of one owner travel through it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from cutlayer.plan.check import moves_state
from cutlayer.plan.plan import Contents, Cutting, Plan
from cutlayer.plan.tensors import TensorShape, TensorSpec, most_coded_bytes
from cutlayer.plan.terms import WAYS, Way
from cutlayer.plan.topology import Topology
from cutlayer.protocol.events import Replica
from cutlayer.protocol.messages import Purpose
from cutlayer.protocol.wire import body_bytes, padded


@dataclass(frozen=True, slots=True)
class EdgeRoute:
    """An edge with the parties at its ends. `returns` says whether what it carries is answered.

    Raw data is not, unless its party has no segment on the way whose answers could tell it how far the target is.
    """

    name: str
    source: str
    target: str
    source_party: str
    target_party: str
    tensors: tuple[TensorSpec, ...]
    returns: bool
    differentiable: bool
    """Whether an answer has gradients, when training."""
    coded: frozenset[Way]
    """The ways in which tensors are encoded."""
    _known: dict[tuple[str, int], tuple[TensorShape, ...]] = field(default_factory=dict, repr=False, compare=False)

    def shapes(self, rows: int) -> tuple[TensorShape, ...]:
        """What an activation of so many rows looks like."""
        if (known := self._known.get(("forward", rows))) is None:
            known = self._known["forward", rows] = tuple(spec.for_rows(rows) for spec in self.tensors)
        return known

    def gradient_shapes(self, rows: int) -> tuple[TensorShape, ...]:
        """What its gradient looks like: the differentiable tensors only, so that a frozen segment gets none."""
        if (known := self._known.get(("backward", rows))) is None:
            known = tuple(spec.for_rows(rows) for spec in self.tensors if spec.differentiable)
            self._known["backward", rows] = known
        return known

    def answer_shapes(self, rows: int, purpose: Purpose) -> tuple[TensorShape, ...]:
        """What answers an activation: its gradient when training, else no tensors."""
        return self.gradient_shapes(rows) if self.differentiable and purpose == "train" else ()


class Route:
    """Who holds which node, which edges meet where, and which replica a segment is, for one owner of rows.

    `silent` edges, and what they alone lead to, are not there.
    """

    def __init__(self, plan: Plan, me: str, owner: str, silent: frozenset[str] = frozenset()) -> None:
        topology = plan.way(silent)
        nodes = topology.nodes
        self.owner = owner
        self._topology = topology
        self.party_of = {node.name: plan.holder(node.role, owner) for node in nodes}
        self.segments = tuple(s.name for s in topology.segments if self.party_of[s.name] == me)
        self.losses = frozenset(s.name for s in topology.segments if s.loss)
        self.edges = {edge.name: self._edge(plan, edge.source, edge.target) for edge in topology.edges}
        leaving = {edge.source for edge in self.edges.values() if edge.target_party != me}
        mine = [source.name for source in topology.sources if self.party_of[source.name] == me]
        self.sources = tuple(sorted(mine, key=lambda name: name not in leaving))
        """Mine, those that leave first: they travel while this party computes."""
        self.inputs = {n.name: tuple(e for e in self.edges.values() if e.target == n.name) for n in nodes}
        self.outputs = {n.name: tuple(e for e in self.edges.values() if e.source == n.name) for n in nodes}
        self.answers = {name: sum(edge.returns for edge in edges) for name, edges in self.outputs.items()}
        """How many of a node's edges are answered."""
        self.replicas = {name: self._replica(plan, name) for name in self.segments}
        """By segment. A source whose raw data is answered stands among them, so that its party keeps step."""
        self.replicas |= {name: (name, me) for name in self.sources if self.answers[name]}

    def _edge(self, plan: Plan, source: str, target: str) -> EdgeRoute:
        name, cutting = f"{source}->{target}", plan.contents.of(self.owner)
        return EdgeRoute(
            name=name,
            source=source,
            target=target,
            source_party=self.party_of[source],
            target_party=self.party_of[target],
            tensors=cutting.edges[name],
            returns=self._topology.source(source) is None or self._would_run_ahead(source, target),
            differentiable=_gives_gradient(self._topology, cutting, name),
            coded=frozenset(way for way in WAYS if plan.coding(name).stages(way)),
        )

    def _would_run_ahead(self, source: str, target: str) -> bool:
        """Whether nothing else tells the party of a source how far the target of its raw data is: no segment of its own
        leads there."""
        party = self.party_of[source]
        if self.party_of[target] == party:
            return False
        leading, seen = [target], {target}
        while leading:
            for edge in self._topology.inputs(leading.pop()):
                if self._topology.source(edge.source) is None and edge.source not in seen:
                    seen.add(edge.source)
                    leading.append(edge.source)
        return all(self.party_of[node] != party for node in seen)

    def _replica(self, plan: Plan, segment: str) -> Replica:
        """A client's own, the holder's one for all, or the holder's one for each client."""
        holder = self.party_of[segment]
        shared = plan.schedule.server_shared or self._topology.segment(segment).role != "server"
        return segment, holder if shared else self.owner


def _gives_gradient(topology: Topology, cutting: Contents | Cutting, edge: str) -> bool:
    """Whether the loss has a gradient with respect to what an edge carries."""
    if not any(spec.differentiable for spec in cutting.edges[edge]):
        return False
    onward = topology.outputs(edge.split("->")[1])
    return not onward or any(_gives_gradient(topology, cutting, each.name) for each in onward)


def parties_on_the_way(plan: Plan, owners: Iterable[str], silent: frozenset[str] = frozenset()) -> set[str]:
    """The parties that mini-batches of the owners' rows meet: themselves, and who fills the other roles."""
    owners, parties, roles = set(owners), plan.terms.parties, plan.way(silent).roles
    own_roles = {parties[owner].role for owner in owners if owner in parties}
    others = {plan.holder(role, "") for role in roles if role not in own_roles}
    return owners | others if own_roles.intersection(roles) else others


def largest_body_bytes(plan: Plan) -> int:
    """The largest body that any message of this plan may carry; a channel refuses more from the prelude alone."""
    rows = plan.terms.training.batch_size
    edges = [
        (plan.coding(edge), [spec.for_rows(rows) for spec in specs])
        for cutting in plan.contents.everywhere
        for edge, specs in cutting.edges.items()
    ]
    largest = max(
        sum(padded(most_coded_bytes(shape)) for shape in shapes) if coding.coded else body_bytes(shapes)
        for coding, shapes in edges
    )
    return max(state_limit_bytes(plan), largest, sealed_limit_bytes(plan, largest))


SEALED_BYTES = 1024
"""What sealing adds to a frame, its prelude and padding included, at most."""
ORDER_BYTES = 1024
"""The most that the key of the order of rows takes, sealed."""


def sealed_limit_bytes(plan: Plan, body: int) -> int:
    """The largest sealed frame with a body like this; 0 where no two parties talk by the conductor."""
    return body_bytes_of(body + plan.terms.limits.header_bytes + SEALED_BYTES) if plan.forwarded_pairs else 0


STATE_COPIES = 6
"""A replica's state has its parameters and buffers, and at most so many times as much again for its optimizer."""
STATE_NOTES_BYTES = 2048
"""For each name, what else a state's bytes hold: names and shapes, several of each."""


def state_limit_bytes(plan: Plan) -> int:
    """The largest state that a party may send; 0 where none moves."""
    if not moves_state(plan.terms):
        return body_bytes_of(ORDER_BYTES) if plan.schedule.together else 0
    states = [
        [shape for segment in cutting.segments.values() for shape in segment.state.values()]
        for cutting in plan.contents.everywhere
    ]
    largest = max(sum(max(shape.nbytes, 8) for shape in state) for state in states)
    return body_bytes_of((1 + STATE_COPIES) * 2 * largest + (1 + max(map(len, states))) * STATE_NOTES_BYTES)


def body_bytes_of(nbytes: int) -> int:
    return body_bytes((TensorShape("uint8", (nbytes,)),))
