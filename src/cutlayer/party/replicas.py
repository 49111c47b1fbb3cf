"""The replicas of a process: so many at work at a time, the others at rest, on disk if they are not small.

A module with its optimizer is a *worker*: it serves one replica after another, whose states are loaded into it. So a
server with a replica for each of a thousand clients needs memory for `limits.max_live` of them.
"""

import copy
import dataclasses
import shutil
import tempfile
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from cutlayer.model.rates import Rates
from cutlayer.model.replica import Replica
from cutlayer.model.segment import ModelSegment
from cutlayer.model.state import (
    MODEL,
    OPTIMIZER,
    ReplicaState,
    averaged_names,
    from_bytes,
    named,
    payload_bytes,
    to_bytes,
)
from cutlayer.plan.plan import Plan
from cutlayer.protocol.events import Replica as Key

Variant = tuple[str, tuple[str, ...]]
"""A segment, and the layers after which the model is cut where that is not the plan's own cut."""
Wrap = Callable[[Key, Replica], ModelSegment]

SMALL_BYTES = 4096
"""What a replica at rest may keep in memory: counters, the place in an LR schedule."""


@dataclass(slots=True)
class Rest:
    """A replica at rest: the state it begins with, which others may share, and what it has of its own."""

    base: ReplicaState | None = None
    """None: what the last average at this party left for all, or the initial state."""
    own: ReplicaState | Path | None = None
    average: int = 0
    """How many averages there had been when it came to rest: of what it has of its own a newer one replaces a part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """All that a process' replicas are at a moment, to be taken up again; states are not to be changed."""

    rests: dict[Key, Rest]
    bases: dict[Variant, ReplicaState]
    """What the last average left for all, by segment and cut."""
    averages: dict[Variant, int]


