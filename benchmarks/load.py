"""What a server bears: many clients at once beside a few, and one that comes and goes again and again.

    python benchmarks/load.py [--clients 256] [--few 4] [--steps 1024] [--pairs 5] [--json]
    python benchmarks/load.py --reconnects 10000 [--json]

Real sessions over lanes with mTLS and W1's payloads (784 KiB each way), in processes without torch whose segments only
copy memory. Under `alternating` all clients take turns, a mini-batch each. A pair is a run with many clients and one
with few, over as many steps, one after the other in changing order; clients share the same processes in both.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from children import heard, started
from copies import BATCH, SERVER, Crew, last_words, plan_of
from cutlayer.errors import ChannelTimeout
from cutlayer.keys import load_credentials, make_demo_kit
from cutlayer.party.memory import keep_freed_memory
from cutlayer.plan.limits import Limits
from cutlayer.protocol.agenda import shared_agendas
from cutlayer.protocol.messages import Rows
from cutlayer.protocol.wire import Frame
from cutlayer.transport import Listener, dial

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 300.0
STAGES = 10
WORD = b"here I am"
WANTED = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """What a process holds."""

    memory_mb: float
    threads: int
    files: int

    @classmethod
    def now(cls) -> "Held":
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return cls(
            memory_mb=int(status["VmRSS"].split()[0]) / 1e3,
            threads=int(status["Threads"]),
            files=len(os.listdir("/proc/self/fd")),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What the server measured of one run."""

    clients: int
    steps: int
    lost: int
    joining_s: float
    """From the first call to the last welcome."""
    first_ms: float
    """Milliseconds a step until every client of the larger run has had a turn."""
    step_ms: float
    """Milliseconds a step after that."""
    median_ms: float
    """The median of the same steps, which other work on the machine moves less."""
    cpu_ms: float
    """Processor time of the server a step, all threads, in the same steps."""
    clients_cpu_ms: float
    """The same of the clients."""
    before: Held
    joined: Held
    after: Held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1024, help="of all clients together, in each run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=4, help="that the clients share (default: 4)")
    parser.add_argument("--reconnects", type=int, default=0, help="instead: one client that comes and goes so often")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.few > args.clients or args.steps % args.clients or args.steps % args.few or args.steps < 2 * args.clients:
        parser.error("--steps must be a multiple of --clients and of --few, and at least twice as many as clients")
    if not 1 <= args.processes <= args.few or args.clients % args.processes:
        parser.error("--clients must be a multiple of --processes, and --few as many at least")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="cutlayer-load-") as name:
        if args.reconnects:
            stages = reconnect(Path(name), args.reconnects)
            print(json.dumps(stages) if args.json else "\n".join(reconnect_table(stages)))
            return
        pairs = list(compare(Path(name), args))
    result = summary(pairs)
    print(json.dumps(result) if args.json else "\n".join(table(result)))


# ---------------------------------------------------------------------- many clients


def compare(keys: Path, args: argparse.Namespace) -> Iterator[tuple[Served, Served]]:
    """Runs with many clients and with few, in pairs."""
    clients = tuple(f"client-{number:04}" for number in range(args.clients))
    make_demo_kit(keys, (*clients, SERVER))
    for number in range(args.pairs):
        few, many = (
            served(keys, each, args.steps, args.clients, args.processes)
            for each in sorted((clients, clients[: args.few]), key=len, reverse=number % 2 == 1)
        )
        if number % 2:
            few, many = many, few
        print(f"pair {number + 1} of {args.pairs}: {line(many)}; {line(few)}", file=sys.stderr)
        yield many, few


