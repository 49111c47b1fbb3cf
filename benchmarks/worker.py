"""What one process of the benchmark does: train the uncut model, or take part in the split run as one party.

Each trains with one thread, writes its weights into a folder, and sends a `Record` through its pipe.
"""

import cProfile
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from math import nan
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean, median

import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer.keys import PublicKeys, load_credentials, load_sealer
from cutlayer.keys.pairs import read_public_keys
from cutlayer.observe.facts import Fact, Noticed, Paced, Progressed
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.memory import keep_freed_memory
from cutlayer.party.run import Network, Saves, run
from cutlayer.plan.terms import CodecTerms, InputTerms, Method, ModelTerms, PartyTerms, SaveTerms, Terms, Training
from cutlayer.transport.tls import dialling_context, listening_context
from workloads import CUT, LR, Job, Setting, clients_of

SERVER = "lab"
PROFILE = "profile.pstats"
PIECE_BYTES = 64 * 1024
MEASURED_BYTES, REPEATS = 2**20, 15


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
    steps: int = 0
    """Of the whole run, warm-up included."""
    micro_batches: int = 1
    """As planned, or as the conductor decided."""
    tls_s: tuple[float, float] = (0.0, 0.0)
    """What a byte costs a core to send, and to receive."""


# ---------------------------------------------------------------------- the uncut model


