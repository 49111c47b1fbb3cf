"""The plan: what was agreed, frozen, with canonical bytes and a digest.

`Terms` are what a person writes in `plan.toml`. `Contents` are what follows from them and the model: which parameters
lie in which segment, and what each edge carries. A party agrees to both, through one digest.
"""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Literal

import msgspec

from cutlayer.plan.limits import Limits
from cutlayer.plan.schedule import SCHEDULES, Schedule, TurnUnit
from cutlayer.plan.tensors import DType, TensorShape, TensorSpec
from cutlayer.plan.topology import TOPOLOGIES, Topology

FORMAT = 2

Option = bool | int | float | str | list[int | float]
AveragedOptimizer = Literal["reset", "keep", "average"]
ClientSegments = Literal["equal", "own"]
Choice = int | float | Literal["all"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """Something of torch's, by its name there, with its arguments: an optimizer, an LR schedule, a loss."""

    name: str
    options: dict[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTerms:
    """Which model, and after which layers it is cut."""

    cut: tuple[str, ...] = ()
    source: str = "model.py"
    weights: str = "initial.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class InputTerms:
    """What one row's features look like: the shape without the batch dimension."""

    shape: tuple[int, ...]
    dtype: DType = "float32"

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(dtype=self.dtype, shape=("B", *self.shape), differentiable=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the segments learn. One optimizer per replica; `server_optimizer` is that of server segments, if another.

    `clients_per_round`: how many clients a round has, or which part of them, or all. In a round a client makes
    `local_epochs` passes over its rows, or takes `local_steps` steps if that is not 0.
    `averaged_optimizer`: what becomes of the optimizer of a replica whose weights were averaged.
    `client_segments`: under `parallel`, equal everywhere by summed gradients, or each client's own.
    `cut_average`: under `parallel`, the part of each batch whose gradients at the cut are averaged over the clients.
    `proximal`: FedProx's μ, for replicas whose weights are averaged.
    `personal`: parameters that stay with their owner, by patterns of names or as `type:BatchNorm2d`.
    """

    loss: Method
    optimizer: Method
    batch_size: int
    rounds: int
    lr_schedule: Method | None = None
    micro_batches: int = 1
    shuffle: bool = True
    drop_last: bool = False
    held_out: float = 0.2
    clients_per_round: Choice = "all"
    local_epochs: int = 1
    local_steps: int = 0
    averaged_optimizer: AveragedOptimizer = "reset"
    client_segments: ClientSegments = "equal"
    cut_average: float = 0.0
    server_optimizer: Method | None = None
    proximal: float = 0.0
    personal: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PartyTerms:
    """One participant: its role, the address that others dial (servers only), and its public keys if they are pinned.

    `key` is the SHA-256 of the key in its certificate, in hex: then not even the authority can stand in for it.
    `signing_key` (Ed25519) and `sealing_key` (X25519), in hex, are for state that a third party forwards.
    `cut`: layers after which the model is cut for this client, if not the model's own cut.
    `lr_scale`: by what the server multiplies its learning rate in steps made of this client's rows.
    """

    role: str
    address: str = ""
    key: str = ""
    signing_key: str = ""
    sealing_key: str = ""
    cut: tuple[str, ...] = ()
    lr_scale: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a person writes. `conductor` is the party that hands out turns; by default the (first) server.

    `aggregator_sees_weights`: no party of its own averages; the server's does, and sees what should stay apart.
    """

    topology: str
    schedule: str
    model: ModelTerms
    input: InputTerms
    training: Training
    parties: dict[str, PartyTerms]
    name: str = "run"
    format: int = FORMAT
    turn: TurnUnit = "epoch"
    seed: int = 0
    conductor: str = ""
    aggregator_sees_weights: bool = False
    limits: Limits = field(default_factory=Limits)

    @property
    def aggregator(self) -> str:
        """The party that sums and averages what clients send; empty if there is none."""
        own, servers = self.filling("aggregator"), self.filling("server") if self.aggregator_sees_weights else ()
        return next(iter(own or servers), "")

    @property
    def pins(self) -> dict[str, str]:
        """The public keys that the plan pins, by party."""
        return {name: party.key for name, party in self.parties.items() if party.key}

    def filling(self, role: str) -> tuple[str, ...]:
        """The parties that fill a role, in party order."""
        return tuple(name for name, party in self.parties.items() if party.role == role)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentContents:
    """A segment's parameters and buffers, by their names in the uncut model."""

    state: dict[str, TensorShape]
    parameters: int
    """How many trainable numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cutting:
    """What a way of cutting the model gives: its segments, and what its edges carry."""

    segments: dict[str, SegmentContents]
    edges: dict[str, tuple[TensorSpec, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """What follows from the terms and the model."""

    segments: dict[str, SegmentContents]
    edges: dict[str, tuple[TensorSpec, ...]]
    classes: int
    """How many classes the labels have; 0 where they are no classes."""
    model_digest: str
    weights_digest: str
    personal: tuple[str, ...] = ()
    """The parameters and buffers that stay with their owner, by name."""
    cuttings: dict[str, Cutting] = field(default_factory=dict)
    """For clients whose model is cut elsewhere."""

    @property
    def everywhere(self) -> "tuple[Cutting | Contents, ...]":
        """The plan's own way of cutting the model, and those of clients whose model is cut elsewhere."""
        return (self, *self.cuttings.values())

    def of(self, owner: str) -> "Cutting | Contents":
        """The segments and edges that `owner`'s rows meet."""
        return self.cuttings.get(owner, self)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Terms and contents: everything that all parties must agree on."""

    terms: Terms
    contents: Contents

    @cached_property
    def topology(self) -> Topology:
        return TOPOLOGIES[self.terms.topology]()

    @cached_property
    def schedule(self) -> Schedule:
        return SCHEDULES[self.terms.schedule]

    @cached_property
    def first(self) -> dict[str, str]:
        """The first party that fills each role."""
        return {party.role: name for name, party in reversed(self.terms.parties.items())}

    @cached_property
    def aggregator(self) -> str:
        """The party that sums and averages what clients send; empty if there is none."""
        return self.terms.aggregator

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """The parties that bring rows, in party order."""
        return self.terms.filling("client")

    @cached_property
    def conductor(self) -> str:
        return self.terms.conductor or self.first["server"]

    @cached_property
    def averaged_segments(self) -> tuple[str, ...]:
        """Segments whose replicas are averaged, in the order of the topology."""
        return self._segments_at(self.schedule.averaged)

    @cached_property
    def client_segments(self) -> tuple[str, ...]:
        return self._segments_at(("client",))

    def _segments_at(self, roles: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(segment.name for segment in self.topology.segments if segment.role in roles)

    @cached_property
    def straddling(self) -> frozenset[str]:
        """Names of state that lies at a client under one cut and at the server under another."""
        held: dict[bool, set[str]] = {True: set(), False: set()}
        for cutting in self.contents.everywhere if self.contents.cuttings else ():
            for segment, contents in cutting.segments.items():
                held[segment in self.client_segments].update(contents.state)
        return frozenset(held[True] & held[False])

    def canonical(self) -> bytes:
        """The bytes that the digest covers: JSON with a fixed order, and the parties' own order, which turns follow."""
        return msgspec.json.encode((self.terms, list(self.terms.parties), self.contents), order="deterministic")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return sha256(self.canonical()).hexdigest()
