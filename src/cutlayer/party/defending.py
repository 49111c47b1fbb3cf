"""Tensors that cross, made safer as the plan says before they are encoded; and who is shown them on the way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b, sha256
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from cutlayer.codec import raw
from cutlayer.codec.sections import shape_of
from cutlayer.data.loader import Loader
from cutlayer.defence import noise
from cutlayer.defence.defence import Context, Defence, State
from cutlayer.errors import CutlayerError, PlanError, RunError
from cutlayer.model.state import ReplicaState
from cutlayer.observe.tap import Seen, Tap
from cutlayer.party.accounting import Accounting
from cutlayer.party.defences import release_chain
from cutlayer.party.recent import Recent
from cutlayer.plan.plan import Plan
from cutlayer.plan.streams import stream_seed
from cutlayer.plan.terms import WAYS, Way
from cutlayer.plan.topology import SourceKind
from cutlayer.protocol.events import Run
from cutlayer.protocol.messages import Backward, Forward, Ticket

Tensors = tuple[Tensor, ...]
Place = tuple[str, Way]
"""An edge, and the way that a tensor takes on it."""
Slot = tuple[str, Way, str, int]
"""A place, the owner of the rows, and which of the edge's tensors."""
Hijack = Callable[[Seen, nn.Module], Tensor | None]
"""In a run of one's own: what is sent instead of a tensor, if anything is; it is shown the segment that made that."""


