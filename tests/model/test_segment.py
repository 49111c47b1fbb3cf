"""A segment: forward and backward by ticket, a random stream per ticket, and inputs that nobody writes to."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.model.segment import ModelSegment
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.terms import Method, Training
from cutlayer.protocol.messages import Purpose, Ticket

TRAINING = Training(
    loss=Method(name="cross_entropy"), optimizer=Method(name="SGD", options={"lr": 0.1}), batch_size=4, rounds=1
)
SECRET = b"s" * 32


def ticket(micro: int = 0, *, step: int = 0, turn: int = 0, purpose: Purpose = "train") -> Ticket:
    return Ticket(turn, "a", step, micro, purpose)


def between(module: nn.Module, returns: tuple[bool, ...] = (True,), secret: bytes = SECRET) -> ModelSegment:
    """A segment with one edge in, `in`."""
    replica = Replica(copy.deepcopy(module), TRAINING)
    return ModelSegment("bottom", replica, secret=secret, returns={"in": returns})


def at_the_end(module: nn.Module) -> ModelSegment:
    return ModelSegment(
        "top",
        Replica(copy.deepcopy(module), TRAINING),
        secret=SECRET,
        returns={"in": (True,), "y": (False,)},
        loss=Loss(TRAINING.loss),
        target_edge="y",
    )


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3)).double()


def rows(seed: int, count: int = 6, width: int = 4) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


# ---------------------------------------------------------------------- tickets


def test_tickets_in_flight_keep_their_graphs_apart_and_backward_frees_them() -> None:
    segment, plain = between(mlp()), mlp()
    outputs = [segment.forward(ticket(i), {"in": (rows(i),)}).outputs[0] for i in range(3)]
    assert all(output.requires_grad for output in outputs)
    wanted: dict[int, Tensor | None] = {}
    for i in (2, 0, 1):
        (grad,) = segment.backward(ticket(i), {"out": (rows(10 + i, 6, 3),)})["in"]
        torch.manual_seed(stream_seed(SECRET, "forward", "bottom", 0, 0, i))
        leaf = rows(i).requires_grad_()
        plain(leaf).backward(rows(10 + i, 6, 3))
        wanted[i] = leaf.grad
        assert wanted[i] is not None
        torch.testing.assert_close(grad, wanted[i], rtol=0, atol=0)
    torch.testing.assert_close(gradients(segment.replica.module), gradients(plain), rtol=0, atol=0)
    assert not segment._graphs


def test_a_step_frees_tickets_that_no_gradient_came_back_for() -> None:
    segment = between(mlp().requires_grad_(False), (False,))
    segment.forward(ticket(), {"in": (rows(0),)})
    segment.step(1.0, 0)
    assert not segment._graphs


def test_a_segment_is_busy_until_the_step_that_its_gradients_wait_for() -> None:
    segment = between(mlp())
    assert not segment.busy
    segment.forward(ticket(purpose="eval"), {"in": (rows(0),)})
    assert not segment.busy
    segment.forward(ticket(), {"in": (rows(0),)})
    assert segment.busy
    segment.backward(ticket(), {"out": (rows(1, 6, 3),)})
    assert segment.busy
    segment.step(1.0, 0)
    assert not segment.busy


def test_a_steps_scale_reaches_the_optimizer() -> None:
    one, other = between(mlp()), between(mlp())
    for segment, (normaliser, scale) in ((one, (1.0, 0.5)), (other, (2.0, 1.0))):
        segment.forward(ticket(), {"in": (rows(0),)})
        segment.backward(ticket(), {"out": (rows(1, 6, 3),)})
        segment.step(normaliser, 0, scale)
    torch.testing.assert_close(one.replica.module.state_dict(), other.replica.module.state_dict(), rtol=0, atol=1e-15)


def test_owners_that_take_turns_at_one_replica_learn_as_with_a_replica_each() -> None:
    """Momentum, dropout, batch statistics; each owner's state is loaded before its step and kept after it."""
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    terms = replace(TRAINING, optimizer=Method(name="SGD", options={"lr": 0.1, "momentum": 0.9}))
    secrets = {"a": b"a" * 32, "b": b"b" * 32}

    def served(replica: Replica, owner: str) -> ModelSegment:
        return ModelSegment("bottom", replica, secret=secrets[owner], returns={"in": (True,)})

    apart = {owner: served(Replica(copy.deepcopy(module), terms), owner) for owner in secrets}
    shared = Replica(copy.deepcopy(module), terms)
    kept = {owner: shared.state().copied() for owner in secrets}
    for step in range(3):
        for i, owner in enumerate(secrets):
            shared.load(kept[owner])
            for segment in (apart[owner], served(shared, owner)):
                segment.forward(ticket(step=step), {"in": (rows(10 * i + step),)})
                segment.backward(ticket(step=step), {"out": (rows(i, 6, 3),)})
                segment.step(6.0, 0)
            kept[owner] = shared.state().copied()
            wanted = apart[owner].replica.state().tensors
            torch.testing.assert_close(kept[owner].tensors, wanted, rtol=0, atol=0)


