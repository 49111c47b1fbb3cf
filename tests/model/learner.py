"""A replica that has everything a state must carry, and what trains it. For the tests of states only."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cutlayer.model.replica import Replica
from cutlayer.model.state import ReplicaState, from_bytes, to_bytes
from cutlayer.plan.terms import Method, Training

ADAM = Method(name="Adam", options={"lr": 0.01})
TRAINING = Training(loss=Method(name="mse_loss"), optimizer=ADAM, batch_size=4, rounds=9)
WARM_UP = Method(name="LinearLR", options={"start_factor": 0.1, "total_iters": 6, "every": "step"})


class Layers(nn.Module):
    """Batch statistics, a buffer that is not saved, one that is replaced at each forward, a parameter used late."""

    seen: Tensor
    turns: Tensor

    def __init__(self, *, matrices_only: bool = False) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 3, bias=not matrices_only), nn.BatchNorm1d(3, affine=not matrices_only)
        self.late = nn.Linear(3, 3, bias=False)
        self.register_buffer("seen", torch.zeros(3), persistent=False)
        self.register_buffer("turns", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        self.seen, self.turns = self.seen + x.detach().sum(0), self.turns + 1
        return self.late(x) if self.turns > 2 else x.tanh()


def made(method: Method = ADAM, **options: Any) -> Replica:
    torch.manual_seed(0)
    terms = replace(TRAINING, optimizer=method, **options)
    return Replica(Layers(matrices_only=method.name == "Muon").double(), terms)


def train(replica: Replica, numbers: range) -> None:
    """Steps that differ from each other; a new round every third."""
    for number in numbers:
        x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        replica.module(x).square().sum().backward()
        replica.step(5.0, number // 3)


def assert_same(one: ReplicaState, other: ReplicaState) -> None:
    torch.testing.assert_close(one.tensors, other.tensors, rtol=0, atol=0)
    assert one.counts == other.counts


def by_memory(state: ReplicaState) -> ReplicaState:
    return state.copied()


def by_bytes(state: ReplicaState) -> ReplicaState:
    return from_bytes(to_bytes(state))
