"""A replica: one optimizer and one LR schedule for the whole run, gradients divided by the step's normaliser."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn, optim

from cutlayer.model.rates import Rates
from cutlayer.model.replica import Replica, optimizer_names, schedule_names, state_digest
from cutlayer.plan.terms import Method, Option, Training


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


def used_rates(replica: Replica) -> list[float]:
    """Fills with the learning rate of each step that the replica takes."""
    used: list[float] = []
    assert replica.optimizer is not None
    replica.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    return used


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
    used = used_rates(replica)
    for number in (0, 0, 1, 1, 3):
        accumulate(replica.module, number)
        replica.step(1.0, number)
    assert used == wanted


def test_a_round_is_the_default() -> None:
    replica = Replica(layer(), training({"lr": 1.0}, {"name": "ExponentialLR", "gamma": 0.5}))
    used = used_rates(replica)
    for number in (0, 0, 0, 1):
        accumulate(replica.module, number)
        replica.step(1.0, number)
    assert used == [1.0, 1.0, 1.0, 0.5]
    assert (replica.round, replica.moves) == (1, 1)


def test_a_frozen_module_has_no_optimizer_and_stays() -> None:
    module = layer().requires_grad_(False)
    before = copy.deepcopy(module.state_dict())
    replica = Replica(module, training(schedule={"name": "ExponentialLR", "gamma": 0.5}))
    replica.step(3.0, 2)
    assert replica.optimizer is None
    assert replica.moves == 0
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_replicas_that_share_rates_have_places_of_their_own_in_the_schedule() -> None:
    terms = training({"lr": 1.0}, {"name": "ExponentialLR", "gamma": 0.5, "every": "step"})
    rates = Rates(terms.optimizer, terms.lr_schedule)
    one, other = (Replica(layer(), terms, rates=rates) for _ in range(2))
    used = used_rates(one), used_rates(other)
    for replica in (one, one, other, one, other):
        accumulate(replica.module, 0)
        replica.step(1.0, 0)
    assert used == ([1.0, 0.5, 0.25], [1.0, 0.5])


def test_one_cycle_steps_as_torch_does_with_the_momentum_it_sets() -> None:
    schedule = {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 9, "every": "step"}
    replica, plain = Replica(layer(), training({"lr": 0.01}, schedule)), layer()
    optimizer = optim.SGD(plain.parameters(), lr=0.01)
    moving = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    for number in range(8):
        for module in (replica.module, plain):
            accumulate(module, number)
        replica.step(1.0, 0)
        optimizer.step()
        moving.step()
        optimizer.zero_grad()
        torch.testing.assert_close(replica.module.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_scale_multiplies_the_rate_of_its_step_only() -> None:
    replica = Replica(layer(), training({"lr": 0.5}, {"name": "ExponentialLR", "gamma": 0.5}))
    used = used_rates(replica)
    for number, scale in ((0, 1.0), (0, 0.1), (0, 1.0), (1, 3.0), (1, 1.0)):
        accumulate(replica.module, number)
        replica.step(1.0, number, lr_scale=scale)
    assert used == [0.5, 0.05, 0.5, 0.75, 0.25]


def test_a_replica_may_have_another_optimizer_than_the_rest_of_the_run() -> None:
    terms = training({"lr": 0.1}, {"name": "ExponentialLR", "gamma": 0.5})
    replica = Replica(layer(), terms, optimizer=Method(name="Adam", options={"lr": 0.8}))
    used = used_rates(replica)
    accumulate(replica.module, 0)
    replica.step(1.0, 1)
    assert isinstance(replica.optimizer, optim.Adam)
    assert used == [0.4]


def fed_prox(plain: nn.ModuleList, rounds: list[int], pulled: int, mu: float) -> None:
    """FedProx longhand by autograd: the loss of each step plus μ/2 · ‖w - w₀‖² over the first `pulled` layers."""
    optimizer = optim.SGD(plain.parameters(), lr=0.05, momentum=0.5)
    anchors: list[torch.Tensor] = []
    for i, number in enumerate(rounds):
        shared = [parameter for module in plain[:pulled] for parameter in module.parameters()]
        if i == 0 or number > rounds[i - 1]:
            anchors = [parameter.detach().clone() for parameter in shared]
        optimizer.zero_grad()
        for module in plain:
            accumulate(module, i)
        for parameter in plain.parameters():
            assert parameter.grad is not None
            parameter.grad /= 4.0
        pull = sum(((p - a).square().sum() for p, a in zip(shared, anchors, strict=True)), torch.zeros(()))
        (mu / 2 * pull).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_fed_prox_pulls_what_is_not_personal_to_where_the_round_began() -> None:
    rounds, mu = [0, 0, 0, 1, 1, 4, 4], 0.7
    terms = replace(training({"lr": 0.05, "momentum": 0.5}), proximal=mu)
    replica = Replica(nn.ModuleList([layer(), layer()]), terms, personal=frozenset({"1.weight", "1.bias"}))
    plain = nn.ModuleList([layer(), layer()])
    for i, number in enumerate(rounds):
        for module in replica.module.children():
            accumulate(module, i)
        replica.step(4.0, number)
    fed_prox(plain, rounds, 1, mu)
    torch.testing.assert_close(replica.module.state_dict(), plain.state_dict(), rtol=0, atol=1e-13)
    assert not torch.equal(replica.module.state_dict()["0.weight"], replica.module.state_dict()["1.weight"])


def test_fed_prox_of_strength_0_keeps_no_anchor() -> None:
    replica = Replica(layer(), training())
    accumulate(replica.module, 0)
    replica.step(1.0, 0)
    assert not [key for key in replica.state().tensors if key.startswith("anchor.")]


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
