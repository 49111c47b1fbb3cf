"""Cached steps: a run with them is a loop that keeps the last mini-batches by hand, and weighs their rows singly."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer import Parts, Result, simulate
from cutlayer.errors import PlanError
from cutlayer.model.cached import Workset, trust, weighted
from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.model.segment import ModelSegment
from cutlayer.observe.facts import Progressed, Resumed
from cutlayer.party.agreement import Agreement
from cutlayer.party.working import Workbench
from cutlayer.plan.membership import NEVER
from cutlayer.plan.terms import Method, SaveTerms, Training
from cutlayer.protocol.events import Step
from cutlayer.protocol.messages import Ticket
from equivalence.longhand_topologies import (
    BATCH,
    CLASSES,
    ROWS,
    SECRETS,
    STEPS,
    XA,
    XB,
    Data,
    Y,
    assert_close,
    assert_identical,
    assert_same_bits,
    linear,
    parts,
    split,
    table,
    tanh,
    tasks,
    two_towers,
)
from equivalence.test_network import assert_network_equals_simulation
from equivalence.topology_jobs import JOBS, PARTIES
from party import test_saver
from processes.crew import Crew

CACHED, ROUNDS = 3, 2
TRAINING = Training(
    loss=Method(name="cross_entropy"), optimizer=Method(name="SGD", options={"lr": 0.1}), batch_size=5, rounds=1
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network of two towers and what comes after them, where its parts lie, and how it learns."""

    topology: str
    upper: Mapping[str, tuple[int, int]]
    data: Data
    more: Mapping[str, Any]
    learner: str

    def model(self) -> Parts:
        return two_towers(**{name: linear(*sizes) for name, sizes in self.upper.items()})

    def run(self, **terms: Any) -> Result:
        return split(
            self.model(),
            self.data,
            self.topology,
            **self.more,
            **LEARNERS[self.learner][0],
            **{"rounds": ROUNDS} | terms,
        )


def adam(module: nn.Module) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    optimizer = optim.Adam(module.parameters(), lr=0.05)
    return optimizer, optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def sgd(module: nn.Module) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    """At a rate that has an end, which cached steps must not run into."""
    optimizer = optim.SGD(module.parameters(), lr=0.5, momentum=0.5)
    return optimizer, optim.lr_scheduler.OneCycleLR(optimizer, **ONE_CYCLE)


ONE_CYCLE: dict[str, Any] = {"max_lr": 0.5, "total_steps": ROUNDS * STEPS, "cycle_momentum": False}
LEARNERS: dict[str, tuple[dict[str, Any], Any]] = {
    "Adam": ({"optimizer": {"name": "Adam", "lr": 0.05}}, adam),
    "SGD": (
        {
            "optimizer": {"name": "SGD", "lr": 0.5, "momentum": 0.5},
            "lr_schedule": {"name": "OneCycleLR", "every": "step"} | ONE_CYCLE,
        },
        sgd,
    ),
}
LABELS_AT_SERVER: Data = {"a": table(XA), "b": table(XB), "server": table(Y)}
CASES = {
    "vertical, Adam": Case(
        topology="vertical", upper={"top": (8, CLASSES)}, data=LABELS_AT_SERVER, more={}, learner="Adam"
    ),
    "vertical, SGD": Case(
        topology="vertical", upper={"top": (8, CLASSES)}, data=LABELS_AT_SERVER, more={}, learner="SGD"
    ),
    "u-shaped, SGD": Case(
        topology="vertical_u_shaped",
        upper={"middle": (8, 5), "head": (5, CLASSES)},
        data={"a": table(XA), "b": table(XB, Y)},
        more={"labels": "b", "roles": {"server": "server"}},
        learner="SGD",
    ),
}


# ---------------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Kept:
    """Of one part and one mini-batch: its input, its output, the gradients of the mean loss, and the labels."""

    x: Tensor
    z: Tensor
    gradient_x: Tensor | None
    gradient_z: Tensor
    labels: Tensor