def test_nothing_of_the_senders_graph_is_behind_an_input() -> None:
    leaf = rows(0).requires_grad_()
    segment = between(nn.Linear(4, 2).double())
    segment.forward(ticket(), {"in": (leaf * 2,)})
    segment.backward(ticket(), {"out": (rows(1, 6, 2),)})
    assert leaf.grad is None


def test_gradients_of_several_edges_out_are_summed() -> None:
    one, two = between(mlp()), between(mlp())
    for segment in (one, two):
        segment.forward(ticket(), {"in": (rows(0),)})
    a, b = rows(1, 6, 3), rows(2, 6, 3)
    (split,) = one.backward(ticket(), {"out": (a,), "side": (b,)})["in"]
    (joined,) = two.backward(ticket(), {"out": (a + b,)})["in"]
    assert torch.equal(split, joined)


def test_gradients_come_back_only_for_tensors_that_have_one() -> None:
    class Pick(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x: Tensor, index: Tensor, unused: Tensor) -> Tensor:
            return self.scale * x.gather(1, index)

    segment = between(Pick(), (True, False, True))
    index = torch.zeros(6, 1, dtype=torch.int64)
    segment.forward(ticket(), {"in": (rows(0), index, rows(1))})
    grads = segment.backward(ticket(), {"out": (torch.ones(6, 1, dtype=torch.float64),)})["in"]
    assert [tuple(grad.shape) for grad in grads] == [(6, 4), (6, 4)]
    assert bool((grads[0][:, 0] == 1).all())
    assert not grads[1].any()


def test_a_tensor_that_passes_through_gets_the_gradients_of_both_ways() -> None:
    class Passing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), x

    segment = between(Passing())
    segment.forward(ticket(), {"in": (rows(0),)})
    through, by = rows(1, 6, 2), rows(2)
    (grad,) = segment.backward(ticket(), {"out": (through, by)})["in"]
    torch.testing.assert_close(grad, through @ segment.replica.module.fc.weight + by, rtol=0, atol=1e-15)  # type: ignore[union-attr, operator]


# ---------------------------------------------------------------------- a loss


def test_a_loss_gives_sums_and_starts_the_way_back_with_the_gradient_of_the_sum() -> None:
    module = nn.Linear(4, 3).double()
    segment = at_the_end(module)
    labels = torch.tensor([0, 1, 2, 0, 1, 1])
    outcome = segment.forward(ticket(), {"in": (rows(0),), "y": (labels,)})
    leaf = rows(0).requires_grad_()
    total = nn.functional.cross_entropy(module(leaf), labels, reduction="sum")
    torch.autograd.backward(total)
    assert outcome.sums == {"loss": total.item(), "normaliser": 6.0}
    grads = segment.backward(ticket(), {})
    assert list(grads) == ["in"]
    assert leaf.grad is not None
    torch.testing.assert_close(grads["in"][0], leaf.grad, rtol=0, atol=0)


def test_answers_are_scored_in_evaluation_only() -> None:
    segment = at_the_end(nn.Linear(4, 3).double())
    inputs = {"in": (rows(0),), "y": (torch.zeros(6, dtype=torch.int64),)}
    trained, evaluated = (segment.forward(ticket(purpose=p), inputs).sums for p in ("train", "eval"))
    assert trained is not None
    assert evaluated is not None
    assert set(trained) == {"loss", "normaliser"}
    assert set(evaluated) == {"loss", "normaliser", "correct", "count"}


def test_the_labels_place_among_the_inputs_does_not_matter() -> None:
    segment = at_the_end(nn.Linear(4, 3).double())
    labels = torch.zeros(6, dtype=torch.int64)
    first = segment.forward(ticket(0, purpose="eval"), {"y": (labels,), "in": (rows(0),)})
    last = segment.forward(ticket(0, purpose="eval"), {"in": (rows(0),), "y": (labels,)})
    assert first.sums == last.sums


