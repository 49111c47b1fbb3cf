"""Topologies: which segment runs at which role, for one mini-batch. Data, as functions that return a DAG.

Sources are columns of a party's data, segments are slices of the network. An edge whose ends lie at two roles is a
*cut*: it crosses. "Do labels leave their owner?" is a question to the edges, not a property that somebody declares.

A node's role is one that parties of the plan fill, such as `client`, or the name of the one party that has the node:
where parties differ in their columns, each has a bottom of its own.

Source: Vepakomma, Gupta, Swedish, Raskar 2018, "Split learning for health" (arXiv 1812.00564), figures 2 and 3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

SourceKind = Literal["rows", "labels"]
Join = Literal["", "concat", "sum", "mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A column of a role's data: `x` (features) or `y` (labels)."""

    name: str
    role: str
    kind: SourceKind


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentNode:
    """A slice of the network, run by a role. With `loss`, it ends in the loss and starts the way back.

    A loss' target is the source that leads to it. `join`: its inputs become one before it runs, concatenated along
    dimension 1, summed or averaged; without, it is called with all of them, in the order of its edges. `auxiliary`: it
    helps to train, and answers nothing when the model is used.
    """

    name: str
    role: str
    loss: bool = False
    join: Join = ""
    auxiliary: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """Carries an activation forward and its gradient back. Sources receive no gradient.

    With `gradient = false` nothing comes back but a word that it was used. `every`: it carries something only in every
    so-manyth training step of whose rows they are.
    """

    source: str
    target: str
    gradient: bool = True
    every: int = 1

    @property
    def name(self) -> str:
        return f"{self.source}->{self.target}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cast:
    """Who plays: what a topology needs to know of a plan's parties, by name in party order.

    `features`: the parties that bring columns of features. `labels`: the party that has the labels, where that is a
    choice; by default one in the role `labels`, else the server.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    labels: str = ""
    join: Join = "concat"
    upload_every: int = 1

    def filling(self, role: str) -> tuple[str, ...]:
        return tuple(name for name, own in self.roles.items() if own == role)

    def one(self, role: str) -> str:
        """The one party that fills a role."""
        return next(iter(self.filling(role)), role)

    @property
    def label_holder(self) -> str:
        return self.labels or next(iter(self.filling("labels")), self.one("server"))


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A DAG of sources and segments. Segments stand in the order in which a mini-batch meets them."""

    name: str
    sources: tuple[Source, ...]
    segments: tuple[SegmentNode, ...]
    edges: tuple[Edge, ...]

    @property
    def nodes(self) -> "tuple[Source | SegmentNode, ...]":
        return (*self.sources, *self.segments)

    def role_of(self, node: str) -> str:
        return next(n.role for n in self.nodes if n.name == node)

    def segment(self, name: str) -> SegmentNode:
        return next(s for s in self.segments if s.name == name)

    def source(self, name: str) -> Source | None:
        return next((s for s in self.sources if s.name == name), None)

    def edge(self, name: str) -> Edge | None:
        return next((e for e in self.edges if e.name == name), None)

    def inputs(self, node: str) -> tuple[Edge, ...]:
        return tuple(e for e in self.edges if e.target == node)

    def outputs(self, node: str) -> tuple[Edge, ...]:
        return tuple(e for e in self.edges if e.source == node)

    def activations(self, node: str) -> tuple[Edge, ...]:
        """The edges that bring a segment what other segments gave, no raw data."""
        return tuple(edge for edge in self.inputs(node) if self.source(edge.source) is None)

    def target(self, loss: str) -> Edge | None:
        """The edge that brings a loss what it compares its output with."""
        from_sources = [edge for edge in self.inputs(loss) if self.source_kind(edge)]
        return next((e for e in from_sources if self.source_kind(e) == "labels"), next(iter(from_sources), None))

    def source_kind(self, edge: Edge) -> SourceKind | None:
        """`"rows"` or `"labels"` if raw data travels on this edge, None if it carries an activation."""
        return next((s.kind for s in self.sources if s.name == edge.source), None)

    def cuts(self) -> tuple[Edge, ...]:
        """The edges that cross from one role to another."""
        return tuple(e for e in self.edges if self.role_of(e.source) != self.role_of(e.target))

    def crossings_to_loss(self, node: str) -> int:
        """How many cuts lie between a node and the loss that is furthest from it."""
        onward = self.outputs(node)
        own = self.role_of(node)
        return max(((self.role_of(e.target) != own) + self.crossings_to_loss(e.target) for e in onward), default=0)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n.role for n in self.nodes))

    @property
    def losses(self) -> tuple[SegmentNode, ...]:
        return tuple(s for s in self.segments if s.loss)

    @property
    def is_chain(self) -> bool:
        """Whether the segments are one network cut into slices, one after another, with one loss at its end."""
        paths = [f"{below.name}->{above.name}" for below, above in pairwise(self.segments)]
        between = [edge.name for edge in self.edges if self.source(edge.source) is None]
        rows = [edge for edge in self.edges if self.source_kind(edge) == "rows"]
        return between == paths and len(rows) == 1 and len(self.losses) == 1 and not any(s.join for s in self.segments)

    def in_order(self) -> "Topology":
        """The same graph, its segments in the order in which a mini-batch meets them; as it is if there is none."""
        left, ordered = list(self.segments), list[SegmentNode]()
        met = {source.name for source in self.sources}
        while left:
            ready = next((s for s in left if met.issuperset(edge.source for edge in self.inputs(s.name))), None)
            if ready is None:
                return self
            left.remove(ready)
            ordered.append(ready)
            met.add(ready.name)
        return replace(self, segments=tuple(ordered))

    def without(self, silent: frozenset[str]) -> "Topology":
        """What is left of a mini-batch where these edges carry nothing: no segment without something to work on, and
        nothing that leads only to what is gone."""
        if not silent:
            return self
        edges = [edge for edge in self.edges if edge.name not in silent]
        while True:
            works = {e.target for e in edges if e is not self.target(e.target) or not self.segment(e.target).loss}
            leads = {e.source for e in edges} | {s.name for s in self.losses}
            gone = {s.name for s in self.segments if s.name not in works or s.name not in leads}
            left = [edge for edge in edges if edge.source not in gone and edge.target not in gone]
            if len(left) == len(edges):
                break
            edges = left
        return replace(
            self,
            sources=tuple(s for s in self.sources if any(e.source == s.name for e in edges)),
            segments=tuple(s for s in self.segments if s.name not in gone),
            edges=tuple(edges),
        )

    @property
    def unused_in_prediction(self) -> frozenset[str]:
        """Edges that only training needs: a loss' target, and whatever leads to an auxiliary segment."""
        targets = {edge.name for loss in self.losses if (edge := self.target(loss.name)) is not None}
        return frozenset(targets | {e.name for s in self.segments if s.auxiliary for e in self.inputs(s.name)})


