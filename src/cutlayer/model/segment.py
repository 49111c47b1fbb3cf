"""A segment at work: a slice of the model on one replica, with a graph kept for each ticket in flight."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.plan.streams import stream_seed
from cutlayer.protocol.messages import Ticket
from cutlayer.protocol.segment import Outcome

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Graph:
    """What backward needs: the leaves that the inputs were turned into, and the tensors they led to."""

    leaves: Mapping[str, Tensors]
    ends: Tensors


class ModelSegment:
    """Runs one replica forward and backward.

    `returns` says for each input edge which of its tensors a gradient goes back for; `labels_edge` names the input
    that is the loss' target.

    Before each forward the random stream is set to `stream_seed(secret, "forward", segment, turn, step, micro)`, so
    that any ticket can be run again alone, and there is no random state to save.
    """

    def __init__(
        self,
        name: str,
        replica: Replica,
        *,
        secret: bytes,
        returns: Mapping[str, tuple[bool, ...]],
        loss: Loss | None = None,
        labels_edge: str = "",
    ) -> None:
        self.name = name
        self.replica = replica
        self._secret = secret
        self._returns = returns
        self._loss = loss
        self._labels_edge = labels_edge
        self._device = next(replica.module.parameters()).device
        replica.module.train()  # all its layers: some may have been given in another mode than the whole
        self._graphs: dict[Ticket, _Graph] = {}
        self._writes_in_place: dict[bool, bool] = {}

    def forward(self, ticket: Ticket, inputs: Mapping[str, Tensors]) -> Outcome[Tensors]:
        """Outputs for inputs by edge name. When training, the graph is kept under the ticket."""
        training = ticket.purpose == "train"
        module = self.replica.module
        if module.training != training:
            module.train(training)
        seed(stream_seed(self._secret, "forward", self.name, ticket.turn, ticket.step, ticket.micro), self._device)
        labels = inputs[self._labels_edge][0] if self._labels_edge else None
        with torch.set_grad_enabled(training):
            leaves = {edge: self._leaves(edge, inputs[edge]) for edge in inputs if edge != self._labels_edge}
            outputs = self._run(module, [leaf for edge in leaves for leaf in leaves[edge]], training)
            if self._loss is None or labels is None:
                ends, sums = outputs, None
            else:
                total = self._loss.total(outputs[0], labels)
                ends, sums = (total,), self._sums(total, outputs[0], labels, training)
        if training:
            self._graphs[ticket] = _Graph(leaves, ends)
        return Outcome(outputs, sums)

    def backward(self, ticket: Ticket, grads: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Gradients of the loss sum by input edge, given those by output edge; frees the ticket."""
        graph = self._graphs.pop(ticket)
        ends = [end for end in graph.ends if end.requires_grad]
        if self._loss is None:
            torch.autograd.backward(ends, _summed(grads))
        elif ends:
            torch.autograd.backward(ends)
        return {edge: tuple(map(_gradient, filter(_wanted, leaves))) for edge, leaves in graph.leaves.items()}

    def step(self, normaliser: float, number: int) -> None:
        """Step the replica's optimizer once, in round `number`; frees what no gradient came back for."""
        self.replica.step(normaliser, number)
        self._graphs.clear()

    def _leaves(self, edge: str, tensors: Tensors) -> Tensors:
        """The start of a graph of our own; nothing of the sender's graph is behind it."""
        wanted = torch.is_grad_enabled()
        return tuple(
            tensor.detach().requires_grad_(wanted and back)
            for tensor, back in zip(tensors, self._returns[edge], strict=True)
        )

    def _run(self, module: nn.Module, tensors: list[Tensor], training: bool) -> Tensors:
        """Run the module. If its first layers write in place they get a clone: the input belongs to somebody else."""
        in_place = self._writes_in_place.get(training)
        if in_place is not False:
            tensors = [tensor.clone() for tensor in tensors]
            versions = [tensor._version for tensor in tensors]
        result = module(*tensors)
        if in_place is None:
            self._writes_in_place[training] = versions != [tensor._version for tensor in tensors]
        return result if isinstance(result, tuple) else (result,)

    def _sums(self, total: Tensor, output: Tensor, labels: Tensor, training: bool) -> dict[str, float]:
        assert self._loss is not None
        sums = {"loss": total.item(), "normaliser": self._loss.normaliser(labels)}
        return sums if training else sums | self._loss.score(output, labels)


def seed(number: int, device: torch.device) -> None:
    """Set the default random streams of the CPU and of `device` as `torch.manual_seed` does.

    That one also seeds every kind of accelerator there could be, and formats a stack trace for each that nobody has
    used yet: several milliseconds a call.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(number)
    elif device.type != "cpu":
        torch.manual_seed(number)


def _wanted(leaf: Tensor) -> bool:
    return leaf.requires_grad


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _summed(grads: Mapping[str, Tensors]) -> Tensors:
    """The gradient into a segment is the sum over its outgoing edges, in the topology's order."""
    first, *others = grads.values()
    for other in others:
        first = tuple(a + b for a, b in zip(first, other, strict=True))
    return first
