"""Claims about topologies: what crosses, and that each is a graph that a mini-batch can go through."""

import pytest

from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.topology import TOPOLOGIES


@pytest.mark.parametrize(("topology", "cuts"), [
    ("vanilla", {"bottom->top", "y->top"}),
    ("u_shaped", {"bottom->middle", "middle->head"}),
])  # fmt: skip
def test_what_crosses(topology: str, cuts: set[str]) -> None:
    assert {edge.name for edge in TOPOLOGIES[topology]().cuts()} == cuts


def test_labels_leave_their_owner_in_vanilla_only_and_rows_never() -> None:
    for name, make in TOPOLOGIES.items():
        topology = make()
        carried = {topology.source_kind(edge) for edge in topology.cuts()}
        assert carried == ({"labels", None} if name == "vanilla" else {None})


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_each_is_a_graph_from_sources_to_one_loss(name: str) -> None:
    topology = TOPOLOGIES[name]()
    assert topology.name == name
    known = {source.name for source in topology.sources}
    for segment in topology.segments:  # they stand in the order in which a mini-batch meets them
        assert {edge.source for edge in topology.inputs(segment.name)} <= known
        known.add(segment.name)
    (loss,) = (segment for segment in topology.segments if segment.loss)
    assert loss == topology.segment(loss.name)
    assert [n.name for n in topology.nodes if not topology.outputs(n.name)] == [loss.name]
    assert {topology.role_of(node.name) for node in topology.nodes} == set(topology.roles)
    for edge in topology.edges:
        assert topology.edge(edge.name) == edge
    assert topology.edge("bottom->attic") is None


def test_a_spec_grows_with_the_rows() -> None:
    spec = TensorSpec(dtype="float16", shape=("B", 3, "2*B"))
    assert spec.for_rows(5).shape == (5, 3, 10)
    assert spec.for_rows(5).nbytes == 300
    assert str(spec) == "float16[B, 3, 2*B]"
