"""Claims about topologies: what crosses, and that each is a graph that a mini-batch can go through."""

from dataclasses import replace

import pytest

from cutlayer.plan import dag
from cutlayer.plan.casting import ROLES, SENDS_LABELS
from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.topology import OWN, TOPOLOGIES, Cast, Edge, Topology
from plan.casts import CASTS, DRAWN

TO_TOP = {"bottom_shop->top", "bottom_bank_a->top"}
TO_MIDDLE = {"bottom_shop->middle", "bottom_bank_a->middle"}
CUTS: dict[str, set[str]] = {
    "vanilla": {"bottom->top", "y->top"},
    "u_shaped": {"bottom->middle", "middle->head"},
    "vertical": TO_TOP,
    "vertical_u_shaped": TO_MIDDLE | {"middle->head"},
    "extended_vanilla": TO_MIDDLE | {"middle->top"},
    "multi_task": {f"bottom_{party}->top_{lab}" for party in ("shop", "bank_a") for lab in ("lab", "lab_2")},
    "multi_hop": {"bottom->hop_1", "hop_1->hop_2", "hop_2->hop_3", "hop_3->top", "y->top"},
    "decoupled": {"bottom->top", "y->top"},
    "semi_supervised": {"bottom->top", "y->top"},
    "bottleneck": {"encoder->decoder", "y->top"},
}
LOSSES: dict[str, list[tuple[str, str]]] = {
    "vanilla": [("top", "y->top")],
    "u_shaped": [("head", "y->head")],
    "vertical": [("top", "y->top")],
    "vertical_u_shaped": [("head", "y->head")],
    "extended_vanilla": [("top", "y->top")],
    "multi_task": [("top_lab", "y_lab->top_lab"), ("top_lab_2", "y_lab_2->top_lab_2")],
    "multi_hop": [("top", "y->top")],
    "decoupled": [("auxiliary", "y->auxiliary"), ("top", "y->top")],
    "semi_supervised": [("decoder", "x->decoder"), ("top", "y->top")],
    "bottleneck": [("top", "y->top")],
}
"""Of each topology, with their targets."""


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_what_crosses(topology: str) -> None:
    assert {edge.name for edge in DRAWN[topology].cuts()} == CUTS[topology]


def test_labels_leave_their_owner_only_where_the_name_says_so_and_rows_never() -> None:
    for name, topology in DRAWN.items():
        carried = {topology.source_kind(edge) for edge in topology.cuts()}
        assert carried == ({"labels", None} if name in SENDS_LABELS else {None})


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_each_is_a_graph_from_sources_to_losses(name: str) -> None:
    topology = DRAWN[name]
    assert topology.name == name
    known = {source.name for source in topology.sources}
    for segment in topology.segments:  # they stand in the order in which a mini-batch meets them
        assert {edge.source for edge in topology.inputs(segment.name)} <= known
        known.add(segment.name)
    assert topology.in_order() == topology
    losses = [(loss.name, edge.name) for loss in topology.losses if (edge := topology.target(loss.name))]
    assert losses == LOSSES[name]
    assert topology.losses == tuple(topology.segment(loss) for loss, _ in losses)
    assert [n.name for n in topology.nodes if not topology.outputs(n.name)] == [loss for loss, _ in losses]
    assert {topology.role_of(node.name) for node in topology.nodes} == set(topology.roles)
    for edge in topology.edges:
        assert topology.edge(edge.name) == edge
    assert topology.edge("bottom->attic") is None


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_each_is_sound(name: str) -> None:
    roles = (*CASTS[name].roles, *CASTS[name].roles.values())
    assert dag.faults(DRAWN[name], roles=roles, labels_leave=name in SENDS_LABELS) == []
    assert set(CASTS[name].roles.values()) <= set(ROLES[name])


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_each_party_that_is_named_has_a_node(name: str) -> None:
    """A node lies at a role that parties fill, or at one party."""
    topology, cast = DRAWN[name], CASTS[name]
    for party, role in cast.roles.items():
        assert {party, role} & set(topology.roles)


