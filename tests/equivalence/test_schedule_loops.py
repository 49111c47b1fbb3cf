"""The longhand loops agree with each other wherever the papers say that two schedules are the same."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from equivalence.longhand import EXACT, RECIPES, SECRETS, train_uncut
from equivalence.rounds import Setup, layers, served
from equivalence.schedules import (
    mixed,
    train_alternating,
    train_fedavg,
    train_joined,
    train_on_union,
    train_relay,
    train_splitfed_v2,
    train_splitfed_v3,
)
from equivalence.test_clients import ROUNDS
from equivalence.test_clients import train_alternating as train_alternating_otherwise
from equivalence.test_schedules import CUTS, PLAIN, VARIANTS, clients, gap, network, states_of

BOTH = pytest.mark.parametrize("topology", CUTS)
ANY = pytest.mark.parametrize("recipe", RECIPES)


def client_layers(topology: str) -> set[str]:
    return set(layers(network())) - served(network(), CUTS[topology])


@BOTH
@ANY
def test_with_one_client_all_schedules_are_training_of_the_uncut_model(topology: str, recipe: str) -> None:
    setup = Setup(data={"b": clients()["b"]}, recipe=RECIPES[recipe], averaged="keep")
    rounds = [setup.batches("b", number) for number in range(setup.rounds)]
    whole = train_uncut(network(), rounds, loss=F.cross_entropy, recipe=setup.recipe, segments={"": "bottom"})
    for name, variant in VARIANTS.items():
        run = variant.loop(network(), CUTS[topology], setup)
        assert gap(states_of(run), {"b": whole.state}) < EXACT, f"{name}, {topology}, {recipe}"


@BOTH
@ANY
@pytest.mark.parametrize("turn", ["epoch", "batch"])
def test_alternating_equals_another_loop_of_it(turn: str, topology: str, recipe: str) -> None:
    setup = Setup(data=clients(), recipe=RECIPES[recipe], rounds=ROUNDS, secrets=SECRETS)
    one = train_alternating(network(), CUTS[topology], setup, turn=turn)
    other, _ = train_alternating_otherwise(
        network(), CUTS[topology], setup.data, recipe=setup.recipe, turn=turn, secrets=SECRETS
    )
    assert gap(states_of(one), {name: model.state_dict() for name, model in other.items()}) == 0


def test_fedavg_with_one_plain_step_a_round_is_a_large_batch_if_weighted() -> None:
    """Batches of all of a client's rows: the mean of the steps, weighted by rows, is the step of the union's mean."""
    setup = Setup(data=clients(), recipe=PLAIN, size=32, rounds=6)
    union = states_of(train_on_union(network(), (1,), setup))
    assert gap(states_of(train_fedavg(network(), setup)), union) < EXACT
    assert gap(states_of(train_fedavg(network(), setup, weighted=False)), union) > 1e-3


@BOTH
@ANY
def test_joined_with_nothing_of_ones_own_is_the_union(topology: str, recipe: str) -> None:
    setup = Setup(data=clients(), recipe=RECIPES[recipe])
    union = train_on_union(network(), CUTS[topology], setup)
    joined = train_joined(network(), CUTS[topology], setup, own=set())
    assert gap(states_of(joined), states_of(union)) < EXACT
    averaged = train_on_union(network(), CUTS[topology], setup, averaged=True)
    assert gap(states_of(averaged), states_of(union)) > 1e-3


@BOTH
def test_gradients_of_own_layers_add_up_to_those_of_the_union(topology: str) -> None:
    """One plain step: what each client's layers moved by is its part of what the union's layers moved by."""
    setup = Setup(data=clients(), recipe=PLAIN, size=32, rounds=1)
    start, union = network().state_dict(), train_on_union(network(), CUTS[topology], setup).models["a"].state_dict()
    run = train_joined(network(), CUTS[topology], setup, own=client_layers(topology))
    for key, value in union.items():
        moved = [model.state_dict()[key] - start[key] for model in run.models.values()]
        own = key.partition(".")[0] in client_layers(topology)
        torch.testing.assert_close(sum(moved) if own else moved[0], value - start[key], rtol=0, atol=EXACT)


def test_gradients_at_the_cut_are_averaged_over_the_clients_that_have_the_row() -> None:
    grads = [torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[5.0]]), torch.tensor([[0.0], [4.0]])]
    assert [part.flatten().tolist() for part in mixed(grads, 1.0)] == [[2.0, 3.0, 3.0], [2.0], [2.0, 3.0]]
    assert [part.flatten().tolist() for part in mixed(grads, 0.5)] == [[2.0, 2.0, 3.0], [2.0], [2.0, 4.0]]
    assert [part.flatten().tolist() for part in mixed(grads, 0.0)] == [part.flatten().tolist() for part in grads]


@BOTH
@ANY
def test_clients_with_the_same_rows_lose_nothing_by_averages(topology: str, recipe: str) -> None:
    """Identical clients: V1 and V3 are one client's training, and averaging gradients at the cut changes nothing."""
    rows = clients()["b"]
    twins = Setup(data={"a": rows, "b": rows}, recipe=RECIPES[recipe], averaged="keep")
    alone = train_fedavg(network(), replace(twins, data={"a": rows})).models["a"].state_dict()
    for run in (train_fedavg(network(), twins), train_splitfed_v3(network(), CUTS[topology], twins)):
        assert gap(states_of(run), {"a": alone, "b": alone}) < EXACT
    own = client_layers(topology)
    plain, averaged = (
        states_of(train_joined(network(), CUTS[topology], twins, own=own, cut_average=part)) for part in (0.0, 1.0)
    )
    assert gap(plain, averaged) < EXACT


