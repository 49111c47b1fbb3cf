"""A segment at work: a slice of the model on one replica, with a graph kept for each ticket in flight."""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cutlayer.model.cached import Entry, Places, Workset, trust, weighted
from cutlayer.model.calling import PLAIN, Calling
from cutlayer.model.joining import combine
from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.topology import Join
from cutlayer.protocol.messages import Ticket
from cutlayer.protocol.segment import Outcome

Tensors = tuple[Tensor, ...]
Penalty = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Of a segment's inputs and what it gives: what is added to a mini-batch's mean loss."""


class Steps(Protocol):
    """What makes each step's gradients from those of single rows."""

    def gather(self, ticket: Ticket, rows: int) -> None:
        """A backward has been made of so many rows."""

    def finish(self) -> None:
        """The gradients that the optimizer is about to step by become those that it may."""

    def drop(self) -> None:
        """There will be no step on what has been gathered."""


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
    `stale`: steps may change the weights between a ticket's forward and its backward, which then uses those of its
    forward (weight stashing: Harlap et al. 2018, PipeDream, arXiv 1806.03377, section 3.3).
    `calling`: how the module is called. `workset`: what is kept of mini-batches for `cached_steps`. `penalty`: what is
    added to the mean loss, so that what the segment gives tells less; its gradient counts as often as there are rows.
    `steps`: by what it learns, if not by plain gradients.

    Before each forward the random stream is set to `stream_seed(secret, "forward", segment, turn, step, micro)`, so
    that any ticket can be run again alone, and there is no random state to save.
    """

    def __init__(  # noqa: PLR0913 (what the plan says of a segment, said one by one)
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
        stale: bool = False,
        calling: Calling = PLAIN,
        workset: Workset | None = None,
        penalty: Penalty | None = None,
        steps: Steps | None = None,
    ) -> None:
        self.name = name
        self.replica = replica
        self._secret = secret
        self._returns = returns
        self._loss = loss
        self._target_edge = target_edge
        self._join: Join = join
        self._weight = weight
        self._calling, self._workset, self._penalty, self._steps = calling, workset, penalty, steps
        self._graphs: dict[Ticket, _Graph] = {}
        self._stashes: dict[tuple[int, int], dict[str, Tensor]] | None = {} if stale else None
        """By turn and step that went forward: the weights by which it did."""
        self._under_way: deque[tuple[int, int]] = deque()
        """Turns and steps that went forward, oldest first."""
        self.busy = False
        """Whether a ticket waits for its gradient, or gradients wait for the step."""

    def forward(
        self, ticket: Ticket, inputs: Mapping[str, Tensors], rows: int = 0, left_out: Collection[str] = ()
    ) -> Outcome[Tensors]:
        """Outputs for inputs by edge name, of so many rows. When training, the graph is kept under the ticket.

        Inputs that are `left_out` are taken as zeros, and get zeros as gradients.
        """
        training = ticket.purpose == "train"
        if self._workset is not None:
            self._workset.enter(ticket.turn)
        if training:
            self._begin(ticket)
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
            if self._workset is not None:
                self._workset.went_forward(self._entry(ticket, inputs, rows, left_out, outcome.outputs))
        return outcome

    def _begin(self, ticket: Ticket) -> None:
        """A ticket goes forward in training; with the first one of a step its weights are stashed."""
        place = (ticket.turn, ticket.step)
        if self._under_way and self._under_way[-1] == place:
            return
        self._under_way.append(place)
        if self._stashes is not None:
            self._stashes[place] = {
                name: parameter.detach().clone().requires_grad_(parameter.requires_grad)
                for name, parameter in self.replica.module.named_parameters()
            }

    def backward(self, ticket: Ticket, grads: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """Gradients of the loss sum by input edge, given those by output edge; frees the ticket."""
        graph = self._graphs.pop(ticket)
        ends = [end for end in graph.ends if end.requires_grad]
        came = None if self._loss else _summed(grads)
        if came is not None or ends:
            torch.autograd.backward(*self._penalised(graph, ends, came))
        if self._steps is not None:
            self._steps.gather(ticket, len(next(tensors[0] for tensors in graph.leaves.values() if tensors)))
        if self._stashes is not None:
            self._hand_on(self._stashes[ticket.turn, ticket.step])
        back = {
            edge: tuple([_gradient(leaf) for leaf in leaves if leaf.requires_grad])
            for edge, leaves in graph.leaves.items()
        }
        if self._workset is not None:
            self._workset.came_back([each for sent in back.values() for each in sent] if came is None else came)
        return back

    def _penalised(
        self, graph: _Graph, ends: list[Tensor], came: Tensors | None
    ) -> tuple[list[Tensor], list[Tensor | None] | None]:  # fmt: skip
        """The ends to go back from and their gradients, the penalty's among them."""
        gradients: list[Tensor | None] | None = None if came is None else [*came]
        if self._penalty is None or not graph.ends[0].requires_grad:
            return ends, gradients
        inputs = [tensor for tensors in graph.leaves.values() for tensor in tensors]
        penalty = self._penalty(inputs, graph.ends[0])
        return [*ends, penalty * len(graph.ends[0])], [*(gradients or []), None]

    def _hand_on(self, stash: Mapping[str, Tensor]) -> None:
        """What came back to stashed weights is the gradient of those that the optimizer steps."""
        for name, parameter in self.replica.module.named_parameters():
            gradient, stash[name].grad = stash[name].grad, None
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def step(self, normaliser: float, number: int, lr_scale: float = 1.0) -> None:
        """Step the replica's optimizer once, in round `number`; frees what no gradient came back for."""
        if self._steps is not None:
            self._steps.finish()
        self.replica.step(normaliser, number, lr_scale=lr_scale)
        self._freed()
        if self._workset is not None:
            self._workset.stepped(normaliser)

    def drop(self) -> None:
        """Forget the gradients of a step instead of taking it: the replica stays as it is."""
        if self._steps is not None:
            self._steps.drop()
        for parameter in self.replica.parameters:
            parameter.grad = None
        self._freed()

    def _freed(self) -> None:
        """A step is through, and with it what no gradient came back for."""
        done = self._under_way.popleft() if self._under_way else None
        if self._under_way:
            self._graphs = {ticket: g for ticket, g in self._graphs.items() if (ticket.turn, ticket.step) != done}
        else:
            self._graphs.clear()
        if self._stashes is not None and done is not None:
            del self._stashes[done]
        self.busy = bool(self._under_way)

    def cached_steps(self, number: int) -> tuple[int, ...]:
        """Step on each of the mini-batches that are kept, newest first, in round `number`; the LR schedule stays.

        A row counts as far as it is to be trusted (`trust`): by its activations, where gradients came for those; by
        the gradients that go back from it, where the segment ends in a loss. Returns for each step how many of the
        replica's steps lie between it and the weights by which its tensors were made.
        """
        if self._workset is None:
            return ()
        stale: list[int] = []
        for entry in self._workset.newest_first():
            with torch.enable_grad():
                self._go_back(entry, self._workset)
            self.replica.step(entry.normaliser, number, cached=True)
            stale.append(self._workset.taken - entry.begun)
            self._workset.taken += 1
        return tuple(stale)

    def _go_back(self, entry: Entry, workset: Workset) -> None:
        """Forward by the present weights, and back as far as the parameters."""
        assert entry.gradients is not None
        self.replica.module.train()
        seed(stream_seed(self._secret, "cached", self.name, entry.ticket.turn, workset.taken), self.replica.device)
        outcome, graph = self._outcome(entry.inputs, True, entry.rows, entry.left_out)
        ends, places = _returning(outcome.outputs, workset.outputs)
        if self._loss is None:
            gradients, present, where = entry.gradients, ends, places
        else:
            leaves = [leaf for tensors in graph.leaves.values() for leaf in tensors if leaf.requires_grad]
            gradients = torch.autograd.grad(graph.ends, ends)
            present, where = _gradients(ends, leaves, gradients), workset.inputs
        compared = entry.outputs if self._loss is None else entry.gradients
        trusted = trust(present, compared, where, entry.rows)
        torch.autograd.backward(ends, weighted(gradients, trusted, places), inputs=self.replica.parameters)

    def _entry(
        self, ticket: Ticket, inputs: Mapping[str, Tensors], rows: int, left_out: Collection[str], outputs: Tensors
    ) -> Entry:
        assert self._workset is not None
        kept = () if self._loss else tuple([output.detach() for output in outputs if output.requires_grad])
        begun = self._workset.taken
        return Entry(ticket=ticket, inputs=inputs, rows=rows, left_out=left_out, outputs=kept, begun=begun)

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
        stash = self._stashes[self._under_way[-1]] if training and self._stashes is not None else None
        outputs = self._calling(self.name, self.replica, tuple(tensors), stash)
        if in_place is None:
            known[training] = versions != [tensor._version for tensor in tensors]
        return outputs

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


def _returning(outputs: Tensors, places: Places) -> tuple[list[Tensor], Places]:
    """The outputs that gradients go back from, and where their rows lie."""
    pairs = [(output, place) for output, place in zip(outputs, places, strict=False) if output.requires_grad]
    return [output for output, _ in pairs], [place for _, place in pairs]


def _gradients(ends: Sequence[Tensor], leaves: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Of leaves that a segment's inputs were turned into; its graph stays."""
    if not leaves:
        return []
    found = torch.autograd.grad(ends, leaves, given, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    ]


def _summed(grads: Mapping[str, Tensors]) -> Tensors:
    """The gradient into a segment is the sum over its outgoing edges, in the topology's order."""
    first, *others = grads.values()
    for other in others:
        first = tuple(a + b for a, b in zip(first, other, strict=True))
    return first
