"""A run of an agreed plan in this process, from its parties to what it gave."""

import copy
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cutlayer.errors import CutlayerError, DataError, LocalProtocolError, PeerStopped, PlanError
from cutlayer.model.merge import merge, put_into
from cutlayer.observe.facts import Observer, Scored
from cutlayer.observe.meter import Meter
from cutlayer.observe.tap import Tap
from cutlayer.party.agreement import Agreement
from cutlayer.party.defending import Hijack
from cutlayer.party.party import Party
from cutlayer.party.replicas import Replicas
from cutlayer.party.run import make_loader
from cutlayer.party.sealed import Seals, Unsealed, unsealed
from cutlayer.party.setting import Setting
from cutlayer.plan.document import nearest
from cutlayer.plan.membership import ALL, NEVER, Log
from cutlayer.plan.terms import TOGETHER
from cutlayer.protocol.agenda import shared_agendas
from cutlayer.protocol.messages import NONCE_BYTES, Task
from cutlayer.protocol.resuming import Standing
from cutlayer.protocol.route import Route, largest_body_bytes
from cutlayer.transport.memory import MemoryChannel, pair

Data = Dataset[Any]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a simulated run gave."""

    agreement: Agreement
    parties: Mapping[str, Party]
    meters: Mapping[str, Meter]

    @property
    def history(self) -> list[dict[str, Any]]:
        """Every turn's losses and scores, in order: `round`, `purpose`, `party` (whose rows), and the metrics."""
        scores: dict[tuple[int, str], Scored] = {}
        for meter in self.meters.values():
            for score in meter.history:
                place = (score.turn, score.owner)
                known = scores[place].metrics if place in scores else {}
                scores[place] = replace(score, metrics={**known, **score.metrics})
        return [
            {"round": s.round, "purpose": s.purpose, "party": s.owner, **s.metrics}
            for _, s in sorted(scores.items(), key=lambda item: item[0])
        ]

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The last evaluation on each party's held-out rows."""
        return {
            entry["party"]: {k: v for k, v in entry.items() if k not in {"round", "purpose", "party"}}
            for entry in self.history
            if entry["purpose"] == "eval"
        }

    @property
    def bytes(self) -> dict[str, dict[str, int]]:
        """Bytes that each party sent and received on its channels."""
        return {
            name: {
                "sent": party.sent_bytes,
                "received": party.received_bytes,
            }
            for name, party in self.parties.items()
        }

    def model_for(self, party: str = "") -> nn.Module:
        """The whole model as `party`'s rows meet it: its own client segments, and the server's. In eval mode.

        Where all parties have columns of the same rows there is one model, of no party in particular.
        """
        plan = self.agreement.plan
        owner = TOGETHER if plan.schedule.together else party
        if owner not in plan.owners:
            raise PlanError(f"{party!r} brings no rows; models are of {', '.join(plan.owners)}")
        return merge(self.agreement.model, self.segments_for(owner).values()).cpu().eval()

    def segments_for(self, owner: str) -> dict[str, nn.Module]:
        """The segments that an owner's rows meet, as they were trained, by name."""
        parts = copy.deepcopy(self.agreement.parts_of(owner))
        for name, holder in self.parties.items():
            route = Route(self.agreement.plan, name, owner)
            for segment in route.segments:
                put_into(parts[segment], holder.replicas.state(route.replicas[segment]))
        return parts

    def weights_of(self, party: str) -> dict[str, Tensor]:
        """The parameters and buffers of a party's own segments, by their names in the uncut model."""
        return self.parties[party].weights()

    def predict(self, data: Mapping[str, Data], absent: Sequence[str] = ()) -> dict[str, dict[str, Tensor]]:
        """What each segment that answers says to new rows, by the owner of the rows; all rows are used, in order.

        `absent` parties are done without, if the plan was trained with `party_dropout`. Raises `PlanError`.
        """
        plan = self.agreement.plan
        if strange := [name for name in data if name not in plan.terms.parties]:
            raise DataError(f"{strange[0]!r} is no party of the plan{nearest(strange[0], plan.terms.parties)}")
        if reason := plan.why_not_without(absent):
            raise PlanError(reason)
        present = {name for name in plan.terms.parties if name not in absent}
        if not plan.schedule.together:
            present -= set(plan.clients) - data.keys()
        absent = [name for name in plan.terms.parties if name not in present]
        with torch.random.fork_rng(devices=[]):
            crew = _Crew(self.agreement, data, Local(), task="predict")
            parties = crew.parties(Standing(absent=frozenset(absent)))
            for name, party in parties.items():
                for owner in plan.owners:
                    party.restore(owner, self.parties[name].weights(owner))
            _drive(parties, None)
        told: dict[str, dict[str, Tensor]] = {}
        for party in parties.values():
            for node, answers in party.answers.items():
                told.setdefault(node, {}).update(answers)
        return told


