"""Many parties in one process: the same objects as over a network, over memory, one thread.

A simulation of a plan gives the bits that the plan gives over a network, given the same secrets, processor type,
torch build and thread count.
"""

import copy
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from cutlayer.errors import CutlayerError, DataError, LocalProtocolError, PeerStopped, PlanError
from cutlayer.model.merge import merge, put_into
from cutlayer.observe.facts import Observer, Scored
from cutlayer.observe.meter import Meter
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.party import Party, Setting
from cutlayer.party.replicas import Replicas
from cutlayer.party.run import RUN_NAME_BYTES, make_loader
from cutlayer.party.sealed import Seals, Unsealed
from cutlayer.plan.check import needs_aggregator
from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import (
    AveragedOptimizer,
    Choice,
    ClientSegments,
    InputTerms,
    Method,
    ModelTerms,
    Option,
    PartyTerms,
    Terms,
    Training,
)
from cutlayer.plan.schedule import SCHEDULES, TurnUnit
from cutlayer.protocol.agenda import shared_agendas
from cutlayer.protocol.route import Route, largest_body_bytes
from cutlayer.transport.memory import MemoryChannel, pair

Data = Dataset[Any]
Cut = str | int | Sequence[str | int] | None
HeldOut = float | Mapping[str, Data]


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
            scores |= {(score.turn, score.owner): score for score in meter.history}
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
                "sent": sum(link.sent_bytes for link in party.links.values()),
                "received": sum(link.received_bytes for link in party.links.values()),
            }
            for name, party in self.parties.items()
        }

    def model_for(self, party: str) -> nn.Module:
        """The whole model as `party`'s rows meet it: its own client segments, and the server's. In eval mode."""
        plan = self.agreement.plan
        if party not in plan.terms.filling("client"):
            raise PlanError(f"{party!r} brings no rows; models are of {', '.join(plan.terms.filling('client'))}")
        parts = copy.deepcopy(self.agreement.parts_of(party))
        for name, holder in self.parties.items():
            for segment, replica in Route(plan, name, party).replicas.items():
                put_into(parts[segment], holder.replicas.state(replica))
        return merge(self.agreement.model, parts.values()).cpu().eval()


def simulate(  # noqa: PLR0913 (a whole plan in one call; every argument has its word in `plan.toml`)
    model: nn.Module,
    *,
    cut: Cut,
    data: Mapping[str, Data],
    topology: str = "vanilla",
    schedule: str = "alternating",
    turn: TurnUnit = "epoch",
    loss: str | Mapping[str, Any] = "cross_entropy",
    optimizer: str | Mapping[str, Any] = "sgd",
    server_optimizer: str | Mapping[str, Any] | None = None,
    lr: float | None = None,
    lr_schedule: str | Mapping[str, Any] | None = None,
    lr_scales: Mapping[str, float] | None = None,
    batch_size: int = 64,
    micro_batches: int = 1,
    rounds: int = 1,
    clients_per_round: Choice = "all",
    local_epochs: int = 1,
    local_steps: int = 0,
    averaged_optimizer: AveragedOptimizer = "reset",
    client_segments: ClientSegments = "equal",
    cut_average: float = 0.0,
    proximal: float = 0.0,
    personal: Sequence[str] = (),
    cuts: Mapping[str, Cut] | None = None,
    aggregator_sees_weights: bool = False,
    held_out: HeldOut = 0.2,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    max_live: int = Limits().max_live,
    secrets: Mapping[str, bytes] | None = None,
    observers: Sequence[Observer] = (),
    device: str = "cpu",
) -> Result:
    """Train `model`, cut after the layers `cut`, on the rows of many clients and one server called `server`.

    Where the schedule sums what clients send, a party called `aggregator` does it.

    Args:
        model: the uncut model, with its initial weights. It is not changed.
        cut: one layer for `vanilla`, two for `u_shaped`; None for explicit `Parts`.
        data: a map-style dataset of `(x, y)` samples for each client, in party order.
        schedule: `alternating`, `relay`, `parallel`, `splitfed_v1`, `splitfed_v2` or `splitfed_v3`.
        turn: with `alternating` and `relay`, `"epoch"` or `"batch"`: how long one client trains before the next does.
        loss: a loss by its name in `torch.nn.functional`, or a mapping of `name` and its options.
        optimizer: one by its name in `torch.optim`, or a mapping of `name` and its options; `lr` is one of them.
        server_optimizer: that of server segments, if another one.
        lr_schedule: one by its name in `torch.optim.lr_scheduler`, or a mapping; it moves on every round, or on every
            step with the option `every="step"`.
        lr_scales: by client, what multiplies the server's learning rate in steps on that client's rows.
        clients_per_round: how many clients take part in a round, a number or a part (1.0 is all).
        local_epochs: passes of a client over its rows in a round.
        local_steps: steps of a client in a round, instead of whole passes.
        averaged_optimizer: whether the optimizer of an averaged replica is `"reset"`, `"keep"` or `"average"`.
        client_segments: with `parallel`, `"equal"` by summed gradients, or each client's `"own"`.
        cut_average: with `parallel` and own client segments, the part of each batch whose gradients at the cut are
            averaged over the clients.
        proximal: FedProx's μ, for averaged replicas.
        personal: parameters that stay with their owner: patterns of names, or `"type:BatchNorm2d"`.
        cuts: with `splitfed_v1`, by client, where its model is cut instead.
        aggregator_sees_weights: the server itself sums what clients send.
        held_out: a dataset for each client to evaluate on after each round, or a fraction of its rows.
        max_live: how many replicas of a segment are kept in memory; the others lie on disk.
        secrets: 32 bytes a party, the keys of its random streams; by default they are made from `seed`.
        observers: called with every fact of every party.

    Raises:
        PlanError, CutError, DataError: the arguments do not hold together. Diverged: a loss became infinite or NaN.
    """
    separate = held_out if isinstance(held_out, Mapping) else {}
    _check_names(data, separate, cuts or {}, lr_scales or {})
    clients = {
        name: PartyTerms(role="client", cut=_layers((cuts or {}).get(name)), lr_scale=(lr_scales or {}).get(name, 1.0))
        for name in data
    }
    terms = Terms(
        topology=topology,
        schedule=schedule,
        turn=turn,
        seed=seed,
        model=ModelTerms(cut=_layers(cut)),
        input=_input_terms(model, data),
        training=Training(
            loss=_method(loss),
            optimizer=_method(optimizer, **({} if lr is None else {"lr": lr})),
            server_optimizer=None if server_optimizer is None else _method(server_optimizer),
            lr_schedule=None if lr_schedule is None else _method(lr_schedule),
            batch_size=batch_size,
            micro_batches=micro_batches,
            rounds=rounds,
            clients_per_round=clients_per_round,
            local_epochs=local_epochs,
            local_steps=local_steps,
            averaged_optimizer=averaged_optimizer,
            client_segments=client_segments,
            cut_average=cut_average,
            proximal=proximal,
            personal=tuple(personal),
            shuffle=shuffle,
            drop_last=drop_last,
            held_out=held_out if isinstance(held_out, float | int) else 0.0,
        ),
        parties=clients | {"server": PartyTerms(role="server")},
        aggregator_sees_weights=aggregator_sees_weights,
        limits=Limits(max_live=max_live, header_bytes=max(Limits().header_bytes, 256 * len(data))),
    )
    if schedule in SCHEDULES and needs_aggregator(terms) and not aggregator_sees_weights:
        terms = replace(terms, parties=terms.parties | {"aggregator": PartyTerms(role="aggregator")})
    agreement = draft(terms, model)
    return simulate_plan(agreement, data, held_out=separate, secrets=secrets, observers=observers, device=device)


