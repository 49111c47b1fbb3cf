"""Nothing that a peer sends as a state is believed: the first thing that does not fit is named."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cutlayer.errors import RunError
from cutlayer.model.replica import Replica
from cutlayer.model.state import ReplicaState, check_fits, share
from cutlayer.plan.terms import Method
from model.learner import TRAINING, Layers, by_bytes, made, train


def changed(state: ReplicaState, **tensors: Tensor | None) -> ReplicaState:
    """With other tensors, or without some."""
    found = state.tensors | {key.replace("__", "."): tensor for key, tensor in tensors.items() if tensor is not None}
    gone = {key.replace("__", ".") for key, tensor in tensors.items() if tensor is None}
    return ReplicaState(tensors={k: t for k, t in found.items() if k not in gone}, counts=state.counts)


def weight(*values: float, rows: int = 3) -> Tensor:
    return torch.tensor(values or [0.0], dtype=torch.float64).repeat(rows, 3)[:, :3]


ADAM_WEIGHT = "optimizer__late__weight__"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model__late__weight": None}, "it lacks 'late.weight'"),
        ({"model__more": weight()}, "'model.more' is not asked for here"),
        ({"weights__late__weight": weight()}, "'weights.late.weight' is not asked for here"),
        ({"late": weight()}, "'late' is not asked for here"),
        ({"model__late__weight": weight(rows=2)}, r"is float64\[2, 3\], and here it is float64\[3, 3\]"),
        ({"model__late__weight": weight().float()}, r"is float32\[3, 3\], and here it is float64\[3, 3\]"),
        ({"model__late__weight": weight(float("nan"))}, "'model.late.weight' has values that are not finite"),
        ({"model__norm__running_var": torch.full((3,), torch.inf).double()}, "values that are not finite"),
        ({"model__turns": torch.tensor(1.0)}, r"is float32\[\], and here it is int64\[\]"),
        ({"anchor__norm__running_var": torch.ones(3).double()}, "'anchor.norm.running_var' is not asked for here"),
        ({"anchor__late__weight": weight(rows=1)}, r"'anchor.late.weight' is float64\[1, 3\]"),
        ({"anchor__late__weight": weight(float("inf"))}, "'anchor.late.weight' has values that are not finite"),
        ({"optimizer__norm__running_var__step": torch.tensor(1.0)}, "is not asked for here"),
        ({"optimizer__step": torch.tensor(1.0)}, "is not asked for here"),
        ({ADAM_WEIGHT + "exp_avg": weight(rows=2)}, "which the optimizer here does not keep for float64"),
        ({ADAM_WEIGHT + "exp_avg": torch.tensor(1.0).double()}, "which the optimizer here does not keep"),
        ({ADAM_WEIGHT + "exp_avg": weight().half()}, "which the optimizer here does not keep"),
        ({ADAM_WEIGHT + "exp_avg": weight(float("nan"))}, "has values that are not finite"),
        ({ADAM_WEIGHT + "step": weight()}, "which the optimizer here does not keep"),
        ({ADAM_WEIGHT + "max_exp_avg_sq": weight()}, "is nothing that the optimizer here keeps"),
        ({ADAM_WEIGHT + "exp_avg": None}, "it lacks 'optimizer.late.weight.exp_avg'"),
    ],
)
def test_the_first_thing_that_does_not_fit_is_named_and_refused(tensors: dict[str, Tensor | None], words: str) -> None:
    replica = made()
    train(replica, range(4))
    state = replica.state()
    replica.check(state)
    with pytest.raises(RunError, match=words):
        replica.check(changed(state, **tensors))


@pytest.mark.parametrize(
    "counts", [{}, {"round": 1}, {"round": 1, "moves": -1}, {"round": 1, "moves": 1, "more": 1}, {"moves": 10**12}]
)
def test_counts_that_no_replica_of_this_run_has_are_refused(counts: dict[str, int]) -> None:
    replica = made()
    with pytest.raises(RunError, match="it counts"):
        replica.check(ReplicaState(tensors=replica.state().tensors, counts=counts))


def test_a_place_behind_the_runs_end_is_refused() -> None:
    replica = made()
    state = ReplicaState(tensors=replica.state().tensors, counts={"round": 1, "moves": 41})
    replica.check(state, moves_at_most=41)
    with pytest.raises(RunError, match="counts 41 for 'moves'"):
        replica.check(state, moves_at_most=40)


def test_a_share_must_have_the_agreed_names_and_nothing_else() -> None:
    replica = made()
    train(replica, range(4))
    names = ["late.weight", "norm.bias"]
    sound = share(replica.state(), names, with_optimizer=True)
    replica.check(sound, names=names, with_position=False)
    with pytest.raises(RunError, match=r"it lacks 'first.bias'"):
        replica.check(sound, names=[*names, "first.bias"], with_position=False)
    with pytest.raises(RunError, match=r"'model.norm.bias' is not asked for here"):
        replica.check(sound, names=names[:1], with_position=False)
    with pytest.raises(RunError, match="it counts"):
        replica.check(replace(sound, counts={"round": 1, "moves": 1}), names=names, with_position=False)
    anchored = changed(sound, anchor__late__weight=weight())
    with pytest.raises(RunError, match=r"'anchor.late.weight' is not asked for here"):
        replica.check(anchored, names=names, with_position=False)


def test_whoever_has_the_module_alone_checks_all_but_what_the_optimizer_keeps() -> None:
    replica = made(Method(name="Adafactor"))
    train(replica, range(4))
    state = replica.state()
    check_fits(state, replica.module)
    with pytest.raises(RunError, match="does not keep"):
        check_fits(changed(state, optimizer__late__weight__row_var=torch.ones(2, 1).double()), replica.module)
    with pytest.raises(RunError, match="does not keep"):
        check_fits(changed(state, optimizer__late__weight__more=weight().half()), replica.module)
    with pytest.raises(RunError, match="does not keep"):
        check_fits(changed(state, optimizer__late__weight__more=torch.ones(1, 1, 1)), replica.module)


def test_a_mask_of_infinities_may_come_back_as_it_is_here_and_no_other() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1), persistent=False)
    replica = Replica(module, TRAINING)
    state = by_bytes(replica.state())
    replica.check(state)
    with pytest.raises(RunError, match="not finite"):
        replica.check(changed(state, model__mask=torch.full((2, 2), -torch.inf)))


def test_a_frozen_replica_takes_nothing_for_an_optimizer() -> None:
    replica = Replica(Layers().requires_grad_(False), TRAINING)
    with pytest.raises(RunError, match="is not asked for here"):
        replica.check(changed(replica.state(), optimizer__late__weight__step=torch.tensor(1.0)))


def test_what_the_schedule_makes_an_optimizer_keep_is_known() -> None:
    """SGD has no momentum of its own here; OneCycleLR gives it some."""
    cycle = Method(name="OneCycleLR", options={"max_lr": 0.1, "total_steps": 9, "every": "step"})
    replica = made(Method(name="SGD", options={"lr": 0.1}), lr_schedule=cycle)
    train(replica, range(4))
    assert "optimizer.late.weight.momentum_buffer" in replica.state().tensors
    made(Method(name="SGD", options={"lr": 0.1}), lr_schedule=cycle).check(by_bytes(replica.state()))
