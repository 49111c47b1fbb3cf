"""A segment at work: a slice of the model on one replica, with a graph kept for each ticket in flight."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.model.joining import combine
from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.topology import Join
from cutlayer.protocol.messages import Ticket
from cutlayer.protocol.segment import Outcome

Tensors = tuple[Tensor, ...]


@dataclass(slots=True)  # not frozen: one is made at each forward, and freezing triples the cost
class _Graph:
    """What backward needs: the leaves that the inputs were turned into, and the tensors they led to."""

    leaves: Mapping[str, Tensors]
    ends: Tensors


class ModelSegment:
    """Runs one replica forward and backward, for one owner.

    It is a thin cover: what takes long to make or to learn is the replica's, so that a replica that takes turns with
    the states of several owners gets a segment for each.

    `returns` says for each input edge which of its tensors a gradient goes back for; `target_edge` names the input
    that is the loss' target. `join`: how its other inputs become one. `weight`: λ of its loss where a network has
    several; each is then divided by its own normaliser, so that what all segments step on is Σ λ · mean loss.

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
        target_edge: str = "",
        join: Join = "",
        weight: float | None = None,
    ) -> None:
        self.name = name
        self.replica = replica
        self._secret = secret
        self._returns = returns
        self._loss = loss
        self._target_edge = target_edge
        self._join: Join = join
        self._weight = weight
        self._graphs: dict[Ticket, _Graph] = {}
        self.busy = False
        """Whether a ticket waits for its gradient, or gradients wait for the step."""

    def forward(
        self, ticket: Ticket, inputs: Mapping[str, Tensors], rows: int = 0, left_out: Collection[str] = ()
    ) -> Outcome[Tensors]:
        """Outputs for inputs by edge name, of so many rows. When training, the graph is kept under the ticket.

        Inputs that are `left_out` are taken as zeros, and get zeros as gradients.
        """
        training = ticket.purpose == "train"
        module = self.replica.module
        if module.training != training:
            module.train(training)
        seed(
            stream_seed(self._secret, "forward", self.name, ticket.turn, ticket.step, ticket.micro), self.replica.device
        )
        if torch.is_grad_enabled() is training:  # the usual case; a context costs microseconds
            outcome, graph = self._outcome(inputs, training, rows, left_out)
        else:
            with torch.set_grad_enabled(training):
                outcome, graph = self._outcome(inputs, training, rows, left_out)
        if training:
            self.busy = True
            self._graphs[ticket] = graph
        return outcome

    def backward(self, ticket: Ticket, grads: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Gradients of the loss sum by input edge, given those by output edge; frees the ticket."""
        graph = self._graphs.pop(ticket)
        ends = [end for end in graph.ends if end.requires_grad]
        if self._loss is None:
            torch.autograd.backward(ends, _summed(grads))
        elif ends:
            torch.autograd.backward(ends)
        return {
            edge: tuple([_gradient(leaf) for leaf in leaves if leaf.requires_grad])
            for edge, leaves in graph.leaves.items()
        }

    def step(self, normaliser: float, number: int, lr_scale: float = 1.0) -> None:
        """Step the replica's optimizer once, in round `number`; frees what no gradient came back for."""
        self.replica.step(normaliser, number, lr_scale=lr_scale)
        self._graphs.clear()
        self.busy = False

    def _outcome(
        self, inputs: Mapping[str, Tensors], training: bool, rows: int, left_out: Collection[str]
    ) -> tuple[Outcome[Tensors], _Graph]:
        leaves = {edge: self._leaves(edge, inputs[edge], training) for edge in inputs if edge != self._target_edge}
        given = [
            tuple(map(torch.zeros_like, tensors)) if edge in left_out else tensors for edge, tensors in leaves.items()
        ]
        outputs = self._run(list(combine(given, self._join)), training)
        if self._loss is None or self._target_edge not in inputs:
            return Outcome(outputs), _Graph(leaves, outputs)
        target = inputs[self._target_edge][0]
        total = self._loss.total(outputs[0], target)
        sums = self._sums(total, outputs[0], target, training)
        return Outcome(outputs, sums), _Graph(leaves, (self._weighted(total, sums["normaliser"], rows),))

    def _weighted(self, total: Tensor, normaliser: float, rows: int) -> Tensor:
        """Where there are several losses, every replica divides its gradients by the rows, whatever each normaliser."""
        if self._weight is None:
            return total
        return total * (self._weight * rows / normaliser if normaliser else 0.0)

    def _leaves(self, edge: str, tensors: Tensors, training: bool) -> Tensors:
        """The start of a graph of our own; nothing of the sender's graph is behind it."""
        return tuple(
            [
                tensor.detach().requires_grad_() if back and training else tensor.detach()
                for tensor, back in zip(tensors, self._returns[edge], strict=True)
            ]
        )

    def _run(self, tensors: list[Tensor], training: bool) -> Tensors:
        """Run the module. If its first layers write in place they get a clone: the input belongs to somebody else."""
        known = self.replica.writes_in_place
        in_place = known.get(training)
        if in_place is not False:
            tensors = [tensor.clone() for tensor in tensors]
            versions = [tensor._version for tensor in tensors]
        result = self.replica.module(*tensors)
        if in_place is None:
            known[training] = versions != [tensor._version for tensor in tensors]
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


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _summed(grads: Mapping[str, Tensors]) -> Tensors:
    """The gradient into a segment is the sum over its outgoing edges, in the topology's order."""
    first, *others = grads.values()
    for other in others:
        first = tuple(a + b for a, b in zip(first, other, strict=True))
    return first
