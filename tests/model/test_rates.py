"""Rates are torch's own LR schedule as a function of a count: the same bits, in any order of asking."""

from random import Random
from typing import Any

import pytest
import torch
from torch import nn, optim

from cutlayer.model.rates import Rates
from cutlayer.model.replica import schedule_names
from cutlayer.plan.terms import Method

COUNT = 40
SCHEDULES: dict[str, dict[str, Any]] = {
    "ConstantLR": {"factor": 0.3, "total_iters": 4},
    "CosineAnnealingLR": {"T_max": 7},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 5, "mode": "exp_range", "gamma": 0.99},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"start_factor": 0.1, "total_iters": 9},
    "MultiStepLR": {"milestones": [2, 5, 11]},
    "OneCycleLR": {"max_lr": 0.3, "total_steps": COUNT + 1},
    "PolynomialLR": {"total_iters": 20, "power": 1.7},
    "StepLR": {"step_size": 3, "gamma": 0.7},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.07, "momentum": 0.9},
    "AdamW": {"lr": 0.07, "betas": [0.8, 0.99]},
}


def torchs_own(optimizer: Method, schedule: Method) -> list[dict[str, Any]]:
    """The options that torch's optimizer has after 0, 1, 2 … moves of torch's schedule."""
    parameter = nn.Parameter(torch.zeros(2))
    stepped: optim.Optimizer = getattr(optim, optimizer.name)([parameter], **optimizer.options)
    options = {name: value for name, value in schedule.options.items() if name != "every"}
    moved = getattr(optim.lr_scheduler, schedule.name)(stepped, **options)
    found = []
    for _ in range(COUNT + 1):
        found.append(dict(stepped.param_groups[0]))
        stepped.step()
        if len(found) <= COUNT:
            moved.step()
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", schedule_names())
def test_options_after_any_count_are_torchs_own_bit_for_bit(schedule: str, optimizer: str) -> None:
    methods = Method(name=optimizer, options=OPTIMIZERS[optimizer]), Method(name=schedule, options=SCHEDULES[schedule])
    wanted, rates = torchs_own(*methods), Rates(*methods)
    counts = [*range(0, COUNT, 3), *range(COUNT + 1), *Random(0).choices(range(COUNT + 1), k=50)]  # noqa: S311
    for count in counts:
        options = rates.at(count)
        assert options
        assert {name: wanted[count][name] for name in options} == options
    changed = {name for name in ("lr", "momentum", "betas") if any(w.get(name) != wanted[0].get(name) for w in wanted)}
    assert changed <= set(rates.at(0))


@pytest.mark.parametrize(("optimizer", "option"), [("SGD", "momentum"), ("AdamW", "betas")])
@pytest.mark.parametrize("schedule", ["OneCycleLR", "CyclicLR"])
def test_a_schedule_that_cycles_the_momentum_sets_that_too(schedule: str, optimizer: str, option: str) -> None:
    rates = Rates(
        Method(name=optimizer, options=OPTIMIZERS[optimizer]), Method(name=schedule, options=SCHEDULES[schedule])
    )
    assert rates.at(0)[option] != rates.at(3)[option]


def test_without_a_schedule_the_optimizers_own_rate_stays() -> None:
    assert Rates(Method(name="SGD", options={"lr": 0.3}), None).at(1000) == {"lr": 0.3}
    assert Rates(Method(name="Adam"), None).at(0) == {"lr": 0.001}


def test_what_torch_raises_at_a_schedules_end_passes_through_and_earlier_counts_stay_known() -> None:
    rates = Rates(
        Method(name="SGD", options={"lr": 0.1, "momentum": 0.9}),
        Method(name="OneCycleLR", options={"max_lr": 1.0, "total_steps": 5}),
    )
    known = [rates.at(count) for count in range(6)]
    for _ in range(2):
        with pytest.raises(ValueError, match="Tried to step"):
            rates.at(6)
    assert [rates.at(count) for count in range(6)] == known


def test_a_schedule_moves_every_round_unless_it_says_every_step() -> None:
    sgd = Method(name="SGD")
    assert not Rates(sgd, None).every_step
    assert not Rates(sgd, Method(name="ExponentialLR", options={"gamma": 0.5})).every_step
    assert Rates(sgd, Method(name="ExponentialLR", options={"gamma": 0.5, "every": "step"})).every_step
