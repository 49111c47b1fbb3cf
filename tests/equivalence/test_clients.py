"""Several different clients with unequal rows equal longhand loops: own client segments, one shared server segment."""

import copy
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.plan.streams import stream_seed
from cutlayer.simulation import simulate_plan
from equivalence.longhand import (
    RECIPES,
    SECRETS,
    Learner,
    LossFunction,
    Recipe,
    assert_equal_states,
    slices,
)

ROWS = {"a": 13, "b": 22, "c": 7}
SIZE, ROUNDS = 4, 3
CUTS = {"vanilla": (1,), "u_shaped": (1, 3)}
SGD = RECIPES["sgd"]
Losses = list[tuple[str, float]]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Softplus(), nn.Linear(7, 3)).double()


def classified() -> dict[str, TensorDataset]:
    """Clients whose rows differ in number, place and mix of classes."""
    data = {}
    for number, (name, rows) in enumerate(ROWS.items()):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(rows, 6, dtype=torch.float64, generator=generator) + number
        mix = torch.tensor([1.0, number, 2.0 - number / 2])
        data[name] = TensorDataset(x, torch.multinomial(mix, rows, replacement=True, generator=generator))
    return data


def measured() -> dict[str, TensorDataset]:
    """The same rows with three numbers each to predict, from 0 to 1."""
    return {
        name: TensorDataset(d.tensors[0], torch.sigmoid(d.tensors[0][:, :3].cumsum(1)))
        for name, d in classified().items()
    }


def train_alternating(
    model: nn.Sequential,
    cuts: tuple[int, ...],
    data: Mapping[str, TensorDataset],
    *,
    loss: LossFunction = F.cross_entropy,
    recipe: Recipe = SGD,
    turn: str = "epoch",
    secrets: Mapping[str, bytes] | None = None,
) -> tuple[dict[str, nn.Sequential], Losses]:
    """Each client has its own copy of the first and last layers, all meet the same ones between. Order by `secrets`."""
    start, stop = cuts[0] + 1, cuts[1] + 1 if len(cuts) > 1 else len(model)
    middle = copy.deepcopy(model)[start:stop]
    whole = {}
    for name in data:
        own = copy.deepcopy(model)
        whole[name] = nn.Sequential(*own[:start].children(), *middle.children(), *own[stop:].children())
    shared = Learner(middle.parameters(), recipe)
    owned = {name: Learner([*m[:start].parameters(), *m[stop:].parameters()], recipe) for name, m in whole.items()}
    losses: Losses = []
    for number in range(ROUNDS):
        batches = {name: slices(rows, SIZE, _order(rows, number, name, secrets)) for name, rows in data.items()}
        for name, x, y in _turns(batches, turn):
            total = loss(whole[name](x), y)
            torch.autograd.backward(total)
            losses.append((name, total.item()))
            shared.step()
            owned[name].step()
        for learner in (shared, *owned.values()):
            learner.end_round()
    return whole, losses


def _order(rows: TensorDataset, epoch: int, name: str, secrets: Mapping[str, bytes] | None) -> Tensor | None:
    """The documented rule: a permutation by a stream of the party's secret and the epoch."""
    if secrets is None:
        return None
    return torch.randperm(
        len(rows), generator=torch.Generator().manual_seed(stream_seed(secrets[name], "order", epoch))
    )


def _turns(batches: Mapping[str, list[tuple[Tensor, Tensor]]], turn: str) -> list[tuple[str, Tensor, Tensor]]:
    if turn == "epoch":
        return [(name, x, y) for name, mine in batches.items() for x, y in mine]
    longest = max(map(len, batches.values()))
    return [(name, *mine[i]) for i in range(longest) for name, mine in batches.items() if i < len(mine)]


def split(topology: str, data: Mapping[str, TensorDataset], recipe: Recipe = SGD, **terms: Any) -> Result:
    settings: dict[str, Any] = {"shuffle": False, "turn": "batch", "rounds": ROUNDS} | dict(recipe.terms) | terms
    return simulate(
        network(),
        cut=CUTS[topology],
        topology=topology,
        data=data,
        batch_size=SIZE,
        held_out=0.0,
        secrets=SECRETS,
        **settings,
    )


def losses_of(result: Result) -> Losses:
    return [(entry["party"], entry["loss"]) for entry in result.history if entry["purpose"] == "train"]


def assert_same_losses(found: Losses, wanted: Losses) -> None:
    assert [name for name, _ in found] == [name for name, _ in wanted]
    torch.testing.assert_close([value for _, value in found], [value for _, value in wanted], rtol=0, atol=1e-12)


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