def train_uncut(name: str, steps: int, folder: Path, device: str, setting: Setting, pipe: Connection) -> None:
    """Train the uncut model on the batches of the split run."""
    torch.set_num_threads(1)
    job = Job.of(name, steps, setting)
    workload = job.workload
    model = workload.model().to(device)
    x, y = job.x.to(device), job.y.to(device)
    loss_of = getattr(F, workload.loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses: list[float] = []
    clock = Clock(job.warm_up)
    for _ in range(job.epochs):
        losses.clear()
        for at in range(0, len(x), workload.batch):
            optimizer.zero_grad()
            loss = loss_of(model(x[at : at + workload.batch]), y[at : at + workload.batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            clock.step()
    save_file(model.cpu().state_dict(), folder / "weights.safetensors")
    pipe.send(
        Record(step_s=clock.steps(), loss=fmean(losses), peak_mb=peak_mb(), cpu_ms=clock.cpu_ms(), steps=job.steps)
    )


# ---------------------------------------------------------------------- a party of the split run


def take_part(name: str, steps: int, folder: Path, device: str, setting: Setting, party: str, pipe: Connection) -> None:
    """Take part in the split run on the path of real runs. The server sends its port first; the client is sent it."""
    keep_freed_memory()
    torch.set_num_threads(1)
    job = Job.of(name, steps, setting)
    agreement = agree(job, folder / "keys", setting)
    clock = Clock(job.warm_up)

    def observe(fact: Fact) -> None:
        if isinstance(fact, Progressed):
            clock.step()
        elif isinstance(fact, Paced):
            assert clock.count <= job.warm_up, "steps that try something would be measured"
        elif isinstance(fact, Noticed) and "listens on port" in fact.sentence:
            pipe.send(int(fact.sentence.rpartition(" ")[2]))

    address = ("127.0.0.1", pipe.recv() if party != SERVER else 0)
    profile = cProfile.Profile()
    if setting.profile:
        profile.enable()
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
        data=brought(job, setting).get(party),
        observers=(observe,),
        device=device,
        saves=Saves(place=folder / f"saves-{party}", anew=True) if setting.save_every else None,
    )
    outcome.save(folder / party)
    if setting.profile:
        profile.disable()
        profile.dump_stats(folder / party / PROFILE)
    meter, sent_bytes = outcome.meter, sum(link.sent_bytes for link in outcome.party.links.values())
    pipe.send(
        Record(
            step_s=clock.steps(),
            loss=meter.history[-1].metrics["loss"] if meter.history else nan,
            peak_mb=peak_mb(),
            cpu_ms=clock.cpu_ms(),
            stage_s=dict(meter.seconds),
            sent_bytes=sent_bytes,
            steps=job.steps,
            micro_batches=outcome.report()["micro_batches"],
            tls_s=tls_seconds(folder / "keys", party, sent_bytes // job.steps) if party != SERVER else (0.0, 0.0),
        )
    )


def brought(job: Job, setting: Setting) -> dict[str, TensorDataset]:
    """Who has which rows and columns: one client all; several shares of the rows; or each of a vertical run's its part
    of the features, and the server the labels.
    """
    names = clients_of(job.workload, setting)
    if len(job.workload.clients) == 1:
        shares = zip(job.x.chunk(len(names)), job.y.chunk(len(names)), strict=True)
        return {name: TensorDataset(*share) for name, share in zip(names, shares, strict=True)}
    parts = (part.contiguous() for part in job.x.chunk(len(names), 1))
    return {name: TensorDataset(part) for name, part in zip(names, parts, strict=True)} | {SERVER: TensorDataset(job.y)}


def public_keys(keys: Path, parties: Iterable[str]) -> dict[str, PublicKeys]:
    return {name: read_public_keys(keys / f"{name}.pub", name) for name in parties}


def agree(job: Job, keys: Path, setting: Setting) -> Agreement:
    """The plan of the split run: a round is an epoch in natural order, nothing is held out.

    Where numbers of micro-batches are to be tried, all steps are one round, since one turn has to hold the trials.
    """
    workload, row = job.workload, tuple(job.x.shape[1:])
    vertical = len(workload.clients) > 1
    inputs = (InputTerms(shape=(row[0] // len(workload.clients), *row[1:])),) if vertical else ()
    tried = setting.micro_batches == "auto"
    terms = Terms(
        topology="vertical" if vertical else "vanilla",
        schedule="joint" if vertical else "alternating",
        model=ModelTerms(cut=() if vertical else (CUT,)),
        input=InputTerms(shape=row),
        codec=(CodecTerms(forward=setting.stages, backward=setting.stages),) if setting.codec else (),
        saves=SaveTerms(every_steps=setting.save_every),
        training=Training(
            loss=Method(name=workload.loss),
            optimizer=Method(name="SGD", options={"lr": LR}),
            batch_size=workload.batch,
            micro_batches=setting.micro_batches,
            staleness=setting.staleness,
            cached_steps=setting.cached_steps,
            rounds=1 if tried else job.epochs,
            local_steps=job.steps if tried else 0,
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
            for name, pinned in public_keys(keys, (*clients_of(workload, setting), SERVER)).items()
        },
    )
    return draft(terms, workload.model())


# ---------------------------------------------------------------------- what is measured


def tls_seconds(keys: Path, party: str, step_bytes: int) -> tuple[float, float]:
    """What TLS and the kernel's copies cost for each byte that is sent, and for each that is received: seconds of a
    core (not of the clock: other processes may be busy), medians, in pieces no larger than what a step sends.
    """
    ours, theirs = socket.socketpair()
    dialling = dialling_context(load_credentials(keys, party))
    listening = listening_context(load_credentials(keys, SERVER))
    with ThreadPoolExecutor(1) as other, ours, theirs:
        answered = other.submit(listening.wrap_socket, theirs, server_side=True)
        sender = dialling.wrap_socket(ours, server_hostname=SERVER)
        receiver = answered.result()
        with sender, receiver:
            piece = memoryview(bytes(max(1, min(step_bytes, PIECE_BYTES))))
            pieces = -(-MEASURED_BYTES // len(piece))
            into = memoryview(bytearray(len(piece)))
            spent = []
            for _ in range(REPEATS):
                sending_s = receiving_s = 0.0
                for _ in range(pieces):
                    start = time.thread_time()
                    sender.sendall(piece)
                    sent, at = time.thread_time(), 0
                    while at < len(into):
                        at += receiver.recv_into(into[at:])
                    sending_s += sent - start
                    receiving_s += time.thread_time() - sent
                spent.append((sending_s, receiving_s))
    sending, receiving = (median(each) / (pieces * len(piece)) for each in zip(*spent, strict=True))
    return sending, receiving


class Clock:
    """When each step ended, and how much processor time this process had taken by then; `warm_up` are left out."""

    def __init__(self, warm_up: int) -> None:
        self._ends: list[tuple[float, float]] = []
        self._warm_up = warm_up

    @property
    def count(self) -> int:
        """Steps so far."""
        return len(self._ends)

    def step(self) -> None:
        self._ends.append((time.perf_counter(), time.process_time()))

    def steps(self) -> list[float]:
        """Seconds from the end of one step to the end of the next, after the warm-up."""
        return [stop - start for (start, _), (stop, _) in pairwise(self._ends[self._warm_up - 1 :])]

    def cpu_ms(self) -> float:
        """Of each measured step; 0 if none of this process' own is one."""
        measured = self._ends[self._warm_up - 1 :]
        if len(measured) < 2:
            return 0.0
        return 1e3 * (measured[-1][1] - measured[0][1]) / (len(measured) - 1)


def peak_mb() -> float:
    """The most memory this process has held. Unlike `getrusage` it knows nothing of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM"))
