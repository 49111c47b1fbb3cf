"""On a GPU a run learns what it learns on the processor, up to the rounding of another order of sums."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import Parts, simulate
from cutlayer.plan.terms import CodecTerms, Method
from cutlayer.simulation import Result

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

ROWS = 40
WIDE = {"splitfed_v1": {"aggregator_sees_weights": True}, "relay": {}, "alternating": {}, "parallel": {}}


def linear(*sizes: int) -> nn.Sequential:
    torch.manual_seed(sum(sizes))
    layers = (nn.Linear(*pair, dtype=torch.float64) for pair in pairwise(sizes))
    return nn.Sequential(*(nn.Sequential(layer, nn.Tanh()) for layer in layers))


def columns(width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(ROWS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 3, (ROWS,), generator=torch.Generator().manual_seed(seed))


def trained(device: str, topology: str, schedule: str = "") -> Result:
    common = {"optimizer": "adam", "lr": 1e-2, "batch_size": 8, "rounds": 3, "device": device, "schedule": schedule}
    if topology in ("vanilla", "u_shaped"):
        data = {name: TensorDataset(columns(6, seed), classes(seed)) for seed, name in enumerate(["a", "b"])}
        cut = ["0"] if topology == "vanilla" else ["0", "1"]
        return simulate(linear(6, 8, 8, 3), cut=cut, data=data, topology=topology, **common, **WIDE.get(schedule, {}))  # type: ignore[arg-type]
    model = Parts(bottom_a=linear(3, 5), bottom_b=linear(4, 5), middle=linear(10, 6), head=linear(6, 3))
    rows = {"a": TensorDataset(columns(3)), "b": TensorDataset(columns(4, 2), classes())}
    return simulate(model, data=rows, topology=topology, labels="b", party_dropout=0.2, **common)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("topology", "schedule"),
    [
        ("vanilla", "alternating"),
        ("u_shaped", "relay"),
        ("vanilla", "splitfed_v1"),
        ("u_shaped", "parallel"),
        ("vertical_u_shaped", "joint"),
    ],
)
def test_a_gpu_learns_what_a_processor_learns(topology: str, schedule: str) -> None:
    here, there = trained("cpu", topology, schedule), trained("cuda", topology, schedule)
    owner = "" if schedule == "joint" else "a"
    for name, weights in here.model_for(owner).state_dict().items():
        torch.testing.assert_close(there.model_for(owner).state_dict()[name], weights, rtol=0, atol=1e-9)
    devices = {
        p.device.type
        for segment in there.parties["server"].segments.values()
        for p in segment.replica.module.parameters()
    }
    assert devices == {"cuda"}


OVERLAPPED = {
    "codec": {"codec": "int8"},
    "chain": {"codec": (CodecTerms(forward=(Method(name="topk", options={"share": 0.5}), Method(name="half"))),)},
    "staleness": {"staleness": 2},
    "micro-batches": {"micro_batches": 4, "in_flight": 2},
    "autocast": {"autocast": ("top",)},
}


@pytest.mark.parametrize("name", OVERLAPPED)
def test_codecs_and_steps_in_flight_do_on_a_gpu_what_they_do_on_a_processor(name: str) -> None:
    data = {"a": TensorDataset(columns(6), classes())}
    found = {
        device: simulate(
            linear(6, 8, 8, 3),
            cut="0",
            data=data,
            lr=0.1,
            batch_size=8,
            rounds=3,
            device=device,
            **OVERLAPPED[name],  # type: ignore[arg-type]
        ).model_for("a")
        for device in ("cpu", "cuda")
    }
    for key, weights in found["cpu"].state_dict().items():
        tolerance = 0.05 if name == "autocast" else 1e-3
        torch.testing.assert_close(found["cuda"].state_dict()[key], weights, rtol=0, atol=tolerance)
