"""A party's states on the move: taken from its replicas, sealed and sent; opened, checked, averaged, put in place."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from cutlayer.data.loader import Loader
from cutlayer.model.average import WeightedSum
from cutlayer.model.robust import averager
from cutlayer.model.segment import ModelSegment
from cutlayer.model.state import (
    MODEL,
    ReplicaState,
    from_bytes,
    named,
    payload_bytes,
    share,
    to_bytes,
    without_personal,
)
from cutlayer.party.masking import MaskedSum
from cutlayer.party.replicas import Replicas
from cutlayer.party.sealed import Seals
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.protocol.events import Add, Give, Movement, Settle, Spread, Take
from cutlayer.protocol.events import Replica as Key
from cutlayer.protocol.messages import State


@dataclass(frozen=True, slots=True)
class Parcel:
    """A state ready to be sent, and how many bytes of it are tensors."""

    message: State
    data: bytes
    payload_bytes: int


class Mover:
    """Carries out a session's movements at party `name`, on `replicas` that may be shared by a process' parties."""

    def __init__(  # noqa: PLR0913 (each is another of the party's hands)
        self,
        plan: Plan,
        name: str,
        replicas: Replicas,
        *,
        segment: Callable[[Key], ModelSegment],
        run: Callable[[], str],
        steps: Callable[[], int],
        seals: Seals | None,
        loader: Loader | None = None,
        masked: MaskedSum | None = None,
    ) -> None:
        """`segment`: a replica's segment, at work. `run`: the run's name. `steps`: the most a replica can have taken.

        Without `seals` nothing can be sealed. `loader`: whose order of rows others may follow, or that follows theirs.
        `masked`: its hand at sums under masks, where it is not for the aggregator to see what each client shares.
        """
        self._loader = loader
        self._plan, self._name, self._replicas, self._segment, self._run = plan, name, replicas, segment, run
        self._steps = steps
        self._seals = seals
        self._server_segments = plan.server_segments
        self._with_optimizer = plan.terms.training.averaged_optimizer == "average"
        self._elsewhere = plan.straddling if plan.aggregator != plan.first.get("server") else frozenset[str]()
        """What a server's replicas leave to the aggregator."""
        self._sum = averager(plan.terms.training.averaging)
        self._masked = masked
        self._result: dict[str, Tensor] | None = None

    def move(self, action: Movement) -> list[Parcel]:
        """Do what the session says; returns what is to be sent. Raises `RunError`, `CredentialError`."""
        match action:
            case Give():
                return [self._give(action)]
            case Take():
                self._take(action)
            case Add():
                self._add(action)
            case Spread():
                return self._spread(action)
            case Settle():
                self._settle(action)
        return []

    # ------------------------------------------------------------------ out of replicas

    def _give(self, give: Give) -> Parcel:
        if give.kind == "order":
            return self._give_order(give)
        if give.kind in ("call", "unmask"):
            return self._give_key(give)
        if give.kind == "replica":
            state = _union(
                without_personal(self._replicas.state(key), self._replicas.pattern(key).personal)
                for key in give.replicas
            )
        elif give.of == "gradients":
            state = _union(self._gradients(key) for key in give.replicas)
        else:
            wanted = None if give.replicas[0][1] == self._name else self._elsewhere
            state = _union(self._share(key, wanted) for key in give.replicas)
        if give.kind == "share" and self._masked is not None:
            state = self._masked.share(give, state)
        message = State(give.number, give.kind, self._name, give.target, (), give.normaliser)
        parcel = self._parcel(message, state, to_bytes(state))
        if give.kind == "share" and give.of == "weights" and give.replicas[0][1] == self._name:
            for key in give.replicas:
                self._replicas.put_back(key)
        return parcel

    def _give_order(self, give: Give) -> Parcel:
        assert self._loader is not None
        self._loader.follow(self._loader.order_key)
        message = State(give.number, give.kind, self._name, give.target, ())
        return self._parcel(message, ReplicaState(tensors={}, counts={}), self._loader.order_key)

    def _give_key(self, give: Give) -> Parcel:
        assert self._masked is not None
        data = self._masked.call(give) if give.kind == "call" else self._masked.unmask(give)
        message = State(give.number, give.kind, self._name, give.target, ())
        return self._parcel(message, ReplicaState(tensors={}, counts={}), data)

    def _share(self, key: Key, wanted: frozenset[str] | None = None) -> ReplicaState:
        names = self._replicas.averaged(key)
        names = names if wanted is None else [name for name in names if name in wanted]
        return share(self._replicas.state(key), names, with_optimizer=self._with_optimizer)

    def _gradients(self, key: Key) -> ReplicaState:
        replica = self._segment(key).replica
        named_gradients = {
            MODEL + name: parameter.grad
            for name, parameter in replica.module.named_parameters()
            if parameter.grad is not None and name not in replica.personal
        }
        return ReplicaState(tensors=named_gradients, counts={})

    def _parcel(self, message: State, state: ReplicaState, data: bytes) -> Parcel:
        sealed = self._sealed(message, data)
        shape = TensorShape("uint8", (len(sealed),))
        whole = State(message.number, message.kind, message.source, message.target, (shape,), message.normaliser)
        return Parcel(whole, sealed, payload_bytes(state))

    # ------------------------------------------------------------------ into replicas

    def _take(self, take: Take) -> None:
        data = self._opened(take.message, take.payload)
        if take.message.kind == "order":
            assert self._loader is not None
            self._loader.follow(data)
            return
        if take.message.kind in ("call", "unmask"):
            self._take_key(take, data)
            return
        if take.message.kind == "mean" and take.of == "weights":
            for key in take.replicas:
                self._replicas.begin_with(key, data, partial(self._mean_for, key, take, data))
            return
        for key, own in self._apart(take.replicas, from_bytes(data)):
            if take.message.kind == "replica":
                pattern = self._replicas.pattern(key)
                names = [name for name in _held(pattern) if name not in pattern.personal]
                pattern.check(own, names=names, moves_at_most=self._steps() + self._plan.terms.training.rounds)
                self._replicas.replace(key, own)
            else:
                self._set_gradients(key, own)

    def _take_key(self, take: Take, data: bytes) -> None:
        assert self._masked is not None
        if take.message.kind == "call":
            self._masked.called(data)
        else:
            self._masked.unmasked(take.message.source, data)

    def _mean_for(self, key: Key, take: Take, data: bytes) -> Mapping[str, Tensor]:
        own = dict(self._apart(take.replicas, from_bytes(data)))[key]
        self._replicas.pattern(key).check(own, names=self._replicas.averaged(key), with_position=False)
        return own.tensors

    def _set_gradients(self, key: Key, state: ReplicaState) -> None:
        replica = self._segment(key).replica
        parameters = {name: p for name, p in replica.module.named_parameters() if name not in replica.personal}
        self._check_gradients(key, state)
        for name, parameter in parameters.items():
            given = state.tensors.get(MODEL + name)
            parameter.grad = None if given is None else given.to(parameter.device, copy=True)

    def _check_gradients(self, key: Key, state: ReplicaState) -> None:
        trained = set(self._replicas.averaged(key))
        self._replicas.pattern(key).check(
            state, names=[named(name) for name in state.tensors if named(name) in trained], with_position=False
        )

    def _apart(self, keys: Sequence[Key], state: ReplicaState) -> Iterable[tuple[Key, ReplicaState]]:
        """Each replica's part of a state; what belongs to none goes with the first, whose check refuses it."""
        names = {key: set(_held(self._replicas.pattern(key))) for key in keys}
        for place, key in enumerate(keys):
            others = set().union(*(held for other, held in names.items() if other != key))
            mine = {
                name: tensor
                for name, tensor in state.tensors.items()
                if named(name) in names[key] or (place == 0 and named(name) not in others)
            }
            yield key, ReplicaState(tensors=mine, counts=state.counts)

    # ------------------------------------------------------------------ sums

    def _add(self, add: Add) -> None:
        if self._result is not None:
            self._sum, self._result = averager(self._plan.terms.training.averaging), None
        if add.message is not None and self._masked is not None:
            self._masked.add(add, from_bytes(self._opened(add.message, add.payload)))
        elif add.message is not None:
            self._sum.add(self._received(add, add.message), add.weight)
        for key in add.replicas:
            state = self._share(key)
            kept = {name: tensor for name, tensor in state.tensors.items() if named(name) not in self._elsewhere}
            self._sum.add(kept, add.weight)
            self._replicas.put_back(key)

    def _received(self, add: Add, message: State) -> Mapping[str, Tensor]:
        """What a client adds, or the server for layers that are a client's elsewhere; checked against what is due."""
        state = from_bytes(self._opened(message, add.payload))
        if message.source == add.owner:
            keys, wanted = [(name, add.owner) for name in self._plan.client_segments], None
        else:
            keys, wanted = [(name, add.owner) for name in self._server_segments], self._elsewhere
        for key, own in self._apart(keys, state):
            if add.of == "gradients":
                self._check_gradients(key, own)
            else:
                names = [name for name in self._replicas.averaged(key) if wanted is None or name in wanted]
                self._replicas.pattern(key).check(own, names=names, with_position=False)
        return state.tensors

    def _results(self, *, gradients: bool) -> dict[str, Tensor]:
        if self._result is None:
            if gradients:
                assert isinstance(self._sum, WeightedSum), "a plan that sums gradients has no robust average"
                self._result = self._sum.total()
            else:
                self._result = self._sum.mean()
            self._result |= self._masked.result() if self._masked is not None else {}
        return self._result

    def _spread(self, spread: Spread) -> list[Parcel]:
        results = self._results(gradients=spread.of == "gradients")
        encoded: dict[tuple[tuple[str, ...], bool], tuple[ReplicaState, bytes]] = {}
        parcels = []
        for target in spread.targets:
            alike = self._plan.terms.parties[target].cut, target == self._plan.first["server"]
            if (known := encoded.get(alike)) is None:
                state = ReplicaState(tensors=self._due_to(target, results, spread.of == "gradients"), counts={})
                known = encoded[alike] = state, to_bytes(state)
            message = State(spread.number, "mean", self._name, target, (), spread.normaliser)
            parcels.append(self._parcel(message, *known))
        return parcels

    def _due_to(self, target: str, results: dict[str, Tensor], gradients: bool) -> dict[str, Tensor]:
        if gradients:
            return results
        if target == self._plan.first["server"]:
            return {name: tensor for name, tensor in results.items() if named(name) in self._plan.straddling}
        names = {name for segment in self._plan.client_segments for name in self._replicas.averaged((segment, target))}
        return {name: tensor for name, tensor in results.items() if named(name) in names}

    def _settle(self, settle: Settle) -> None:
        results = dict(self._results(gradients=False))
        if settle.message is not None:
            came = from_bytes(self._opened(settle.message, settle.payload))
            for owner in self._plan.clients:
                self._check_straddling(owner, settle.segments, came)
            results |= came.tensors
        for segment in settle.segments:
            self._replicas.settle(segment, results)

    def _check_straddling(self, owner: str, segments: Sequence[str], state: ReplicaState) -> None:
        """What the aggregator sends for layers that are a client's under another cut, as far as this owner has them."""
        for segment in segments:
            names = [name for name in self._replicas.averaged((segment, owner)) if name in self._elsewhere]
            mine = {name: tensor for name, tensor in state.tensors.items() if named(name) in names}
            own = ReplicaState(tensors=mine, counts=state.counts)
            self._replicas.pattern((segment, owner)).check(own, names=names, with_position=False)

    # ------------------------------------------------------------------ seals

    def _sealed(self, message: State, data: bytes) -> bytes:
        if not self._is_forwarded(message):
            return data
        assert self._seals is not None, "a plan whose states are forwarded is run with keys to seal them"
        return self._seals.seal(message.target, data, context=self._context(message))

    def _opened(self, message: State, payload: Any) -> bytes:
        (data,) = payload.views
        if self._is_forwarded(message):
            assert self._seals is not None
            data = self._seals.open(message.source, data, context=self._context(message))
        return bytes(data)

    def _is_forwarded(self, message: State) -> bool:
        return self._plan.conductor not in (message.source, message.target)

    def _context(self, message: State) -> bytes:
        """What a seal is good for: this place of this run of this plan, and nothing else."""
        said = (self._plan.digest, self._run(), message.number, message.kind, message.normaliser)
        return repr(said).encode()


def _held(pattern: Any) -> list[str]:
    return [name.removeprefix(MODEL) for name in pattern.state().tensors if name.startswith(MODEL)]


def _union(states: Iterable[ReplicaState]) -> ReplicaState:
    """Replicas of one owner have no name in common, and the same counts."""
    tensors: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for state in states:
        tensors |= state.tensors
        counts |= state.counts
    return ReplicaState(tensors=tensors, counts=counts)
