"""Each named topology written out by hand as a graph of one's own gives the same bits; and some graphs have no name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer import simulate
from cutlayer.plan.topology import Edge, SegmentNode, Source, Topology
from equivalence.longhand_topologies import (
    CLASSES,
    ROWS,
    TERMS,
    assert_close,
    assert_same_bits,
    batches,
    classes,
    linear,
    normal,
    parts,
    split,
    table,
    tanh,
    trained,
)

XA, XB = normal(ROWS, 3), normal(ROWS, 4)
Y, Y2 = classes(), classes(seed=1)


def graph(sources: str, segments: str, edges: str) -> Topology:
    """`name@role` of sources (labels begin with y) and segments, with `!` for a loss, `+` for a helping one, `=join`;
    `source>target` of edges, with `/3` for every third step and `-` for no gradient."""
    return Topology(
        name="by hand",
        sources=tuple(_source(*word.split("@")) for word in sources.split()),
        segments=tuple(_segment(*word.split("@")) for word in segments.split()),
        edges=tuple(_edge(word) for word in edges.split()),
    )


def _source(name: str, role: str) -> Source:
    return Source(name=name, role=role, kind="labels" if name.startswith("y") else "rows")


def _segment(name: str, place: str) -> SegmentNode:
    role, _, join = place.rstrip("!+").partition("=")
    return SegmentNode(name=name, role=role, loss="!" in place, auxiliary="+" in place, join=join)  # type: ignore[arg-type]


def _edge(word: str) -> Edge:
    ends, _, every = word.rstrip("-").partition("/")
    source, target = ends.split(">")
    return Edge(source=source, target=target, gradient=not word.endswith("-"), every=int(every or 1))


def towers(**more: Callable[[], nn.Module]) -> nn.Module:
    return parts(bottom_a=tanh(3, 4), bottom_b=tanh(4, 4), **more)


def net(**more: Callable[[], nn.Module]) -> nn.Module:
    return parts(bottom=tanh(3, 4), **more)


COLUMNS = {"a": table(XA), "b": table(XB)}
CLIENTS = {"a": table(XA, Y), "b": table(normal(12, 3, seed=3), classes(12))}
TWO = "x_a>bottom_a x_b>bottom_b"

Case = tuple[str, Topology, nn.Module, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "vertical": (
        "vertical",
        graph(
            "x_a@a x_b@b y@server",
            "bottom_a@a bottom_b@b top@server=concat!",
            f"{TWO} bottom_a>top bottom_b>top y>top",
        ),
        towers(top=linear(8, CLASSES)),
        COLUMNS | {"server": table(Y)},
        {},
    ),
    "vertical, labels at c, summed": (
        "vertical",
        graph("x_a@a x_b@b y@c", "bottom_a@a bottom_b@b top@server=sum!", f"{TWO} bottom_a>top bottom_b>top y>top"),
        towers(top=linear(4, CLASSES)),
        COLUMNS | {"c": table(Y)},
        {"roles": {"c": "labels"}, "labels_leave": True, "join": "sum", "held_out": 0.2},
    ),
    "vertical_u_shaped": (
        "vertical_u_shaped",
        graph(
            "x_a@a x_b@b y@b",
            "bottom_a@a bottom_b@b middle@server=mean head@b!",
            f"{TWO} bottom_a>middle bottom_b>middle middle>head y>head",
        ),
        towers(middle=tanh(4, 4), head=linear(4, CLASSES)),
        {"a": table(XA), "b": table(XB, Y)},
        {"labels": "b", "join": "mean"},
    ),
    "extended_vanilla": (
        "extended_vanilla",
        graph(
            "x_a@a x_b@b y@server",
            "bottom_a@a bottom_b@b middle@mid=concat top@server!",
            f"{TWO} bottom_a>middle bottom_b>middle middle>top y>top",
        ),
        towers(middle=tanh(8, 4), top=linear(4, CLASSES)),
        COLUMNS | {"server": table(Y)},
        {"roles": {"mid": "middle"}, "micro_batches": 3},
    ),
    "multi_task": (
        "multi_task",
        graph(
            "x_a@a x_b@b y_server@server y_s2@s2",
            "bottom_a@a bottom_b@b top_server@server=concat! top_s2@s2=concat!",
            f"{TWO} bottom_a>top_server bottom_b>top_server y_server>top_server "
            "bottom_a>top_s2 bottom_b>top_s2 y_s2>top_s2",
        ),
        towers(top_server=linear(8, CLASSES), top_s2=linear(8, CLASSES)),
        COLUMNS | {"server": table(Y), "s2": table(Y2)},
        {"roles": {"s2": "server"}, "loss_weights": {"top_s2": 0.5}, "held_out": 0.2},
    ),
    "vanilla": (
        "vanilla",
        graph("x@client y@client", "bottom@client top@server!", "x>bottom bottom>top y>top"),
        net(top=linear(4, CLASSES)),
        CLIENTS,
        {"held_out": 0.2},
    ),
    "u_shaped": (
        "u_shaped",
        graph(
            "x@client y@client", "bottom@client middle@server head@client!", "x>bottom bottom>middle middle>head y>head"
        ),
        net(middle=tanh(4, 4), head=linear(4, CLASSES)),
        CLIENTS,
        {"schedule": "relay"},
    ),
    "multi_hop": (
        "multi_hop",
        graph(
            "x@client y@client",
            "bottom@client hop_1@h1 hop_2@h2 top@server!",
            "x>bottom bottom>hop_1 hop_1>hop_2 hop_2>top y>top",
        ),
        net(hop_1=tanh(4, 4), hop_2=tanh(4, 4), top=linear(4, CLASSES)),
        CLIENTS,
        {"roles": {"h1": "hop", "h2": "hop"}, "schedule": "splitfed_v2"},
    ),
    "decoupled": (
        "decoupled",
        graph(
            "x@client y@client",
            "bottom@client auxiliary@client!+ top@server!",
            "x>bottom bottom>auxiliary y>auxiliary bottom>top/3- y>top/3",
        ),
        net(auxiliary=linear(4, CLASSES), top=linear(4, CLASSES)),
        CLIENTS,
        {"upload_every": 3},
    ),
    "semi_supervised": (
        "semi_supervised",
        graph(
            "x@client y@client",
            "bottom@client decoder@client!+ top@server!",
            "x>bottom bottom>decoder x>decoder bottom>top y>top",
        ),
        net(decoder=linear(4, 3), top=linear(4, CLASSES)),
        CLIENTS,
        {"loss_weights": {"decoder": 0.5}},
    ),
}
"""Topology, the same by hand, a model, everybody's rows, and further terms."""


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_graph_by_hand_gives_the_bits_of_the_topology_that_it_is(case: Case) -> None:
    name, topology, model, data, terms = case
    settings = TERMS | {"shuffle": False, "rounds": 2} | terms  # another plan has another order of rows
    if "held_out" in settings:
        settings |= {"held_out": data}
    named = simulate(model, data=data, topology=name, **settings)
    drawn = named.agreement.plan.topology
    assert [node.name for node in drawn.nodes] == [node.name for node in topology.nodes]
    assert {edge.name for edge in drawn.edges} == {edge.name for edge in topology.edges}
    labels_leave = {"labels_leave": True}
    more = {key: value for key, value in settings.items() if key not in ("labels", "join", "upload_every")}
    if name == "multi_task":  # a role cannot be called as a party is
        more["roles"] = {"s2": "member"}
    by_hand = simulate(model, data=data, topology=topology, **more | labels_leave)
    assert by_hand.agreement.plan.terms.topology == "own"
    assert_same_bits(by_hand, named)


