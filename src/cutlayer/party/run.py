"""One party of a run over a network, from its credentials and rows to its report."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import Dataset

from cutlayer.data.loader import Loader
from cutlayer.defence.ledger import Ledger
from cutlayer.errors import DataError, PlanError, RunError
from cutlayer.observe.facts import Observer
from cutlayer.observe.meter import Meter
from cutlayer.observe.tap import Tap
from cutlayer.party.agreement import Agreement
from cutlayer.party.attempts import Maker, Prediction, attempts
from cutlayer.party.checkpoint import Checkpoints
from cutlayer.party.guard import Guard
from cutlayer.party.network import Network, address_of
from cutlayer.party.openings import Openings
from cutlayer.party.party import Party
from cutlayer.party.report import report
from cutlayer.party.saved import WEIGHTS, write_encoding, write_weights
from cutlayer.party.saver import Saver
from cutlayer.plan.check import sealing_parties
from cutlayer.plan.masking import own_masks
from cutlayer.plan.plan import Plan
from cutlayer.protocol.messages import Task

__all__ = ["Network", "Outcome", "Prediction", "Saves", "address_of", "make_loader", "run"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Saves:
    """Where a party keeps its saves: a folder, or any fsspec URL. No secret goes there.

    `anew`: forget what is there and begin the run anew. `keep`: how many committed saves stay.
    """

    place: str | Path
    anew: bool = False
    keep: int = 2


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
    saves: Saves | None = None,
    denied: Callable[[], Collection[str]] = tuple,
    ledger: Path | None = None,
    openings: Path | None = None,
    taps: Sequence[Tap] = (),
) -> Outcome:
    """Take part in a run as `party` until it has ended. Blocks; call it in the process's main thread.

    With a `prediction` nothing is trained: the model answers all rows of `data`.

    A server listens and waits for all clients; a client tries to reach the server for `limits.join_timeout_s`.
    With `saves` the run lasts: whoever is lost is waited for, and all go on from the newest save, bit for bit; this
    call, made anew in a new process, comes back to the run. `denied` says whose certificates are not accepted any more.
    `ledger`: the file in which this party writes down what its defended releases tell; it outlives runs and saves.
    `openings`: that in which it writes down which sums under masks it opens; without, one beside its saves.
    `taps` are shown what the party releases at its cuts and what comes there.
    Raises what ended the run, if it did not end as planned: any `CutlayerError`.
    """
    plan = agreement.plan
    if party not in plan.terms.parties:
        raise PlanError(f"{party!r} is no party of the plan; parties are {', '.join(plan.terms.parties)}")
    _check_seals(plan, party, network)
    opens = not prediction and own_masks(plan.terms) and party in plan.clients
    file = _openings_file(openings, saves, party) if opens else None
    if prediction and (reason := plan.why_not_without(prediction.absent)):
        raise PlanError(reason)
    task: Task = "predict" if prediction else "train"
    loader = make_loader(agreement, party, data, held_out, secret, task)
    meter = Meter()
    maker = Maker(
        agreement=agreement,
        name=party,
        secret=secret,
        loader=loader,
        observers=(meter, *observers),
        seals=network.seals,
        device=device,
        prediction=prediction,
        saver=None,
        taps=taps,
    )
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []))
        if saves and not prediction:
            maker.saver = _saver(saves, plan, party, stack)
        if ledger is not None:
            maker.ledger = Ledger(ledger, party=party, plan=plan.digest, budgets=plan.terms.budget)
            stack.callback(maker.ledger.close)
        if file is not None:
            maker.openings = Openings(file, party=party, plan=plan.digest)
            stack.callback(maker.openings.close)
        member = attempts(maker, network, Guard(plan, denied))
    return Outcome(party=member, meter=meter, seconds=time.perf_counter() - start, loader=loader)


def _saver(saves: Saves, plan: Plan, party: str, stack: ExitStack) -> Saver:
    """What keeps the saves, in a folder that is this process' own until the stack is closed. Raises `RunError`."""
    if "://" not in str(saves.place):
        folder = Path(saves.place)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            stack.enter_context(FileLock(folder / "lock", timeout=0))
        except Timeout as error:
            raise RunError(
                f"another process keeps the saves in {folder}: stop it first, or name another place (--saves)"
            ) from error
    checkpoints = Checkpoints(saves.place, plan=plan.digest, party=party, keep=saves.keep)
    if saves.anew:
        checkpoints.clear()
    return Saver(checkpoints)


def _openings_file(file: Path | None, saves: Saves | None, party: str) -> Path:
    """Raises `PlanError` if there is no place: a party that forgets what it has opened may give a share away."""
    if file is None and (saves is None or "://" in str(saves.place)):
        raise PlanError(
            f"secure_aggregation with a quorum needs a file in which {party} writes down which sums it has opened: "
            "name one (openings=…), or a folder of this machine for the saves"
        )
    return file or Path(saves.place if saves else "") / f"{party}.openings"


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
