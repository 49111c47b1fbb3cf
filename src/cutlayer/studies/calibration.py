"""What a step costs beside the arithmetic, measured on this machine: a split run of a model that computes nothing.

Two parties in two processes, over lanes with mutual TLS on loopback, as in a real run: sessions, loaders, frames,
threads that wake each other. The keys are made for the occasion, in a folder that is gone afterwards.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer.errors import RunError
from cutlayer.keys import load_credentials, make_demo_kit
from cutlayer.observe.facts import Fact, Noticed, Progressed
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.run import Network, run
from cutlayer.plan.limits import Limits
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.studies import ping
from cutlayer.studies.costs import Batch, Pair
from cutlayer.studies.lines import Measured
from cutlayer.transport.dialler import dial
from cutlayer.transport.listener import Listener

CLIENT, SERVER = "client", "server"
LOOPBACK = "127.0.0.1"
STEPS, WARM_UP = 80, 10
MICROS = 8
WAIT_S = 60.0
LIMITS = Limits(join_timeout_s=WAIT_S, progress_timeout_s=WAIT_S, reconnect_timeout_s=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Overheads:
    """Of a machine: seconds that a step costs (from one end to the other and back, and both optimizers), and each
    micro-batch of it (at both ends together); bytes a second through TLS, one way; a frame's round trip on loopback.
    """

    step_s: float
    micro_s: float
    tls_bytes_per_s: float
    loopback_rtt_s: float


def calibrate() -> Overheads:
    """Measured, in some five seconds; the server is a process of its own. Raises `CutlayerError`."""
    with TemporaryDirectory(prefix="cutlayer-calibration-") as name:
        keys = make_demo_kit(Path(name), (CLIENT, SERVER))
        with _server(keys) as pipe:
            link = _ping(keys, _heard(pipe))
            one, several = (_idle_step(keys, micros, _heard(pipe)) for micros in (1, MICROS))
    micro_s = max(0.0, (several - one) / (MICROS - 1))
    return Overheads(
        step_s=max(0.0, one - micro_s),
        micro_s=micro_s,
        tls_bytes_per_s=min(link.up_bytes_per_s, link.down_bytes_per_s),
        loopback_rtt_s=link.rtt_s,
    )


# ---------------------------------------------------------------------- the server's process


@contextmanager
def _server(keys: Path) -> Iterator[Connection]:
    """Our end of the pipe through which it says on which port it waits next. It does not outlive this block."""
    spawning = get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(keys, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def _heard(pipe: Connection) -> int:
    try:
        if pipe.poll(WAIT_S):
            return int(pipe.recv())
    except EOFError:
        pass
    raise RunError("the process that stands for the server in the calibration failed: see what it printed above")


def _serve(keys: Path, pipe: Connection) -> None:
    """Answer a ping, then take part in two runs."""
    torch.set_num_threads(1)
    credentials = load_credentials(keys, SERVER)

    def observe(fact: Fact) -> None:
        if isinstance(fact, Noticed) and "listens on port" in fact.sentence:
            pipe.send(int(fact.sentence.rpartition(" ")[2]))

    listener = Listener((LOOPBACK, 0), credentials, party=SERVER, allowed=(CLIENT,), limits=LIMITS)
    pipe.send(listener.port)
    channel = listener.accept(WAIT_S)
    ping.answer(channel)
    channel.close()
    listener.close()
    for micro_batches in (1, MICROS):
        network = Network(credentials=credentials, listen=(LOOPBACK, 0))
        run(_agreement(micro_batches), SERVER, network, secret=bytes(32), observers=(observe,))


# ---------------------------------------------------------------------- the client, in this process


def _ping(keys: Path, port: int) -> Measured:
    channel = dial((LOOPBACK, port), load_credentials(keys, CLIENT), party=CLIENT, peer=SERVER, limits=LIMITS)
    try:
        return ping.measure(channel, CLIENT)
    finally:
        channel.close()


def _idle_step(keys: Path, micro_batches: int, port: int) -> float:
    """Seconds of a step that computes next to nothing, less what its arithmetic takes; a row in each micro-batch."""
    x, y = torch.randn(STEPS * micro_batches, 1), torch.zeros(STEPS * micro_batches, dtype=torch.int64)
    agreement = _agreement(micro_batches)
    ends: list[float] = []

    def observe(fact: Fact) -> None:
        if isinstance(fact, Progressed):
            ends.append(time.perf_counter())

    network = Network(credentials=load_credentials(keys, CLIENT), connect=(LOOPBACK, port))
    rows = TensorDataset(x, y)
    run(agreement, CLIENT, network, secret=bytes(32), data=rows, observers=(observe,))
    took_s = statistics.median(stop - start for start, stop in pairwise(ends[WARM_UP:]))
    pair = Pair(agreement, Batch(x=(x[:micro_batches],), y=y[:micro_batches]))
    return max(0.0, took_s - pair.times(micro_batches).total(micro_batches))


def _agreement(micro_batches: int) -> Agreement:
    terms = Terms(
        topology="vanilla",
        schedule="alternating",
        model=ModelTerms(cut=("0",)),
        input=InputTerms(shape=(1,)),
        training=Training(
            loss=Method(name="cross_entropy"),
            optimizer=Method(name="SGD", options={"lr": 0.0}),
            batch_size=micro_batches,
            micro_batches=micro_batches,
            rounds=1,
            held_out=0.0,
        ),
        parties={CLIENT: PartyTerms(role="client"), SERVER: PartyTerms(role="server")},
        limits=LIMITS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return draft(terms, nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2)))
