"""Several losses, and losses of which nothing comes back, equal their sums and loops in plain torch."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from cutlayer import Parts
from cutlayer.plan.schedule import LEGAL
from equivalence.longhand_topologies import (
    BATCH,
    CLASSES,
    CLIENTS,
    LR,
    MICROS,
    NUMBERS,
    ROUNDS,
    ROWS,
    WEIGHED,
    XA,
    XB,
    Y2,
    Y,
    assert_close,
    batches,
    joined,
    linear,
    mean_of,
    order_key,
    parts,
    set_aside,
    split,
    table,
    tanh,
    tasks,
    trained,
    two_towers,
)


@MICROS
def test_multi_task_equals_the_weighted_sum_of_mean_losses(micro: int) -> None:
    model = two_towers(top_server=linear(8, CLASSES), top_s2=tanh(8, 2))
    result = split(model, tasks(NUMBERS), "multi_task", losses={"top_s2": "mse_loss"}, micro_batches=micro, **WEIGHED)

    def loss(m: Any, b: Tensor) -> Tensor:
        h = joined(m, b)
        return 0.3 * F.cross_entropy(m.top_server(h), Y[b]) + 0.7 * F.mse_loss(m.top_s2(h), NUMBERS[b])

    assert_close(result.model_for(), trained(model, loss))


def test_the_gradient_of_several_tasks_is_the_weighted_sum_of_each_ones_gradient() -> None:
    """Of losses that are divided by other things: rows, class weights, labels that count."""
    weights = [0.2, 1.0, 3.0]
    model = two_towers(top_server=linear(8, CLASSES), top_s2=linear(8, CLASSES))
    labels = Y2.clone()
    labels[::4] = -100
    result = split(
        model,
        tasks(labels),
        "multi_task",
        **WEIGHED,
        loss={"name": "cross_entropy", "weight": weights},
        losses={"top_s2": {"name": "cross_entropy", "ignore_index": -100}},
        optimizer={"name": "sgd", "lr": 1.0},
        rounds=1,
        batch_size=ROWS,
    )
    given: dict[str, dict[str, Any]] = {
        "top_server": {"weight": torch.tensor(weights, dtype=torch.float64)},
        "top_s2": {"ignore_index": -100},
    }
    wanted = copy.deepcopy(model).state_dict()
    for (top, options), factor, target in zip(given.items(), (0.3, 0.7), (Y, labels), strict=True):
        alone = copy.deepcopy(model)
        loss = F.cross_entropy(alone.get_submodule(top)(joined(alone, torch.arange(ROWS))), target, **options)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in alone.named_parameters():
            if parameter.grad is not None:
                wanted[name] = wanted[name] - factor * parameter.grad
    for name, value in result.model_for().state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-12)


def test_each_task_is_scored_by_the_name_of_its_segment() -> None:
    model = two_towers(top_server=linear(8, CLASSES), top_s2=linear(8, CLASSES))
    result = split(model, tasks(Y2), "multi_task", held_out=0.2, **WEIGHED)
    last = result.metrics["all"]
    rows = set_aside(ROWS, 0.2, order_key("a", result.agreement.plan.digest))[1]
    found: Any = result.model_for()
    h = joined(found, rows)
    for top, labels in (("top_server", Y), ("top_s2", Y2)):
        answers = found.get_submodule(top)(h)
        assert last[f"{top}.loss"] == pytest.approx(F.cross_entropy(answers, labels[rows]).item(), abs=1e-12)
        assert last[f"{top}.accuracy"] == (answers.argmax(1) == labels[rows]).double().mean()


HALF = Y.clone()
HALF[::2] = -100
NONE_IN_A_BATCH = Y.clone()
NONE_IN_A_BATCH[BATCH : 2 * BATCH] = -100
IGNORING: dict[str, Any] = {"loss": {"name": "cross_entropy", "ignore_index": -100}}


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("labels", [Y, HALF, NONE_IN_A_BATCH], ids=["all", "half", "none in a batch"])
def test_semi_supervised_learns_from_rows_without_labels(labels: Tensor, weight: float) -> None:
    model = parts(bottom=tanh(3, 4), decoder=linear(4, 3), top=linear(4, CLASSES))
    data = {"a": table(XA, labels)}
    result = split(model, data, "semi_supervised", loss_weights={"decoder": weight}, **IGNORING)

    def loss(m: Any, b: Tensor) -> Tensor:
        h = m.bottom(XA[b])
        top = F.cross_entropy(m.top(h), labels[b], reduction="sum") / max(1, int((labels[b] != -100).sum()))
        return top + weight * F.mse_loss(m.decoder(h), XA[b])

    assert_close(result.model_for("a"), trained(model, loss))


@MICROS
def test_semi_supervised_with_parts_of_batches(micro: int) -> None:
    model = parts(bottom=tanh(3, 4), decoder=linear(4, 3), top=linear(4, CLASSES))
    result = split(model, {"a": table(XA, Y)}, "semi_supervised", micro_batches=micro, loss_weights={"decoder": 2.0})

    def loss(m: Any, b: Tensor) -> Tensor:
        h = m.bottom(XA[b])
        return F.cross_entropy(m.top(h), Y[b]) + 2.0 * F.mse_loss(m.decoder(h), XA[b])

    assert_close(result.model_for("a"), trained(model, loss))


@pytest.mark.parametrize("schedule", sorted(LEGAL["bottleneck"]))
def test_a_learned_bottleneck_is_vanilla_with_an_encoder_and_a_decoder_in_it(schedule: str) -> None:
    """One number of four crosses, and as many come back."""
    model = parts(bottom=tanh(3, 4), encoder=tanh(4, 1), decoder=linear(1, 4), top=linear(4, CLASSES))
    bottom, encoder, decoder, top = (copy.deepcopy(part) for part in model.children())
    plain = Parts(bottom=nn.Sequential(bottom, encoder), top=nn.Sequential(decoder, top))
    data = {"a": table(XA, Y), "b": table(XB[:, :3], Y2)}
    found = split(model, data, "bottleneck", schedule=schedule, held_out=0.2)
    wanted = split(plain, data, "vanilla", schedule=schedule, held_out=0.2)
    for name in data:
        pairs = zip(
            found.model_for(name).state_dict().values(), wanted.model_for(name).state_dict().values(), strict=True
        )
        for value, same in pairs:
            torch.testing.assert_close(value, same, rtol=0, atol=1e-12)
        assert found.metrics[name] == pytest.approx(wanted.metrics[name], abs=1e-12)


@pytest.mark.parametrize("schedule", ["alternating", "relay", "splitfed_v1", "splitfed_v2", "splitfed_v3"])
def test_semi_supervised_without_its_decoder_is_vanilla_under_every_schedule(schedule: str) -> None:
    model = parts(bottom=tanh(3, 4), decoder=linear(4, 3), top=linear(4, CLASSES))
    plain = Parts(bottom=copy.deepcopy(model.bottom), top=copy.deepcopy(model.top))  # type: ignore[arg-type]
    data = {"a": table(XA, Y), "b": table(XB[:, :3], Y2)}
    with_decoder = split(model, data, "semi_supervised", schedule=schedule, loss_weights={"decoder": 0.0}, held_out=0.2)
    without = split(plain, data, "vanilla", schedule=schedule, held_out=0.2)
    for name in data:
        found, wanted = with_decoder.model_for(name).state_dict(), without.model_for(name).state_dict()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-12)
        assert found["decoder.weight"].equal(model.state_dict()["decoder.weight"])
        told = {key: value for key, value in with_decoder.metrics[name].items() if "." not in key}
        assert told == pytest.approx(without.metrics[name], abs=1e-12)


# ---------------------------------------------------------------------- decoupled learning


def decoupled() -> Parts:
    return parts(bottom=tanh(3, 4), auxiliary=linear(4, CLASSES), top=tanh(4, CLASSES))


class Decoupled:
    """One client's bottom and auxiliary head, and the top that its rows meet."""

    def __init__(self, model: Any, top: nn.Module) -> None:
        self.model, self.top = model, top
        self.renew()
        self.top_learner = optim.Adam(top.parameters(), lr=LR)

    def renew(self) -> None:
        self.own = optim.Adam([*self.model.bottom.parameters(), *self.model.auxiliary.parameters()], lr=LR)

    def step(self, x: Tensor, y: Tensor, *, uploads: bool) -> None:
        self.own.zero_grad()
        h = self.model.bottom(x)
        F.cross_entropy(self.model.auxiliary(h), y).backward()  # type: ignore[no-untyped-call]
        self.own.step()
        if uploads:
            self.top_learner.zero_grad()
            F.cross_entropy(self.top(h.detach()), y).backward()  # type: ignore[no-untyped-call]
            self.top_learner.step()