def simulate_plan(
    agreement: Agreement,
    data: Mapping[str, Data],
    *,
    held_out: Mapping[str, Data] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    seals: Mapping[str, Seals] | None = None,
    observers: Sequence[Observer] = (),
    device: str = "cpu",
    delivery: random.Random | None = None,
) -> Result:
    """Run an agreed plan in this process. `delivery` shuffles which link is served next; the result stays the same.

    Without `seals`, by party, states that are forwarded are not sealed: they have as many bytes, and no secret.

    Raises what the arguments of `simulate` may raise, for the party that it happened to.
    """
    plan = agreement.plan
    secrets = {name: _secret(plan.terms.seed, name) for name in plan.terms.parties} | dict(secrets or {})
    meters = {name: Meter() for name in plan.terms.parties}
    replicas = Replicas(plan, agreement.parts_of, device=device)
    setting = Setting(run="0" * 2 * RUN_NAME_BYTES, agendas=shared_agendas(plan), ahead=1)
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        parties = {
            name: Party(
                plan,
                name,
                replicas=replicas,
                secret=secrets[name],
                loader=make_loader(agreement, name, data.get(name), (held_out or {}).get(name), secrets[name]),
                observers=(meters[name], *observers),
                seals=(seals or {}).get(name, Unsealed()),
                setting=setting,
            )
            for name in plan.terms.parties
        }
        _drive(parties, delivery)
    return Result(agreement=agreement, parties=parties, meters=meters)


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


def _check_names(data: Mapping[str, Data], held_out: Mapping[str, Data], *others: Mapping[str, Any]) -> None:
    if not data:
        raise DataError("data is empty: give a dataset for at least one client")
    for name in ("server", "aggregator"):
        if name in data:
            raise DataError(f"{name!r} is the name of a party that brings no rows: call that client otherwise")
    if strange := sorted(held_out.keys() - data.keys()):
        raise DataError(f"held_out has rows of {', '.join(strange)}, but the clients are {', '.join(data)}")
    if unknown := sorted(set().union(*others) - data.keys()):
        raise PlanError(f"cuts and lr_scales name {', '.join(unknown)}, but the clients are {', '.join(data)}")


def _secret(seed: int, party: str) -> bytes:
    """A secret for a simulated party. Over a network each party draws its own and tells nobody."""
    return sha256(f"cutlayer simulation {seed} {party}".encode()).digest()


def _layers(cut: Cut) -> tuple[str, ...]:
    if cut is None:
        return ()
    return (str(cut),) if isinstance(cut, str | int) else tuple(map(str, cut))


def _method(value: str | Mapping[str, Any], **more: Option) -> Method:
    if isinstance(value, str):
        return Method(name=value, options=more)
    options = {name: option for name, option in value.items() if name != "name"}
    return Method(name=value["name"], options=options | more)


def _input_terms(model: nn.Module, data: Mapping[str, Data]) -> InputTerms:
    """The shape of one row, from the first sample; floats take the model's own dtype."""
    name, dataset = next(iter(data.items()))
    try:
        with torch.random.fork_rng(devices=[]):
            x = torch.as_tensor(dataset[0][0])
    except Exception as error:
        raise DataError(f"the first sample of {name} is no pair (x, y) of a tensor and a label: {error}") from error
    dtype = x.dtype
    if x.is_floating_point():
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), dtype)
    return InputTerms(shape=tuple(x.shape), dtype=str(dtype).removeprefix("torch."))  # type: ignore[arg-type]