def vanilla(cast: Cast = Cast()) -> Topology:
    """Bottom at the client; top and loss at the server. The labels cross."""
    return Topology(
        name="vanilla",
        sources=_rows_and_labels(),
        segments=(SegmentNode(name="bottom", role="client"), SegmentNode(name="top", role="server", loss=True)),
        edges=_edges("x bottom", "bottom top", "y top"),
    )


def u_shaped(cast: Cast = Cast()) -> Topology:
    """Bottom, head and loss at the client; only the middle at the server. The labels stay."""
    return Topology(
        name="u_shaped",
        sources=_rows_and_labels(),
        segments=(
            SegmentNode(name="bottom", role="client"),
            SegmentNode(name="middle", role="server"),
            SegmentNode(name="head", role="client", loss=True),
        ),
        edges=_edges("x bottom", "bottom middle", "middle head", "y head"),
    )


def vertical(cast: Cast = Cast()) -> Topology:
    """Each party has other columns of the same rows, and a bottom for them; the server joins them. Labels may cross."""
    bottoms = _Bottoms.of(cast)
    return Topology(
        name="vertical",
        sources=(*bottoms.sources, Source(name="y", role=cast.label_holder, kind="labels")),
        segments=(
            *bottoms.segments,
            SegmentNode(name="top", role=cast.one("server"), loss=True, join=bottoms.join(cast)),
        ),
        edges=(*bottoms.edges, *bottoms.to("top"), *_edges("y top")),
    )