@dataclass(frozen=True, slots=True)
class _Trace:
    """How a released activation came about: the way back for the gradient that answers it."""

    leaf: Tensor
    released: Tensor
    stages: tuple[tuple[Defence, State, Slot, int], ...]
    """Those with something to learn."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """A ticket's rows as this party has them."""

    inputs: Tensors = ()
    labels: Tensor | None = None
    places: Tensor | None = None
    held_out: bool = False

    def with_labels(self, tensors: Tensors) -> "_Rows":
        return replace(self, labels=tensors[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Witnesses:
    """Who is shown what crosses. `module`: the party's end of an edge, for an owner's rows, which a hijack is shown."""

    module: Callable[[str, str], nn.Module]
    taps: Sequence[Tap] = ()
    hijack: Hijack | None = None


class Defending:
    """The defences of party `name` on its edges, with what they remember.

    `secret` is the key of their noise. `loader` tells which rows a ticket has. `accounting` writes each release down
    before it happens. `witnesses` are shown what is released and what comes; one may send something else instead.
    """

    def __init__(
        self,
        plan: Plan,
        name: str,
        *,
        secret: bytes,
        run: Callable[[], str],
        loader: Loader | None,
        accounting: Accounting,
        witnesses: Witnesses,
    ) -> None:
        taps, hijack = witnesses.taps, witnesses.hijack
        self._module, self._key = witnesses.module, sha256(b"noise of releases" + secret).digest()
        self._plan, self._name, self._secret, self._run, self._loader = plan, name, secret, run, loader
        self._accounting, self._taps, self._hijack = accounting, taps, hijack
        self._chains = {
            (edge.name, way): chain
            for edge in plan.topology.cuts()
            for way in WAYS
            if (chain := release_chain(plan, edge.name, way))
        }
        self._carries = {edge.name: plan.topology.source_kind(edge) for edge in plan.topology.edges}
        self._states: dict[Slot, list[State]] = {}
        most = 2 * plan.terms.limits.live_tickets
        self._rows: Recent[Ticket, _Rows] = Recent(most)
        self._traces: Recent[tuple[str, Ticket], list[_Trace | None]] = Recent(most)
        self._remembers = bool(self._chains or taps or hijack or any(each.update for each in plan.terms.defence))

    def name(self, message: Forward | Backward) -> str:
        """What defends a message's tensors."""
        chain = self._chains.get(_place(message), ())
        return "+".join(defence.name for defence in chain) or "none"

    @property
    def for_steps(self) -> dict[str, Any]:
        """What a segment that learns by DP-SGD needs of this party."""
        return {"generator": self._generator, "accounting": self._accounting, "places": self._places_of}

    def _places_of(self, ticket: Ticket) -> Tensor | None:
        return (self._rows.get(ticket) or _Rows()).places

    def loaded(self, run: Run, kind: SourceKind, tensors: Tensors) -> None:
        """A source of this party has loaded a ticket's rows."""
        if not self._remembers or self._loader is None or run.batch is None:
            return
        places, held_out = self._loader.places(run.batch), run.batch.held_out
        known = replace(self._rows.get(run.ticket) or _Rows(), places=places, held_out=held_out)
        self._rows[run.ticket] = known.with_labels(tensors) if kind == "labels" else replace(known, inputs=tensors)

    # ------------------------------------------------------------------ what leaves

    def release(self, peer: str, message: Forward | Backward, tensors: Sequence[Tensor]) -> Tensors:
        """What may leave instead of these tensors, once that is written down.

        Raises `BudgetSpent` where it would tell more than the plan allows, `RunError` where a tap ends the run.
        """
        place, rows = _place(message), self._rows.get(message.ticket) or _Rows()
        chain = self._chains.get(place, ())
        if self._hijack is not None:
            tensors = [self._hijacked(peer, message, tensor, rows) for tensor in tensors]
        if chain and tensors:
            traced = [self._defended(chain, message, at, tensor, rows) for at, tensor in enumerate(tensors)]
            released = tuple(each.released.detach() for each in traced)
            keeps = isinstance(message, Forward) and message.ticket.purpose == "train"
            if keeps and any(each.released.requires_grad for each in traced):
                self._traces[message.edge, message.ticket] = [
                    each if each.released.requires_grad else None for each in traced
                ]
        else:
            released = tuple(tensors)
        for tensor in released if self._taps else ():
            self._show(self._seen(peer, message, tensor, rows, sent=True))
        self._accounting.record(place, chain, message.ticket, released, rows.places, held_out=rows.held_out)
        return released

    def _hijacked(self, peer: str, message: Forward | Backward, tensor: Tensor, rows: _Rows) -> Tensor:
        assert self._hijack is not None
        module = self._module(message.edge, message.ticket.owner)
        instead = self._hijack(self._seen(peer, message, tensor, rows, sent=True), module)
        return tensor if instead is None else instead

    def _defended(
        self, chain: Sequence[Defence], message: Forward | Backward, at: int, tensor: Tensor, rows: _Rows
    ) -> _Trace:
        """A tensor through its defences, by noise of this party's own: the same bits get the same noise."""
        ticket, (edge, way) = message.ticket, _place(message)
        digest = blake3(raw.encode(tensor)).hexdigest()
        where = (self._run(), edge, way, ticket.owner, ticket.turn, ticket.purpose, ticket.step, ticket.micro, at)
        context = Context(
            generator=self._generator("release", *where, digest),
            labels=rows.labels,
            row_keys=self._row_keys(rows) if any(defence.for_labels for defence in chain) else None,
            classes=self._classes(edge),
        )
        slot = (edge, way, ticket.owner, at)
        states = self._states_of(slot, chain, tensor)
        goes_back = way == "forward" and ticket.purpose == "train" and tensor.is_floating_point()
        leaf = tensor.detach().requires_grad_(goes_back)
        learned = [(d, s, slot, n) for n, (d, s) in enumerate(zip(chain, states, strict=True)) if goes_back and s]
        with torch.set_grad_enabled(goes_back):
            released = leaf
            for defence, state in zip(chain, states, strict=True):
                try:
                    released = defence.release(released, context, state)
                except PlanError as error:
                    raise RunError(f"{defence.name} on {edge}: {error}") from error
        return _Trace(leaf, released, tuple(learned))

    def _states_of(self, slot: Slot, chain: Sequence[Defence], tensor: Tensor) -> list[State]:
        if slot not in self._states:
            shape = shape_of(tensor)
            self._states[slot] = [
                {
                    name: value.to(tensor.device)
                    for name, value in defence.init(shape, self._generator("begin", *slot, n)).items()
                }
                for n, defence in enumerate(chain)
            ]
        return self._states[slot]

    def _generator(self, *where: object) -> torch.Generator:
        """Keyed by all of this party's secret: a seed of torch's own has 32 bits, which a peer could try."""
        return noise.generator_of(blake2b(repr(where).encode(), key=self._key, digest_size=32).digest())

    def _classes(self, edge: str) -> int:
        """How many classes the labels on an edge have, or, on others, those of the first source that has any."""
        known = self._plan.contents.classes
        carried = next((known.get(e.source, 0) for e in self._plan.topology.edges if e.name == edge), 0)
        return carried if self._carries.get(edge) == "labels" else next(filter(None, known.values()), 0)

    def _row_keys(self, rows: _Rows) -> Tensor | None:
        """A number for each row that nobody else can know, the same whenever the row is released."""
        if rows.places is None:
            return None
        kind = int(rows.held_out)
        return torch.tensor(
            [stream_seed(self._secret, "row", self._plan.digest, kind, place) for place in rows.places.tolist()],
            dtype=torch.int64,
        )

    # ------------------------------------------------------------------ what comes

    def came(self, message: Forward | Backward, peer: str, tensors: Tensors, *, learns: bool = True) -> Tensors:
        """What a peer sent, decoded; of a gradient, what it says of the activation before it was made safer.

        `learns`: whether defences may learn from it.
        """
        rows = self._noted(message, tensors) if self._remembers else _Rows()
        for tensor in tensors if self._taps else ():
            self._show(self._seen(peer, message, tensor, rows, sent=False))
        if not isinstance(message, Backward) or not self._traces:
            return tensors
        traces = self._traces.pop((message.edge, message.ticket))
        if traces is None:
            return tensors
        specs = self._plan.contents.of(message.ticket.owner).edges[message.edge]
        answered = [trace for trace, spec in zip(traces, specs, strict=True) if spec.differentiable]
        return tuple(
            gradient if trace is None else self._back(trace, gradient, learns)
            for trace, gradient in zip(answered, tensors, strict=True)
        )

    def _noted(self, message: Forward | Backward, tensors: Tensors) -> _Rows:
        """A ticket's rows, with labels that a peer sent; and with its activations where they are to be answered."""
        rows = self._rows.get(message.ticket) or _Rows()
        if not isinstance(message, Forward) or not tensors:
            return rows
        kind = self._carries.get(message.edge)
        if kind == "labels":
            rows = rows.with_labels(tensors)
        elif self._hijack is not None:
            rows = replace(rows, inputs=tensors)
        self._rows[message.ticket] = rows
        return rows

    def _back(self, trace: _Trace, gradient: Tensor, learns: bool) -> Tensor:
        """The gradient before the defences, which learn from it what they have to learn."""
        stages = trace.stages if learns else ()
        learning = [(d, s, slot, n, [k for k, v in s.items() if v.requires_grad]) for d, s, slot, n in stages]
        wanted = [state[name] for _, state, _, _, names in learning for name in names]
        first, *others = torch.autograd.grad(trace.released, [trace.leaf, *wanted], gradient)
        given = iter(others)
        for defence, state, slot, n, names in learning:
            self._states[slot][n] = defence.learn({name: next(given) for name in names}, state)
        return first

    # ------------------------------------------------------------------ taps

    def _seen(self, peer: str, message: Forward | Backward, tensor: Tensor, rows: _Rows, *, sent: bool) -> Seen:
        return Seen(
            party=self._name,
            peer=peer,
            edge=message.edge,
            way=_place(message)[1],
            sent=sent,
            ticket=message.ticket,
            tensor=tensor,
            inputs=rows.inputs,
            labels=rows.labels,
            places=rows.places,
        )

    def _show(self, seen: Seen) -> None:
        for tap in self._taps:
            try:
                stop = tap(seen)
            except CutlayerError:
                raise
            except Exception as error:
                raise RunError(f"what looks on at {self._name} failed at {seen.edge} for {seen.ticket}") from error
            if stop is not None:
                raise RunError(stop.reason)

    # ------------------------------------------------------------------ saves

    def state(self) -> ReplicaState:
        """What is remembered from one release to the next."""
        tensors = {
            "|".join((*slot[:3], str(slot[3]), str(n), name)): value.detach()
            for slot, states in self._states.items()
            for n, state in enumerate(states)
            for name, value in state.items()
        }
        return ReplicaState(tensors=tensors, counts={})

    def load(self, state: ReplicaState | None) -> None:
        """Remember what a save remembered, and nothing else."""
        self._states.clear()
        self._traces.clear()
        for key, tensor in state.tensors.items() if state else ():
            edge, way, owner, at, n, name = key.split("|")
            slot = (edge, WAYS[way == "backward"], owner, int(at))
            chain = self._chains[edge, slot[1]]
            states = self._states.setdefault(slot, [{} for _ in chain])
            states[int(n)][name] = tensor.clone().requires_grad_(tensor.is_floating_point())


def _place(message: Forward | Backward) -> Place:
    return message.edge, "forward" if isinstance(message, Forward) else "backward"
