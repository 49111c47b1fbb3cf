"""Training loops written plainly: what a split run must equal. Of cutlayer they use the rule of random streams."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.data import TensorDataset

from cutlayer.plan.streams import stream_seed

Batch = tuple[Tensor, Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]
EXACT, NOISE = 1e-12, 1e-9
SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(["a", "b", "c", "server", "aggregator", "d"])}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: as `simulate` is told, and with torch's own classes."""

    terms: Mapping[str, Any]
    optimizer: Callable[[Iterable[nn.Parameter]], optim.Optimizer]
    schedule: Callable[[optim.Optimizer], optim.lr_scheduler.LRScheduler] | None = None
    every: str = "round"
    adaptive: bool = False


RECIPES = {
    "sgd": Recipe(
        terms={
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
            "lr_schedule": {"name": "StepLR", "step_size": 1, "gamma": 0.8},
        },
        optimizer=lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        schedule=lambda o: optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.8),
    ),
    "adam": Recipe(
        terms={
            "optimizer": {"name": "Adam", "lr": 0.01, "betas": [0.8, 0.95]},
            "lr_schedule": {"name": "CosineAnnealingLR", "T_max": 24, "every": "step"},
        },
        optimizer=lambda p: optim.Adam(p, lr=0.01, betas=(0.8, 0.95)),
        schedule=lambda o: optim.lr_scheduler.CosineAnnealingLR(o, T_max=24),
        every="step",
        adaptive=True,
    ),
    "adamw": Recipe(
        terms={
            "optimizer": {"name": "AdamW", "lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
            "lr_schedule": {"name": "steplr", "step_size": 2, "every": "round"},
        },
        optimizer=lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
        schedule=lambda o: optim.lr_scheduler.StepLR(o, step_size=2),
        adaptive=True,
    ),
}


class Learner:
    """One optimizer and one LR schedule over some parameters, for the whole run."""

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.every = recipe.every
        self.optimizer = recipe.optimizer(self.parameters) if self.parameters else None
        self.schedule = recipe.schedule(self.optimizer) if self.optimizer and recipe.schedule else None

    def step(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()
        if self.schedule is not None and self.every == "step":
            self.schedule.step()

    def end_round(self) -> None:
        if self.schedule is not None and self.every == "round":
            self.schedule.step()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The losses of all steps, the final state, and the largest gradient that each element of a parameter had."""

    losses: list[float]
    state: dict[str, Tensor]
    largest: dict[str, Tensor]


def slices(rows: TensorDataset, size: int, order: Tensor | None = None) -> list[Batch]:
    """Mini-batches of the rows, first to last or in an order; the last may be smaller."""
    x, y = rows.tensors if order is None else (tensor[order] for tensor in rows.tensors)
    return [(x[start : start + size], y[start : start + size]) for start in range(0, len(x), size)]


def train_uncut(
    model: nn.Module,
    rounds: Sequence[Sequence[Batch]],
    *,
    loss: LossFunction,
    recipe: Recipe,
    segments: Mapping[str, str],
    turn: str = "batch",
) -> Trained:
    """One model, one optimizer, mean losses. Changes `model`.

    `segments` are the layers after which the split run is cut, each with the segment that begins there ("" is where
    the model begins): the random stream is set anew at these places, as the parties set theirs.
    """
    learner = Learner(model.parameters(), recipe)
    largest = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    losses: list[float] = []
    model.train()
    for number, batches in enumerate(rounds):
        for step, (x, y) in enumerate(batches):
            ticket = (len(losses), 0, 0) if turn == "batch" else (number, step, 0)
            with _streams(model, segments, ticket):
                total = loss(model(x.clone()), y)
            if total.requires_grad:
                torch.autograd.backward(total)
            losses.append(total.item())
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    torch.maximum(largest[name], parameter.grad.abs(), out=largest[name])
            learner.step()
        learner.end_round()
    return Trained(losses=losses, state=dict(model.state_dict()), largest=largest)


@contextmanager
def _streams(model: nn.Module, segments: Mapping[str, str], ticket: tuple[int, int, int]) -> Iterator[None]:
    """The random stream is set as the model's forward begins, and as it comes to the end of each cut layer."""

    def begin(segment: str) -> None:
        holder = "server" if segment in ("top", "middle") else "a"
        torch.manual_seed(stream_seed(SECRETS[holder], "forward", segment, *ticket))

    hooks = [
        model.get_submodule(layer).register_forward_hook(lambda *_, segment=segment: begin(segment))
        for layer, segment in segments.items()
        if layer
    ]
    begin(segments[""])
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def assert_equal_states(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    noise: Mapping[str, Tensor] | None = None,
    where: str = "",
) -> None:
    """Equal to 1e-12; to 1e-9 in the elements that `noise` marks."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        allowed = torch.full(value.shape, EXACT, dtype=torch.float64)
        if noise is not None and name in noise:
            allowed[noise[name]] = NOISE
        off = (found[name].double() - value.double()).abs()
        assert bool((off <= allowed).all()), f"{name} is off by {off.max().item():.1e} {where}"


def noise_of(wanted: Trained, recipe: Recipe) -> dict[str, Tensor] | None:
    """Where Adam divides rounding errors by themselves: elements whose gradient was nothing but rounding throughout."""
    if not recipe.adaptive:
        return None
    return {name: (largest > 0) & (largest < 1e-14) for name, largest in wanted.largest.items()}