def vertical_u_shaped(cast: Cast = Cast()) -> Topology:
    """As vertical, with head and loss at the party that has the labels: the server never sees one."""
    bottoms = _Bottoms.of(cast)
    return Topology(
        name="vertical_u_shaped",
        sources=(*bottoms.sources, Source(name="y", role=cast.label_holder, kind="labels")),
        segments=(
            *bottoms.segments,
            SegmentNode(name="middle", role=cast.one("server"), join=bottoms.join(cast)),
            SegmentNode(name="head", role=cast.label_holder, loss=True),
        ),
        edges=(*bottoms.edges, *bottoms.to("middle"), *_edges("middle head", "y head")),
    )


def extended_vanilla(cast: Cast = Cast()) -> Topology:
    """As vertical, but one more client joins the bottoms, and only its output goes to the server."""
    bottoms = _Bottoms.of(cast)
    return Topology(
        name="extended_vanilla",
        sources=(*bottoms.sources, Source(name="y", role=cast.label_holder, kind="labels")),
        segments=(
            *bottoms.segments,
            SegmentNode(name="middle", role=cast.one("middle"), join=bottoms.join(cast)),
            SegmentNode(name="top", role=cast.one("server"), loss=True),
        ),
        edges=(*bottoms.edges, *bottoms.to("middle"), *_edges("middle top", "y top")),
    )


def multi_task(cast: Cast = Cast()) -> Topology:
    """As vertical, with a top, a loss and labels of its own at each server: several tasks share the bottoms."""
    bottoms, servers = _Bottoms.of(cast), cast.filling("server")
    tops = {party: f"top_{_word(party)}" for party in servers}
    return Topology(
        name="multi_task",
        sources=(*bottoms.sources, *(Source(name=f"y_{_word(p)}", role=p, kind="labels") for p in servers)),
        segments=(
            *bottoms.segments,
            *(SegmentNode(name=top, role=party, loss=True, join=bottoms.join(cast)) for party, top in tops.items()),
        ),
        edges=(
            *bottoms.edges,
            *(edge for party, top in tops.items() for edge in (*bottoms.to(top), *_edges(f"y_{_word(party)} {top}"))),
        ),
    )


def multi_hop(cast: Cast = Cast()) -> Topology:
    """Bottom at the client, a hop at each party in the role `hop`, top and loss at the server. The labels cross."""
    hops = {f"hop_{number}": party for number, party in enumerate(cast.filling("hop"), 1)}
    chain = ["bottom", *hops, "top"]
    return Topology(
        name="multi_hop",
        sources=_rows_and_labels(),
        segments=(
            SegmentNode(name="bottom", role="client"),
            *(SegmentNode(name=hop, role=party) for hop, party in hops.items()),
            SegmentNode(name="top", role="server", loss=True),
        ),
        edges=_edges("x bottom", *map(" ".join, pairwise(chain)), "y top"),
    )