# ---------------------------------------------------------------------- whose turn it is


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("turn", ["epoch", "batch"])
@pytest.mark.parametrize("topology", CUTS)
def test_alternating_equals_own_client_segments_and_one_server_segment(topology: str, turn: str, recipe: str) -> None:
    wanted, losses = train_alternating(network(), CUTS[topology], classified(), recipe=RECIPES[recipe], turn=turn)
    result = split(topology, classified(), RECIPES[recipe], turn=turn)
    for name, model in wanted.items():
        assert_equal_states(result.model_for(name).state_dict(), model.state_dict(), where=f"at {name}")
    if turn == "batch":
        assert_same_losses(losses_of(result), losses)
    else:
        assert [name for name, _ in losses_of(result)] == ["a", "b", "c"] * ROUNDS


def test_alternating_by_epoch_tells_the_mean_over_the_rows_of_an_epoch() -> None:
    _, steps = train_alternating(network(), CUTS["vanilla"], classified())
    wanted, told = [], losses_of(split("vanilla", classified(), turn="epoch"))
    for _ in range(ROUNDS):
        for name, rows in ROWS.items():
            sizes = [min(SIZE, rows - start) for start in range(0, rows, SIZE)]
            mine, steps = steps[: len(sizes)], steps[len(sizes) :]
            wanted.append((name, sum(size * loss for size, (_, loss) in zip(sizes, mine, strict=True)) / rows))
    assert_same_losses(told, wanted)


def test_clients_end_with_different_models_that_share_only_the_servers_part() -> None:
    models = {name: split("u_shaped", classified()).model_for(name).state_dict() for name in ROWS}
    for key, value in models["a"].items():
        same = all(torch.equal(value, models[other][key]) for other in ("b", "c"))
        assert same == (key.partition(".")[0] == "2")


def test_by_epoch_and_by_batch_are_different_schedules() -> None:
    by_epoch, by_batch = (split("vanilla", classified(), turn=turn).model_for("a") for turn in ("epoch", "batch"))
    assert distance(by_epoch, by_batch) > 1e-3


# ---------------------------------------------------------------------- micro-batches and losses


WEIGHT = [0.2, 3.0, 1.0]
CLASS_LOSSES: dict[str, tuple[dict[str, Any], LossFunction]] = {
    "plain": ({"name": "cross_entropy"}, F.cross_entropy),
    "weights": (
        {"name": "cross_entropy", "weight": WEIGHT},
        lambda out, y: F.cross_entropy(out, y, weight=torch.tensor(WEIGHT, dtype=out.dtype)),
    ),
    "weights and smoothing": (
        {"name": "cross_entropy", "weight": WEIGHT, "label_smoothing": 0.1},
        lambda out, y: F.cross_entropy(out, y, weight=torch.tensor(WEIGHT, dtype=out.dtype), label_smoothing=0.1),
    ),
    "smoothing": (
        {"name": "cross_entropy", "label_smoothing": 0.3},
        lambda out, y: F.cross_entropy(out, y, label_smoothing=0.3),
    ),
}
NUMBER_LOSSES: dict[str, tuple[dict[str, Any], LossFunction]] = {
    "mse": ({"name": "mse_loss"}, F.mse_loss),
    "l1": ({"name": "l1_loss"}, F.l1_loss),
    "huber": ({"name": "huber_loss", "delta": 0.2}, lambda out, y: F.huber_loss(out, y, delta=0.2)),
    "smooth l1": ({"name": "smooth_l1_loss", "beta": 0.5}, lambda out, y: F.smooth_l1_loss(out, y, beta=0.5)),
    "bce": ({"name": "binary_cross_entropy_with_logits"}, F.binary_cross_entropy_with_logits),
    "bce with pos_weight": (
        {"name": "binary_cross_entropy_with_logits", "pos_weight": [0.5, 4.0, 1.0]},
        lambda out, y: F.binary_cross_entropy_with_logits(
            out, y, pos_weight=torch.tensor([0.5, 4.0, 1.0], dtype=out.dtype)
        ),
    ),
}


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("topology", CUTS)
@pytest.mark.parametrize("name", [*CLASS_LOSSES, *NUMBER_LOSSES])
def test_micro_batches_equal_the_full_mini_batch(name: str, topology: str, micro_batches: int) -> None:
    terms, function = (CLASS_LOSSES | NUMBER_LOSSES)[name]
    data = classified() if name in CLASS_LOSSES else measured()
    wanted, losses = train_alternating(network(), CUTS[topology], data, loss=function, turn="batch")
    result = split(topology, data, loss=terms, micro_batches=micro_batches)
    assert_same_losses(losses_of(result), losses)
    for client, model in wanted.items():
        assert_equal_states(result.model_for(client).state_dict(), model.state_dict(), where=f"at {client}")


@pytest.mark.parametrize("topology", CUTS)
def test_more_micro_batches_than_rows_are_one_row_each(topology: str) -> None:
    one, many = (split(topology, classified(), micro_batches=parts) for parts in (1, 50))
    assert_equal_states(many.model_for("b").state_dict(), one.model_for("b").state_dict())


