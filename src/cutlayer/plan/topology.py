"""Topologies: which segment runs at which role, for one mini-batch. Data, as functions that return a DAG.

Sources are columns of a party's data, segments are slices of the network. An edge whose ends lie at two roles is a
*cut*: it crosses. "Do labels leave their owner?" is a question to the edges, not a property that somebody declares.

Source: Vepakomma, Gupta, Swedish, Raskar 2018, "Split learning for health" (arXiv 1812.00564), figures 2 and 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

SourceKind = Literal["rows", "labels"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A column of a role's data: `x` (features) or `y` (labels)."""

    name: str
    role: str
    kind: SourceKind


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentNode:
    """A slice of the network, run by a role. With `loss`, it ends in the loss and starts the way back."""

    name: str
    role: str
    loss: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """Carries an activation forward and its gradient back. Sources receive no gradient."""

    source: str
    target: str

    @property
    def name(self) -> str:
        return f"{self.source}->{self.target}"


@dataclass(frozen=True, kw_only=True, slots=True)
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

    def edge(self, name: str) -> Edge | None:
        return next((e for e in self.edges if e.name == name), None)

    def inputs(self, node: str) -> tuple[Edge, ...]:
        return tuple(e for e in self.edges if e.target == node)

    def outputs(self, node: str) -> tuple[Edge, ...]:
        return tuple(e for e in self.edges if e.source == node)

    def source_kind(self, edge: Edge) -> SourceKind | None:
        """`"rows"` or `"labels"` if raw data travels on this edge, None if it carries an activation."""
        return next((s.kind for s in self.sources if s.name == edge.source), None)

    def cuts(self) -> tuple[Edge, ...]:
        """The edges that cross from one role to another."""
        return tuple(e for e in self.edges if self.role_of(e.source) != self.role_of(e.target))

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(n.role for n in self.nodes))


def vanilla() -> Topology:
    """Bottom at the client; top and loss at the server. The labels cross."""
    return Topology(
        name="vanilla",
        sources=_rows_and_labels(),
        segments=(SegmentNode(name="bottom", role="client"), SegmentNode(name="top", role="server", loss=True)),
        edges=_edges("x bottom", "bottom top", "y top"),
    )


def u_shaped() -> Topology:
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


TOPOLOGIES: dict[str, Callable[[], Topology]] = {
    "vanilla": vanilla,
    "u_shaped": u_shaped,
}


def _rows_and_labels() -> tuple[Source, Source]:
    return Source(name="x", role="client", kind="rows"), Source(name="y", role="client", kind="labels")


def _edges(*pairs: str) -> tuple[Edge, ...]:
    return tuple(Edge(source=source, target=target) for source, target in map(str.split, pairs))