def served(keys: Path, clients: tuple[str, ...], steps: int, warm: int, processes: int) -> Served:
    """One run, in processes of its own. Times are those after the first `warm` steps."""
    with ExitStack() as stack:
        server = stack.enter_context(started({}, serve, keys, clients, steps, warm))
        port = heard(server, TIMEOUT_S)
        groups = [clients[first::processes] for first in range(processes)]
        pipes = [
            stack.enter_context(started({}, take_turns, keys, clients, group, steps, warm // processes, port))
            for group in groups
        ]
        found = heard(server, TIMEOUT_S)
        assert isinstance(found, Served)
        done, cpu_ms = zip(*(heard(pipe, TIMEOUT_S) for pipe in pipes), strict=True)
    return replace(found, lost=found.lost + steps - sum(done), clients_cpu_ms=statistics.fmean(cpu_ms))


def serve(keys: Path, clients: tuple[str, ...], steps: int, warm: int, pipe: Connection) -> None:
    keep_freed_memory()
    plan = plan_of(clients)
    crew = Crew(plan, {SERVER: Rows()})
    session = crew.sessions[SERVER]
    listener = Listener(
        (LOOPBACK, 0), load_credentials(keys, SERVER), party=SERVER, allowed=session.joinable, limits=plan.terms.limits
    )
    before = Held.now()
    joined: list[tuple[float, Held]] = []
    calls: list[float] = []

    def accept() -> None:
        for _ in clients:
            crew.connect(SERVER, listener.accept(TIMEOUT_S))
            calls.append(time.perf_counter())
        while not session.begun:
            time.sleep(0.001)
        joined.append((time.perf_counter(), Held.now()))

    with closing(listener), closing(crew):
        pipe.send(listener.port)
        crew.start(accept)
        crew.run()
        after = Held.now()
    (first, _), (start, start_cpu), (end, end_cpu) = (crew.stepped[place] for place in (0, warm - 1, -1))
    done = len(crew.stepped)
    refuse_torch()
    pipe.send(
        Served(
            clients=len(clients),
            steps=done,
            lost=steps - done,
            joining_s=joined[0][0] - calls[0],
            first_ms=1e3 * (start - first) / (warm - 1),
            step_ms=1e3 * (end - start) / (done - warm),
            median_ms=1e3 * statistics.median(to - since for (since, _), (to, _) in pairwise(crew.stepped[warm - 1 :])),
            cpu_ms=1e3 * (end_cpu - start_cpu) / (done - warm),
            clients_cpu_ms=0.0,
            before=before,
            joined=joined[0][1],
            after=after,
        )
    )


def take_turns(
    keys: Path, clients: tuple[str, ...], own: tuple[str, ...], steps: int, warm: int, port: int, pipe: Connection
) -> None:
    """Several clients in one process; they dial all at once."""
    keep_freed_memory()
    plan = plan_of(clients)
    crew = Crew(plan, dict.fromkeys(own, Rows(BATCH * steps // len(clients))), shared_agendas(plan))

    def call(client: str) -> None:
        credentials = load_credentials(keys, client)
        crew.connect(
            client, dial((LOOPBACK, port), credentials, party=client, peer=SERVER, limits=plan.terms.limits)
        )  # fmt: skip

    with closing(crew):
        for client in own:
            crew.start(lambda client=client: call(client))  # type: ignore[misc]
        crew.run()
    refuse_torch()
    (_, start_cpu), (_, end_cpu), done = crew.stepped[warm - 1], crew.stepped[-1], len(crew.stepped)
    pipe.send((done, 1e3 * (end_cpu - start_cpu) / (done - warm)))


# ---------------------------------------------------------------------- one that comes and goes


def reconnect(keys: Path, times: int) -> list[dict[str, Any]]:
    """What server and client hold, at the beginning and after each tenth of the links."""
    make_demo_kit(keys, ("client", SERVER))
    with started({}, echo, keys) as server, started({}, come_and_go, keys, heard(server, TIMEOUT_S), times) as client:
        stages = []
        for _ in range(STAGES + 1):
            links, seconds, held = heard(client, TIMEOUT_S)
            server.send("held?")
            stages.append(
                {"links": links, "seconds": seconds, "server": asdict(heard(server, TIMEOUT_S)), "client": asdict(held)}
            )
        return stages


def echo(keys: Path, pipe: Connection) -> None:
    """Each link: send back the one frame that comes, and wait until the other end leaves."""
    with closing(
        Listener((LOOPBACK, 0), load_credentials(keys, SERVER), party=SERVER, allowed=["client"], limits=Limits())
    ) as listener:
        pipe.send(listener.port)
        while True:
            try:
                with closing(listener.accept(0.05)) as channel:
                    channel.send(channel.receive(0))
                    last_words(channel, 0)
            except ChannelTimeout:
                if pipe.poll():
                    pipe.recv()
                    refuse_torch()
                    pipe.send(Held.now())


def come_and_go(keys: Path, port: int, times: int, pipe: Connection) -> None:
    credentials, limits = load_credentials(keys, "client"), Limits()
    start = time.perf_counter()
    pipe.send((0, 0.0, Held.now()))
    for stage in range(STAGES):
        for _ in range(times * stage // STAGES, times * (stage + 1) // STAGES):
            with closing(dial((LOOPBACK, port), credentials, party="client", peer=SERVER, limits=limits)) as channel:
                channel.send(Frame(WORD))
                assert channel.receive(0).header == WORD
        pipe.send((times * (stage + 1) // STAGES, time.perf_counter() - start, Held.now()))
    refuse_torch()


# ---------------------------------------------------------------------- processes


def refuse_torch() -> None:
    if "torch" in sys.modules:
        sys.exit("torch was imported into a process that should do without")


# ---------------------------------------------------------------------- what comes of it


def line(run: Served) -> str:
    took = f"{run.step_ms:.2f} ms a step ({run.first_ms:.2f} at first)"
    return f"{run.clients} clients {took}, joined in {run.joining_s:.1f} s"


def summary(pairs: list[tuple[Served, Served]]) -> dict[str, Any]:
    """Ratios of steps/s, many clients to few, and what the server holds for a client more."""

    def median(of: Callable[[Served, Served], float]) -> float:
        return statistics.median(of(many, few) for many, few in pairs)

    many, few = pairs[0]
    ratios = [few.step_ms / many.step_ms for many, few in pairs]
    return {
        "clients": many.clients,
        "few": few.clients,
        "steps": many.steps,
        "pairs": len(pairs),
        "ratio": statistics.median(ratios),
        "ratio_median": median(lambda many, few: few.median_ms / many.median_ms),
        "ratio_cpu": median(lambda many, few: (few.cpu_ms + few.clients_cpu_ms) / (many.cpu_ms + many.clients_cpu_ms)),
        "ratio_first": median(lambda many, few: few.first_ms / many.first_ms),
        "ratios": ratios,
        "step_ms": [median(lambda many, _: many.step_ms), median(lambda _, few: few.step_ms)],
        "median_ms": [median(lambda many, _: many.median_ms), median(lambda _, few: few.median_ms)],
        "cpu_ms": [median(lambda many, _: many.cpu_ms), median(lambda _, few: few.cpu_ms)],
        "clients_cpu_ms": [median(lambda many, _: many.clients_cpu_ms), median(lambda _, few: few.clients_cpu_ms)],
        "joining_s": median(lambda many, _: many.joining_s),
        "lost": sum(many.lost + few.lost for many, few in pairs),
        "client_kb_joined": median(
            lambda many, _: 1e3 * (many.joined.memory_mb - many.before.memory_mb) / many.clients
        ),
        "client_kb": median(
            lambda many, few: 1e3 * (many.after.memory_mb - few.after.memory_mb) / max(1, many.clients - few.clients)
        ),
        "server": {name: asdict(getattr(many, name)) for name in ("before", "joined", "after")},
        "load": [round(load, 2) for load in os.getloadavg()],
    }  # fmt: skip


def table(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{result['clients']} clients beside {result['few']}: {result['pairs']} pairs of {result['steps']} steps, "
        f"{result['lost']} lost"
    )
    each = ", ".join(f"{ratio:.3f}" for ratio in result["ratios"])
    yield f"  steps/s, many to few              {result['ratio']:.3f} (wanted: {WANTED}); each pair: {each}"
    yield f"  by the median step                {result['ratio_median']:.3f}"
    yield f"  by processor time                 {result['ratio_cpu']:.3f}"
    yield f"  over everybody's first turn       {result['ratio_first']:.3f}"
    for name, key in {
        "ms a step": "step_ms",
        "ms, the median step": "median_ms",
        "processor, server": "cpu_ms",
        "processor, clients": "clients_cpu_ms",
    }.items():
        yield f"  {name:33} {' and '.join(f'{value:.2f}' for value in result[key])}"
    yield f"  all joined within                 {result['joining_s']:.1f} s"
    joined, end = result["client_kb_joined"], result["client_kb"]
    yield f"  server's memory for each client   {joined:.0f} KB joined, {end:.0f} KB in the end"
    for name, held in result["server"].items():
        yield f"  server {name:10} {held['memory_mb']:7.1f} MB {held['threads']:5} threads {held['files']:5} files"
    yield f"  load averages {', '.join(f'{load:.2f}' for load in result['load'])}"


def reconnect_table(stages: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'links':>7}{'seconds':>9}" + "".join(
        f"   {f'{party}: MB':>10}{'threads':>9}{'files':>7}" for party in ("server", "client")
    )
    for stage in stages:
        held = [f"{e['memory_mb']:10.1f}{e['threads']:9}{e['files']:7}" for e in (stage["server"], stage["client"])]
        yield f"{stage['links']:7}{stage['seconds']:9.1f}   " + "   ".join(held)
    yield f"load averages {', '.join(f'{load:.2f}' for load in os.getloadavg())}"


if __name__ == "__main__":
    main()
