"""A replica: one optimizer and one LR schedule for the whole run, gradients divided by the step's normaliser."""

import copy
from typing import Any

import pytest
import torch
from torch import nn, optim

from cutlayer.model.replica import Replica, optimizer_names, schedule_names, state_digest
from cutlayer.plan.plan import Method, Option, Training


def training(optimizer: dict[str, Option] | None = None, schedule: dict[str, Any] | None = None) -> Training:
    return Training(
        loss=Method(name="mse_loss"),
        optimizer=Method(name="SGD", options=optimizer or {"lr": 0.1}),
        lr_schedule=None if schedule is None else Method(name=schedule.pop("name"), options=schedule),
        batch_size=4,
        rounds=3,
    )


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


def accumulate(module: nn.Module, number: int) -> None:
    """A gradient that depends on the weights, so that steps do not commute."""
    x = torch.full((1, 3), float(number + 1), dtype=torch.float64)
    module(x).square().sum().backward()


def test_gradients_are_divided_by_the_normaliser_before_the_one_optimizer_steps() -> None:
    replica, plain = Replica(layer(), training({"lr": 0.01, "momentum": 0.9})), layer()
    optimizer = optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    for number in range(5):
        accumulate(replica.module, number)
        accumulate(plain, number)
        for parameter in plain.parameters():
            assert parameter.grad is not None
            parameter.grad /= 7.0
        replica.step(7.0, number // 2)
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(replica.module.state_dict(), plain.state_dict(), rtol=0, atol=0)
        assert all(parameter.grad is None for parameter in replica.module.parameters())


@pytest.mark.parametrize(
    ("every", "wanted"), [("round", [1.0, 1.0, 0.5, 0.5, 0.125]), ("step", [0.5**i for i in range(5)])]
)
def test_the_lr_schedule_moves_on_every_round_or_on_every_step(every: str, wanted: list[float]) -> None:
    schedule = {"name": "ExponentialLR", "gamma": 0.5, "every": every}
    replica = Replica(layer(), training({"lr": 1.0}, schedule))
    assert replica.optimizer is not None
    used: list[float] = []
    replica.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    for number in (0, 0, 1, 1, 3):
        accumulate(replica.module, number)
        replica.step(1.0, number)
    assert used == wanted


def test_a_round_is_the_default() -> None:
    replica = Replica(layer(), training({"lr": 1.0}, {"name": "ExponentialLR", "gamma": 0.5}))
    for number in (0, 0, 0, 1):
        accumulate(replica.module, number)
        replica.step(1.0, number)
    assert replica.schedule is not None
    assert replica.schedule.get_last_lr() == [0.5]


def test_a_frozen_module_has_no_optimizer_and_stays() -> None:
    module = layer().requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    replica = Replica(module, training(schedule={"name": "ExponentialLR", "gamma": 0.5}))
    replica.step(3.0, 2)
    assert replica.optimizer is None
    assert replica.schedule is None
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_weight_decay_reaches_only_what_is_trained() -> None:
    module = layer()
    module.bias.requires_grad_(False)
    bias = module.bias.clone()
    replica = Replica(module, training({"lr": 0.1, "weight_decay": 0.5}))
    accumulate(module, 1)
    replica.step(1.0, 0)
    assert torch.equal(module.bias, bias)


def test_a_parameter_that_got_no_gradient_stays() -> None:
    module = nn.ModuleList([layer(), layer()])
    before = copy.deepcopy(module[1].state_dict())
    replica = Replica(module, training())
    accumulate(module[0], 1)
    replica.step(2.0, 0)
    torch.testing.assert_close(module[1].state_dict(), before, rtol=0, atol=0)


def test_optimizers_and_schedules_are_torchs_own_but_for_those_that_cannot_be_split() -> None:
    assert {"SGD", "Adam", "AdamW", "RMSprop"} <= set(optimizer_names())
    assert not {"LBFGS", "SparseAdam", "Optimizer"} & set(optimizer_names())
    assert {"StepLR", "CosineAnnealingLR", "OneCycleLR"} <= set(schedule_names())
    assert not {"ReduceLROnPlateau", "LambdaLR", "LRScheduler"} & set(schedule_names())


# ---------------------------------------------------------------------- digests


def test_a_digest_is_equal_if_and_only_if_all_bits_are() -> None:
    state = {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3), "h": torch.ones(2, dtype=torch.bfloat16)}
    digest = state_digest(state)
    assert digest == state_digest(dict(reversed(state.items())))
    assert digest == state_digest(state | {"w": state["w"].t().contiguous().t()})
    changed = [
        {"w": state["w"] + torch.eye(2, 3) * 1e-6},
        {"w": state["w"].view(3, 2)},
        {"w": state["w"].double()},
        {"n": torch.tensor(3, dtype=torch.int32)},
        {"h": -state["h"]},
        {"v": state["w"]},
    ]
    assert len({digest, *(state_digest(state | change) for change in changed)}) == len(changed) + 1


def test_a_digest_tells_minus_zero_from_zero_and_takes_empty_tensors() -> None:
    assert state_digest({"w": torch.zeros(1)}) != state_digest({"w": -torch.zeros(1)})
    assert state_digest({"w": torch.empty(0, 3)}) != state_digest({"w": torch.empty(3, 0)})