@MICROS
@pytest.mark.parametrize("every", [1, 2, 3])
def test_decoupled_learns_from_the_auxiliary_head_and_the_server_from_each_so_manyth_batch(
    every: int, micro: int
) -> None:
    model = decoupled()
    result = split(model, {"a": table(XA, Y)}, "decoupled", upload_every=every, micro_batches=micro)
    wanted: Any = copy.deepcopy(model)
    learner = Decoupled(wanted, wanted.top)
    for number, b in enumerate(batches()):
        learner.step(XA[b], Y[b], uploads=(number + 1) % every == 0)
    assert_close(result.model_for("a"), wanted)
    backward = [c for c in result.meters["a"].crossings.values() if c.way == "backward"]
    assert all(c.payload_bytes == 0 for c in backward)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("turn", ["epoch", "batch"])
def test_decoupled_clients_take_turns_on_one_top(every: int, turn: str) -> None:
    model = decoupled()
    data = {name: table(*rows) for name, rows in CLIENTS.items()}
    result = split(model, data, "decoupled", schedule="alternating", upload_every=every, turn=turn)
    copies: dict[str, Any] = {name: copy.deepcopy(model) for name in CLIENTS}
    top = copies["a"].top
    learners = {name: Decoupled(copies[name], top) for name in CLIENTS}
    learners["b"].top_learner = learners["a"].top_learner
    taken = Counter[str]()
    for _ in range(ROUNDS):
        for name, step in turns(turn):
            x, y = (each[step * BATCH : (step + 1) * BATCH] for each in CLIENTS[name])
            taken[name] += 1
            learners[name].step(x, y, uploads=taken[name] % every == 0)
    copies["b"].top = top
    for name in CLIENTS:
        assert_close(result.model_for(name), copies[name])


