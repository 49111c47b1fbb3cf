"""The terms: what a person writes in `plan.toml`, as plain data."""

from dataclasses import dataclass, field
from typing import Literal

from cutlayer.plan.limits import Limits
from cutlayer.plan.schedule import TurnUnit
from cutlayer.plan.tensors import DType, TensorSpec
from cutlayer.plan.topology import OWN, TOPOLOGIES, Cast, Edge, Join, SegmentNode, Source, SourceKind, Topology

FORMAT = 6

TOGETHER = "all"
"""The owner of rows that several parties have different columns of: they travel as one."""

Option = bool | int | float | str | list[int | float]
AveragedOptimizer = Literal["reset", "keep", "average"]
ClientSegments = Literal["equal", "own"]
Choice = int | float | Literal["all"]
Quorum = int | Literal["all"]
OnAlarm = Literal["tell", "end"]
Way = Literal["forward", "backward"]
WAYS: tuple[Way, ...] = ("forward", "backward")


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
class TurnCheckTerms:
    """The server's segment goes back behind a client's turn that moved it as most others did not (SafeSplit).

    A turn is judged among the last `window` (0: none is), by the `low` part of its update's frequencies and by the
    angles of its turn. `slack` widens what counts as usual; 1 is SafeSplit's rule.
    """

    window: int = 0
    low: float = 0.25
    slack: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the segments learn. One optimizer per replica; `server_optimizer` is that of server segments, if another.

    A step's mini-batch travels in `micro_batches` parts, of which `in_flight` at a time (0: all); `"auto"`: the
    conductor tries some numbers in the first steps, and keeps the fastest. `staleness`: how many more steps are begun
    before the oldest is through; each goes back by the weights with which it went forward, older by so many steps.
    `statistics_of_parts`: layers that normalise over a batch may do so over each part of one. `cached_steps`: where
    parties have columns of the same rows, steps that each of them takes by itself after one that all take, on what it
    has of the last mini-batches. `autocast`: segments that compute in bfloat16 where torch holds that to be safe;
    `compiled`: those that `torch.compile` makes faster.

    `clients_per_round`: how many clients a round has, or which part of them, or all. In a round a client makes
    `local_epochs` passes over its rows, or takes `local_steps` steps if that is not 0.
    `averaged_optimizer`: what becomes of the optimizer of a replica whose weights were averaged.
    `client_segments`: under `parallel`, equal everywhere by summed gradients, or each client's own.
    `cut_average`: under `parallel`, the part of each batch whose gradients at the cut are averaged over the clients.
    `proximal`: FedProx's μ, for replicas whose weights are averaged. `averaging`: how, if not by their weighted mean:
    a method that a few bad shares cannot lead astray.
    `personal`: parameters that stay with their owner, by patterns of names or as `type:BatchNorm2d`.
    `losses`: of segments that have another loss than `loss`, by segment. `loss_weights`: λ of each loss, where a
    topology has several; 1 if it is not named. `upload_every`: under `decoupled` the server gets each so-manyth batch.
    `turn_check`: whether the server takes back turns that are unlike the others.
    `party_dropout`: how often a party's activation is replaced by zeros where a segment joins those of several, in
    training, so that the model learns to do without.
    """

    loss: Method
    optimizer: Method
    batch_size: int
    rounds: int
    lr_schedule: Method | None = None
    micro_batches: int | Literal["auto"] = 1
    in_flight: int = 0
    staleness: int = 0
    statistics_of_parts: bool = False
    cached_steps: int = 0
    autocast: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
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
    averaging: Method | None = None
    turn_check: TurnCheckTerms = field(default_factory=TurnCheckTerms)
    personal: tuple[str, ...] = ()
    losses: dict[str, Method] = field(default_factory=dict)
    loss_weights: dict[str, float] = field(default_factory=dict)
    upload_every: int = 1
    party_dropout: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PartyTerms:
    """One participant: its role, the address that others dial (servers only), and its public keys if they are pinned.

    `key` is the SHA-256 of the key in its certificate, in hex: then not even the authority can stand in for it.
    `signing_key` (Ed25519) and `sealing_key` (X25519), in hex, are for state that a third party forwards.
    `cut`: layers after which the model is cut for this client, if not the model's own cut.
    `lr_scale`: by what the server multiplies its learning rate in steps made of this client's rows.
    `input`: what one row of this party's features looks like, where parties have different columns; one or several
    tensors. A party that is no client brings features if it has an `input`.
    """

    role: str
    address: str = ""
    key: str = ""
    signing_key: str = ""
    sealing_key: str = ""
    cut: tuple[str, ...] = ()
    lr_scale: float = 1.0
    input: tuple[InputTerms, ...] = ()

    @property
    def has_features(self) -> bool:
        return self.role == "client" or bool(self.input)


Feedback = Literal["", "channel", "sample"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecTerms:
    """How what crosses on `edge` is encoded, each way: by stages, one after another; without any, as it is.

    Without an edge: on every cut that carries activations and has no entry of its own. `…_feedback`: what encoding
    lost of a tensor is added to the next one of that edge and way (`channel`), or to the same row's next one
    (`sample`), which takes memory: at most `feedback_mib` MiB for each edge, way and owner of rows.
    """

    edge: str = ""
    forward: tuple[Method, ...] = ()
    backward: tuple[Method, ...] = ()
    forward_feedback: Feedback = ""
    backward_feedback: Feedback = ""
    feedback_mib: int = 256

    def stages(self, way: Way) -> tuple[Method, ...]:
        return self.forward if way == "forward" else self.backward

    @property
    def coded(self) -> bool:
        """Whether anything is encoded."""
        return bool(self.forward or self.backward)

    def feedback(self, way: Way) -> Feedback:
        return self.forward_feedback if way == "forward" else self.backward_feedback


@dataclass(frozen=True, kw_only=True, slots=True)
class DefenceTerms:
    """How what crosses on `edge` is made safer before it is encoded, each way: by methods, one after another.

    Without an edge: on every cut that carries activations and has no entry of its own. `segment`, instead of an edge:
    how a segment learns (`update`).
    """

    edge: str = ""
    segment: str = ""
    forward: tuple[Method, ...] = ()
    backward: tuple[Method, ...] = ()
    update: tuple[Method, ...] = ()

    def methods(self, way: Way) -> tuple[Method, ...]:
        return self.forward if way == "forward" else self.backward


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTerms:
    """Mini-batches with wrong labels, by which their owner finds out whether the server looks at labels (SplitGuard).

    `share`: by which chance a mini-batch is one, drawn from its owner's secret, from the owner's step number `after`
    on. No segment of the owner's steps on it. With 0 there are none.
    """

    share: float = 0.0
    after: int = 20


Channel = Literal["activations", "gradients", "labels", "weights"]
"""By which way something of a party's rows reaches another party."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetTerms:
    """How much a party may tell of a row by one channel: ε at δ. It stops before the release that would exceed it."""

    party: str
    epsilon: float
    channel: Channel = "activations"
    delta: float = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveTerms:
    """When the parties write down their parts of the run: after so many rounds, and at the end; and after each
    `every_steps` steps, if that is not 0.
    """

    every_rounds: int = 1
    every_steps: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a person writes. `conductor` is the party that hands out turns; by default the (first) server.

    `input`: one row of a client's features, a tensor or several.
    `aggregator_sees_weights`: no party of its own averages; the server's does, and sees what should stay apart.
    `labels`: the party that has the labels, where that is a choice; `labels_leave`: they may go to another one.
    `join`: how the activations of several parties become one; without a name the user's module is called with all.
    `source`, `segment`, `edge`: what a topology of one's own (`topology = "own"`) consists of.
    `codec`: how what crosses is encoded. `defence`: how it is made safer before; `budget`: how much it may tell.
    `probe`: mini-batches that ask whether the server trains what was agreed.
    `on_alarm`: whether an alarm of a party's monitor or probes is told to its person, or ends the run before the next
    release.
    `secure_aggregation`: the aggregator learns the weighted sum of what clients send and nothing else of it.
    `quorum`: how many clients are enough to go on with when others are lost or slow; by default all are waited for.
    """

    topology: str
    schedule: str
    model: ModelTerms
    training: Training
    parties: dict[str, PartyTerms]
    input: InputTerms | tuple[InputTerms, ...] = ()
    name: str = "run"
    format: int = FORMAT
    turn: TurnUnit = "epoch"
    seed: int = 0
    conductor: str = ""
    aggregator_sees_weights: bool = False
    labels: str = ""
    labels_leave: bool = False
    join: Join = "concat"
    source: tuple[Source, ...] = ()
    segment: tuple[SegmentNode, ...] = ()
    edge: tuple[Edge, ...] = ()
    codec: tuple[CodecTerms, ...] = ()
    defence: tuple[DefenceTerms, ...] = ()
    budget: tuple[BudgetTerms, ...] = ()
    probe: ProbeTerms = field(default_factory=ProbeTerms)
    secure_aggregation: bool = False
    on_alarm: OnAlarm = "tell"
    quorum: Quorum = "all"
    saves: SaveTerms = field(default_factory=SaveTerms)
    limits: Limits = field(default_factory=Limits)

    def drawn(self) -> Topology:
        """The topology, drawn for these parties."""
        if self.topology == OWN:
            return Topology(name=OWN, sources=self.source, segments=self.segment, edges=self.edge).in_order()
        return TOPOLOGIES[self.topology](
            Cast(
                roles={name: party.role for name, party in self.parties.items()},
                features=tuple(name for name, party in self.parties.items() if party.has_features),
                labels=self.labels,
                join=self.join,
                upload_every=self.training.upload_every,
            )
        )

    @property
    def conducting(self) -> str:
        """The party that hands out turns."""
        return self.conductor or next(iter(self.filling("server")), "")

    @property
    def forwarded_pairs(self) -> frozenset[tuple[str, str]]:
        """Parties with an edge between them, of which neither is the conductor: it forwards what they seal."""
        topology = self.drawn()
        conductor = self.conducting
        held = {role: (role,) if role in self.parties else self.filling(role) for role in topology.roles}
        ends = {(topology.role_of(edge.source), topology.role_of(edge.target)) for edge in topology.cuts()}
        return frozenset(
            (one, other)
            for below, above in ends
            for a in held[below]
            for b in held[above]
            for one, other in ((a, b), (b, a))
            if conductor not in (a, b)
        )

    def bringing(self, *kinds: SourceKind) -> tuple[str, ...]:
        """The parties that have a source of these kinds, in party order."""
        roles = {source.role for source in self.drawn().sources if source.kind in kinds}
        named, filled = roles & self.parties.keys(), roles - self.parties.keys()
        return tuple(name for name, party in self.parties.items() if name in named or party.role in filled)

    def inputs_of(self, role: str) -> tuple[InputTerms, ...]:
        """What a row of features looks like at a role, or at a party: its own, or that of all, or the role's first."""
        own = self.parties[role].input if role in self.parties else ()
        shared = self.input if isinstance(self.input, tuple) else (self.input,)
        return own or shared or next((self.parties[name].input for name in self.filling(role)), ())

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
