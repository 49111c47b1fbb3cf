"""What the longhand loops of schedules.py are made of: who takes part with which rows, learners, weighted means."""

import copy
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer.plan.streams import stream_seed
from equivalence.longhand import RECIPES, Batch, Learner, LossFunction, Recipe

Layers = Collection[str]
Models = dict[str, nn.Module]
NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all loops are told. `clients`: how many take part in a round, or which part of them; None: all.

    `server` is the recipe of layers at the server, if it is another; `scales` by what their learning rate is
    multiplied in steps on a client's rows; `personal` the layers that stay with each client.
    """

    data: Mapping[str, TensorDataset]
    recipe: Recipe = RECIPES["sgd"]
    server: Recipe | None = None
    loss: LossFunction = F.cross_entropy
    rounds: int = 3
    size: int = 4
    drop_last: bool = False
    epochs: int = 1
    steps: int = 0
    clients: float | None = None
    seed: int = 0
    secrets: Mapping[str, bytes] | None = None
    averaged: str = "reset"
    proximal: float = 0.0
    scales: Mapping[str, float] = field(default_factory=dict)
    personal: Layers = NONE

    def scale(self, name: str) -> float:
        return self.scales.get(name, 1.0)

    def chosen(self, number: int) -> list[str]:
        """Who takes part in a round, in party order: the first so many in that round's order."""
        there = len(self.data)
        count = self.clients if isinstance(self.clients, int) else round((self.clients or 1.0) * there)
        first = self._ordered(self.data, "clients", number)[: max(count, 1)]
        return [name for name in self.data if name in first]

    def shuffled(self, number: int) -> list[str]:
        return self._ordered(self.chosen(number), "turns", number)

    def batches(self, name: str, number: int) -> list[Batch]:
        """A client's mini-batches in a round: so many epochs, or so many steps from where its last round ended."""
        per_epoch = len(self._epoch(name, 0))
        if per_epoch and self.steps:
            places = range(number * self.steps, (number + 1) * self.steps)
        else:
            places = range(number * self.epochs * per_epoch, (number + 1) * self.epochs * per_epoch)
        return [self._epoch(name, place // per_epoch)[place % per_epoch] for place in places]

    def in_turn(self, number: int, turn: str) -> Iterator[tuple[str, Batch]]:
        """A round's mini-batches, one client after another: all of a client's, or one of each client's."""
        batches = {name: self.batches(name, number) for name in self.chosen(number)}
        if turn == "epoch":
            yield from ((name, batch) for name, mine in batches.items() for batch in mine)
            return
        for step in range(max(map(len, batches.values()))):
            yield from ((name, mine[step]) for name, mine in batches.items() if step < len(mine))

    def side_by_side(self, number: int) -> Iterator[dict[str, Batch]]:
        """A round's joined steps: the batch of every client that still has one."""
        batches = {name: self.batches(name, number) for name in self.chosen(number)}
        for step in range(max(map(len, batches.values()))):
            yield {name: mine[step] for name, mine in batches.items() if step < len(mine)}

    def _epoch(self, name: str, epoch: int) -> list[Batch]:
        x, y = self.data[name].tensors
        if self.secrets is not None:
            stream = torch.Generator().manual_seed(stream_seed(self.secrets[name], "order", epoch))
            order = torch.randperm(len(x), generator=stream)
            x, y = x[order], y[order]
        stop = len(x) // self.size * self.size if self.drop_last else len(x)
        return [(x[at : at + self.size], y[at : at + self.size]) for at in range(0, stop, self.size)]

    def _ordered(self, names: Iterable[str], purpose: str, number: int) -> list[str]:
        return sorted(names, key=lambda name: stream_seed(str(self.seed).encode(), purpose, number, name))


class Local(Learner):
    """A learner that may be drawn to where its round began (FedProx), and may step at a multiple of its rate."""

    def __init__(self, parameters: Iterable[nn.Parameter], recipe: Recipe) -> None:
        super().__init__(parameters, recipe)
        self.mu, self.start = 0.0, self.parameters

    def begin(self, mu: float) -> None:
        """Where FedProx (Li et al. 2020, arXiv 1812.06127) draws this round's steps: min f(w) + μ/2 |w - start|²."""
        self.mu, self.start = mu, [copy.deepcopy(parameter) for parameter in self.parameters]

    def step(self, scale: float = 1.0) -> None:
        if self.optimizer is None:
            return
        for parameter, start in zip(self.parameters, self.start, strict=True):
            if self.mu and parameter.grad is not None:
                parameter.grad += self.mu * (parameter.detach() - start.detach())
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * scale
        self.optimizer.step()
        self.optimizer.zero_grad()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if self.schedule is not None and self.every == "step":
            self.schedule.step()

    def forget(self) -> None:
        """The optimizer's state, not the learning rate's place in its schedule."""
        if self.optimizer is not None:
            self.optimizer.state.clear()

    def end_round(self) -> None:
        with warnings.catch_warnings():  # torch warns of rounds without a step: a client that was not chosen
            warnings.simplefilter("ignore")
            super().end_round()


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Each client's model; losses of a client's steps in a round, with their rows; the largest gradients."""

    models: Models
    losses: dict[tuple[int, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    largest: dict[str, Tensor] = field(default_factory=dict)

    def learn(self, name: str, number: int, batch: Batch, loss: LossFunction) -> None:
        """Gradients of the mean loss of one client's batch, by its own model."""
        x, y = batch
        total = loss(self.models[name](x), y)
        torch.autograd.backward(total)
        self.losses[number, name].append((len(y), total.item()))
        self.note(self.models[name])

    def note(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.largest[name] = torch.maximum(self.largest.get(name, parameter.grad.abs()), parameter.grad.abs())


def layers(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key in model.state_dict()))


def served(model: nn.Sequential, cuts: tuple[int, ...]) -> frozenset[str]:
    """The layers at the server: all behind the cut, or those between two."""
    return frozenset(map(str, range(cuts[0] + 1, cuts[1] + 1 if len(cuts) > 1 else len(model))))


def copies(model: nn.Module, names: Iterable[str], shared: Layers) -> Models:
    """A model for each client; `shared` layers are the same object in all of them."""
    common, models = copy.deepcopy(model).train(), {}
    for name in names:
        models[name] = copy.deepcopy(model).train()
        for layer in shared:
            setattr(models[name], layer, getattr(common, layer))
    return models


def learner(model: nn.Module, where: Layers, recipe: Recipe) -> Local:
    return Local([p for name, p in model.named_parameters() if name.partition(".")[0] in where], recipe)


def learners(models: Models, where: Layers, recipe: Recipe) -> dict[str, Local]:
    return {name: learner(model, where, recipe) for name, model in models.items()}


class Kept:
    """Learners of the personal layers: each client has its own, at the clients and at the server."""

    def __init__(self, models: Models, setup: Setup, at_server: Layers) -> None:
        self._scale = setup.scale
        self._at_clients = learners(models, set(setup.personal) - set(at_server), setup.recipe)
        self._at_server = learners(models, set(setup.personal) & set(at_server), setup.server or setup.recipe)

    def step(self, name: str) -> None:
        self._at_clients[name].step()
        self._at_server[name].step(self._scale(name))

    def averaged(self, policy: str, *, at_clients: bool = False, at_server: bool = False) -> None:
        """What they are a part of was averaged: "reset" makes them forget too, else they keep what they know."""
        for side, were in ((self._at_clients, at_clients), (self._at_server, at_server)):
            for each in side.values() if were and policy == "reset" else ():
                each.forget()

    def end_round(self) -> None:
        end_round(*self._at_clients.values(), *self._at_server.values())


def end_round(*everybody: Local | Kept) -> None:
    for each in everybody:
        each.end_round()


def mean_of(tensors: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Σ weight·tensor / Σ weight over the clients that have a weight."""
    total = torch.stack([weight * tensors[name].double() for name, weight in weights.items()]).sum(0)
    return (total / sum(weights.values())).to(next(iter(tensors.values())).dtype)


def average_weights(models: Models, where: Layers, weights: Mapping[str, float]) -> None:
    """The mean of the layers `where`, parameters and float buffers, goes to all clients; whole numbers stay."""
    states = {name: model.state_dict() for name, model in models.items()} if weights else {}
    for key, value in next(iter(states.values()), {}).items():
        if key.partition(".")[0] in where and value.is_floating_point():
            mean = mean_of({name: state[key] for name, state in states.items()}, weights)
            for state in states.values():
                state[key].copy_(mean)


def average_optimizers(owned: Mapping[str, Local], weights: Mapping[str, float], policy: str) -> None:
    """After weights were averaged: forget what the optimizers know, keep it, or give all clients its mean."""
    if policy == "reset":
        for each in owned.values():
            each.forget()
    optimizers = {name: each.optimizer for name, each in owned.items() if each.optimizer is not None}
    if policy != "average" or not optimizers or not weights:
        return
    for same in zip(*(each.parameters for each in owned.values()), strict=True):
        parameters = dict(zip(owned, same, strict=True))
        states = {name: optimizers[name].state[parameters[name]] for name in weights}
        for key in [key for key, value in next(iter(states.values())).items() if _is_float(value)]:
            mean = mean_of({name: state[key] for name, state in states.items()}, weights)
            for name, optimizer in optimizers.items():
                optimizer.state[parameters[name]][key] = mean.clone()


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
