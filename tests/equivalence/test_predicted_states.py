"""Predictions use what was trained, whoever has it: personal parameters, a client's own replicas, raw rows."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import Parts, simulate
from cutlayer.errors import PlanError
from cutlayer.plan.topology import Edge, SegmentNode, Source, Topology
from equivalence.test_keeping_step import COMMON, classes, linear, numbers

PERSONAL = [
    ("relay", ["0.*"]),
    ("splitfed_v1", ["0.*"]),
    ("splitfed_v1", ["2.*"]),
    ("splitfed_v2", ["0.*"]),
    ("splitfed_v3", ["2.*"]),
]


@pytest.mark.parametrize(("schedule", "personal"), PERSONAL)
def test_personal_parameters_are_used_as_they_were_trained(schedule: str, personal: list[str]) -> None:
    model = nn.Sequential(linear(3, 4), nn.Tanh(), linear(4, 4), nn.Tanh(), linear(4, 2))
    data = {name: TensorDataset(numbers(3, seed), classes(seed)) for seed, name in enumerate("ab")}
    sees: dict[str, Any] = {"aggregator_sees_weights": True} if schedule in ("splitfed_v1", "splitfed_v2") else {}
    result = simulate(model, cut="1", data=data, schedule=schedule, personal=personal, **COMMON, **sees)
    answers = result.predict({name: TensorDataset(rows.tensors[0]) for name, rows in data.items()})
    for name, rows in data.items():
        wanted = result.model_for(name)(rows.tensors[0])
        torch.testing.assert_close(answers["top"][name], wanted, rtol=0, atol=1e-12)
    first, second = (result.model_for(name).state_dict() for name in data)
    assert any(not torch.equal(first[name], second[name]) for name in first)


JOINED = Topology(
    name="own",
    sources=(
        Source(name="x_a", role="left", kind="rows"),
        Source(name="x_s", role="server", kind="rows"),
        Source(name="x_b", role="right", kind="rows"),
        Source(name="y", role="server", kind="labels"),
    ),
    segments=(
        SegmentNode(name="bottom_a", role="left"),
        SegmentNode(name="bottom_b", role="right"),
        SegmentNode(name="hub", role="server", join="sum"),
        SegmentNode(name="top", role="server", loss=True),
    ),
    edges=tuple(
        Edge(source=source, target=target)
        for source, target in map(
            str.split,
            ("x_a bottom_a", "x_b bottom_b", "bottom_a hub", "x_s hub", "bottom_b hub", "hub top", "y top"),
        )
    ),
)
"""The hub sums two activations and raw rows of its own; the banks fill roles."""


def joined(**more: Any) -> Any:
    model = Parts(bottom_a=linear(2, 3), bottom_b=linear(2, 3), hub=linear(3, 4), top=linear(4, 2))
    data = {
        "a": TensorDataset(numbers(2, 1)),
        "server": TensorDataset(numbers(3, 2), classes(3)),
        "b": TensorDataset(numbers(2, 4)),
    }
    roles = {"a": "left", "b": "right"}
    return data, simulate(model, data=data, topology=JOINED, roles=roles, **COMMON, **more)


@pytest.mark.parametrize("absent", ["a", "b"])
def test_who_joins_keeps_its_own_rows_when_a_party_is_absent(absent: str) -> None:
    data, result = joined(party_dropout=0.3)
    rows = {name: TensorDataset(own.tensors[0]) for name, own in data.items() if name != absent}
    answers = result.predict(rows, absent=[absent])["top"]["all"]
    parts = dict(result.model_for().named_children())
    present = "b" if absent == "a" else "a"
    summed = parts[f"bottom_{present}"](data[present].tensors[0]) + data["server"].tensors[0]
    torch.testing.assert_close(answers, parts["top"](parts["hub"](summed)), rtol=0, atol=1e-12)


def test_a_model_that_never_learned_to_do_without_a_role_is_not_used_without_it() -> None:
    data, result = joined()
    with pytest.raises(PlanError, match="never learned to do without b"):
        result.predict({"a": data["a"], "server": TensorDataset(data["server"].tensors[0])}, absent=["b"])