def test_segments_may_be_told_in_any_order() -> None:
    name, topology, model, data, terms = CASES["extended_vanilla"]
    turned = Topology(name="by hand", sources=topology.sources, segments=topology.segments[::-1], edges=topology.edges)
    settings = TERMS | {"rounds": 1} | terms
    assert_same_bits(
        simulate(model, data=data, topology=turned, **settings), simulate(model, data=data, topology=name, **settings)
    )


class Residual(nn.Module):
    """Takes what passes by beside what comes through."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, out)

    def forward(self, h: Tensor, skipped: Tensor) -> Tensor:
        return self.fc(h + skipped)  # type: ignore[no-any-return]


@pytest.mark.parametrize("micro", [1, 3])
def test_a_graph_without_a_name_equals_the_whole_model(micro: int) -> None:
    """Two ways round a middle at a third party, another loss at a feature party, an edge without a gradient."""
    topology = graph(
        "x_a@a x_b@b y@b",
        "bottom_a@a bottom_b@b echo@a!+ mixer@hub=sum top@server head@b!",
        f"{TWO} bottom_a>echo x_a>echo bottom_a>mixer bottom_b>mixer mixer>top bottom_a>top- top>head bottom_b>head "
        "y>head",
    )
    model = parts(
        bottom_a=tanh(3, 4), bottom_b=tanh(4, 4), echo=linear(4, 3), mixer=tanh(4, 4),
        top=lambda: Residual(4, 4), head=lambda: Residual(4, CLASSES),
    )  # fmt: skip
    data = {"a": table(XA), "b": table(XB, Y)}
    roles = {"hub": "member", "server": "server"}
    result = split(
        model, data, topology, deliveries=2, roles=roles, micro_batches=micro, loss_weights={"echo": 0.3}, rounds=5,
        labels_leave=False,
    )  # fmt: skip

    def loss(m: Any, b: Tensor) -> Tensor:
        one, other = m.bottom_a(XA[b]), m.bottom_b(XB[b])
        answer = m.head(m.top(m.mixer(one + other), one.detach()), other)
        return F.cross_entropy(answer, Y[b]) + 0.3 * F.mse_loss(m.echo(one), XA[b])

    assert_close(result.model_for(), trained(model, loss))
    fresh = normal(9, 3, seed=4), normal(9, 4, seed=4)
    told = result.predict({"a": table(fresh[0]), "b": table(fresh[1])})
    found: Any = result.model_for()
    with torch.no_grad():
        one, other = found.bottom_a(fresh[0]), found.bottom_b(fresh[1])
        torch.testing.assert_close(
            told["head"]["all"], found.head(found.top(found.mixer(one + other), one), other), rtol=0, atol=1e-12
        )
    assert list(told) == ["head"]


def test_a_loss_that_speaks_in_every_other_step_moves_what_is_below_it_only_then() -> None:
    summed = graph(
        "x_a@a x_b@b y@server", "bottom_a@a bottom_b@b top@server=sum!", f"{TWO} bottom_a>top bottom_b>top/2 y>top"
    )
    model = parts(bottom_a=tanh(3, 4), bottom_b=tanh(4, 4), top=linear(4, CLASSES))
    result = split(model, COLUMNS | {"server": table(Y)}, summed, optimizer={"name": "sgd", "lr": 0.1})
    places = iter(range(10_000))

    def loss(m: Any, b: Tensor) -> Tensor:
        speaks = (next(places) + 1) % 2 == 0
        return F.cross_entropy(m.top(m.bottom_a(XA[b]) + (m.bottom_b(XB[b]) if speaks else 0)), Y[b])

    assert_close(result.model_for(), trained(model, loss, batches(), torch.optim.SGD, lr=0.1))