# ---------------------------------------------------------------------- modes and random streams


def test_a_ticket_run_again_alone_gives_the_same_bits_and_any_other_ticket_others() -> None:
    segment = between(mlp())
    where = [ticket(), ticket(1), ticket(step=1), ticket(turn=1)]
    first = [segment.forward(t, {"in": (rows(0),)}).outputs[0] for t in where]
    torch.manual_seed(99)
    torch.rand(7)
    again = [between(mlp()).forward(t, {"in": (rows(0),)}).outputs[0] for t in reversed(where)][::-1]
    assert all(map(torch.equal, first, again))
    assert len({tuple(output.flatten().tolist()) for output in first}) == len(where)


def test_another_secret_gives_another_stream() -> None:
    one, other = (between(mlp(), secret=secret).forward(ticket(), {"in": (rows(0),)}) for secret in (SECRET, b"t" * 32))
    assert not torch.equal(one.outputs[0], other.outputs[0])


def test_the_stream_is_the_one_that_the_documents_state() -> None:
    plain = mlp()
    out = between(plain).forward(ticket(2, step=3, turn=5), {"in": (rows(0),)}).outputs[0]
    torch.manual_seed(stream_seed(SECRET, "forward", "bottom", 5, 3, 2))
    assert torch.equal(out, plain(rows(0)))


def test_every_layer_trains_in_training_mode_whatever_mode_it_was_given_in() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    module[1].eval()
    segment = between(module)
    segment.forward(ticket(), {"in": (rows(0),)})
    assert segment.replica.module.state_dict()["1.num_batches_tracked"] == 1


def test_evaluation_keeps_no_graph_and_moves_no_statistics() -> None:
    segment = between(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).double())
    segment.forward(ticket(), {"in": (rows(0),)})
    state = copy.deepcopy(segment.replica.module.state_dict())
    outcome = segment.forward(ticket(purpose="eval"), {"in": (rows(1),)})
    assert list(segment._graphs) == [ticket()]
    assert not outcome.outputs[0].requires_grad
    torch.testing.assert_close(segment.replica.module.state_dict(), state, rtol=0, atol=0)
    wanted = copy.deepcopy(segment.replica.module).eval()(rows(1))
    torch.testing.assert_close(outcome.outputs[0], wanted.detach(), rtol=0, atol=0)
    segment.forward(ticket(1), {"in": (rows(2),)})
    assert segment.replica.module.state_dict()["1.num_batches_tracked"] == 2


# ---------------------------------------------------------------------- inputs belong to somebody else


@pytest.mark.parametrize("purpose", ["train", "eval"])
@pytest.mark.parametrize("returns", [True, False])
def test_a_first_layer_that_writes_in_place_gets_a_clone_each_time(returns: bool, purpose: Purpose) -> None:
    segment = between(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).double(), (returns,))
    for micro in range(3):
        given, kept = rows(micro), rows(micro)
        segment.forward(ticket(micro, purpose=purpose), {"in": (given,)})
        assert torch.equal(given, kept)


def test_a_view_of_the_input_that_is_written_to_is_noticed() -> None:
    segment = between(nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(4, 2)).double(), (False,))
    given = rows(0)
    for micro in range(2):
        segment.forward(ticket(micro), {"in": (given,)})
    assert torch.equal(given, rows(0))


def test_layers_that_write_in_place_in_training_only_are_told_apart() -> None:
    """Dropout in place writes when training; in evaluation its input is its output."""
    segment = between(nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(4, 2)).double(), (False,))
    given = rows(0)
    for purpose in ("eval", "train", "eval", "train"):
        segment.forward(ticket(purpose=purpose), {"in": (given,)})
    assert torch.equal(given, rows(0))


def test_an_input_that_nobody_writes_to_is_not_copied() -> None:
    seen: list[int] = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.data_ptr())
            return self.fc(x)  # type: ignore[no-any-return]

    segment, given = between(Looks(), (False,)), rows(0)
    for micro in range(3):
        segment.forward(ticket(micro), {"in": (given,)})
    assert seen[0] != given.data_ptr()
    assert seen[1:] == [given.data_ptr()] * 2
    another = ModelSegment("bottom", segment.replica, secret=SECRET, returns={"in": (False,)})
    another.forward(ticket(), {"in": (given,)})
    assert seen[3] == given.data_ptr()  # what was learnt about the module serves its next owner too
