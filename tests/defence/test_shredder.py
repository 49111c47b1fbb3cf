"""Learned noise."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from cutlayer.defence.defence import Context, State
from cutlayer.defence.shredder import Shredder
from cutlayer.errors import PlanError
from cutlayer.plan.tensors import TensorShape


def context(seed: int = 0) -> Context:
    return Context(generator=torch.Generator().manual_seed(seed))


def begun(defence: Shredder, *features: int, dtype: str = "float32") -> State:
    shape = TensorShape(dtype, (8, *features))  # type: ignore[arg-type]
    return defence.init(shape, torch.Generator().manual_seed(1))


def test_noise_starts_as_laplace_noise_of_its_scale() -> None:
    noise = begun(Shredder(scale=20.0), 50_000)["noise"]
    assert noise.shape == (1, 50_000)
    assert stats.kstest(noise.detach().numpy()[0] / 20.0, "laplace").pvalue > 0.01


def test_every_row_gets_the_same_noise_and_the_gradient_of_all_of_them() -> None:
    defence = Shredder(scale=1.0)
    state = begun(defence, 3, 2)
    tensor = torch.ones(5, 3, 2, requires_grad=True)
    safer = defence.release(tensor, context(), state)
    assert torch.equal(safer, tensor + state["noise"])
    up = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(2))
    to_rows, to_noise = torch.autograd.grad((safer * up).sum(), (tensor, state["noise"]))
    assert torch.equal(to_rows, up)
    assert torch.allclose(to_noise[0], up.sum(0))


def test_of_several_tensors_each_row_draws_one_evenly() -> None:
    defence = Shredder(scale=1.0, tensors=5)
    state = begun(defence, 4)
    safer = defence.release(torch.zeros(10_000, 4), context(), state)
    which = (safer[:, None] == state["noise"]).all(2)
    assert bool((which.sum(1) == 1).all())
    assert stats.chisquare(which.sum(0).numpy()).pvalue > 1e-3
    assert torch.equal(safer, defence.release(torch.zeros(10_000, 4), context(), state))
    assert not torch.equal(safer, defence.release(torch.zeros(10_000, 4), context(1), state))


def test_a_step_of_learning_is_gradient_descent_on_the_papers_loss() -> None:
    """The oracle is autograd on loss − λ·Σ|n|."""
    defence = Shredder(scale=1.0, weight=0.3, lr=0.1)
    state = begun(defence, 6, dtype="float64")
    target = torch.randn(1, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    oracle = state["noise"].detach().clone()
    for _ in range(3):
        (gradient,) = torch.autograd.grad((state["noise"] - target).square().sum(), state["noise"])
        state = defence.learn({"noise": gradient}, state)
        oracle.requires_grad_()
        (whole,) = torch.autograd.grad((oracle - target).square().sum() - 0.3 * oracle.abs().sum(), oracle)
        oracle = oracle.detach() - 0.1 * whole
    assert state["noise"].requires_grad
    assert state["noise"].is_leaf
    assert torch.allclose(state["noise"], oracle, rtol=1e-14)


def test_learned_noise_is_larger_and_harms_the_task_less_than_the_noise_it_started_as() -> None:
    """A linear task: noise in what the task does not read is free, and grows."""
    defence = Shredder(scale=1.0, weight=0.05, lr=0.1)
    state = begun(defence, 20)
    rows = torch.randn(64, 20, generator=torch.Generator().manual_seed(4))
    read = torch.zeros(20, 1)
    read[:5] = 1.0

    def harm(state: State) -> Tensor:
        return ((defence.release(rows, context(), state) - rows) @ read).square().mean()

    first = state
    for _ in range(300):
        (gradient,) = torch.autograd.grad(harm(state), state["noise"])
        state = defence.learn({"noise": gradient}, state)
    assert harm(state).item() < 0.05 * harm(first).item()
    assert state["noise"].abs().mean().item() > 1.5 * first["noise"].abs().mean().item()


def test_without_a_learning_rate_noise_stays() -> None:
    defence = Shredder(scale=1.0, lr=0.0)
    state = begun(defence, 4)
    assert torch.equal(defence.learn({"noise": torch.ones(1, 4)}, state)["noise"], state["noise"])


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_shape_and_dtype_stay_and_the_tensor_is_not_changed(dtype: str) -> None:
    defence = Shredder(scale=1.0, tensors=3)
    state = begun(defence, 3, 2, dtype=dtype)
    for rows in (0, 1, 8):
        tensor = torch.ones(rows, 3, 2, dtype=getattr(torch, dtype))
        safer = defence.release(tensor, context(), state)
        assert (safer.shape, safer.dtype) == (tensor.shape, tensor.dtype)
        assert bool((tensor == 1).all())


def test_zero_strength_is_the_very_same_tensor_and_none_bounds_anything() -> None:
    tensor, shape = torch.ones(2, 3), TensorShape("float32", (8, 3))
    assert Shredder(scale=0.0).neutral
    assert not Shredder(scale=1.0).neutral
    assert Shredder(scale=0.0).release(tensor, context(), {}) is tensor
    assert Shredder(scale=1.0).mechanism(shape) is None
    assert Shredder(scale=1.0).fault(shape) is None
    assert "defends floats" in str(Shredder(scale=1.0).fault(TensorShape("int64", (8,))))


@pytest.mark.parametrize("options", [{"scale": -1.0}, {"weight": math.nan}, {"lr": math.inf}, {"tensors": 0}])
def test_options_that_make_no_sense_are_refused_by_name(options: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=next(iter(options))):
        Shredder(**{"scale": 1.0} | options)  # type: ignore[arg-type]