def test_weighting_micro_batches_by_their_rows_would_be_seen() -> None:
    """The oracle can fail: with class weights the parts' means do not average to the mean of the whole."""
    _, function = CLASS_LOSSES["weights"]

    def naive(out: Tensor, y: Tensor) -> Tensor:
        parts = zip(out.tensor_split(3), y.tensor_split(3), strict=True)
        return torch.stack([function(o, t) * len(t) / len(y) for o, t in parts if len(t)]).sum()

    right, losses = train_alternating(network(), CUTS["vanilla"], classified(), loss=function)
    wrong, naive_losses = train_alternating(network(), CUTS["vanilla"], classified(), loss=naive)
    assert abs(losses[0][1] - naive_losses[0][1]) > 0.05
    assert distance(right["a"], wrong["a"]) > 0.05


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_rows_with_the_ignored_label_count_neither_in_the_sum_nor_in_the_mean(micro_batches: int) -> None:
    data = {
        name: TensorDataset(rows.tensors[0], _every_second_ignored(len(rows))) for name, rows in classified().items()
    }
    wanted, losses = train_alternating(
        network(), CUTS["vanilla"], data, loss=lambda out, y: F.cross_entropy(out, y, ignore_index=2), turn="batch"
    )
    terms = {"name": "cross_entropy", "ignore_index": 2}
    result = split("vanilla", data, loss=terms, micro_batches=micro_batches)
    assert_same_losses(losses_of(result), losses)
    assert_equal_states(result.model_for("b").state_dict(), wanted["b"].state_dict())


def _every_second_ignored(rows: int) -> Tensor:
    labels = torch.arange(rows) % 4 // 2
    labels[1::2] = 2
    return labels


# ---------------------------------------------------------------------- one optimizer for the whole run


@pytest.mark.parametrize("turn", ["epoch", "batch"])
def test_momentum_lasts_over_turns_and_rounds(turn: str) -> None:
    """The oracle can fail: loops that make their optimizers anew each round, or each turn, end elsewhere."""

    class Forgetful(Learner):
        def end_round(self) -> None:
            super().end_round()
            assert self.optimizer is not None
            rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer = optim.SGD(self.parameters, lr=rate, momentum=0.9, weight_decay=0.01)

    result = split("vanilla", classified(), turn=turn)
    wanted, _ = train_alternating(network(), CUTS["vanilla"], classified(), turn=turn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.Learner", Forgetful)
        forgotten, _ = train_alternating(network(), CUTS["vanilla"], classified(), turn=turn)
    for name in ROWS:
        assert_equal_states(result.model_for(name).state_dict(), wanted[name].state_dict())
        assert distance(forgotten[name], result.model_for(name)) > 1e-3


# ---------------------------------------------------------------------- orders


@pytest.mark.parametrize("topology", CUTS)
def test_shuffled_epochs_follow_the_rule_of_the_partys_secret(topology: str) -> None:
    wanted, losses = train_alternating(network(), CUTS[topology], classified(), turn="batch", secrets=SECRETS)
    result = split(topology, classified(), shuffle=True)
    assert_same_losses(losses_of(result), losses)
    for name, model in wanted.items():
        assert_equal_states(result.model_for(name).state_dict(), model.state_dict())


def test_another_secret_gives_another_order() -> None:
    one = split("vanilla", classified(), shuffle=True)
    other = simulate_plan(one.agreement, classified(), secrets=SECRETS | {"b": b"other" * 8})
    assert one.history[0] == other.history[0]
    assert distance(one.model_for("b"), other.model_for("b")) > 1e-3


@pytest.mark.parametrize("topology", CUTS)
@pytest.mark.parametrize(
    ("turn", "orders"), [("epoch", 2), ("batch", 4), pytest.param("batch", 20, marks=pytest.mark.slow)]
)
def test_the_order_of_delivery_changes_no_bit(topology: str, turn: str, orders: int) -> None:
    base = split(topology, classified(), micro_batches=2, turn=turn, shuffle=True, rounds=1)
    held_out = {name: TensorDataset(*rows[:6]) for name, rows in classified().items()}
    runs = [
        simulate_plan(base.agreement, classified(), held_out=held_out, secrets=SECRETS, delivery=delivery)
        for delivery in (None, *map(random.Random, range(orders)))
    ]
    for run in runs:
        assert run.history == runs[0].history
        assert run.bytes == runs[0].bytes
        for name in ROWS:
            for key, value in run.model_for(name).state_dict().items():
                assert torch.equal(value, runs[0].model_for(name).state_dict()[key]), key
                assert torch.equal(value, base.model_for(name).state_dict()[key]), key
