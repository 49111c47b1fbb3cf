"""One party of a run over a network, from its credentials and rows to its report."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_bytes
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cutlayer.data.loader import Loader
from cutlayer.errors import DataError, PlanError
from cutlayer.observe.facts import Noticed, Observer
from cutlayer.observe.meter import Meter
from cutlayer.party.agreement import Agreement
from cutlayer.party.loop import Loop
from cutlayer.party.party import Party, Setting
from cutlayer.party.replicas import Replicas
from cutlayer.party.report import report
from cutlayer.party.saved import WEIGHTS, write_encoding, write_weights
from cutlayer.party.sealed import Seals
from cutlayer.plan.check import sealing_parties
from cutlayer.plan.plan import Plan
from cutlayer.protocol.messages import NONCE_BYTES, Task
from cutlayer.transport.dialler import dial
from cutlayer.transport.listener import Listener
from cutlayer.transport.tls import KeyFiles

Address = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """Where a party is reached or dials, and what it shows. Servers `listen`, clients `connect`.

    Addresses default to the plan's. Without credentials nothing is encrypted: on loopback only, and only if
    `insecure_plaintext_on_loopback` says so.
    """

    credentials: KeyFiles | None
    seals: Seals | None = None
    """The party's hand at sealing (`keys.sealing.load_sealer`), where the plan has states forwarded."""
    listen: Address | None = None
    connect: Address | None = None
    insecure_plaintext_on_loopback: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a party brings to the use of a model: the weights of its segments, by their names in the uncut model.

    A conductor may do without `absent` parties if the plan was trained for that.
    """

    weights: Mapping[str, Tensor]
    absent: tuple[str, ...] = ()
    by_owner: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """At a server whose replicas differ by client: a client's own weights."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A finished run, as one party saw it."""

    party: Party
    meter: Meter
    seconds: float
    loader: Loader | None = None

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The last evaluation on each party's held-out rows, as far as this party was told."""
        return self.meter.last_scores()

    def report(self) -> dict[str, Any]:
        """Metrics, bytes, times, versions and weight digests, ready for JSON."""
        return report(self.party, self.meter, self.seconds)

    def state(self, owner: str = "") -> dict[str, Tensor]:
        """The parameters and buffers of this party's own segments, by their names in the uncut model.

        A server that has a replica for each client gives that of `owner`, by default the first client's.
        """
        return self.party.weights(owner)

    def save(self, folder: Path) -> Path:
        """Write this party's own weights as `weights.safetensors` into a folder; returns the path.

        Beside them goes what its table was scaled and numbered by, if it was.

        A server whose replicas differ by client writes `weights-CLIENT.safetensors` for each as well.
        """
        folder.mkdir(parents=True, exist_ok=True)
        first = self.state()
        plan = self.party.plan
        if self.party.session.conducts and not plan.schedule.server_shared:
            for owner in plan.owners:
                own = self.state(owner)
                if own.keys() != first.keys() or not all(torch.equal(own[name], first[name]) for name in own):
                    write_weights(folder / f"weights-{owner}.safetensors", own, plan, self.party.name)
        if (encoding := self.loader.encoding if self.loader else None) is not None:
            write_encoding(folder, encoding)
        return write_weights(folder / WEIGHTS, first, plan, self.party.name)


