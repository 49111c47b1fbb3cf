"""Robust averages in a run: the longhand loop with another mean, and five clients of whom one is not to be trusted."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.errors import PlanError
from equivalence.longhand import EXACT
from equivalence.rounds import NONE, Setup, copies, layers, learner
from equivalence.test_schedules import PLAIN, clients, network, normalised, split

Mean = Callable[[list[Tensor], list[float]], Tensor]
FIVE = {"a": 6, "b": 11, "c": 4, "d": 10, "e": 7}


def median(shares: list[Tensor], weights: list[float]) -> Tensor:
    return torch.from_numpy(np.median(np.stack([share.numpy() for share in shares]), axis=0))


def trimmed(shares: list[Tensor], weights: list[float]) -> Tensor:
    """One of five at each end."""
    return torch.from_numpy(np.mean(np.sort(np.stack([share.numpy() for share in shares]), axis=0)[1:-1], axis=0))


def bounded(shares: list[Tensor], weights: list[float]) -> Tensor:
    """To the median distance from the median."""
    centre = median(shares, weights)
    apart = [share - centre for share in shares]
    bound = float(np.median([float(each.norm()) for each in apart]))
    drawn = [each * min(1.0, bound / max(float(each.norm()), 1e-300)) for each in apart]
    return centre + sum(w * each for w, each in zip(weights, drawn, strict=True)) / sum(weights)


METHODS: dict[str, tuple[Any, Mean]] = {
    "median": ("median", median),
    "trimmed_mean": ({"name": "trimmed_mean", "trim": 0.2}, trimmed),
    "norm_bound": ({"name": "norm_bound", "factor": 1.0}, bounded),
}


def train_robustly(model: nn.Module, setup: Setup, mean: Mean) -> dict[str, Tensor]:
    """FedAvg with another mean of each tensor: local epochs from the common model, then one model for all."""
    models = copies(model, setup.data, NONE)
    learners = {name: learner(each, layers(model), setup.recipe) for name, each in models.items()}
    for number in range(setup.rounds):
        for name, each in models.items():
            for x, y in setup.batches(name, number):
                torch.autograd.backward(setup.loss(each(x), y))
                learners[name].step()
        found = {name: each.state_dict() for name, each in models.items()}
        for key, value in next(iter(found.values())).items():
            if value.is_floating_point():
                weights = [float(len(rows)) for rows in setup.data.values()]
                agreed = mean([state[key].clone() for state in found.values()], weights)
                for state in found.values():
                    state[key].copy_(agreed)
    return next(iter(models.values())).state_dict()


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("sees_weights", [False, True], ids=["an aggregator of its own", "the server"])
@pytest.mark.parametrize("method", METHODS)
def test_splitfed_v1_equals_the_longhand_loop_with_that_mean(method: str, sees_weights: bool, topology: str) -> None:
    """With BatchNorm: the running statistics are averaged in the same way."""
    (term, mean), setup = METHODS[method], Setup(data=clients(**FIVE), recipe=PLAIN)
    wanted = train_robustly(normalised(), setup, mean)
    places = (2,) if topology == "vanilla" else (2, 5)
    more: dict[str, Any] = {"averaging": term, "aggregator_sees_weights": sees_weights}
    result = split(normalised(), places, setup, schedule="splitfed_v1", **more)
    for name in setup.data:
        for key, value in result.model_for(name).state_dict().items():
            if value.is_floating_point():
                assert float((value - wanted[key]).abs().max()) <= EXACT, (name, key)


def test_clients_whose_model_is_cut_elsewhere_get_the_same_mean() -> None:
    """Each layer is averaged over all clients, whoever holds it."""
    setup = Setup(data=clients(**FIVE), recipe=PLAIN)
    for term, mean in METHODS.values():
        wanted = train_robustly(network(), setup, mean)
        result = split(network(), (1,), setup, schedule="splitfed_v1", averaging=term, cuts={"b": "3", "d": "2"})
        for key, value in result.model_for("a").state_dict().items():
            assert float((value - wanted[key]).abs().max()) <= EXACT, (term, key)


@pytest.mark.parametrize("schedule", ["splitfed_v2", "splitfed_v3"])
def test_the_other_schedules_with_averages_have_them_too(schedule: str) -> None:
    setup = Setup(data=clients(**FIVE), recipe=PLAIN)
    runs = [split(network(), (1,), setup, schedule=schedule, averaging=term) for term in (None, "median")]
    states = [run.model_for("a").state_dict() for run in runs]
    assert not all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# ---------------------------------------------------------------------- one of five clients is not to be trusted


def task(rows: int, seed: int) -> TensorDataset:
    """Three classes around three points."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (rows,), generator=generator)
    centres = torch.tensor([[2.0, 0, 0, 0, 1, 0], [0, 2, 0, 0, 0, 1], [0, 0, 2, 1, 0, 0]]).double()
    return TensorDataset(centres[y] + 0.7 * torch.randn(rows, 6, dtype=torch.float64, generator=generator), y)


def scaled(rows: TensorDataset) -> TensorDataset:
    """Rows thirty times as large, with the next class for a label: large steps in a wrong direction."""
    x, y = rows.tensors
    return TensorDataset(x * 30, (y + 1) % 3)


def claimed(rows: TensorDataset) -> TensorDataset:
    """Wrong labels on ten times as many rows as anybody has: a large weight in a weighted mean."""
    x, y = rows.tensors
    return TensorDataset(x.repeat(10, 1), ((y + 1) % 3).repeat(10))


POISONS = {"scaled": scaled, "claimed": claimed}


def trained(data: Mapping[str, TensorDataset], averaging: Any) -> Result:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    more: dict[str, Any] = {"held_out": 0.0, "averaging": averaging, "aggregator_sees_weights": True}
    return simulate(model, cut=1, data=data, schedule="splitfed_v1", lr=0.3, batch_size=15, rounds=4, **more)


def accuracy(result: Result) -> float:
    """On rows that nobody has trained on, of an honest client's model."""
    x, y = task(600, 99).tensors
    with torch.no_grad():
        return float((result.model_for("a").eval()(x).argmax(1) == y).double().mean())


@pytest.fixture(scope="module")
def honest() -> dict[str, TensorDataset]:
    return {name: task(30, seed) for seed, name in enumerate("abcde")}


@pytest.fixture(scope="module")
def alone(honest: dict[str, TensorDataset]) -> float:
    """What the four others come to without the fifth."""
    return accuracy(trained({name: rows for name, rows in honest.items() if name != "e"}, None))


@pytest.mark.parametrize("poison", POISONS)
def test_one_poisoned_client_of_five_spoils_the_plain_mean_and_no_robust_one(
    honest: dict[str, TensorDataset], alone: float, poison: str
) -> None:
    data = honest | {"e": POISONS[poison](honest["e"])}
    found = {name: accuracy(trained(data, term)) for name, (term, _) in METHODS.items()}
    plain = accuracy(trained(data, None))
    assert alone > 0.9
    assert plain < alone - 0.2
    assert all(value > alone - 0.03 for value in found.values()), found


def test_a_plan_has_no_robust_average_of_optimizers_nor_under_masks() -> None:
    setup = Setup(data=clients(**FIVE), recipe=PLAIN)
    with pytest.raises(PlanError, match="averaging is for weights"):
        split(network(), (1,), setup, schedule="splitfed_v1", averaging="median", averaged_optimizer="average")
    with pytest.raises(PlanError, match="secure_aggregation with training"):
        split(network(), (1,), setup, schedule="splitfed_v1", averaging="median", secure_aggregation=True)
