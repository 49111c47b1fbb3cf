"""What one process of the benchmark does: train the uncut model, or take part in the split run as one party.

Each trains with one thread, writes its weights into a folder, and sends a `Record` through its pipe.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from math import nan
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer.keys import PublicKeys, load_credentials, load_sealer
from cutlayer.keys.pairs import read_public_keys
from cutlayer.observe.facts import Fact, Noticed, Progressed
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.memory import keep_freed_memory
from cutlayer.party.run import Network, Saves, run
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, SaveTerms, Terms, Training
from workloads import CUT, LR, WORKLOADS, Workload

SERVER = "lab"
WARM_UP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What one process measured: seconds of each step after the warm-up, and what it took."""

    step_s: list[float]
    loss: float
    """The mean over the last epoch."""
    peak_mb: float
    cpu_ms: float
    """Of the whole process, all threads, per step after the warm-up."""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds of a party's own thread, over all steps, by what they were spent on."""
    sent_bytes: int = 0


# ---------------------------------------------------------------------- the uncut model


def train_uncut(name: str, steps: int, folder: Path, device: str, pipe: Connection) -> None:
    """Train the uncut model on the batches of the split run."""
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    model = workload.model().to(device)
    x, y, epochs = workload.epochs(steps)
    x, y = x.to(device), y.to(device)
    loss_of = getattr(F, workload.loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses: list[float] = []
    clock = Clock()
    for _ in range(epochs):
        losses.clear()
        for at in range(0, len(x), workload.batch):
            optimizer.zero_grad()
            loss = loss_of(model(x[at : at + workload.batch]), y[at : at + workload.batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            clock.step()
    save_file(model.cpu().state_dict(), folder / "weights.safetensors")
    pipe.send(Record(step_s=clock.steps(), loss=fmean(losses), peak_mb=peak_mb(), cpu_ms=clock.cpu_ms()))


# ---------------------------------------------------------------------- a party of the split run


def take_part(name: str, steps: int, folder: Path, device: str, save_every: int, party: str, pipe: Connection) -> None:
    """Take part in the split run on the path of real runs. The server sends its port first; the client is sent it.

    With `save_every` the parties keep saves, one after so many steps; without, none.
    """
    keep_freed_memory()
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    x, y, epochs = workload.epochs(steps)
    agreement = agree(workload, x.shape[1:], epochs, folder / "keys", save_every)
    rows = brought(workload, x, y)
    clock = Clock()

    def observe(fact: Fact) -> None:
        if isinstance(fact, Progressed):
            clock.step()
        elif isinstance(fact, Noticed) and "listens on port" in fact.sentence:
            pipe.send(int(fact.sentence.rpartition(" ")[2]))

    address = ("127.0.0.1", pipe.recv() if party != SERVER else 0)
    outcome = run(
        agreement,
        party,
        Network(
            credentials=load_credentials(folder / "keys", party),
            seals=load_sealer(folder / "keys", party, public_keys(folder / "keys", agreement.plan.terms.parties)),
            listen=address,
            connect=address,
        ),
        secret=bytes(32),
        data=rows.get(party),
        observers=(observe,),
        device=device,
        saves=Saves(place=folder / f"saves-{party}", anew=True) if save_every else None,
    )
    outcome.save(folder / party)
    pipe.send(
        Record(
            step_s=clock.steps(),
            loss=outcome.meter.history[-1].metrics["loss"] if outcome.meter.history else nan,
            peak_mb=peak_mb(),
            cpu_ms=clock.cpu_ms(),
            stage_s=dict(outcome.meter.seconds),
            sent_bytes=sum(link.sent_bytes for link in outcome.party.links.values()),
        )
    )


def brought(workload: Workload, x: Tensor, y: Tensor) -> dict[str, TensorDataset]:
    """Who has which columns: one client all, or each of several its part of the features, and the server the labels."""
    if len(workload.clients) == 1:
        return {workload.clients[0]: TensorDataset(x, y)}
    parts = (part.contiguous() for part in x.chunk(len(workload.clients), 1))
    return {name: TensorDataset(part) for name, part in zip(workload.clients, parts, strict=True)} | {
        SERVER: TensorDataset(y)
    }


def public_keys(keys: Path, parties: Iterable[str]) -> dict[str, PublicKeys]:
    return {name: read_public_keys(keys / f"{name}.pub", name) for name in parties}


def agree(workload: Workload, row: torch.Size, epochs: int, keys: Path, save_every: int = 0) -> Agreement:
    """The plan of the split run: a round is an epoch in natural order, nothing is held out."""
    vertical = len(workload.clients) > 1
    inputs = (InputTerms(shape=(row[0] // len(workload.clients),)),) if vertical else ()
    terms = Terms(
        topology="vertical" if vertical else "vanilla",
        schedule="joint" if vertical else "alternating",
        model=ModelTerms(cut=() if vertical else (CUT,)),
        input=InputTerms(shape=tuple(row)),
        saves=SaveTerms(every_steps=save_every),
        training=Training(
            loss=Method(name=workload.loss),
            optimizer=Method(name="SGD", options={"lr": LR}),
            batch_size=workload.batch,
            rounds=epochs,
            shuffle=False,
            held_out=0.0,
        ),
        parties={
            name: PartyTerms(
                role="server" if name == SERVER else "client",
                input=() if name == SERVER else inputs,
                signing_key=pinned.signing,
                sealing_key=pinned.sealing,
            )
            for name, pinned in public_keys(keys, (*workload.clients, SERVER)).items()
        },
    )
    return draft(terms, workload.model())


class Clock:
    """When each step ended, and how much processor time this process had taken by then."""

    def __init__(self) -> None:
        self._ends: list[tuple[float, float]] = []

    def step(self) -> None:
        self._ends.append((time.perf_counter(), time.process_time()))

    def steps(self) -> list[float]:
        """Seconds from the end of one step to the end of the next, after the warm-up."""
        return [stop - start for (start, _), (stop, _) in pairwise(self._ends[WARM_UP - 1 :])]

    def cpu_ms(self) -> float:
        (_, start), *between, (_, stop) = self._ends[WARM_UP - 1 :]
        return 1e3 * (stop - start) / (len(between) + 1)


def peak_mb() -> float:
    """The most memory this process has held. Unlike `getrusage` it knows nothing of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM"))
