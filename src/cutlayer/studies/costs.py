"""What the two parts of a model cost on this machine, measured with real rows on the path of real runs.

The parts run as a party runs them (`model.segment`, `model.replica`), one micro-batch after another, in this process.
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.model.segment import ModelSegment
from cutlayer.party.agreement import Agreement
from cutlayer.plan.tensors import TensorSpec
from cutlayer.protocol.messages import Ticket

FEWEST, MOST, WARM_UP = 3, 40, 2
"""Steps measured, and steps before that: the first ones allocate."""
ENOUGH_S = 0.25
"""After so long no more steps are measured than `FEWEST`."""
CUT, X, Y = "cut", "x", "y"
Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """Seconds, medians: of one micro-batch, and of a step."""

    forward_s: float
    server_s: float
    backward_s: float
    client_step_s: float
    server_step_s: float

    def total(self, micro_batches: int) -> float:
        """Of a whole step, if nothing overlaps."""
        part = self.forward_s + self.server_s + self.backward_s
        return micro_batches * part + self.client_step_s + self.server_step_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes that training a part takes: parameters, their gradients, the optimizer's state, and what forward keeps for
    backward of a mini-batch.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """Real rows: the model's inputs, each `[rows, ...]`, and the labels `[rows, ...]`."""

    x: Tensors
    y: Tensor

    def split(self, micro_batches: int) -> list["Batch"]:
        """As a run splits it: as evenly as can be."""
        xs = [tensor.tensor_split(micro_batches) for tensor in self.x]
        ys = self.y.tensor_split(micro_batches)
        return [Batch(x=tuple(part[i] for part in xs), y=ys[i]) for i in range(micro_batches)]


def crossing_of(agreement: Agreement) -> tuple[TensorSpec, ...]:
    """The tensors that cross the cut of a vanilla plan."""
    topology = agreement.plan.topology
    edge = next(edge for edge in topology.cuts() if topology.source_kind(edge) is None)
    return agreement.plan.contents.edges[edge.name]


class Pair:
    """The two parts of a cut model at work, under a vanilla plan; copies, so that the model given stays as it is."""

    def __init__(self, agreement: Agreement, batch: Batch) -> None:
        bottom, top = copy.deepcopy((agreement.parts["bottom"], agreement.parts["top"]))
        training, crossing = agreement.plan.terms.training, crossing_of(agreement)
        self._batch = batch
        self.client, self.server = (
            Replica(bottom, training),
            Replica(top, training, optimizer=training.server_optimizer),
        )
        differentiable = tuple(spec.differentiable for spec in crossing)
        loss = Loss(training.loss)
        self._bottom = ModelSegment("bottom", self.client, secret=b"", returns={X: (False,) * len(batch.x)})
        self._top = ModelSegment(
            "top", self.server, secret=b"", returns={CUT: differentiable}, loss=loss, target_edge=Y
        )
        self.sent: Tensors = ()
        """What crossed last, and what came back for it."""
        self.answered: Tensors = ()

    def times(self, micro_batches: int) -> Times:
        """Measured. Raises whatever the model raises."""
        parts = self._batch.split(micro_batches)
        with torch.random.fork_rng(devices=[]):
            seen = _measured(lambda: self._step(parts))
        names = ("forward_s", "server_s", "backward_s", "client_step_s", "server_step_s")
        return Times(**{name: statistics.median(each[name] for each in seen) for name in names})

    def memory(self) -> tuple[Memory, Memory]:
        """The client's and the server's, for the whole mini-batch at once."""
        with torch.random.fork_rng(devices=[]):
            with _Kept(self.client.module) as client:
                outcome = self._bottom.forward(_ticket(0), {X: self._batch.x}, len(self._batch.y))
            with _Kept(self.server.module) as server:
                inputs = {CUT: outcome.outputs, Y: (self._batch.y,)}
                self._top.forward(_ticket(0), inputs, len(self._batch.y))
            self._step([self._batch])
        return _memory(self.client, client.nbytes), _memory(self.server, server.nbytes)

    def _step(self, parts: Sequence[Batch]) -> dict[str, float]:
        """One step; seconds a micro-batch, and of the step."""
        clock = _Clock()
        count, rows = len(parts), sum(len(part.y) for part in parts)
        sent = []
        for micro, part in enumerate(parts):
            sent.append(self._bottom.forward(_ticket(micro), {X: part.x}, len(part.y)).outputs)
            clock.note("forward_s", count)
        answers = []
        for micro, (part, activation) in enumerate(zip(parts, sent, strict=True)):
            self._top.forward(_ticket(micro), {CUT: activation, Y: (part.y,)}, len(part.y))
            answers.append(self._top.backward(_ticket(micro), {})[CUT])
            clock.note("server_s", count)
        self._top.step(float(rows), 0)
        clock.note("server_step_s", 1)
        for micro, gradient in enumerate(answers):
            self._bottom.backward(_ticket(micro), {CUT: gradient})
            clock.note("backward_s", count)
        self._bottom.step(float(rows), 0)
        clock.note("client_step_s", 1)
        self.sent, self.answered = sent[0], answers[0]
        return clock.seconds


