"""Every schedule as a training loop in plain torch, on several clients. Nothing is sent anywhere.

A network is whole, or a chain of layers of which some lie at the clients and some at the server. Each client has a
model; the layers that clients share are one object in all their models.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from equivalence.rounds import (
    NONE,
    Kept,
    Layers,
    Setup,
    Trained,
    average_optimizers,
    average_weights,
    copies,
    end_round,
    layers,
    learner,
    learners,
    served,
)

# ---------------------------------------------------------------------- one client after another


def train_alternating(model: nn.Sequential, cuts: tuple[int, ...], setup: Setup, *, turn: str = "epoch") -> Trained:
    """Each client has its own layers, all meet the same ones at the server (arXiv 2012.12591)."""
    at_server = served(model, cuts)
    run = Trained(models=copies(model, setup.data, at_server))
    shared = learner(next(iter(run.models.values())), at_server, setup.server or setup.recipe)
    owned = learners(run.models, set(layers(model)) - at_server, setup.recipe)
    for number in range(setup.rounds):
        for name, batch in setup.in_turn(number, turn):
            run.learn(name, number, batch, setup.loss)
            shared.step(setup.scale(name))
            owned[name].step()
        end_round(shared, *owned.values())
    return run


def train_relay(
    model: nn.Sequential, cuts: tuple[int, ...], setup: Setup, *, turn: str = "epoch", hand_over: bool = True
) -> Trained:
    """One model, and one optimizer for each side of the cut, on the clients' batches in turn (arXiv 1810.06060).

    Without `hand_over` a client gets the weights, but not the optimizer that goes with them.
    """
    at_server, everything = served(model, cuts), set(layers(model))
    run = Trained(models=copies(model, setup.data, everything - set(setup.personal)))
    shared = learner(next(iter(run.models.values())), at_server - set(setup.personal), setup.server or setup.recipe)
    owned = learners(run.models, everything - at_server - set(setup.personal), setup.recipe)
    if hand_over:
        owned = dict.fromkeys(owned, next(iter(owned.values())))
    kept = Kept(run.models, setup, at_server)
    for number in range(setup.rounds):
        for name, batch in setup.in_turn(number, turn):
            run.learn(name, number, batch, setup.loss)
            shared.step(setup.scale(name))
            owned[name].step()
            kept.step(name)
        end_round(shared, *dict.fromkeys(owned.values()), kept)
    return run


# ---------------------------------------------------------------------- all batches joined


def train_on_union(model: nn.Sequential, cuts: tuple[int, ...], setup: Setup, *, averaged: bool = False) -> Trained:
    """One model on the union of all clients' batches: large-batch training.

    `averaged` is the mistake to look for: layers at the clients step with the mean of the clients' gradients.
    """
    run = Trained(models=copies(model, setup.data, layers(model)))
    whole, at_server = next(iter(run.models.values())), served(model, cuts)
    server = learner(whole, at_server, setup.server or setup.recipe)
    client = learner(whole, set(layers(model)) - at_server, setup.recipe)
    for number in range(setup.rounds):
        for batches in setup.side_by_side(number):
            x, y = (torch.cat(parts) for parts in zip(*batches.values(), strict=True))
            torch.autograd.backward(setup.loss(whole(x), y))
            run.note(whole)
            for parameter in client.parameters if averaged else ():
                assert parameter.grad is not None
                parameter.grad /= len(batches)
            server.step()
            client.step()
        end_round(server, client)
    return run


def train_joined(
    model: nn.Sequential, cuts: tuple[int, ...], setup: Setup, *, own: Layers, cut_average: float = 0.0
) -> Trained:
    """One loss over the joined batches, but of the layers `own` each client has its own, and steps it alone.

    `cut_average`: the first so many rows of each client get, at the (first) cut, the mean of the gradients of all
    clients' rows in the same place: SGLR (arXiv 2112.05929), and in part EPSL (arXiv 2303.15991).
    """
    at_server, everything = served(model, cuts), set(layers(model))
    run = Trained(models=copies(model, setup.data, everything - set(own)))
    one = next(iter(run.models.values()))
    server = learner(one, at_server, setup.server or setup.recipe)
    equal = learner(one, everything - at_server - set(own), setup.recipe)
    owned = learners(run.models, own, setup.recipe)
    start, stop = cuts[0] + 1, max(map(int, at_server)) + 1
    for number in range(setup.rounds):
        for batches in setup.side_by_side(number):
            chains = {name: nn.Sequential(*run.models[name].children()) for name in batches}
            crossed = [chains[name][:start](x) for name, (x, _) in batches.items()]
            rows = [len(part) for part in crossed]
            arrived = torch.cat(crossed).detach().requires_grad_()
            middle = next(iter(chains.values()))[start:stop](arrived)
            answers = [
                chain[stop:](part) for chain, part in zip(chains.values(), torch.split(middle, rows), strict=True)
            ]
            torch.autograd.backward(setup.loss(torch.cat(answers), torch.cat([y for _, y in batches.values()])))
            assert arrived.grad is not None
            torch.autograd.backward(crossed, mixed(torch.split(arrived.grad, rows), cut_average))
            for name in batches:
                run.note(run.models[name])
                owned[name].step()
            server.step()
            equal.step()
        end_round(server, equal, *owned.values())
    return run


def mixed(grads: Iterable[Tensor], part: float) -> list[Tensor]:
    """Gradients `[rows, ...]` of each client, where the first rows of each are means over the clients."""
    grads = [grad.clone() for grad in grads]
    taking = [math.ceil(part * len(grad)) for grad in grads]
    for row in range(max(taking)):
        there = [grad for grad, count in zip(grads, taking, strict=True) if row < count]
        mean = torch.stack([grad[row] for grad in there]).mean(0)
        for grad in there:
            grad[row] = mean
    return grads


# ---------------------------------------------------------------------- averaged weights


def train_fedavg(model: nn.Module, setup: Setup, *, at_server: Layers = NONE, weighted: bool = True) -> Trained:
    """FedAvg of the uncut model (McMahan et al. 2017, arXiv 1602.05629): what SplitFed V1 is (arXiv 2004.12088).

    `at_server` are layers with a recipe or a rate of their own, if there are any.
    """
    run = Trained(models=copies(model, setup.data, NONE))
    averaged = set(layers(model)) - set(setup.personal)
    sides = [
        learners(run.models, averaged - set(at_server), setup.recipe),
        learners(run.models, averaged & set(at_server), setup.server or setup.recipe),
    ]
    kept = Kept(run.models, setup, at_server)
    for number in range(setup.rounds):
        weights = {}
        for name in setup.chosen(number):
            for side in sides:
                side[name].begin(setup.proximal)
            for batch in setup.batches(name, number):
                run.learn(name, number, batch, setup.loss)
                sides[0][name].step()
                sides[1][name].step(setup.scale(name))
                kept.step(name)
                weights[name] = float(len(setup.data[name])) if weighted else 1.0
        average_weights(run.models, averaged, weights)
        for side in sides:
            average_optimizers(side, weights, setup.averaged)
            end_round(*side.values())
        kept.averaged(setup.averaged, at_clients=True, at_server=True)
        end_round(kept)
    return run


def train_splitfed_v2(model: nn.Sequential, cuts: tuple[int, ...], setup: Setup) -> Trained:
    """One client after another, shuffled, on one set of layers at the server; the clients' layers are averaged."""
    at_server = served(model, cuts) - set(setup.personal)
    averaged = set(layers(model)) - at_server - set(setup.personal)
    run = Trained(models=copies(model, setup.data, at_server))
    shared = learner(next(iter(run.models.values())), at_server, setup.server or setup.recipe)
    owned, kept = learners(run.models, averaged, setup.recipe), Kept(run.models, setup, served(model, cuts))
    for number in range(setup.rounds):
        weights = {}
        for name in setup.shuffled(number):
            owned[name].begin(setup.proximal)
            for batch in setup.batches(name, number):
                run.learn(name, number, batch, setup.loss)
                shared.step(setup.scale(name))
                owned[name].step()
                kept.step(name)
                weights[name] = float(len(setup.data[name]))
        average_weights(run.models, averaged, weights)
        average_optimizers(owned, weights, setup.averaged)
        kept.averaged(setup.averaged, at_clients=True)
        end_round(shared, *owned.values(), kept)
    return run


def train_splitfed_v3(model: nn.Sequential, cuts: tuple[int, ...], setup: Setup) -> Trained:
    """Side by side, each client on a copy of the server's layers; those are averaged, the clients' own are not."""
    at_server = served(model, cuts)
    averaged = at_server - set(setup.personal)
    run = Trained(models=copies(model, setup.data, NONE))
    serving = learners(run.models, averaged, setup.server or setup.recipe)
    owned = learners(run.models, set(layers(model)) - at_server - set(setup.personal), setup.recipe)
    kept = Kept(run.models, setup, at_server)
    for number in range(setup.rounds):
        weights = {}
        for name in setup.chosen(number):
            serving[name].begin(setup.proximal)
            for batch in setup.batches(name, number):
                run.learn(name, number, batch, setup.loss)
                serving[name].step(setup.scale(name))
                owned[name].step()
                kept.step(name)
                weights[name] = float(len(setup.data[name]))
        average_weights(run.models, averaged, weights)
        average_optimizers(serving, weights, setup.averaged)
        kept.averaged(setup.averaged, at_server=True)
        end_round(*serving.values(), *owned.values(), kept)
    return run