class ByHand:
    """Parts that learn from each mini-batch together, and then each from what it kept, first from the newest."""

    def __init__(self, case: Case, count: int) -> None:
        self.model, self.count = copy.deepcopy(case.model()), count
        self.upper = tuple(case.upper)
        self.learners = {name: LEARNERS[case.learner][1](part) for name, part in self.model.named_children()}
        self.weights: list[float] = []

    def train(self, turn_steps: int = STEPS) -> nn.Module:
        """What was kept is forgotten after so many steps, and after each round."""
        for _ in range(ROUNDS):
            for step, batch in enumerate(torch.split(torch.arange(ROWS), BATCH)):
                if step % turn_steps == 0:
                    kept: dict[str, list[Kept]] = {name: [] for name in self.learners}
                for name, each in self.together(batch).items():
                    kept[name] = [*kept[name], each][-self.count :] if self.count else []
                    for old in reversed(kept[name]):
                        self.alone(name, old)
                    self.learners[name][1].step()
        return self.model

    def together(self, batch: Tensor) -> dict[str, Kept]:
        rows = {"bottom_a": XA[batch], "bottom_b": XB[batch]}
        z = {name: getattr(self.model, name)(x) for name, x in rows.items()}
        before = torch.cat(list(z.values()), 1)
        for name in self.upper:
            rows[name], z[name] = before, getattr(self.model, name)(before)
            before = z[name]
        for tensor in (*rows.values(), *z.values()):
            if tensor.requires_grad:
                tensor.retain_grad()
        F.cross_entropy(before, Y[batch]).backward()  # type: ignore[no-untyped-call]
        kept = {n: Kept(rows[n].detach(), z[n].detach(), rows[n].grad, _given(z[n].grad), Y[batch]) for n in z}
        for name in z:
            self.step(name)
        return kept

    def alone(self, name: str, kept: Kept) -> None:
        part = getattr(self.model, name)
        if name != self.upper[-1]:
            z = part(kept.z.new_tensor(kept.x.tolist()))
            rows = [self.weight(z[i], kept.z[i]) * (z[i] * kept.gradient_z[i]).sum() for i in range(len(z))]
        else:
            x = kept.x.clone().requires_grad_()
            losses = F.cross_entropy(part(x), kept.labels, reduction="none")
            (gradient,) = torch.autograd.grad(losses.mean(), x, retain_graph=True)
            before = _given(kept.gradient_x)
            rows = [self.weight(gradient[i], before[i]) * losses[i] / len(losses) for i in range(len(losses))]
        torch.stack(rows).sum().backward()  # type: ignore[no-untyped-call]
        self.step(name)

    def weight(self, one: Tensor, other: Tensor) -> float:
        cosine = (one @ other / (one.norm() * other.norm())).item()
        self.weights.append(cosine)
        return cosine if cosine >= 0.5 else 0.0

    def step(self, name: str) -> None:
        self.learners[name][0].step()
        self.learners[name][0].zero_grad()


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