class Alone:
    """The whole model at work at one party, as a client of federated averaging trains it."""

    def __init__(self, agreement: Agreement, model: nn.Module, batch: Batch) -> None:
        training = agreement.plan.terms.training
        self._batch, self._replica = batch, Replica(copy.deepcopy(model), training)
        returns = {X: (False,) * len(batch.x)}
        self._segment = ModelSegment(
            "whole", self._replica, secret=b"", returns=returns, loss=Loss(training.loss), target_edge=Y
        )

    def step_s(self) -> float:
        """Seconds of a step on a mini-batch, the median."""
        with torch.random.fork_rng(devices=[]):
            return statistics.median(each["step_s"] for each in _measured(lambda: {"step_s": self._step()}))

    def memory(self) -> Memory:
        """For a mini-batch."""
        with torch.random.fork_rng(devices=[]):
            with _Kept(self._replica.module) as kept:
                self._forward()
            self._step()
        return _memory(self._replica, kept.nbytes)

    def _forward(self) -> None:
        self._segment.forward(_ticket(0), {X: self._batch.x, Y: (self._batch.y,)}, len(self._batch.y))

    def _step(self) -> float:
        start = time.perf_counter()
        self._forward()
        self._segment.backward(_ticket(0), {})
        self._segment.step(float(len(self._batch.y)), 0)
        return time.perf_counter() - start


def _measured(step: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
    """What so many steps took, after the first ones."""
    for _ in range(WARM_UP):
        step()
    start, seen = time.perf_counter(), [step() for _ in range(FEWEST)]
    while time.perf_counter() - start < ENOUGH_S and len(seen) < MOST:
        seen.append(step())
    return seen


@dataclass(slots=True)
class _Clock:
    """Adds up what has passed since the last note."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def note(self, name: str, parts: int) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + (now - self._last) / parts
        self._last = now


class _Kept:
    """Counts the bytes that a forward keeps for backward, each piece of memory once and the parameters' not."""

    def __init__(self, module: nn.Module) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        self._seen: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def nbytes(self) -> int:
        return sum(self._seen.values())

    def __enter__(self) -> "_Kept":
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor


def _memory(replica: Replica, activations: int) -> Memory:
    state: Mapping[Any, Mapping[str, Any]] = replica.optimizer.state if replica.optimizer else {}
    tensors = (value for entry in state.values() for value in entry.values() if isinstance(value, Tensor))
    return Memory(
        parameters=sum(tensor.nbytes for tensor in replica.module.state_dict().values()),
        gradients=sum(tensor.nbytes for tensor in replica.parameters),
        optimizer=sum(tensor.nbytes for tensor in tensors),
        activations=activations,
    )


def _ticket(micro: int) -> Ticket:
    return Ticket(0, "client", 0, micro, "train")
