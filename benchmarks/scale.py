"""What a simulated client costs when there are many: time per client step beside a bare loop, and memory.

    python benchmarks/scale.py [--workloads W1,W2] [--schedules splitfed_v1,...] [--clients 10,100,1000] [--json]

A hundred clients a round (all, if there are fewer), each with a small part of the rows and one pass over it. The bare
loop is one uncut model that takes the same batches one after another, in the same process, before and after the
simulation: it knows nothing of clients, averages or messages, so it is the limit. Every row is a process of its own
with one thread. W1 is trained on MNIST where `--mnist FILE.npz` names it, else on its own made-up images.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from children import ONE_THREAD, heard, started
from cutlayer import simulate
from cutlayer.observe.facts import Fact, Spent
from cutlayer.party.memory import keep_freed_memory
from worker import peak_mb
from workloads import CUT, LR, WORKLOADS, Workload

CLIENTS_PER_ROUND = 100
ROWS_PER_CLIENT = {"W1": 60, "W2": 20}
SCHEDULES = ("splitfed_v1", "splitfed_v2", "splitfed_v3")
TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One simulation beside its bare loop. Times are milliseconds per client step."""

    workload: str
    schedule: str
    clients: int
    steps: int
    bare_ms: float
    simulated_ms: float
    start_s: float
    """From the call to the first forward: sessions, greetings, agendas."""
    peak_mb: float
    bare_mb: float

    @property
    def ratio(self) -> float:
        return self.simulated_ms / self.bare_ms

    @property
    def more_ms(self) -> float:
        return self.simulated_ms - self.bare_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="W1,W2")
    parser.add_argument("--schedules", default=",".join(SCHEDULES))
    parser.add_argument("--clients", default="10,100,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mnist", default="", help="an .npz with x_train and y_train")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for workload in args.workloads.split(","):
        for schedule in args.schedules.split(","):
            for clients in map(int, args.clients.split(",")):
                row = measured(workload, schedule, clients, args.rounds, args.mnist)
                rows.append(row)
                if not args.json:
                    print(line(row), flush=True)
    if args.json:
        print(json.dumps([asdict(row) | {"ratio": row.ratio, "more_ms": row.more_ms} for row in rows]))


def line(row: Row) -> str:
    return (
        f"{row.workload} {row.schedule:12} {row.clients:5} clients  bare {row.bare_ms:7.3f} ms  "
        f"simulated {row.simulated_ms:7.3f} ms  ratio {row.ratio:5.2f}  {row.more_ms:+6.3f} ms  "
        f"peak {row.peak_mb:5.0f} MB ({row.bare_mb:.0f} before)  start {row.start_s:.1f} s"
    )


def measured(workload: str, schedule: str, clients: int, rounds: int, mnist: str) -> Row:
    """One row, measured in a process of its own."""
    with started(ONE_THREAD, measure, workload, schedule, clients, rounds, mnist) as pipe:
        row = heard(pipe, TIMEOUT_S)
    assert isinstance(row, Row)
    return row


def measure(name: str, schedule: str, clients: int, rounds: int, mnist: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    workload = WORKLOADS[name]
    data = dict(parts(workload, clients, mnist))
    bare = [bare_ms(workload, data, rounds)]
    bare_mb = peak_mb()
    begun: list[float] = []

    def begin(fact: Fact) -> None:
        if not begun and isinstance(fact, Spent):
            begun.append(time.perf_counter())

    start = time.perf_counter()
    result = simulate(
        workload.model(),
        cut=CUT,
        data=data,
        schedule=schedule,
        clients_per_round=CLIENTS_PER_ROUND,
        loss=workload.loss,
        lr=LR,
        batch_size=workload.batch,
        rounds=rounds,
        held_out=0.0,
        shuffle=False,
        observers=[begin],
    )
    end = time.perf_counter()
    steps = sum(entry["purpose"] == "train" for entry in result.history)
    peak = peak_mb()
    bare.append(bare_ms(workload, data, rounds))
    pipe.send(
        Row(
            workload=name,
            schedule=schedule,
            clients=clients,
            steps=steps,
            bare_ms=statistics.mean(bare),
            simulated_ms=1e3 * (end - begun[0]) / steps,
            start_s=begun[0] - start,
            peak_mb=peak,
            bare_mb=bare_mb,
        )
    )


def parts(workload: Workload, clients: int, mnist: str) -> Iterator[tuple[str, TensorDataset]]:
    """The clients' rows: equal parts, taken round and round where there are fewer than they need."""
    x, y = rows_of(workload, mnist)
    each = ROWS_PER_CLIENT[workload.name]
    for number in range(clients):
        at = torch.arange(number * each, (number + 1) * each) % len(x)
        yield f"client-{number}", TensorDataset(x[at], y[at])


def rows_of(workload: Workload, mnist: str) -> tuple[Tensor, Tensor]:
    if workload.name == "W1" and mnist and Path(mnist).is_file():
        with np.load(mnist, allow_pickle=False) as arrays:
            images, labels = arrays["x_train"], arrays["y_train"]
        return torch.from_numpy(images).float().div(255)[:, None], torch.from_numpy(labels).long()
    return workload.rows()


def bare_ms(workload: Workload, data: dict[str, TensorDataset], rounds: int) -> float:
    """Milliseconds per step of one uncut model over the same batches: a client's rows are one batch."""
    model = workload.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    loss_of = getattr(F, workload.loss)
    batches = [dataset.tensors for dataset in data.values()][:CLIENTS_PER_ROUND]
    start = time.perf_counter()
    for _ in range(rounds):
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
    return 1e3 * (time.perf_counter() - start) / (rounds * len(batches))


if __name__ == "__main__":
    main()
