"""Parties whose segments do not wait for the same peers stay in step: the same bits in any order of delivery."""

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from cutlayer import Parts, Result, simulate
from cutlayer.plan.topology import Edge, SegmentNode, Source, Topology
from cutlayer.simulation import simulate_plan

ROWS = 21
COMMON: dict[str, Any] = {"optimizer": "adam", "lr": 1e-2, "batch_size": 4, "rounds": 2, "held_out": 0.2}


def numbers(width: int, seed: int) -> Tensor:
    return torch.randn(ROWS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(seed: int) -> Tensor:
    return torch.randint(0, 2, (ROWS,), generator=torch.Generator().manual_seed(seed))


def linear(size: int, outputs: int) -> nn.Module:
    torch.manual_seed(size + outputs)
    return nn.Linear(size, outputs, dtype=torch.float64)


def same_in_any_order(first: Result, data: Mapping[str, Dataset[Any]], orders: int) -> None:
    wanted = first.model_for().state_dict()
    for seed in range(orders):
        result = simulate_plan(first.agreement, data, delivery=Random(seed))  # noqa: S311
        again = result.model_for().state_dict()
        assert all(torch.equal(again[name], value) for name, value in wanted.items()), seed


@pytest.mark.parametrize(("micro", "orders"), [(3, 4), *(pytest.param(m, 12, marks=pytest.mark.slow) for m in (1, 3))])
def test_servers_with_features_of_their_own_wait_for_each_other(micro: int, orders: int) -> None:
    """A bottom at one server waits for the other server's gradient, while its top is through with the step."""
    bottoms = {f"bottom_{name}": linear(2, 3) for name in ("a", "d", "server")}
    model = Parts(**bottoms, top_d=linear(9, 2), top_server=linear(9, 2))
    data = {
        "a": TensorDataset(numbers(2, 1)),
        "d": TensorDataset(numbers(2, 2), classes(3)),
        "server": TensorDataset(numbers(2, 4), classes(5)),
    }
    roles = {"d": "server"}
    first = simulate(model, data=data, topology="multi_task", roles=roles, micro_batches=micro, **COMMON)
    same_in_any_order(first, data, orders)


def test_a_party_with_a_loss_of_its_own_does_not_run_away_from_where_its_labels_go() -> None:
    """Nothing of p's own leads to the top, so the labels that it sends there are answered."""
    ways = ("x_p bottom_p", "bottom_p aux", "y aux", "x_a bottom_a", "bottom_a top", "y top")
    topology = Topology(
        name="own",
        sources=(
            Source(name="x_p", role="p", kind="rows"),
            Source(name="x_a", role="a", kind="rows"),
            Source(name="y", role="p", kind="labels"),
        ),
        segments=(
            SegmentNode(name="bottom_p", role="p"),
            SegmentNode(name="aux", role="p", loss=True),
            SegmentNode(name="bottom_a", role="a"),
            SegmentNode(name="top", role="server", loss=True),
        ),
        edges=tuple(Edge(source=source, target=target) for source, target in map(str.split, ways)),
    )
    model = Parts(bottom_p=linear(2, 3), aux=linear(3, 2), bottom_a=linear(3, 4), top=linear(4, 2))
    data = {"p": TensorDataset(numbers(2, 1), classes(2)), "a": TensorDataset(numbers(3, 3))}
    first = simulate(model, data=data, topology=topology, labels_leave=True, **COMMON)
    same_in_any_order(first, data, 6)