@BOTH
def test_fedprox_draws_from_the_second_step_on(topology: str) -> None:
    """Where a round begins the pull is nothing, so that one step a round is FedAvg; more steps are not."""
    for steps, apart in ((1, False), (3, True)):
        setup = Setup(data=clients(), steps=steps)
        for loop in (train_splitfed_v2, train_splitfed_v3):
            runs = [states_of(loop(network(), CUTS[topology], replace(setup, proximal=mu))) for mu in (0.0, 0.5)]
            assert (gap(*runs) > 1e-3) == apart
            assert apart or gap(*runs) == 0


def test_fedprox_pulls_by_the_distance_from_where_the_round_began() -> None:
    """The gradient of f(w) + μ/2 |w - start|², in autograd's own words."""
    setup = Setup(data={"b": clients()["b"]}, recipe=RECIPES["adam"], proximal=0.7, steps=3, averaged="keep", rounds=1)
    found, model = train_fedavg(network(), setup).models["b"], network()
    optimizer = setup.recipe.optimizer(model.parameters())
    assert setup.recipe.schedule is not None
    schedule = setup.recipe.schedule(optimizer)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    for x, y in setup.batches("b", 0):
        optimizer.zero_grad()
        pull = sum(((w - w0) ** 2).sum() for w, w0 in zip(model.parameters(), start, strict=True))
        torch.autograd.backward(F.cross_entropy(model(x), y) + 0.35 * pull)
        optimizer.step()
        schedule.step()
    assert gap({"b": found.state_dict()}, {"b": model.state_dict()}) < EXACT


def test_schedules_differ_from_each_other() -> None:
    """The oracles can fail: no schedule passes for another on these clients."""
    runs = {
        name: states_of(variant.loop(network(), (1, 3), Setup(data=clients()))) for name, variant in VARIANTS.items()
    }
    for one in runs:
        for other in runs:
            assert one == other or gap(runs[one], runs[other]) > 1e-3, f"{one} and {other}"


def test_optimizer_policies_differ_only_where_optimizers_remember() -> None:
    for recipe, apart in ((PLAIN, False), (RECIPES["adam"], True)):
        setup = Setup(data=clients(), recipe=recipe)
        reset, keep, mean = (
            states_of(train_fedavg(network(), replace(setup, averaged=policy)))
            for policy in ("reset", "keep", "average")
        )
        assert (min(gap(reset, keep), gap(reset, mean), gap(keep, mean)) > 1e-4) == apart


def test_relay_where_optimizers_stay_differs_only_if_they_remember() -> None:
    for recipe, apart in ((PLAIN, False), (RECIPES["sgd"], True)):
        setup = Setup(data=clients(), recipe=recipe)
        whole, forgetful = (states_of(train_relay(network(), (1,), setup, hand_over=over)) for over in (True, False))
        assert (gap(whole, forgetful) > 1e-3) == apart
