"""Tensors that cross, encoded and decoded as the plan says for each edge and way."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

from cutlayer.codec import raw
from cutlayer.codec.codec import Codec
from cutlayer.codec.feedback import Coder
from cutlayer.codec.registry import build
from cutlayer.data.loader import Loader
from cutlayer.errors import CodecError, PlanError, RemoteProtocolError
from cutlayer.model.state import ReplicaState
from cutlayer.party.received import Undecoded
from cutlayer.party.recent import Recent
from cutlayer.plan.plan import Cutting, Plan
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.tensors import TensorShape, most_coded_bytes
from cutlayer.plan.terms import WAYS, Way
from cutlayer.protocol.events import Run
from cutlayer.protocol.messages import Backward, Forward, Ticket

Place = tuple[str, Way]
"""An edge, and the way that a tensor takes on it."""


class Coding:
    """The codecs of a party's edges, with what they remember.

    `secret` is the key of their random choices. `loader` tells which rows a ticket has, for feedback by sample.
    """

    def __init__(self, plan: Plan, *, secret: bytes, loader: Loader | None) -> None:
        self._plan, self._secret, self._loader = plan, secret, loader
        self._codecs: dict[Place, Codec] = {
            (edge.name, way): build(stages)
            for edge in plan.topology.cuts()
            for way in WAYS
            if (stages := plan.coding(edge.name).stages(way))
        }
        self._feedback: dict[tuple[str, Way, str, int], Coder] = {}
        """By edge, way, owner of the rows, and place of the tensor on the edge."""
        most = 2 * plan.terms.limits.live_tickets
        self._kept: Recent[tuple[str, Ticket], list[Any]] = Recent(most)
        """What `correct` needs, of activations whose gradients have not come."""
        self._crossed: Recent[tuple[str, Ticket], list[Tensor | None]] = Recent(most)
        """Which features of activations crossed, of those whose gradients have not: of others there is none."""
        self._rows: Recent[Ticket, Tensor] = Recent(most)
        self._by_sample = any(plan.coding(edge).feedback(way) == "sample" for edge, way in self._codecs)

    def name(self, message: Forward | Backward) -> str:
        """What a message's tensors are encoded by."""
        codec = self._codecs.get(_place(message))
        return "raw" if codec is None else codec.name

    def note_rows(self, run: Run) -> None:
        """A source of this party is about to load a ticket's rows."""
        if self._by_sample and self._loader is not None and run.batch is not None and run.ticket.purpose == "train":
            self._rows[run.ticket] = self._loader.places(run.batch)

    def encode(
        self, message: Forward | Backward, tensors: Sequence[Tensor]
    ) -> tuple[Forward | Backward, list[memoryview]]:
        """The message, with what its tensors became. Raises `CodecError`."""
        codec = self._codecs.get(_place(message))
        if codec is None or not tensors:
            return message, [raw.encode(tensor) for tensor in tensors]
        tensors = [
            tensor if places is None else tensor.reshape(len(tensor), -1).index_select(1, places.to(tensor.device))
            for tensor, places in zip(tensors, self._narrowed(message, len(tensors)), strict=True)
        ]
        encoded = [self._encode(codec, message, at, tensor) for at, tensor in enumerate(tensors)]
        kept = [each.kept for each in encoded]
        if isinstance(message, Forward) and message.ticket.purpose == "train" and any(k is not None for k in kept):
            self._kept[message.edge, message.ticket] = kept
        self._note_crossed(message, codec, [each.payload for each in encoded], message.tensors)
        payload = [each.payload.numpy().data for each in encoded]
        return replace(message, sizes=tuple(view.nbytes for view in payload)), payload

    def _encode(self, codec: Codec, message: Forward | Backward, at: int, tensor: Tensor) -> Any:
        ticket, (edge, way) = message.ticket, _place(message)
        seed = stream_seed(self._secret, "codec", edge, way, ticket.owner, ticket.turn, ticket.step, ticket.micro, at)
        mode = self._plan.coding(edge).feedback(way)
        if not mode or ticket.purpose != "train":
            return codec.encode(tensor, seed)
        rows = self._rows[ticket] if mode == "sample" else None
        return self._memory(edge, way, ticket.owner, at).encode(tensor, seed, rows)

    def _memory(self, edge: str, way: Way, owner: str, at: int) -> Coder:
        memory = self._feedback.get((edge, way, owner, at))
        if memory is None:
            coding = self._plan.coding(edge)
            mode = coding.feedback(way)
            assert mode
            memory = Coder(codec=self._codecs[edge, way], feedback=mode, cap_bytes=coding.feedback_mib * 2**20)
            self._feedback[edge, way, owner, at] = memory
        return memory

    def decode(self, value: Undecoded, device: torch.device, largest_rms: float) -> tuple[Tensor, ...]:
        """What a peer sent. Raises `RemoteProtocolError` for unsound tensors, or what its codec would not have made."""
        message = value.message
        if message is None or (codec := self._codecs.get(_place(message))) is None or not value.shapes:
            return value.decode(device, largest_rms)
        try:
            parts, narrowed = [*map(_bytes, value.views)], self._narrowed(message, len(value.shapes))
            tensors = [_decoded(codec, *each) for each in zip(parts, value.shapes, narrowed, strict=True)]
            self._note_crossed(message, codec, parts, value.shapes)
        except CodecError as error:
            where = f"{message.edge} for {message.ticket}"
            raise RemoteProtocolError("wrong-payload", value.peer, f"on {where}: {error}") from error
        value.check(tensors, largest_rms)
        return tuple(tensor.to(device) for tensor in tensors)

    def _note_crossed(
        self, message: Forward | Backward, codec: Codec, payloads: Sequence[Tensor], shapes: Sequence[TensorShape]
    ) -> None:
        """Both ends note which features of an activation crossed, where its gradient is encoded without the others.

        With feedback what is left out is remembered position by position, so all of them are there.
        """
        edge, ticket = message.edge, message.ticket
        if not isinstance(message, Forward) or ticket.purpose != "train" or (edge, "backward") not in self._codecs:
            return
        crossed = [codec.crossed(payload, shape) for payload, shape in zip(payloads, shapes, strict=True)]
        if any(places is not None for places in crossed) and not self._plan.coding(edge).feedback("backward"):
            specs = self._plan.contents.of(ticket.owner).edges[edge]
            self._crossed[edge, ticket] = [p for p, spec in zip(crossed, specs, strict=True) if spec.differentiable]

    def _narrowed(self, message: Forward | Backward, count: int) -> list[Tensor | None]:
        """Of each tensor of a gradient, the places of the features that it has; None where it has all."""
        known = self._crossed.pop((message.edge, message.ticket)) if isinstance(message, Backward) else None
        return known or [None] * count

    def correct(self, value: Undecoded, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients that came back, corrected for what encoding did to the activations that they answer."""
        message = value.message
        if not isinstance(message, Backward) or not self._kept or not gradients:
            return gradients
        kept = self._kept.pop((message.edge, message.ticket))
        codec = self._codecs.get((message.edge, "forward"))
        if kept is None or codec is None:
            return gradients
        specs = self._plan.contents.of(message.ticket.owner).edges[message.edge]
        answered = [each for each, spec in zip(kept, specs, strict=True) if spec.differentiable]
        return tuple(codec.correct(gradient, each) for gradient, each in zip(gradients, answered, strict=True))

    # ------------------------------------------------------------------ saves

    def state(self) -> ReplicaState:
        """What is remembered from one tensor to the next."""
        tensors = {
            "|".join((edge, way, owner, str(at), name)): tensor
            for (edge, way, owner, at), memory in self._feedback.items()
            for name, tensor in memory.state().items()
        }
        return ReplicaState(tensors=tensors, counts={})

    def load(self, state: ReplicaState | None) -> None:
        """Remember what a save remembered, and nothing else."""
        self._feedback.clear()
        self._kept.clear()
        self._crossed.clear()
        parts: defaultdict[tuple[str, str, str, str], dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in state.tensors.items() if state else ():
            edge, way, owner, at, name = key.split("|")
            parts[edge, way, owner, at][name] = tensor
        for (edge, way, owner, at), tensors in parts.items():
            self._memory(edge, "forward" if way == "forward" else "backward", owner, int(at)).load(tensors)


def _decoded(codec: Codec, payload: Tensor, shape: TensorShape, places: Tensor | None) -> Tensor:
    """A tensor of this shape, of whose features only those at `places` crossed: the others are 0."""
    if places is None:
        return codec.decode(payload, shape)
    part = codec.decode(payload, TensorShape(shape.dtype, (shape.shape[0], len(places))))
    features = math.prod(shape.shape[1:])
    return part.new_zeros(shape.shape[0], features).index_copy_(1, places, part).view(shape.shape)


def _bytes(view: memoryview) -> Tensor:
    return torch.frombuffer(view, dtype=torch.uint8) if view.nbytes else torch.empty(0, dtype=torch.uint8)


def _place(message: Forward | Backward) -> Place:
    return message.edge, "forward" if isinstance(message, Forward) else "backward"


def codec_name(plan: Plan, edge: str, way: Way) -> str:
    """What an edge's tensors are encoded by, one way."""
    stages = plan.coding(edge).stages(way)
    return build(stages).name if stages else "raw"


def bytes_a_row(plan: Plan, edge: str, way: Way) -> float:
    """What of a full mini-batch crosses an edge one way, at most, over its rows; of tensors alone."""
    rows, stages = plan.terms.training.batch_size, plan.coding(edge).stages(way)
    specs = [spec for spec in plan.contents.edges[edge] if spec.differentiable or way == "forward"]
    shapes = [spec.for_rows(rows) for spec in specs]
    codec = build(stages) if stages else None
    return sum(shape.nbytes if codec is None else codec.most_bytes(shape) for shape in shapes) / rows


def codec_faults(plan: Plan, cutting: Cutting) -> Iterator[str]:
    """Why the codecs that a plan names cannot carry what crosses."""
    rows = plan.terms.training.batch_size
    for edge in plan.topology.cuts():
        for way in WAYS:
            stages = plan.coding(edge.name).stages(way)
            try:
                codec = build(stages) if stages else None
            except PlanError as error:
                yield from (f"codec of {edge.name}, {way}: {fault}" for fault in error.faults)
                continue
            specs = [spec for spec in cutting.edges[edge.name] if spec.differentiable or way == "forward"]
            if codec is None:
                continue
            for shape in [spec.for_rows(rows) for spec in specs]:
                if fault := codec.fault(shape):
                    yield f"codec of {edge.name}, {way}: {fault}"
                elif codec.most_bytes(shape) > most_coded_bytes(shape):
                    yield (
                        f"codec of {edge.name}, {way}: {codec.name} may need {codec.most_bytes(shape):,} bytes for "
                        f"{shape}, which has {shape.nbytes:,}: choose another"
                    )