@pytest.mark.parametrize("name", CASES)
def test_a_run_with_cached_steps_equals_the_loop_that_keeps_mini_batches(name: str) -> None:
    case = CASES[name]
    by_hand = ByHand(case, CACHED)
    wanted = by_hand.train()
    assert min(by_hand.weights) < 0.5 < sorted(by_hand.weights)[len(by_hand.weights) // 4] < 0.9999
    found = case.run(cached_steps=CACHED, deliveries=2).model_for()
    assert_close(found, wanted, 1e-10)
    assert not any(map(torch.equal, found.parameters(), case.run().model_for().parameters()))


def test_without_cached_steps_nothing_changes_by_a_bit() -> None:
    case = CASES["vertical, Adam"]
    assert_same_bits(case.run(cached_steps=0), case.run())
    assert_close(case.run().model_for(), ByHand(case, 0).train(), 1e-10)


def dropping() -> Parts:
    def bottom(columns: int) -> nn.Module:
        return nn.Sequential(nn.Linear(columns, 4), nn.Dropout(0.4), nn.ReLU(inplace=True))

    return parts(bottom_a=lambda: bottom(3), bottom_b=lambda: bottom(4), top=tanh(8, CLASSES))


def test_the_order_of_delivery_changes_no_bit_of_cached_steps_with_dropout_and_absent_parties() -> None:
    terms: dict[str, Any] = {"cached_steps": 2, "party_dropout": 0.3, "rounds": ROUNDS}
    run = split(dropping(), LABELS_AT_SERVER, "vertical", deliveries=3, **terms)
    other = {name: bytes(reversed(range(32))) for name in SECRETS}
    again = split(dropping(), LABELS_AT_SERVER, "vertical", **terms | {"secrets": other})
    assert not torch.equal(run.weights_of("a")["bottom_a.0.weight"], again.weights_of("a")["bottom_a.0.weight"])


def test_each_step_says_how_stale_it_was_and_exact_steps_are_counted_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stale: dict[str, list[tuple[int, ...]]] = {"bottom_a": [], "bottom_b": [], "top": []}
    facts: list[Any] = []
    step = Workbench.step

    def watched(self: Workbench, action: Step) -> tuple[int, ...]:
        found = step(self, action)
        stale[action.replica[0]].append(found)
        return found

    monkeypatch.setattr(Workbench, "step", watched)
    CASES["vertical, SGD"].run(cached_steps=2, observers=[facts.append])
    in_a_round = [(1,), (1, 4), *[(1, 5)] * (STEPS - 2)]
    assert stale == dict.fromkeys(stale, in_a_round * ROUNDS)
    progressed = [fact.done for fact in facts if isinstance(fact, Progressed) and fact.party == "a"]
    assert progressed == list(range(1, ROUNDS * STEPS + 1))


def stepped(returns_b: bool, b: Tensor, left_out: tuple[str, ...]) -> tuple[dict[str, Tensor], tuple[int, ...]]:
    """A top of two inputs after an exact step and a cached one."""
    torch.manual_seed(0)
    replica = Replica(linear(8, CLASSES)().double(), TRAINING)
    workset = Workset(1, outputs=(0,), inputs=(0, 0) if returns_b else (0,))
    returns = {"a": (True,), "b": (returns_b,), "y": (False,)}
    loss, more = Loss(TRAINING.loss), {"target_edge": "y", "join": "concat", "workset": workset}
    segment = ModelSegment("top", replica, secret=b"", returns=returns, loss=loss, **more)  # type: ignore[arg-type]
    ticket, inputs = Ticket(0, "a", 0, 0, "train"), {"a": (XA[:5, :1].repeat(1, 4),), "b": (b,), "y": (Y[:5],)}
    segment.forward(ticket, inputs, 5, left_out)
    segment.backward(ticket, {})
    segment.step(5.0, 0)
    stale = segment.cached_steps(0)
    return replica.module.state_dict(), stale


def test_an_activation_that_was_left_out_of_a_step_is_left_out_of_its_cached_ones() -> None:
    found, stale = stepped(True, XB[:5], ("b",))
    wanted, _ = stepped(False, torch.zeros_like(XB[:5]), ())
    assert stale == (1,)
    assert_identical(found, wanted)


def test_rows_are_found_where_the_plan_says_that_they_lie() -> None:
    """In the second dimension, and as two successive entries each; a tensor without rows counts for nothing."""
    one, other = torch.eye(2).repeat(3, 1, 1), torch.tensor([[1.0, 0], [1, 0]]).repeat(3, 1, 1)
    assert trust([one], [other], (1,), 2).tolist() == [1, 0]
    flat, flat_other = torch.tensor([3.0, 4, 0, 1]), torch.tensor([3.0, 4, 1, 0])
    assert trust([flat, one], [flat_other, -one], (0, None), 2).tolist() == pytest.approx([1, 0])
    trusted = torch.tensor([0.5, 2.0])
    assert weighted([one, flat, one], trusted, (1, 0, None))[1].tolist() == [1.5, 2, 0, 2]
    assert weighted([one], trusted, (1,))[0][2].tolist() == [[0.5, 0], [0, 2]]
    assert trust([one], [other], (None,), 2).tolist() == [1, 1]


# ---------------------------------------------------------------------- saves, networks, learning


def saving(rounds: int) -> Agreement:
    """A run with a save after every third step."""
    result = simulate(
        dropping(),
        data=LABELS_AT_SERVER,
        topology="vertical",
        optimizer="adam",
        lr=0.05,
        batch_size=BATCH,
        held_out=0.0,
        rounds=0,
        cached_steps=CACHED,
    )
    plan = result.agreement.plan
    training = replace(plan.terms.training, rounds=rounds)
    return replace(
        result.agreement,
        plan=replace(plan, terms=replace(plan.terms, training=training, saves=SaveTerms(every_steps=3))),
    )


def test_killed_and_taken_up_a_run_with_cached_steps_ends_with_the_bits_of_the_undisturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_saver, "data", lambda: LABELS_AT_SERVER)
    whole = test_saver.Crew(saving(2), tmp_path / "whole").run()
    steps = sum(isinstance(fact, Progressed) for fact in whole.facts)
    crew = test_saver.Crew(saving(2), tmp_path / "killed").killed(test_saver.nth(Progressed, steps // 2))
    crew.run()
    assert {fact.save for fact in crew.facts if isinstance(fact, Resumed)} != {NEVER}
    test_saver.assert_ended_alike(crew, whole)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_cached_steps_over_a_network_give_the_bits_of_the_simulation(tmp_path: Path) -> None:
    job = JOBS["vertical, a party with labels only"]
    training = replace(job.terms.training, cached_steps=2)
    with Crew(tmp_path, PARTIES) as crew:
        pinned = crew.pinned(replace(job, terms=replace(job.terms, training=training)))
        assert_network_equals_simulation(crew, pinned)


def losses(**terms: Any) -> Iterator[float]:
    """Of each round's mini-batches: two parties have each four of the eight numbers that a class depends on."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(256, 8, generator=random, dtype=torch.float64)
    y = (torch.tanh(x @ torch.randn(8, 6, generator=random, dtype=torch.float64))).matmul(
        torch.randn(6, CLASSES, generator=random, dtype=torch.float64)
    )
    model = parts(bottom_a=tanh(4, 16), bottom_b=tanh(4, 16), top=linear(32, CLASSES))
    data = {"a": TensorDataset(x[:, :4]), "b": TensorDataset(x[:, 4:]), "server": TensorDataset(y.argmax(1))}
    result = simulate(
        model,
        data=data,
        topology="vertical",
        optimizer={"name": "SGD", "lr": 0.1},
        batch_size=32,
        held_out=0.0,
        **terms,
    )
    return (entry["loss"] for entry in result.history)


def test_with_four_cached_steps_the_same_loss_takes_less_than_half_the_exchanges() -> None:
    exact = list(losses(rounds=16))
    rounds = next(at for at, loss in enumerate(losses(rounds=8, cached_steps=4), 1) if loss <= exact[-1])
    assert rounds <= len(exact) // 2


# ---------------------------------------------------------------------- refused


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"cached_steps": -1}, "training.cached_steps = -1: at least 0"),
    "in parts": ({"cached_steps": 2, "micro_batches": 2}, "keeps mini-batches whole"),
    "in parts to be found": ({"cached_steps": 2, "micro_batches": "auto"}, "keeps mini-batches whole"),
    "with staleness": ({"cached_steps": 2, "staleness": 1}, "leave one of them at 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_cached_steps_are_refused_where_they_mean_nothing(name: str) -> None:
    terms, sentence = REFUSED[name]
    with pytest.raises(PlanError, match=sentence):
        CASES["vertical, Adam"].run(deliveries=0, **terms)


def test_cached_steps_are_refused_where_rows_are_not_common_or_losses_are_several() -> None:
    rows = {"a": TensorDataset(XA, Y)}
    with pytest.raises(PlanError, match="is for joint, where several parties have columns of the same rows"):
        simulate(nn.Sequential(linear(3, 4)(), linear(4, 3)()).double(), cut="0", data=rows, cached_steps=2)
    model = two_towers(top_server=linear(8, CLASSES), top_s2=linear(8, CLASSES))
    with pytest.raises(PlanError, match="goes back from one loss, but multi_task has 2 here"):
        simulate(model, data=tasks(Y), topology="multi_task", roles={"s2": "server"}, cached_steps=2)