def turns(turn: str) -> Iterator[tuple[str, int]]:
    """Whose step of a round is next."""
    steps = [(name, step) for name, (x, _) in CLIENTS.items() for step in range(-(-len(x) // BATCH))]
    yield from steps if turn == "epoch" else sorted(steps, key=lambda each: (each[1], each[0]))


@pytest.mark.parametrize("every", [1, 2])
def test_decoupled_clients_side_by_side_are_averaged(every: int) -> None:
    """CSE-FSL's way: each client has a top of its own until the round ends; optimizers begin anew."""
    model = decoupled()
    data = {name: table(*rows) for name, rows in CLIENTS.items()}
    result = split(model, data, "decoupled", schedule="splitfed_v1", upload_every=every)
    mean: Any = copy.deepcopy(model)
    taken = Counter[str]()
    for _ in range(ROUNDS):
        copies: dict[str, Any] = {name: copy.deepcopy(mean) for name in CLIENTS}
        for name, (x, y) in CLIENTS.items():
            learner = Decoupled(copies[name], copies[name].top)
            for b in torch.split(torch.arange(len(x)), BATCH):
                taken[name] += 1
                learner.step(x[b], y[b], uploads=taken[name] % every == 0)
        mean.load_state_dict(mean_of(list(copies.values()), [len(x) for x, _ in CLIENTS.values()]))
    for name in CLIENTS:
        assert_close(result.model_for(name), mean)
