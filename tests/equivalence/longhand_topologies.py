"""What runs of topologies are compared with: a model of parts, trained by plain loops on the same mini-batches."""

import copy
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from cutlayer import Parts, Result, simulate
from cutlayer.plan.streams import stream_seed
from cutlayer.simulation import simulate_plan
from equivalence.longhand import EXACT

ROWS, BATCH, ROUNDS = 23, 5, 5
STEPS = 5
"""In a round; the last has three rows."""
CLASSES = 3
LR = 0.01
NAMES = ("a", "b", "c", "d", "e", "f", "g", "h")
SECRETS = {
    name: bytes([number]) * 32 for number, name in enumerate((*NAMES, "server", "mid", "h1", "h2", "h3", "h4", "s2"))
}
TERMS: dict[str, Any] = {
    "optimizer": {"name": "Adam", "lr": LR},
    "batch_size": BATCH,
    "rounds": ROUNDS,
    "held_out": 0.0,
    "shuffle": False,
    "secrets": SECRETS,
}

Data = Mapping[str, Dataset[Any]]
Loss = Callable[[Any, Tensor], Tensor]
"""Of a model, on the rows of a mini-batch, given by their places."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape) + 31 * seed))


def classes(rows: int = ROWS, seed: int = 0) -> Tensor:
    return torch.randint(0, CLASSES, (rows,), generator=torch.Generator().manual_seed(7 + seed))


def table(*tensors: Tensor) -> TensorDataset:
    return TensorDataset(*tensors)


def parts(**named: Callable[[], nn.Module]) -> Parts:
    """Parts in float64, each with weights of its own."""
    torch.manual_seed(3)
    return Parts(**{name: build() for name, build in named.items()}).double()


def tanh(before: int, after: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(before, after), nn.Tanh())


def linear(before: int, after: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(before, after)


# ---------------------------------------------------------------------- models and rows of several tests


XA, XB, XC = normal(ROWS, 3), normal(ROWS, 4), normal(ROWS, 2)
Y, Y2, NUMBERS = classes(), classes(seed=1), normal(ROWS, 2, seed=9)
MICROS = pytest.mark.parametrize("micro", [1, 3])


def two_towers(**more: Callable[[], nn.Module]) -> Parts:
    return parts(bottom_a=tanh(3, 4), bottom_b=tanh(4, 4), **more)


def joined(model: Any, b: Tensor) -> Tensor:
    return torch.cat([model.bottom_a(XA[b]), model.bottom_b(XB[b])], 1)


def top_loss(model: Any, b: Tensor) -> Tensor:
    return F.cross_entropy(model.top(joined(model, b)), Y[b])


def chain() -> nn.Sequential:
    torch.manual_seed(5)
    wide = [layer for _ in range(5) for layer in (nn.Linear(6, 6), nn.Tanh())]
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), *wide, nn.Linear(6, CLASSES)).double()


def hops(count: int) -> dict[str, str]:
    return {f"h{number}": "hop" for number in range(1, count + 1)}


CLIENTS = {"a": (XA, Y), "b": (normal(12, 3, seed=4), classes(12))}


WEIGHED: dict[str, Any] = {"roles": {"s2": "server"}, "loss_weights": {"top_server": 0.3, "top_s2": 0.7}}


def tasks(second: Tensor) -> dict[str, Any]:
    return {"a": table(XA), "b": table(XB), "server": table(Y), "s2": table(second)}


# ---------------------------------------------------------------------- the run


def split(model: nn.Module, data: Data, topology: Any, *, deliveries: int | None = None, **terms: Any) -> Result:
    """A run; and again as often as `deliveries`, in other orders of delivery, which must change no bit.

    By default once where batches are parted.
    """
    settings = TERMS | terms
    if deliveries is None:
        deliveries = int(settings.get("micro_batches", 1) > 1)
    result = simulate(model, data=data, topology=topology, **settings)
    held_out = settings["held_out"] if isinstance(settings["held_out"], Mapping) else {}
    for seed in range(deliveries):
        order = random.Random(seed)  # noqa: S311 (an order, no secret)
        again = simulate_plan(result.agreement, data, held_out=held_out, secrets=SECRETS, delivery=order)
        assert_same_bits(again, result)
    return result


def assert_same_bits(one: Result, other: Result) -> None:
    assert one.parties.keys() == other.parties.keys()
    assert one.history == other.history
    for name in one.parties:
        assert_identical(one.weights_of(name), other.weights_of(name))


def assert_identical(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def assert_close(found: nn.Module, wanted: nn.Module, tolerance: float = EXACT) -> None:
    mine, theirs = found.state_dict(), wanted.state_dict()
    assert list(mine) == list(theirs)
    for name, value in theirs.items():
        off = (mine[name].double() - value.double()).abs().max().item()
        assert off <= tolerance, f"{name} is off by {off:.1e}"


# ---------------------------------------------------------------------- the loop


def batches(rounds: int = ROUNDS, rows: int = ROWS, size: int = BATCH) -> Iterator[Tensor]:
    """The places of each mini-batch's rows, first to last, round by round."""
    for _ in range(rounds):
        yield from torch.split(torch.arange(rows), size)


def trained(
    model: nn.Module, loss: Loss, rows: Iterator[Tensor] | None = None, optimizer: Any = optim.Adam, lr: float = LR
) -> Any:
    """A copy of the model, trained with one optimizer."""
    copied = copy.deepcopy(model).train()
    learner = optimizer(copied.parameters(), lr=lr)
    steps = 0
    for batch in rows or batches():
        learner.zero_grad()
        torch.autograd.backward(loss(copied, batch))
        learner.step()
        steps += 1
    assert steps >= 20
    return copied


def order_key(party: str, plan: str) -> bytes:
    """The key of the order of rows that a party makes of its secret for a plan, by its digest."""
    about = hashlib.sha256(b"order of rows" + plan.encode()).digest()
    return hashlib.blake2b(about, key=SECRETS[party], digest_size=32).digest()


def set_aside(rows: int, fraction: float, key: bytes) -> tuple[Tensor, Tensor]:
    """The places of rows to train on, and of those held out."""
    count = round(rows * fraction)
    order = permutation(rows, stream_seed(key, "held-out"))
    return order[count:].sort().values, order[:count].sort().values


def permutation(rows: int, seed: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


def shuffled(chosen: Tensor, key: bytes, rounds: int = ROUNDS) -> Iterator[Tensor]:
    """Mini-batches of the chosen rows, in the order of the key, anew each round."""
    for epoch in range(rounds):
        order = permutation(len(chosen), stream_seed(key, "order", epoch))
        yield from torch.split(chosen[order], BATCH)


def set_stream(party: str, segment: str, turn: int, step: int, micro: int = 0) -> None:
    """The random stream is where a party sets it before a forward."""
    torch.manual_seed(stream_seed(SECRETS[party], "forward", segment, turn, step, micro))


def mean_of(models: Sequence[nn.Module], weights: Sequence[int]) -> dict[str, Tensor]:
    """The weighted mean of the models' states."""
    states = [model.state_dict() for model in models]
    total = sum(weights)
    return {
        name: sum((state[name] * weight for state, weight in zip(states, weights, strict=True)), start=torch.zeros(()))
        / total
        for name in states[0]
    }
