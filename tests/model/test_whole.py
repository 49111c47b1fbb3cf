"""The whole network from its segments: each is called with what the topology says, in the order of its edges."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from cutlayer.model.parts import Parts
from cutlayer.model.whole import Whole
from cutlayer.plan.topology import (
    Cast,
    Edge,
    SegmentNode,
    Source,
    Topology,
    decoupled,
    extended_vanilla,
    multi_task,
    semi_supervised,
    vertical_u_shaped,
)
from cutlayer.plan.topology import vertical as vertical_of

BANKS = {"bank-a": "client", "bank-b": "client", "bureau": "server"}
A, B, OWN = (torch.randn(7, width, generator=torch.Generator().manual_seed(width)) for width in (3, 4, 5))


def linear(before: int, after: int) -> nn.Module:
    torch.manual_seed(100 * before + after)
    return nn.Sequential(nn.Linear(before, after), nn.Tanh())


def vertical(**more: str) -> Topology:
    return vertical_of(Cast(roles=BANKS, features=("bank-a", "bank-b"), **more))  # type: ignore[arg-type]


def towers(**more: nn.Module) -> dict[str, nn.Module]:
    return {"bottom_bank_a": linear(3, 4), "bottom_bank_b": linear(4, 4), **more}


def joined(parts: Mapping[str, nn.Module]) -> Tensor:
    found: Tensor = torch.cat([parts["bottom_bank_a"](A), parts["bottom_bank_b"](B)], 1)
    return found


def test_two_towers_are_joined_in_party_order() -> None:
    parts = towers(top=linear(8, 2))
    whole = Whole(vertical(), parts).eval()
    assert whole.sources == ("x_bank_a", "x_bank_b")
    assert torch.equal(whole(A, B), parts["top"](joined(parts)))
    assert not torch.equal(whole(A, B), parts["top"](joined(parts).roll(4, 1)))


@pytest.mark.parametrize("how", ["sum", "mean"])
def test_joins_are_those_of_the_topology(how: str) -> None:
    parts = towers(top=linear(4, 2))
    total = parts["bottom_bank_a"](A) + parts["bottom_bank_b"](B)
    wanted = parts["top"](total if how == "sum" else total / 2)
    assert torch.equal(Whole(vertical(join=how), parts)(A, B), wanted)


class Attending(nn.Module):
    """Its inputs are no equals."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one - 2 * other


def test_a_module_of_ones_own_is_called_with_all_in_party_order() -> None:
    parts = towers(top=Attending())
    wanted = parts["bottom_bank_a"](A) - 2 * parts["bottom_bank_b"](B)
    assert torch.equal(Whole(vertical(join=""), parts)(A, B), wanted)


@pytest.mark.parametrize("draw", [vertical_u_shaped, extended_vanilla])
def test_what_lies_above_the_join_follows(draw: object) -> None:
    roles = BANKS | {"broker": "middle"}
    assert callable(draw)
    topology = draw(Cast(roles=roles, features=("bank-a", "bank-b"), labels="bank-b"))
    last = topology.losses[0].name
    parts = towers(middle=linear(8, 6), **{last: linear(6, 2)})
    assert torch.equal(Whole(topology, parts)(A, B), parts[last](parts["middle"](joined(parts))))


def test_several_tasks_answer_in_the_order_of_their_servers() -> None:
    roles = BANKS | {"shop-1": "server"}
    topology = multi_task(Cast(roles=roles, features=("bank-a", "bank-b")))
    parts = towers(top_bureau=linear(8, 2), top_shop_1=linear(8, 3))
    one, other = Whole(topology, parts)(A, B)
    assert torch.equal(one, parts["top_bureau"](joined(parts)))
    assert torch.equal(other, parts["top_shop_1"](joined(parts)))


class TwoInputs(nn.Module):
    """Numbers and codes of one party."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.numbers, self.codes = nn.Linear(3, 4), nn.Embedding(5, 4)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        return self.numbers(x) * self.codes(codes[:, 0])  # type: ignore[no-any-return]


def test_a_source_of_several_tensors_is_given_as_a_tuple() -> None:
    codes = torch.arange(7)[:, None] % 5
    parts = {"bottom_bank_a": TwoInputs(), "bottom_bank_b": linear(4, 4), "top": linear(8, 2)}
    wanted = parts["top"](torch.cat([parts["bottom_bank_a"](A, codes), parts["bottom_bank_b"](B)], 1))
    assert torch.equal(Whole(vertical(), parts)((A, codes), B), wanted)


@pytest.mark.parametrize(("draw", "helping"), [(semi_supervised, "decoder"), (decoupled, "auxiliary")])
def test_what_only_training_needs_is_left_out(draw: object, helping: str) -> None:
    assert callable(draw)
    parts = {"bottom": linear(3, 4), "top": linear(4, 2)}
    whole = Whole(draw(), parts)
    assert whole.sources == ("x",)
    assert torch.equal(whole(A), parts["top"](parts["bottom"](A)))
    with_help = Whole(draw(), parts | {helping: linear(4, 3)})
    assert not any(helping in name for name in with_help.state_dict())


def test_an_own_graph_is_wired_by_its_edges_not_by_the_order_it_was_written_in() -> None:
    """A diamond: the left branch goes on, the right one and the rows themselves are joined to it."""
    segments = (
        SegmentNode(name="last", role="hub", loss=True, join="concat"),
        SegmentNode(name="right", role="b"),
        SegmentNode(name="left", role="a"),
        SegmentNode(name="first", role="a"),
    )
    pairs = ["x first", "first left", "first right", "right last", "left last", "y last"]
    topology = Topology(
        name="own",
        sources=(Source(name="y", role="hub", kind="labels"), Source(name="x", role="a", kind="rows")),
        segments=segments,
        edges=tuple(Edge(source=source, target=target) for source, target in map(str.split, pairs)),
    ).in_order()
    parts = {"first": linear(3, 4), "left": linear(4, 2), "right": linear(4, 3), "last": linear(5, 2)}
    h = parts["first"](A)
    wanted = parts["last"](torch.cat([parts["right"](h), parts["left"](h)], 1))
    assert torch.equal(Whole(topology, parts)(A), wanted)


def test_its_state_bears_the_segments_own_names_and_it_shares_their_tensors() -> None:
    model = Parts(**towers(top=linear(8, 2)))
    whole = Whole(vertical(), dict(model.named_children()))
    assert {name.removeprefix("segments.") for name in whole.state_dict()} == model.state_dict().keys()
    assert {id(p) for p in whole.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("inputs", [(A,), (A, B, OWN)])
def test_too_few_or_too_many_inputs_are_no_answer(inputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(ValueError, match="zip"):
        Whole(vertical(), towers(top=linear(8, 2)))(*inputs)