def decoupled(cast: Cast = Cast()) -> Topology:
    """The client learns from an auxiliary head of its own; no gradient comes down. The server gets each h-th batch.

    Source: Han et al. 2021, "Accelerating federated learning with split learning on locally generated losses"; h-th
    batches: Mu, Shen 2023, CSE-FSL (IEEE Trans. Mobile Comput.).
    """
    every = cast.upload_every
    return Topology(
        name="decoupled",
        sources=_rows_and_labels(),
        segments=(
            SegmentNode(name="bottom", role="client"),
            SegmentNode(name="auxiliary", role="client", loss=True, auxiliary=True),
            SegmentNode(name="top", role="server", loss=True),
        ),
        edges=(
            *_edges("x bottom", "bottom auxiliary", "y auxiliary"),
            Edge(source="bottom", target="top", gradient=False, every=every),
            Edge(source="y", target="top", every=every),
        ),
    )


def semi_supervised(cast: Cast = Cast()) -> Topology:
    """A decoder at the client learns to give back the rows, with labels or without; the top learns from labelled ones.

    Source: Gupta, Raskar 2018 (arXiv 1810.06060), section 3.4.
    """
    return Topology(
        name="semi_supervised",
        sources=_rows_and_labels(),
        segments=(
            SegmentNode(name="bottom", role="client"),
            SegmentNode(name="decoder", role="client", loss=True, auxiliary=True),
            SegmentNode(name="top", role="server", loss=True),
        ),
        edges=_edges("x bottom", "bottom decoder", "x decoder", "bottom top", "y top"),
    )


def bottleneck(cast: Cast = Cast()) -> Topology:
    """As vanilla, but an encoder at the client makes little of what crosses, and a decoder at the server more of it.

    Both are learned with the rest, and are parts of the model. Source: Eshratifar et al. 2019, BottleNet
    (arXiv 1902.01000), there in front of a cut at inference.
    """
    return Topology(
        name="bottleneck",
        sources=_rows_and_labels(),
        segments=(
            SegmentNode(name="bottom", role="client"),
            SegmentNode(name="encoder", role="client"),
            SegmentNode(name="decoder", role="server"),
            SegmentNode(name="top", role="server", loss=True),
        ),
        edges=_edges("x bottom", "bottom encoder", "encoder decoder", "decoder top", "y top"),
    )


TOPOLOGIES: dict[str, Callable[[Cast], Topology]] = {
    "vanilla": vanilla,
    "u_shaped": u_shaped,
    "vertical": vertical,
    "vertical_u_shaped": vertical_u_shaped,
    "extended_vanilla": extended_vanilla,
    "multi_task": multi_task,
    "multi_hop": multi_hop,
    "decoupled": decoupled,
    "semi_supervised": semi_supervised,
    "bottleneck": bottleneck,
}

OWN = "own"
"""The name of a topology that a plan writes out: its sources, segments and edges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bottoms:
    """A bottom for each party that brings features."""

    sources: tuple[Source, ...]
    segments: tuple[SegmentNode, ...]
    edges: tuple[Edge, ...]

    @classmethod
    def of(cls, cast: Cast) -> "_Bottoms":
        words = {party: _word(party) for party in cast.features}
        return cls(
            sources=tuple(Source(name=f"x_{word}", role=party, kind="rows") for party, word in words.items()),
            segments=tuple(SegmentNode(name=f"bottom_{word}", role=party) for party, word in words.items()),
            edges=_edges(*(f"x_{word} bottom_{word}" for word in words.values())),
        )

    def to(self, target: str) -> tuple[Edge, ...]:
        return _edges(*(f"{segment.name} {target}" for segment in self.segments))

    def join(self, cast: Cast) -> Join:
        return cast.join if len(self.segments) > 1 else ""


def _word(party: str) -> str:
    """A party's name as a part of a segment's: `bank-a` has `bottom_bank_a`."""
    return party.replace("-", "_")


def _rows_and_labels() -> tuple[Source, Source]:
    return Source(name="x", role="client", kind="rows"), Source(name="y", role="client", kind="labels")


def _edges(*pairs: str) -> tuple[Edge, ...]:
    return tuple(Edge(source=source, target=target) for source, target in map(str.split, pairs))
