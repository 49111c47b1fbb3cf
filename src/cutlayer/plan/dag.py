"""Whether a topology is a graph that a mini-batch can go through, and whether raw data stays at home. All faults."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from cutlayer.plan.document import nearest
from cutlayer.plan.topology import Edge, Topology


def faults(topology: Topology, *, roles: Iterable[str], labels_leave: bool) -> list[str]:
    """One sentence each. `roles`: what a node's role may be: a role, or a party's name."""
    found = [*_names(topology, tuple(roles)), *_ends(topology)]
    if found:
        return found
    return [
        *_order(topology),
        *_segments(topology),
        *_losses(topology),
        *_rhythm(topology),
        *_raw_data(topology, labels_leave),
    ]


def _names(topology: Topology, roles: tuple[str, ...]) -> Iterator[str]:
    for name, times in Counter(node.name for node in topology.nodes).items():
        owners = ", ".join(node.role for node in topology.nodes if node.name == name)
        if times > 1:
            yield f"{name!r} is there {times} times (at {owners}): a node has one owner, give each a name of its own"
        if not name or "->" in name or "." in name:
            yield f"{name!r} is no name for a node: letters, digits and _"
    for node in topology.nodes:
        if node.role not in roles:
            yield f"{node.name}.role = {node.role!r} is no role or party of the plan{nearest(node.role, roles)}"


def _ends(topology: Topology) -> Iterator[str]:
    known = [node.name for node in topology.nodes]
    segments = {segment.name for segment in topology.segments}
    for edge in topology.edges:
        for end in (edge.source, edge.target):
            if end not in known:
                yield f"the edge {edge.name} names {end!r}, which is no node{nearest(end, known)}"
        if edge.target in known and edge.target not in segments:
            yield f"the edge {edge.name} leads into a source: edges lead from sources to segments"
        if edge.every < 1:
            yield f"the edge {edge.name} has every = {edge.every}: at least 1"
    for name, times in Counter(edge.name for edge in topology.edges).items():
        if times > 1:
            yield f"the edge {name} is there {times} times: once is enough"


def _order(topology: Topology) -> Iterator[str]:
    needs: dict[str, set[str]] = {node.name: set() for node in topology.nodes}
    for edge in topology.edges:
        needs[edge.target].add(edge.source)
    try:
        tuple(TopologicalSorter(needs).static_order())
    except CycleError as error:
        way = " -> ".join(reversed(error.args[1]))
        yield f"{way} is a cycle: a mini-batch goes through each segment once"


def _segments(topology: Topology) -> Iterator[str]:
    for segment in topology.segments:
        worked_on = [edge for edge in topology.inputs(segment.name) if edge != _target(topology, segment.name)]
        if not worked_on:
            yield f"{segment.name} has nothing to work on: an edge must lead to it"
        if not topology.outputs(segment.name) and not segment.loss:
            yield f"nothing uses what {segment.name} gives: lead an edge from it, or say loss = true"
        if segment.loss and topology.outputs(segment.name):
            yield f"{segment.name} ends in a loss, but edges lead on from it: give the loss a segment of its own"
    for source in topology.sources:
        if not topology.outputs(source.name):
            yield f"nothing uses the source {source.name}: lead an edge from it, or leave it out"


def _losses(topology: Topology) -> Iterator[str]:
    if not topology.losses:
        yield "no segment has loss = true: nothing would be learned"
    for loss in topology.losses:
        if topology.target(loss.name) is None:
            yield f"the loss {loss.name} has no target: lead an edge from a source of labels (or rows) to it"
        if not _reached(topology, loss.name):
            yield f"the loss {loss.name} is not reached by any rows: lead edges from a source of rows to it"


def _rhythm(topology: Topology) -> Iterator[str]:
    """What a segment is called with comes together, but for what is summed or averaged."""
    periods = {edge.name: edge.every for edge in topology.edges if edge.every > 1}
    steps = range(1, min(math.lcm(*periods.values()), STEPS_LOOKED_AT) + 1)
    lacking: dict[str, set[str]] = {}
    for silent in {frozenset(name for name, every in periods.items() if step % every) for step in steps}:
        left = topology.without(silent)
        for segment in left.segments:
            gone = {edge.name for edge in topology.inputs(segment.name)} - {e.name for e in left.inputs(segment.name)}
            target = _target(topology, segment.name)
            if gone and (segment.join not in ("sum", "mean") or (target is not None and target.name in gone)):
                lacking.setdefault(segment.name, set()).update(gone)
    for name, edges in lacking.items():
        yield (
            f"{name} lacks {', '.join(sorted(edges))} in some steps and works on the rest: give its edges the same "
            "every, or let it sum them"
        )


STEPS_LOOKED_AT = 10_000


def _target(topology: Topology, segment: str) -> Edge | None:
    return topology.target(segment) if topology.segment(segment).loss else None


def _reached(topology: Topology, node: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether rows lead to a segment by another way than as its target."""
    if node in seen:
        return False
    for edge in topology.inputs(node):
        source = topology.source(edge.source)
        if source is None:
            if _reached(topology, edge.source, seen | {node}):
                return True
        elif source.kind == "rows" and edge != _target(topology, node):
            return True
    return False


def _raw_data(topology: Topology, labels_leave: bool) -> Iterator[str]:
    for edge in topology.cuts():
        kind = topology.source_kind(edge)
        ends = f"from {topology.role_of(edge.source)} to {topology.role_of(edge.target)}"
        if kind == "rows":
            yield f"raw rows would leave on {edge.name}, {ends}: put a segment between them, at {ends.split()[1]}"
        elif kind == "labels" and not labels_leave:
            yield f"labels would leave on {edge.name}, {ends}: say labels_leave = true, or put the loss where they are"
    for (role, kind), times in Counter((source.role, source.kind) for source in topology.sources).items():
        if times > 1:
            yield f"{role} has {times} sources of {kind}: one has all its columns; draw several edges from it"
