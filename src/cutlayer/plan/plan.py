"""The plan: what was agreed, frozen, with canonical bytes and a digest.

`Terms` are what a person writes in `plan.toml`. `Contents` are what follows from them and the model: which parameters
lie in which segment, and what each edge carries. A party agrees to both, through one digest.
"""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import msgspec

from cutlayer.plan.limits import Limits
from cutlayer.plan.schedule import TurnUnit
from cutlayer.plan.tensors import DType, TensorShape, TensorSpec
from cutlayer.plan.topology import TOPOLOGIES, Topology

FORMAT = 1

Option = bool | int | float | str | list[int | float]


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
    """How the segments learn. One optimizer per replica, the same kind everywhere."""

    loss: Method
    optimizer: Method
    batch_size: int
    rounds: int
    lr_schedule: Method | None = None
    micro_batches: int = 1
    shuffle: bool = True
    drop_last: bool = False
    held_out: float = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class PartyTerms:
    """One participant: its role, the address that others dial (servers only), and its public key if the plan pins it.

    `key` is the SHA-256 of the key in its certificate, in hex: then not even the authority can stand in for it.
    """

    role: str
    address: str = ""
    key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a person writes. `conductor` is the party that hands out turns; by default the (first) server."""

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
    limits: Limits = field(default_factory=Limits)

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
class Contents:
    """What follows from the terms and the model."""

    segments: dict[str, SegmentContents]
    edges: dict[str, tuple[TensorSpec, ...]]
    classes: int
    """How many classes the labels have; 0 where they are no classes."""
    model_digest: str
    weights_digest: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Terms and contents: everything that all parties must agree on."""

    terms: Terms
    contents: Contents

    @cached_property
    def topology(self) -> Topology:
        return TOPOLOGIES[self.terms.topology]()

    @cached_property
    def first(self) -> dict[str, str]:
        """The first party that fills each role."""
        return {party.role: name for name, party in reversed(self.terms.parties.items())}

    @cached_property
    def conductor(self) -> str:
        return self.terms.conductor or self.first["server"]

    def canonical(self) -> bytes:
        """The bytes that the digest covers: JSON with a fixed order, and the parties' own order, which turns follow."""
        return msgspec.json.encode((self.terms, list(self.terms.parties), self.contents), order="deterministic")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hexadecimal."""
        return sha256(self.canonical()).hexdigest()