def simulate_plan(  # noqa: PLR0913 (all that a run can be told, by name)
    agreement: Agreement,
    data: Mapping[str, Data],
    *,
    held_out: Mapping[str, Data] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    seals: Mapping[str, Seals] | None = None,
    observers: Sequence[Observer] = (),
    device: str = "cpu",
    delivery: random.Random | None = None,
    log: Log = ALL,
    micro_batches: int = 1,
    taps: Sequence[Tap] = (),
    hijacks: Mapping[str, Hijack] | None = None,
) -> Result:
    """Run an agreed plan in this process. `delivery` shuffles which link is served next; the result stays the same.

    With the `log` of a run in which parties were absent for a while, those are absent here from the same rounds on.

    Where the plan lets the conductor measure how many `micro_batches` are fastest, there are so many from there on.

    `taps` are shown what each party releases at its cuts and what comes there. `hijacks`, by party: what it sends
    instead of what it should.

    Without `seals`, by party, states that are forwarded are not sealed: they have as many bytes, and no secret.

    Raises what the arguments of `simulate` may raise, for the party that it happened to.
    """
    meters = {name: Meter() for name in agreement.plan.terms.parties}
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        crew = _Crew(
            agreement,
            data,
            Local(
                held_out=held_out or {},
                secrets=secrets or {},
                seals=seals or {},
                observers={name: (meter, *observers) for name, meter in meters.items()},
                device=device,
                micro_batches=micro_batches,
                taps=taps,
                hijacks=hijacks or {},
            ),
        )
        parties: dict[str, Party] = {}
        for standing in _replayed(log):
            there = crew.parties(standing)
            _drive(there, delivery)
            parties |= there
    parties = {name: parties[name] for name in agreement.plan.terms.parties if name in parties}
    return Result(agreement=agreement, parties=parties, meters=meters)


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """What is a party's own, by party, and where all of them compute."""

    held_out: Mapping[str, Data] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    seals: Mapping[str, Seals] = field(default_factory=dict)
    observers: Mapping[str, Sequence[Observer]] = field(default_factory=dict)
    device: str = "cpu"
    micro_batches: int = 1
    taps: Sequence[Tap] = ()
    hijacks: Mapping[str, Hijack] = field(default_factory=dict)


class _Crew:
    """The parties of a run in this process; they share what they may."""

    def __init__(self, agreement: Agreement, data: Mapping[str, Data], local: Local, task: Task = "train") -> None:
        self._plan, self._local, self._task = agreement.plan, local, task
        self._replicas = Replicas(agreement.plan, agreement.parts_of, device=local.device)
        self._secrets = {
            name: local.secrets.get(name) or _secret(agreement.plan.terms.seed, name)
            for name in agreement.plan.terms.parties
        }
        self._seals = unsealed(self._secrets) if self._plan.terms.secure_aggregation else {}
        self._loaders = {
            name: make_loader(agreement, name, data.get(name), local.held_out.get(name), secret, task)
            for name, secret in self._secrets.items()
            if task == "train" or name in data or name not in agreement.plan.feature_owners
        }

    def parties(self, standing: Standing) -> dict[str, Party]:
        """Those that are there, ready to begin."""
        setting = Setting(
            nonce=bytes(NONCE_BYTES),
            agendas=shared_agendas(self._plan, self._task),
            ahead=1,
            micro_batches=self._local.micro_batches,
            task=self._task,
            standing=standing,
            taps=self._local.taps,
        )
        gone = standing.absent | standing.without
        return {
            name: Party(
                self._plan,
                name,
                replicas=self._replicas,
                secret=secret,
                loader=self._loaders[name],
                observers=self._local.observers.get(name, ()),
                seals=self._local.seals.get(name) or self._seals.get(name, Unsealed()),
                setting=replace(setting, hijack=self._local.hijacks.get(name)),
            )
            for name, secret in self._secrets.items()
            if name not in gone
        }


def _replayed(log: Log) -> Iterator[Standing]:
    """How the parts of a run begin that is parted where its members change; each ends where the next one begins."""
    saves = tuple(each.after for each in log if each.after != NEVER)
    for place, membership in enumerate(log):
        after, following = membership.after, log[place + 1 : place + 2]
        yield Standing(
            saves=saves,
            committed=() if after == NEVER else (after,),
            log=log[: place + 1],
            without=frozenset(membership.absent),
            until=following[0].after if following else NEVER,
        )


def _drive(parties: Mapping[str, Party], delivery: random.Random | None) -> None:
    """Deliver frames, in the order they were sent or in any other across links, until the run is over everywhere."""
    ready: deque[tuple[str, str]] = deque()
    conductor = next(party for party in parties.values() if party.session.conducts)
    limits, limit_bytes = conductor.plan.terms.limits, largest_body_bytes(conductor.plan)
    channels: dict[tuple[str, str], MemoryChannel] = {}
    for name in parties:
        if name != conductor.name:
            ends = pair(name, conductor.name, limits, queue_bytes=None, arrived=lambda *link: ready.append(link))
            channels |= zip(((name, conductor.name), (conductor.name, name)), ends, strict=True)
    for (name, _), channel in channels.items():
        parties[name].connect(channel)
    while ready:
        at = 0 if delivery is None else delivery.randrange(len(ready))
        link = ready[at]
        del ready[at]
        if not parties[link[0]].over and (frame := channels[link].poll(limit_bytes)) is not None:
            parties[link[0]].deliver(link[1], frame)
    for channel in channels.values():
        channel.close()
    _raise_first(parties)


def _raise_first(parties: Mapping[str, Party]) -> None:
    errors: list[CutlayerError] = [party.error for party in parties.values() if party.error is not None]
    for error in (*(e for e in errors if not isinstance(e, PeerStopped)), *errors):
        raise error
    if waiting := [f"{name} waits for {p.session.waiting_for()}" for name, p in parties.items() if not p.over]:
        raise LocalProtocolError("stuck", "the simulation", "; ".join(waiting))


def _secret(seed: int, party: str) -> bytes:
    """A secret for a simulated party. Over a network each party draws its own and tells nobody."""
    return sha256(f"cutlayer simulation {seed} {party}".encode()).digest()