class Replicas:
    """Replicas by segment and owner, of one party or of all parties in a process."""

    def __init__(
        self, plan: Plan, parts: Callable[[str], Mapping[str, nn.Module]], *, device: str | torch.device = "cpu"
    ) -> None:
        """`parts`: an owner's segments as initial modules, by name."""
        training = plan.terms.training
        self.known: dict[Key, None] = {}
        """Every replica that has been at work, or was given a state, in that order."""
        self.device = torch.device(device)
        self._plan, self._parts = plan, parts
        self._averaging, self._local = training, dataclasses.replace(training, proximal=0.0)
        """How averaged segments learn, and others: there is no round's beginning to pull those to."""
        self._max_live = plan.terms.limits.max_live
        self._keeps_optimizers = training.averaged_optimizer == "keep"
        self._averages_optimizers = training.averaged_optimizer == "average"
        self._personal = frozenset(plan.contents.personal)
        self._methods = {
            segment.name: (training.server_optimizer if segment.name in plan.server_segments else None)
            or training.optimizer
            for segment in plan.topology.segments
        }
        self._rates = {name: Rates(method, training.lr_schedule) for name, method in self._methods.items()}
        self._patterns: dict[Variant, Replica] = {}
        self._initial: dict[Variant, ReplicaState] = {}
        self._averaged: dict[Variant, list[str]] = {}
        self._frozen: dict[Variant, set[str]] = {}
        self._bases: dict[Variant, ReplicaState] = {}
        self._averages: Counter[Variant] = Counter()
        self._begun_with: dict[Variant, tuple[bytes, ReplicaState]] = {}
        self._idle: dict[Variant, list[Replica]] = {}
        self._live: OrderedDict[Key, ModelSegment] = OrderedDict()
        self._resting: dict[Key, Rest] = {}
        self._unchanged: dict[Key, Rest] = {}
        """What those at work were loaded from, while they have not changed."""
        self._folder: Path | None = None

    # ------------------------------------------------------------------ at work

    def at_work(self, key: Key, wrap: Wrap, *, changes: bool) -> ModelSegment:
        """The segment at work on a replica, which stays so at least until another one is asked for.

        `changes`: whether it is for training, so that the replica will not be what was loaded.
        """
        if changes:
            self._unchanged.pop(key, None)
        segment = self._live.get(key)
        if segment is not None:
            self._live.move_to_end(key)
            return segment
        self.known[key] = None
        replica = self._worker(key)
        rest = self._resting.pop(key, None) or Rest(average=self._averages[self._variant(key)])
        replica.load(rest.base or self._base(key))
        if rest.own is not None:
            replica.merge(self._fetched(key, rest))
        if not changes:
            self._unchanged[key] = rest
        segment = self._live[key] = wrap(key, replica)
        return segment

    def state(self, key: Key) -> ReplicaState:
        """The whole state of a replica, at work or at rest; not to be changed."""
        if key in self._live:
            return self._live[key].replica.state()
        rest = self._resting.get(key) or Rest()
        base = rest.base or self._base(key)
        if rest.own is None:
            return base
        own = self._fetched(key, rest)
        return ReplicaState(tensors=base.tensors | own.tensors, counts=base.counts | own.counts)

    def pattern(self, key: Key) -> Replica:
        """A replica like this one in its initial state, to check others against; it is never at work."""
        variant = self._variant(key)
        if variant not in self._patterns:
            pattern = self._patterns[variant] = self._made(key)
            self._initial[variant] = pattern.state()
            self._averaged[variant] = averaged_names(pattern.module, self._personal)
            self._frozen[variant] = {name for name, p in pattern.module.named_parameters() if not p.requires_grad}
        return self._patterns[variant]

    def averaged(self, key: Key) -> list[str]:
        """The names of the parameters and buffers that averaging moves."""
        self.pattern(key)
        return self._averaged[self._variant(key)]

    # ------------------------------------------------------------------ new states

    def put_back(self, key: Key) -> None:
        """A replica was added to an average: it rests, with what is its own, until the mean has come."""
        segment = self._live.pop(key, None)
        if segment is not None:
            own = self._own_part(key, segment.replica.state())
            self._rest(key, segment, self._stored(key, own))

    def begin_with(self, key: Key, data: bytes, mean: Callable[[], Mapping[str, Tensor]]) -> None:
        """A replica begins with a mean from now on, which came as `data`, and keeps what is its own.

        Those of one process that are given the same bytes share the tensors.
        """
        variant = self._variant(key)
        last = self._begun_with.get(variant)
        if last is None or last[0] != data:
            last = self._begun_with[variant] = data, self._completed(key, mean())
        self.put_back(key)
        self.known[key] = None
        rest = self._resting.setdefault(key, Rest())
        rest.base, rest.average = last[1], -1

    def settle(self, segment: str, mean: Mapping[str, Tensor]) -> None:
        """All replicas of a segment begin with a mean from now on, and keep what is their own."""
        for key in [key for key in self._live if key[0] == segment]:
            self.put_back(key)
        for owner in self._alike:
            key = (segment, owner)
            names = set(self.averaged(key))
            own = {name: tensor for name, tensor in mean.items() if named(name) in names}
            self._bases[self._variant(key)] = self._completed(key, own)
            self._averages[self._variant(key)] += 1

    def replace(self, key: Key, state: ReplicaState) -> None:
        """A replica was handed on to here: it becomes what the state is, but for what is personal."""
        self.known[key] = None
        personal, initial = self.pattern(key).personal, self._initial[self._variant(key)]
        own = ReplicaState(
            tensors={name: tensor for name, tensor in self.state(key).tensors.items() if named(name) in personal},
            counts={},
        ).copied()
        if (segment := self._live.pop(key, None)) is not None:
            self._rest(key, segment, None)
        base = ReplicaState(tensors=initial.tensors | state.tensors, counts=state.counts)
        self._resting[key] = Rest(base, own if own.tensors else None)

    def begin(self, key: Key, state: ReplicaState) -> None:
        """A replica begins with this state, personal values and all."""
        self.known[key] = None
        initial = self._initial[self._variant(key)]
        if (segment := self._live.pop(key, None)) is not None:
            self._rest(key, segment, None)
        self._resting[key] = Rest(ReplicaState(tensors=initial.tensors | state.tensors, counts=state.counts))

    # ------------------------------------------------------------------ saves

    def kept(self) -> Kept:
        """What a save needs. States of replicas at work are their live tensors, which their next step changes."""
        return Kept(
            rests={key: self._kept(key) for key in self.known},
            bases=dict(self._bases),
            averages=dict(self._averages),
        )

    def _kept(self, key: Key) -> Rest:
        if key in self._live and key not in self._unchanged:
            whole = self._live[key].replica.state()
            return Rest(own=whole, average=self._averages[self._variant(key)])
        rest = self._unchanged.get(key) or self._resting[key]
        own = from_bytes(rest.own.read_bytes()) if isinstance(rest.own, Path) else rest.own
        return Rest(rest.base, own, rest.average)

    def take_up(self, kept: Kept) -> None:
        """Become what was kept; nothing has been at work yet."""
        self._bases, self._averages = dict(kept.bases), Counter(kept.averages)
        for key, rest in kept.rests.items():
            self.known[key] = None
            self.pattern(key)
            self._resting[key] = rest

    # ------------------------------------------------------------------ workers

    @cached_property
    def _alike(self) -> tuple[str, ...]:
        """A client for each way in which the model is cut."""
        return tuple({self._variant(("", owner)): owner for owner in self._plan.clients}.values())

    def _variant(self, key: Key) -> Variant:
        segment, owner = key
        return segment, self._plan.terms.parties[owner].cut if owner in self._plan.contents.cuttings else ()

    def _made(self, key: Key) -> Replica:
        segment, owner = key
        return Replica(
            copy.deepcopy(self._parts(owner)[segment]).to(self.device),
            self._averaging if segment in self._plan.averaged_segments else self._local,
            rates=self._rates[segment],
            personal=self._personal,
            optimizer=self._methods[segment],
        )

    def _worker(self, key: Key) -> Replica:
        """One without work; a new one while there are fewer than may be; else the one that has waited longest."""
        variant = self._variant(key)
        idle = self._idle.setdefault(variant, [])
        if idle:
            return idle.pop()
        alike = [other for other in self._live if self._variant(other) == variant]
        free = (other for other in alike if not self._live[other].busy)
        if len(alike) >= self._max_live and (longest := next(free, None)) is not None:
            segment = self._live.pop(longest)
            if (rest := self._unchanged.pop(longest, None)) is not None:
                self._resting[longest] = rest
                return segment.replica
            self._rest(longest, segment, self._stored(longest, segment.replica.state()))
            return idle.pop()
        return self._made(key)

    def _rest(self, key: Key, segment: ModelSegment, own: ReplicaState | Path | None) -> None:
        variant = self._variant(key)
        self._unchanged.pop(key, None)
        self._resting[key] = Rest(own=own, average=self._averages[variant])
        self._idle.setdefault(variant, []).append(segment.replica)

    # ------------------------------------------------------------------ states

    def _base(self, key: Key) -> ReplicaState:
        variant = self._variant(key)
        if variant in self._bases:
            return self._bases[variant]
        self.pattern(key)
        return self._initial[variant]

    def _completed(self, key: Key, mean: Mapping[str, Tensor]) -> ReplicaState:
        """A whole state from a mean: what is not averaged is as it was initially."""
        self.pattern(key)
        initial = self._initial[self._variant(key)]
        return ReplicaState(tensors={**initial.tensors, **mean}, counts=initial.counts)

    def _own_part(self, key: Key, state: ReplicaState) -> ReplicaState:
        """What an average leaves with a replica: personal values, counters, its place, its optimizer if it is kept."""
        averaged, frozen = set(self.averaged(key)), self._frozen[self._variant(key)]

        def stays(name: str, tensor: Tensor) -> bool:
            about = named(name)
            if name.startswith(MODEL):
                return about not in averaged and about not in frozen
            if not name.startswith(OPTIMIZER):
                return False
            left = about not in averaged or not tensor.is_floating_point()
            return self._keeps_optimizers or (self._averages_optimizers and left)

        tensors = {name: tensor for name, tensor in state.tensors.items() if stays(name, tensor)}
        return ReplicaState(tensors=tensors, counts=state.counts)

    def _stored(self, key: Key, state: ReplicaState) -> ReplicaState | Path:
        """In memory if it is small, else on disk."""
        if payload_bytes(state) <= SMALL_BYTES:
            return state.copied()
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="cutlayer-replicas-"))  # its owner's alone, and gone with us
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        path = self._folder / "-".join(key)
        path.write_bytes(to_bytes(state))
        return path

    def _fetched(self, key: Key, rest: Rest) -> ReplicaState:
        """What a replica at rest has of its own, as far as no average has replaced it."""
        assert rest.own is not None
        own = from_bytes(rest.own.read_bytes()) if isinstance(rest.own, Path) else rest.own
        return own if rest.average == self._averages[self._variant(key)] else self._own_part(key, own)