def run(  # noqa: PLR0913 (a party's whole life in one call)
    agreement: Agreement,
    party: str,
    network: Network,
    *,
    secret: bytes,
    data: Dataset[Any] | None = None,
    held_out: Dataset[Any] | None = None,
    observers: Sequence[Observer] = (),
    device: str = "cpu",
    prediction: Prediction | None = None,
) -> Outcome:
    """Take part in a run as `party` until it has ended. Blocks; call it in the process's main thread.

    With a `prediction` nothing is trained: the model answers all rows of `data`.

    A server listens and waits for all clients; a client tries to reach the server for `limits.join_timeout_s`.
    Raises what ended the run, if it did not end as planned: any `CutlayerError`.
    """
    plan, limits = agreement.plan, agreement.plan.terms.limits
    if party not in plan.terms.parties:
        raise PlanError(f"{party!r} is no party of the plan; parties are {', '.join(plan.terms.parties)}")
    _check_seals(plan, party, network)
    task: Task = "predict" if prediction else "train"
    if prediction and (reason := plan.why_not_without(prediction.absent)):
        raise PlanError(reason)
    loader = make_loader(agreement, party, data, held_out, secret, task)
    meter = Meter()
    member = Party(
        plan,
        party,
        replicas=Replicas(plan, agreement.parts_of, device=device),
        secret=secret,
        loader=loader,
        observers=(meter, *observers),
        seals=network.seals,
        setting=Setting(nonce=token_bytes(NONCE_BYTES), task=task, absent=prediction.absent if prediction else ()),
    )
    if prediction:
        for owner in plan.owners:
            member.restore(owner, prediction.by_owner.get(owner, prediction.weights))
    loop, start = Loop(member), time.perf_counter()
    common: dict[str, Any] = {
        "party": party,
        "limits": limits,
        "pins": plan.terms.pins,
        "insecure_plaintext_on_loopback": network.insecure_plaintext_on_loopback,
    }
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        if member.session.conducts:
            address = network.listen or address_of(plan.terms.parties[party].address, party)
            listener = Listener(
                address, network.credentials, allowed=member.session.joinable, on_refused=loop.refused, **common
            )
            member.tell(Noticed(party=party, sentence=f"{party} listens on port {listener.port}"))
            loop.run(listener=listener)
        else:
            server = plan.conductor
            address = network.connect or address_of(plan.terms.parties[server].address, server)
            member.tell(Noticed(party=party, sentence=f"{party} dials {server} at {address[0]}:{address[1]}"))
            loop.run([dial(address, network.credentials, peer=server, **common)])
    return Outcome(party=member, meter=meter, seconds=time.perf_counter() - start, loader=loader)


def _check_seals(plan: Plan, party: str, network: Network) -> None:
    """A plan whose parties' states are forwarded needs keys to seal them. Raises `PlanError`."""
    states = party in sealing_parties(plan.terms)
    if states and network.seals is None:
        raise PlanError(
            f"under {plan.terms.schedule} what {party} tells other parties travels sealed: give {party} its keys "
            f"(`cutlayer keys request {party}`) and pin everybody's in the plan (`cutlayer keys pin`)"
        )


def make_loader(
    agreement: Agreement,
    party: str,
    data: Dataset[Any] | None,
    held_out: Dataset[Any] | None,
    secret: bytes,
    task: Task = "train",
) -> Loader | None:
    """A party's rows as the plan wants them; None for a party that brings none. Raises `DataError`."""
    plan, brought = agreement.plan, agreement.brought(party)
    features = [each for each in brought.values() if each.kind == "rows"]
    labels = [each for each in brought.values() if each.kind == "labels"]
    if not brought or (task == "predict" and not features):
        if data is not None:
            raise DataError(f"{party} brings no rows by the plan: leave its data out")
        return None
    if data is None:
        raise DataError(f"{party} brings rows by the plan, but no data is given for it")
    ignored = [
        index
        for loss in plan.topology.losses
        if isinstance(index := plan.loss_of(loss.name).options.get("ignore_index"), int)
    ]
    return Loader(
        data,
        inputs=features[0].specs if features else (),
        labels=labels[0].specs[0] if labels else None,
        secret=secret,
        shuffle=plan.terms.training.shuffle,
        held_out=plan.terms.training.held_out if held_out is None else held_out,
        classes=labels[0].classes or None if labels else None,
        ignored=next(iter(ignored), None),
        task=task,
        place=plan.digest,
    )


def address_of(text: str, party: str) -> Address:
    """Host and port of `host:port`. Raises `PlanError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise PlanError(f"{text!r} is no address for {party}: write host:port, such as lab.example.org:7443")
    return host.strip("[]"), int(port)
