"""Many parties in one process: the same objects as over a network, over memory, one thread.

A simulation of a plan gives the bits that the plan gives over a network, given the same secrets, processor type,
torch build and thread count.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from cutlayer.errors import CutlayerError, DataError, LocalProtocolError, PeerStopped, PlanError
from cutlayer.model.merge import merge
from cutlayer.observe.facts import Observer, Scored
from cutlayer.observe.meter import Meter
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.party import Party
from cutlayer.party.run import make_loader
from cutlayer.plan.plan import InputTerms, Method, ModelTerms, Option, PartyTerms, Terms, Training
from cutlayer.plan.schedule import TurnUnit
from cutlayer.protocol.route import Route, largest_body_bytes
from cutlayer.transport.memory import MemoryChannel, pair

Data = Dataset[Any]
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
        modules: list[nn.Module] = []
        for name, holder in self.parties.items():
            for segment, replica in Route(plan, name, party).replicas.items():
                worked = holder.segments.get(replica)
                modules.append(worked.replica.module if worked else self.agreement.parts[segment])
        return merge(self.agreement.model, modules).cpu().eval()


def simulate(  # noqa: PLR0913 (a whole plan in one call; every argument has its word in `plan.toml`)
    model: nn.Module,
    *,
    cut: str | int | Sequence[str | int] | None,
    data: Mapping[str, Data],
    topology: str = "vanilla",
    schedule: str = "alternating",
    turn: TurnUnit = "epoch",
    loss: str | Mapping[str, Any] = "cross_entropy",
    optimizer: str | Mapping[str, Any] = "sgd",
    lr: float | None = None,
    lr_schedule: str | Mapping[str, Any] | None = None,
    batch_size: int = 64,
    micro_batches: int = 1,
    rounds: int = 1,
    held_out: HeldOut = 0.2,
    shuffle: bool = True,
    drop_last: bool = False,
    seed: int = 0,
    secrets: Mapping[str, bytes] | None = None,
    observers: Sequence[Observer] = (),
    device: str = "cpu",
) -> Result:
    """Train `model`, cut after the layers `cut`, on the rows of many clients and one server called `server`.

    Args:
        model: the uncut model, with its initial weights. It is not changed.
        cut: one layer for `vanilla`, two for `u_shaped`; None for explicit `Parts`.
        data: a map-style dataset of `(x, y)` samples for each client, in party order.
        turn: with `alternating`, `"epoch"` or `"batch"`: how long one client trains before the next does.
        loss: a loss by its name in `torch.nn.functional`, or a mapping of `name` and its options.
        optimizer: one by its name in `torch.optim`, or a mapping of `name` and its options; `lr` is one of them.
        lr_schedule: one by its name in `torch.optim.lr_scheduler`, or a mapping; it moves on every round, or on every
            step with the option `every="step"`.
        held_out: a dataset for each client to evaluate on after each round, or a fraction of its rows.
        secrets: 32 bytes a party, the keys of its random streams; by default they are made from `seed`.
        observers: called with every fact of every party.

    Raises:
        PlanError, CutError, DataError: the arguments do not hold together. Diverged: a loss became infinite or NaN.
    """
    separate = held_out if isinstance(held_out, Mapping) else {}
    _check_names(data, separate)
    clients = {name: PartyTerms(role="client") for name in data}
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
            lr_schedule=None if lr_schedule is None else _method(lr_schedule),
            batch_size=batch_size,
            micro_batches=micro_batches,
            rounds=rounds,
            shuffle=shuffle,
            drop_last=drop_last,
            held_out=held_out if isinstance(held_out, float | int) else 0.0,
        ),
        parties=clients | {"server": PartyTerms(role="server")},
    )
    agreement = draft(terms, model)
    return simulate_plan(agreement, data, held_out=separate, secrets=secrets, observers=observers, device=device)


def simulate_plan(
    agreement: Agreement,
    data: Mapping[str, Data],
    *,
    held_out: Mapping[str, Data] | None = None,
    secrets: Mapping[str, bytes] | None = None,
    observers: Sequence[Observer] = (),
    device: str = "cpu",
    delivery: random.Random | None = None,
) -> Result:
    """Run an agreed plan in this process. `delivery` shuffles which link is served next; the result stays the same.

    Raises what the arguments of `simulate` may raise, for the party that it happened to.
    """
    plan = agreement.plan
    secrets = {name: _secret(plan.terms.seed, name) for name in plan.terms.parties} | dict(secrets or {})
    meters = {name: Meter() for name in plan.terms.parties}
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        parties = {
            name: Party(
                plan,
                name,
                parts=agreement.parts,
                secret=secrets[name],
                loader=make_loader(agreement, name, data.get(name), (held_out or {}).get(name), secrets[name]),
                observers=(meters[name], *observers),
                device=device,
            )
            for name in plan.terms.parties
        }
        _drive(parties, delivery)
    return Result(agreement=agreement, parties=parties, meters=meters)


def _drive(parties: Mapping[str, Party], delivery: random.Random | None) -> None:
    """Serve all links in turn until the run is over at every party."""
    links: list[tuple[Party, MemoryChannel]] = []
    conductor = next(party for party in parties.values() if party.session.conducts)
    for party in parties.values():
        if party is not conductor:
            ends = pair(party.name, conductor.name, party.plan.terms.limits, queue_bytes=None)
            links += zip((party, conductor), ends, strict=True)
    for party, channel in links:
        party.connect(channel)
    limit_bytes = largest_body_bytes(conductor.plan)
    while not all(party.over for party in parties.values()):
        if delivery is not None:
            delivery.shuffle(links)
        if not sum(_serve(party, channel, limit_bytes) for party, channel in links):
            break
    for _, channel in links:
        channel.close()
    _raise_first(parties)


def _serve(party: Party, channel: MemoryChannel, limit_bytes: int) -> bool:
    """Deliver one frame of a link, if there is one."""
    if party.over or (frame := channel.poll(limit_bytes)) is None:
        return False
    party.deliver(channel.peer, frame)
    return True


def _raise_first(parties: Mapping[str, Party]) -> None:
    errors: list[CutlayerError] = [party.error for party in parties.values() if party.error is not None]
    for error in (*(e for e in errors if not isinstance(e, PeerStopped)), *errors):
        raise error
    if waiting := [f"{name} waits for {p.session.waiting_for()}" for name, p in parties.items() if not p.over]:
        raise LocalProtocolError("stuck", "the simulation", "; ".join(waiting))


def _check_names(data: Mapping[str, Data], held_out: Mapping[str, Data]) -> None:
    if not data:
        raise DataError("data is empty: give a dataset for at least one client")
    if "server" in data:
        raise DataError("'server' is the name of the party that brings no rows: call that client otherwise")
    if strange := sorted(held_out.keys() - data.keys()):
        raise DataError(f"held_out has rows of {', '.join(strange)}, but the clients are {', '.join(data)}")


def _secret(seed: int, party: str) -> bytes:
    """A secret for a simulated party. Over a network each party draws its own and tells nobody."""
    return sha256(f"cutlayer simulation {seed} {party}".encode()).digest()


def _layers(cut: str | int | Sequence[str | int] | None) -> tuple[str, ...]:
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
