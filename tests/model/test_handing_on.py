"""A replica's state is all that it is: whoever loads it goes on bit for bit, whoever merges it takes what it has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import optim

from cutlayer.errors import RunError
from cutlayer.model.replica import Replica, optimizer_names
from cutlayer.model.state import ReplicaState, averaged_names, share, without_personal
from cutlayer.plan.terms import Method
from model.learner import TRAINING, WARM_UP, Layers, assert_same, by_bytes, by_memory, made, train

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("ASGD", {"lr": 0.01, "t0": 2.0}),
    ("Adadelta", {}),
    ("Adafactor", {}),
    ("Adagrad", {"initial_accumulator_value": 0.2, "lr_decay": 0.1}),
    ("Adam", {}),
    ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True}),
    ("Adamax", {}),
    ("Muon", {}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("RMSprop", {"centered": True, "momentum": 0.5}),
    ("RMSprop", {}),
    ("Rprop", {}),
    ("SGD", {"lr": 0.01}),
    ("SGD", {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
]
METHODS = [Method(name=name, options=options) for name, options in OPTIMIZERS if name in optimizer_names()]


def test_every_optimizer_that_a_plan_may_name_is_tried_here() -> None:
    assert set(optimizer_names()) <= {name for name, _ in OPTIMIZERS}


@pytest.mark.parametrize("way", [by_memory, by_bytes])
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_replica_that_loaded_a_state_goes_on_bit_for_bit(
    method: Method, steps: int, way: Callable[[ReplicaState], ReplicaState]
) -> None:
    """Whether it is fresh or has learnt something else before."""
    options = {"proximal": 0.1, "lr_schedule": WARM_UP}
    first, fresh, used = (made(method, **options) for _ in range(3))
    train(first, range(steps))
    train(used, range(20, 29))
    state = way(first.state())
    for replica in (fresh, used):
        replica.check(state)
        replica.load(state)
        assert_same(replica.state(), first.state())
    for replica in (first, fresh, used):
        train(replica, range(steps, steps + 5))
    assert first.moves == steps + 5
    for replica in (fresh, used):
        assert_same(replica.state(), first.state())


@pytest.mark.parametrize("way", [by_memory, by_bytes])
def test_a_loaded_replica_shares_no_memory_with_the_state(way: Callable[[ReplicaState], ReplicaState]) -> None:
    first, second = made(proximal=0.1), made(proximal=0.1)
    train(first, range(4))
    state = way(first.state())
    kept = state.copied()
    second.load(state)
    train(second, range(4, 8))
    assert_same(state, kept)
    second.load(state)
    for tensor in state.tensors.values():
        tensor.fill_(1)
    assert_same(second.state(), kept)


def test_a_state_is_the_live_tensors_and_a_copy_is_not() -> None:
    replica = made()
    train(replica, range(1))
    live, kept = replica.state().tensors["model.first.weight"], replica.state().copied().tensors["model.first.weight"]
    before = kept.clone()
    train(replica, range(1, 2))
    assert torch.equal(live, replica.module.state_dict()["first.weight"])
    assert torch.equal(kept, before)
    assert not torch.equal(live, kept)


def test_a_loaded_module_keeps_its_own_tensors_so_that_its_optimizer_goes_on_with_them() -> None:
    first, second = made(), made()
    train(first, range(4))
    own = [parameter.data_ptr() for parameter in second.parameters]
    second.load(first.state())
    assert [parameter.data_ptr() for parameter in second.parameters] == own


def test_a_state_names_parameters_all_buffers_and_what_the_optimizer_keeps() -> None:
    replica = made()
    train(replica, range(4))
    tensors = replica.state().tensors
    held = dict(replica.module.named_parameters()) | dict(replica.module.named_buffers())
    assert {key for key in tensors if key.startswith("model.")} == {f"model.{name}" for name in held}
    kept = {f"optimizer.{n}.{e}" for n in dict(replica.module.named_parameters()) for e in ADAM_KEEPS}
    assert {key for key in tensors if key.startswith("optimizer.")} == kept
    assert replica.state().counts == {"round": 1, "moves": 1}


ADAM_KEEPS = ("step", "exp_avg", "exp_avg_sq")


def test_a_frozen_replica_hands_on_its_buffers() -> None:
    frozen = [Replica(Layers().requires_grad_(False), TRAINING) for _ in range(2)]
    frozen[0].module(torch.randn(5, 4))
    frozen[0].step(1.0, 3)
    state = by_bytes(frozen[0].state())
    frozen[1].check(state)
    frozen[1].load(state)
    assert_same(frozen[1].state(), frozen[0].state())
    assert frozen[1].module.state_dict()["turns"] == 1


def test_sgd_before_its_first_step_has_no_momentum_to_load() -> None:
    method = Method(name="SGD", options={"lr": 0.01, "momentum": 0.9})
    fresh, used = made(method), made(method)
    state = fresh.state().copied()
    train(used, range(3))
    used.load(state)
    assert used.optimizer is not None
    assert not used.optimizer.state
    for replica in (fresh, used):
        train(replica, range(3))
    assert_same(used.state(), fresh.state())


class Numbers(optim.SGD):
    """An optimizer that keeps plain numbers, as some of torch's did, and something it does not know yet."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                kept = self.state[parameter]
                kept["count"], kept["pace"] = kept.get("count", 0) + 1, kept.get("pace", 1.0) * 0.7
                kept["odd"], kept["nothing"] = kept["count"] % 2 == 1, None
                parameter.data.add_(parameter.grad, alpha=-0.01 * kept["pace"] * (2 if kept["odd"] else 1))