def test_one_network_can_be_cut_where_segments_are_a_chain() -> None:
    chains = {name for name, topology in DRAWN.items() if topology.is_chain}
    assert chains == {"vanilla", "u_shaped", "multi_hop", "bottleneck"}
    twisted = replace(DRAWN["vanilla"], segments=DRAWN["vanilla"].segments[::-1])
    assert not twisted.is_chain
    assert twisted.in_order() == DRAWN["vanilla"]


def test_a_chain_has_one_way_through() -> None:
    chain = DRAWN["u_shaped"]
    assert not with_edge(chain, "bottom", "head").is_chain  # a second way round the middle
    assert not with_edge(chain, "x", "middle").is_chain  # rows that come in later, too
    joining = replace(chain, segments=(chain.segments[0], replace(chain.segments[1], join="sum"), chain.segments[2]))
    assert not joining.is_chain


def test_a_graph_without_an_order_stays_as_it_is() -> None:
    cycle = with_edge(DRAWN["u_shaped"], "head", "bottom")
    assert cycle.in_order() is cycle


def with_edge(topology: Topology, source: str, target: str) -> Topology:
    return replace(topology, edges=(*topology.edges, Edge(source=source, target=target)))


# ---------------------------------------------------------------------- who has what


LAB = {"lab": "server"}


def drawn(name: str, **cast: object) -> Topology:
    return TOPOLOGIES[name](replace(CASTS[name], **cast))  # type: ignore[arg-type]


def test_labels_lie_where_the_plan_says_else_at_a_party_with_nothing_but_labels_else_at_the_server() -> None:
    bureau = {"roles": {**CASTS["vertical"].roles, "bureau": "labels"}}
    assert drawn("vertical").role_of("y") == "lab"
    assert drawn("vertical", **bureau).role_of("y") == "bureau"
    assert drawn("vertical", labels="shop", **bureau).role_of("y") == "shop"
    for name, node in {"vertical": "top", "vertical_u_shaped": "head", "extended_vanilla": "top"}.items():
        topology = drawn(name, labels="shop")
        assert topology.role_of("y") == "shop"
        assert topology.role_of(node) == ("shop" if name == "vertical_u_shaped" else "lab")


def test_each_party_with_features_has_a_bottom_of_its_own_and_their_activations_are_joined() -> None:
    for name in ("vertical", "vertical_u_shaped", "extended_vanilla", "multi_task"):
        for join in ("concat", "sum", "mean", ""):
            topology = drawn(name, join=join)
            bottoms = {s.name: s.role for s in topology.segments if s.name.startswith("bottom_")}
            assert bottoms == {f"bottom_{party.replace('-', '_')}": party for party in CASTS[name].features}
            fed = {s.name: {e.source for e in topology.inputs(s.name)} for s in topology.segments}
            assert {s.join for s in topology.segments if fed[s.name].issuperset(bottoms)} == {join}
            assert {s.join for s in topology.segments if not fed[s.name].issuperset(bottoms)} <= {""}


def test_one_party_alone_is_joined_with_nobody() -> None:
    assert {segment.join for segment in drawn("vertical", features=("shop",)).segments} == {""}


def test_every_so_manyth_batch_goes_to_the_server_where_learning_is_decoupled() -> None:
    spoken = {edge.name: (edge.every, edge.gradient) for edge in DRAWN["decoupled"].edges}
    assert {name for name, (every, _) in spoken.items() if every == 3} == {"bottom->top", "y->top"}
    assert {name for name, (_, gradient) in spoken.items() if not gradient} == {"bottom->top"}


def test_a_topology_of_ones_own_has_no_name_of_ours() -> None:
    assert OWN not in TOPOLOGIES
    assert Cast(roles=LAB).label_holder == "lab"
    assert Cast(roles=LAB).one("hop") == "hop"


def test_a_spec_grows_with_the_rows() -> None:
    spec = TensorSpec(dtype="float16", shape=("B", 3, "2*B"))
    assert spec.for_rows(5).shape == (5, 3, 10)
    assert spec.for_rows(5).nbytes == 300
    assert str(spec) == "float16[B, 3, 2*B]"
