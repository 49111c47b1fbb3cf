"""What a party computes: rows loaded, segments run forward and back, optimizers stepped."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.codec import raw
from cutlayer.data.loader import Loader
from cutlayer.model.joining import averaged, join, split
from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.model.segment import ModelSegment
from cutlayer.party.replicas import Replicas
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape, TensorSpec
from cutlayer.protocol.events import Joined, Run, Step
from cutlayer.protocol.events import Replica as Key

Tensors = tuple[Tensor, ...]
Sums = Mapping[str, Mapping[str, float]]
"""By owner of the rows."""
Result = Tensors | dict[str, Tensors] | Joined | dict[str, Joined] | None


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A received payload: bytes, and what they are agreed to be. Decoded when a segment needs it, not before."""

    shapes: tuple[TensorShape, ...]
    views: Sequence[memoryview]

    def decode(self, device: torch.device) -> Tensors:
        return tuple(
            raw.decode(view, shape).to(device) for view, shape in zip(self.views, self.shapes, strict=True)
        )  # fmt: skip


Value = Undecoded | Tensors


class Workbench:
    """A party's rows and segments, at the session's orders."""

    def __init__(self, plan: Plan, replicas: Replicas, *, secret: bytes, loader: Loader | None) -> None:
        self._plan, self._replicas, self._secret, self._loader = plan, replicas, secret, loader
        self._device = replicas.device
        self._loss = Loss(plan.terms.training.loss)
        self._cut_average = plan.terms.training.cut_average
        self._source_kind = {edge.name: plan.topology.source_kind(edge) for edge in plan.topology.edges}
        self._scales = {name: party.lr_scale for name, party in plan.terms.parties.items() if party.lr_scale != 1}
        self._server = plan.first["server"]

    def segment(self, key: Key, *, changes: bool = True) -> ModelSegment:
        """The segment at work on a replica; `changes`: in training."""
        return self._replicas.at_work(key, self._wrapped, changes=changes)

    def run(self, run: Run) -> tuple[Result, Sums | None]:
        """What a `Run` gives. Raises whatever the user's model or rows raise."""
        if run.direction == "load":
            assert self._loader is not None
            assert run.batch is not None
            return self._loader.load(run.node, run.batch), None
        segment = self.segment(run.replica, changes=run.ticket.purpose == "train")
        if run.owners:
            return self._run_joined(segment, run)
        inputs = {edge: self._tensors(value) for edge, value in run.inputs.items()}
        if run.direction == "backward":
            return segment.backward(run.ticket, inputs), None
        outcome = segment.forward(run.ticket, inputs)
        return outcome.outputs, None if outcome.sums is None else {run.ticket.owner: outcome.sums}

    def step(self, step: Step) -> None:
        """Step a replica; the server's steps on one party's rows with the learning rate scaled as the plan says."""
        scale = 1.0
        if self._scales and len(step.owners) == 1 and self._plan.topology.segment(step.replica[0]).role == "server":
            scale = self._scales.get(step.owners[0], 1.0)
        self.segment(step.replica).step(step.normaliser, step.round, scale)

    def _wrapped(self, key: Key, replica: Replica) -> ModelSegment:
        name, owner = key
        node = self._plan.topology.segment(name)
        inputs = self._plan.topology.inputs(name)
        labels = [edge.name for edge in inputs if self._source_kind[edge.name] == "labels"]
        edges = self._plan.contents.of(owner).edges
        return ModelSegment(
            name,
            replica,
            secret=self._secret,
            returns={
                edge.name: tuple(
                    spec.differentiable and self._source_kind[edge.name] is None for spec in edges[edge.name]
                )
                for edge in inputs
            },
            loss=self._loss if node.loss else None,
            labels_edge=labels[0] if node.loss else "",
        )

    def _tensors(self, value: Value) -> Tensors:
        if isinstance(value, Undecoded):
            return value.decode(self._device)
        return tuple(tensor.to(self._device) for tensor in value)

    # ------------------------------------------------------------------ joined batches

    def _run_joined(self, segment: ModelSegment, run: Run) -> tuple[Result, Sums | None]:
        """The rows of several owners through one forward, or one backward; to each its own part."""
        edges, node = self._plan.contents.edges, run.node
        if run.direction == "backward":
            grads = {edge: self._joined(value, _differentiable(edges[edge])) for edge, value in run.inputs.items()}
            back = segment.backward(run.ticket, grads)
            return {edge: self._parted(edge, tensors, run.rows) for edge, tensors in back.items()}, None
        inputs = {edge: self._joined(value, edges[edge]) for edge, value in run.inputs.items()}
        outcome = segment.forward(run.ticket, inputs)
        onward = self._plan.topology.outputs(node)
        if onward:
            return Joined(tuple(split(outcome.outputs, edges[onward[0].name], run.rows))), None
        labels = next(tensors[0] for edge, tensors in inputs.items() if self._source_kind[edge] == "labels")
        return None, dict(zip(run.owners, self._sums(outcome.outputs[0], labels, run.rows), strict=True))

    def _sums(self, output: Tensor, labels: Tensor, rows: Sequence[int]) -> Iterator[Mapping[str, float]]:
        """What the loss of joined batches adds up to for each owner."""
        whole = sum(rows)
        start = 0
        for count in rows:
            own_output, own_labels = (
                tensor.detach()[len(tensor) // whole * start :][: len(tensor) // whole * count]
                for tensor in (output, labels)
            )
            start += count
            loss = self._loss.total(own_output, own_labels).item()
            yield {"loss": loss, "normaliser": self._loss.normaliser(own_labels)}

    def _joined(self, value: Joined, specs: Sequence[TensorSpec]) -> Tensors:
        return join([self._tensors(part) for part in value.parts], specs)

    def _parted(self, edge: str, grads: Tensors, rows: Sequence[int]) -> Joined:
        """The gradients that go back on an edge, averaged over the owners where the plan says so."""
        specs = _differentiable(self._plan.contents.edges[edge])
        parts = split(grads, specs, rows)
        if self._cut_average:
            parts = averaged(parts, specs, rows, self._cut_average)
        return Joined(tuple(parts))


class Segments(Mapping[Key, ModelSegment]):
    """A party's replicas by segment and owner. A segment may serve another replica when the next one is asked for."""

    def __init__(self, plan: Plan, party: str, replicas: Replicas, segment: Callable[[Key], ModelSegment]) -> None:
        role = plan.terms.parties[party].role
        mine = {node.name for node in plan.topology.segments if node.role == role}
        owners = {party} if role == "client" else plan.terms.parties.keys()
        self._keys = [key for key in replicas.known if key[0] in mine and key[1] in owners]
        self._segment = segment

    def __getitem__(self, key: Key) -> ModelSegment:
        if key not in self._keys:
            raise KeyError(key)
        return self._segment(key)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def _differentiable(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [spec for spec in specs if spec.differentiable]
