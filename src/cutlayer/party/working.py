"""What a party computes: rows loaded, segments run forward and back, optimizers stepped."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cutlayer.data.loader import Loader
from cutlayer.errors import Misaligned
from cutlayer.model.cached import Places, Workset
from cutlayer.model.calling import Calling
from cutlayer.model.joining import averaged, join, split
from cutlayer.model.loss import Loss
from cutlayer.model.replica import Replica
from cutlayer.model.segment import ModelSegment
from cutlayer.party.coding import Coding
from cutlayer.party.defences import answered_of, penalty_of
from cutlayer.party.defending import Defending
from cutlayer.party.private import Learning
from cutlayer.party.probing import Probing
from cutlayer.party.received import Undecoded
from cutlayer.party.replicas import Replicas
from cutlayer.plan.plan import Plan
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.tensors import TensorSpec
from cutlayer.protocol.events import Joined, Run, Step
from cutlayer.protocol.events import Replica as Key

Tensors = tuple[Tensor, ...]
Sums = Mapping[str, Mapping[str, float]]
"""By owner of the rows."""
Result = Tensors | dict[str, Tensors] | Joined | dict[str, Joined] | None


Value = Undecoded | Tensors


class Workbench:
    """A party's rows and segments, at the session's orders."""

    def __init__(
        self,
        plan: Plan,
        replicas: Replicas,
        coding: Coding,
        defending: Defending,
        probing: Probing,
        *,
        secret: bytes,
        loader: Loader | None,
    ) -> None:
        self._plan, self._replicas, self._secret, self._loader = plan, replicas, secret, loader
        self._coding, self._defending, self._probing, self._learning = coding, defending, probing, Learning(plan)
        self._device, self._largest_rms = replicas.device, plan.terms.limits.tensor_rms
        self._losses = {
            loss.name: Loss(plan.loss_of(loss.name), answered_of(plan, loss.name)) for loss in plan.topology.losses
        }
        self._edges_into = {
            segment.name: [edge.name for edge in plan.topology.activations(segment.name)]
            for segment in plan.topology.segments
        }
        self._cut_average = plan.terms.training.cut_average
        self._source_kind = {edge.name: plan.topology.source_kind(edge) for edge in plan.topology.edges}
        self._scales = {name: party.lr_scale for name, party in plan.terms.parties.items() if party.lr_scale != 1}
        self._server_segments = frozenset(plan.server_segments)
        self._dropout = Dropout(plan)
        self.answers: dict[str, dict[tuple[str, int, int], Tensor]] = {}
        """Of predictions: what each loss' segment answered, by owner, turn and step."""

    def segment(self, key: Key, *, changes: bool = True) -> ModelSegment:
        """The segment at work on a replica; `changes`: in training."""
        return self._replicas.at_work(key, self._wrapped, changes=changes)

    def run(self, run: Run) -> tuple[Result, Sums | None]:
        """What a `Run` of a segment gives. Raises whatever the user's model raises."""
        segment = self.segment(run.replica, changes=run.ticket.purpose == "train")
        if run.owners:
            return self._run_joined(segment, run)
        inputs = {edge: self._tensors(value) for edge, value in run.inputs.items()}
        if run.direction == "backward":
            return segment.backward(run.ticket, inputs), None
        assert run.batch is not None
        inputs = self._with_missing(run, inputs)
        outcome = segment.forward(run.ticket, inputs, run.batch.rows, self._dropout.of(run))
        if run.ticket.purpose == "predict" and run.node in self._losses:
            place = (run.ticket.owner, run.ticket.turn, run.ticket.step)
            self.answers.setdefault(run.node, {})[place] = outcome.outputs[0].detach().cpu()
        return outcome.outputs, None if outcome.sums is None else {run.ticket.owner: outcome.sums}

    def collected(self) -> dict[str, dict[str, Tensor]]:
        """The answers, by segment and owner of the rows, in the order of the rows."""
        found: dict[str, dict[str, list[Tensor]]] = {}
        for node, answers in self.answers.items():
            for (owner, *_), answer in sorted(answers.items()):
                found.setdefault(node, {}).setdefault(owner, []).append(answer)
        return {node: {owner: torch.cat(parts) for owner, parts in each.items()} for node, each in found.items()}

    def load(self, run: Run) -> tuple[Tensors, bytes]:
        """A source's rows; and their mark, where several parties have columns of them. Raises `DataError`."""
        assert self._loader is not None
        assert run.batch is not None
        source = self._plan.topology.source(run.node)
        assert source is not None
        self._coding.note_rows(run)
        mark = self._loader.mark(run.ticket, run.batch) if self._plan.schedule.together else b""
        tensors = self._loader.load("x" if source.kind == "rows" else "y", run.batch)
        if source.kind == "labels":
            tensors = self._probing.labels(run, tensors, self._plan.contents.classes.get(run.node, 0))
        self._defending.loaded(run, source.kind, tensors)
        return tensors, mark

    def explain(self, error: Misaligned, me: str) -> None:
        """Add for this party's person by how many rows another one is out of step, if its own rows tell."""
        if self._loader is None or me not in error.parties:
            return
        other = 1 - error.parties.index(me)
        places = self._loader.out_of_step(error.marks[other], error.ticket, error.batch)
        if places is not None:
            error.explain(f"{error.parties[other]}'s row {places[0]} is {me}'s row {places[1]}, counted from 0")

    def _with_missing(self, run: Run, inputs: dict[str, Tensors]) -> dict[str, Tensors]:
        """With zeros for the activations of absent parties, where they would be in the order of the edges."""
        if len(inputs) == len(self._plan.topology.inputs(run.node)):
            return inputs
        assert run.batch is not None
        rows, specs = run.batch.rows, self._plan.contents.edges
        target = self._plan.topology.target(run.node)
        order = [e.name for e in self._plan.topology.inputs(run.node) if e != target or e.name in inputs]
        zeros = {
            edge: tuple(
                torch.zeros(spec.for_rows(rows).shape, dtype=getattr(torch, spec.dtype), device=self._device)
                for spec in specs[edge]
            )
            for edge in self._edges_into[run.node]
            if edge not in inputs
        }
        return {edge: (inputs | zeros)[edge] for edge in order} if zeros else inputs

    def step(self, step: Step) -> tuple[int, ...]:
        """Step a replica; the server's steps on one party's rows with the learning rate scaled as the plan says.

        Then, where the plan says so, step on what it keeps of its last mini-batches: returns how stale each of those
        steps was.
        """
        scale = 1.0
        if self._scales and len(step.owners) == 1 and step.replica[0] in self._server_segments:
            scale = self._scales.get(step.owners[0], 1.0)
        segment = self.segment(step.replica)
        if self._probing.skips(step.replica):
            segment.drop()
            return ()
        segment.step(step.normaliser, step.round, scale)
        return segment.cached_steps(step.round)

    def _wrapped(self, key: Key, replica: Replica) -> ModelSegment:
        name, owner = key
        node = self._plan.topology.segment(name)
        inputs = self._plan.topology.inputs(name)
        target = self._plan.topology.target(name) if node.loss else None
        several = len(self._losses) > 1
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
            loss=self._losses.get(name),
            target_edge=target.name if target else "",
            join=node.join,
            stale=bool(self._plan.staleness.get(name)),
            weight=self._plan.terms.training.loss_weights.get(name, 1.0) if several else None,
            calling=self._calling(key),
            workset=self._workset(key, replica),
            penalty=None if node.loss else penalty_of(self._plan, name),
            steps=self._learning.steps(name, replica.module, **self._defending.for_steps),
        )

    def _calling(self, key: Key) -> Calling:
        """How a segment's module is called; what leaves it has the dtype that the plan says, however it is computed."""
        (name, owner), training = key, self._plan.terms.training
        sent = self._sent(name, owner)
        return Calling(
            compiled=name in training.compiled,
            autocast=name in training.autocast,
            dtypes=tuple(getattr(torch, spec.dtype) for spec in sent),
        )

    def _workset(self, key: Key, replica: Replica) -> Workset | None:
        """What a replica keeps of its mini-batches, if it steps on them and has anything to step."""
        (name, owner), most = key, self._plan.terms.training.cached_steps
        if not most or not replica.parameters:
            return None
        edges = self._plan.contents.of(owner).edges
        back = [spec for edge in self._edges_into[name] for spec in _differentiable(edges[edge])]
        return Workset(most, outputs=_places(self._sent(name, owner)) or (0,), inputs=_places(back))

    def _sent(self, name: str, owner: str) -> Sequence[TensorSpec]:
        """What a segment gives to others, of this owner's rows; nothing where it ends in a loss."""
        onward = self._plan.topology.outputs(name)
        return self._plan.contents.of(owner).edges[onward[0].name] if onward else ()

    def _tensors(self, value: Value) -> Tensors:
        if isinstance(value, Undecoded):
            message, decoded = value.message, self._coding.decode(value, self._device, self._largest_rms)
            tensors = self._coding.correct(value, decoded)
            if message is None:
                return tensors
            self._probing.came(message, tensors)
            return self._defending.came(message, value.peer, tensors, learns=not self._probing.is_probe(message.ticket))
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
        sums = self._sums(self._losses[node], outcome.outputs[0], labels, run.rows)
        return None, dict(zip(run.owners, sums, strict=True))

    def _sums(self, loss: Loss, output: Tensor, labels: Tensor, rows: Sequence[int]) -> Iterator[Mapping[str, float]]:
        """What the loss of joined batches adds up to for each owner."""
        whole = sum(rows)
        start = 0
        for count in rows:
            own_output, own_labels = (
                tensor.detach()[len(tensor) // whole * start :][: len(tensor) // whole * count]
                for tensor in (output, labels)
            )
            start += count
            total = loss.total(own_output, own_labels).item()
            yield {"loss": total, "normaliser": loss.normaliser(own_labels)}

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
        mine = {node.name for node in plan.topology.segments if plan.holds(party, node.role)}
        owners = {party} if plan.terms.parties[party].role == "client" else plan.terms.parties.keys()
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


class Dropout:
    """Which parties' activations a step does without, where a segment joins those of several parties.

    Each is left out with the plan's probability, by a stream of the plan's seed; one always stays.
    Source: party-wise dropout, Sun et al. 2023, "Robust and IP-protecting vertical federated learning" (arXiv
    2306.14420).
    """

    def __init__(self, plan: Plan) -> None:
        self._probability, self._key = plan.terms.training.party_dropout, str(plan.terms.seed).encode()
        cuts = {edge.name for edge in plan.topology.cuts()}
        self._choices = {
            segment.name: (tuple(edge for edge in edges if edge in cuts), cuts.issuperset(edges))
            for segment in plan.topology.segments
            if len(edges := [edge.name for edge in plan.topology.activations(segment.name)]) > 1
        }

    def of(self, run: Run) -> frozenset[str]:
        """The edges that this forward is to take as zeros."""
        if not self._probability or run.ticket.purpose != "train" or run.node not in self._choices:
            return frozenset()
        edges, all_cross = self._choices[run.node]
        ticket = run.ticket
        there = [edge for edge in edges if edge in run.inputs]
        drawn = {edge: stream_seed(self._key, "left out", edge, ticket.turn, ticket.step) / 2**63 for edge in there}
        left_out = frozenset(edge for edge, number in drawn.items() if number < self._probability)
        stays = {max(drawn, key=drawn.__getitem__)} if all_cross else set()
        return left_out - stays


def _places(specs: Sequence[TensorSpec]) -> Places:
    """Where the rows lie in tensors of these specs."""
    return [next((at for at, size in enumerate(spec.shape) if isinstance(size, str)), None) for spec in specs]


def _differentiable(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [spec for spec in specs if spec.differentiable]