@pytest.mark.parametrize("way", [by_memory, by_bytes])
def test_plain_numbers_that_an_optimizer_keeps_stay_plain_numbers(
    way: Callable[[ReplicaState], ReplicaState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "Numbers", Numbers, raising=False)
    method = Method(name="Numbers", options={"lr": 1.0})
    first, second, used = made(method), made(method), made(method)
    train(first, range(3))
    train(used, range(20, 25))
    for replica in (second, used):
        state = way(first.state())
        replica.check(state)
        replica.load(state)
        assert replica.optimizer is not None
        kept = replica.optimizer.state[replica.parameters[0]]
        assert [type(kept[entry]) for entry in ("count", "pace", "odd")] == [int, float, bool]
    for replica in (first, second, used):
        train(replica, range(3, 6))
    assert_same(second.state(), first.state())
    assert_same(used.state(), first.state())
    shared = share(first.state(), ["late.weight"], with_optimizer=True)
    assert set(shared.tensors) == {"model.late.weight", "optimizer.late.weight.pace"}  # a count has no mean


def test_a_state_that_is_not_whole_is_not_loaded_at_all() -> None:
    replica, other = made(), made()
    train(other, range(4))
    before, whole = replica.state().copied(), other.state()
    halves = [
        ReplicaState(tensors={k: t for k, t in whole.tensors.items() if k != "model.seen"}, counts=whole.counts),
        ReplicaState(tensors=whole.tensors, counts={"round": 1}),
        ReplicaState(tensors=whole.tensors | {"model.late.weight": torch.zeros(3).double()}, counts=whole.counts),
        ReplicaState(tensors=whole.tensors | {"model.more": torch.zeros(3)}, counts=whole.counts),
        ReplicaState(tensors=whole.tensors | {"optimizer.more.step": torch.zeros(())}, counts=whole.counts),
    ]
    for half in halves:
        with pytest.raises(RunError):
            replica.load(half)
        assert_same(replica.state(), before)


@pytest.mark.parametrize("method", [m for m in METHODS if m.name in ("Adagrad", "Adam", "SGD", "ASGD")], ids=str)
def test_a_reset_optimizer_steps_as_a_new_one_from_the_same_place_in_the_schedule(method: Method) -> None:
    replica, cleared, fresh = (made(method, lr_schedule=WARM_UP) for _ in range(3))
    started = fresh.state().copied().tensors
    train(replica, range(4))
    train(cleared, range(20, 25))
    replica.reset_optimizer()
    assert replica.moves == 4
    model = {key: tensor for key, tensor in replica.state().tensors.items() if key.startswith("model.")}
    bare = ReplicaState(tensors=model, counts=replica.state().counts)
    fresh.merge(bare)
    cleared.load(bare)  # a state in which no optimizer has kept anything
    wanted = started | model
    for one in (replica, cleared, fresh):
        assert_same(one.state(), ReplicaState(tensors={k: wanted[k] for k in one.state().tensors}, counts=bare.counts))
        assert one.state().tensors.keys() == wanted.keys()
    for one in (replica, cleared, fresh):
        train(one, range(4, 8))
        assert_same(one.state(), replica.state())


def test_merging_takes_what_the_state_has_and_leaves_the_rest() -> None:
    """Personal parameters, counters, the own optimizer, the place in the schedule."""
    replica, other = made(lr_schedule=WARM_UP), made(lr_schedule=WARM_UP)
    train(replica, range(3))
    train(other, range(10, 17))
    before = replica.state().copied()
    names = averaged_names(replica.module, {"late.weight", "norm.running_mean"})
    averaged = share(other.state(), names, with_optimizer=False)
    replica.check(averaged, names=names, with_position=False)
    replica.merge(averaged)
    after = replica.state()
    moved = {key for key in before.tensors if not torch.equal(before.tensors[key], after.tensors[key])}
    assert moved == {f"model.{name}" for name in names}
    assert_same(ReplicaState(tensors={k: after.tensors[k] for k in averaged.tensors}, counts={}), averaged)
    assert after.counts == before.counts


@pytest.mark.parametrize("method", [m for m in METHODS if m.name != "Muon"], ids=str)
def test_merging_a_share_with_its_optimizer_goes_on_as_the_sender_does(method: Method) -> None:
    replica, other = made(method), made(method)
    train(other, range(5))
    names = averaged_names(other.module)
    averaged = by_bytes(share(other.state(), names, with_optimizer=True))
    replica.check(averaged, names=names, with_position=False)
    replica.merge(averaged)
    assert (replica.round, replica.moves) == (0, 0)
    shared = {key: replica.state().tensors[key] for key in averaged.tensors}
    assert_same(ReplicaState(tensors=shared, counts={}), averaged)
    assert replica.state().tensors.keys() == other.state().tensors.keys()


def test_what_is_handed_on_without_what_is_personal_leaves_the_receivers_own() -> None:
    personal = frozenset({"late.weight"})
    torch.manual_seed(0)
    giver, taker = (Replica(Layers().double(), TRAINING, personal=personal) for _ in range(2))
    train(giver, range(5))
    train(taker, range(10, 13))
    kept = {key: tensor.clone() for key, tensor in taker.state().tensors.items() if "late.weight" in key}
    state = without_personal(giver.state(), giver.personal)
    assert not [key for key in state.tensors if "late.weight" in key]
    assert len(giver.state().tensors) == len(state.tensors) + 4
    held = dict(taker.module.named_parameters()) | dict(taker.module.named_buffers())
    taker.check(state, names=held.keys() - personal)
    taker.merge(state)
    wanted = state.tensors | kept
    torch.testing.assert_close(taker.state().tensors, {k: wanted[k] for k in taker.state().tensors}, rtol=0, atol=0)
    assert taker.state().counts == giver.state().counts
