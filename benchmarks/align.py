"""What a private alignment costs: seconds and peak memory of each party, each in a process of its own, over mTLS.

    python benchmarks/align.py [--ids 1000000] [--parties 2] [--common 0.5] [--json]

Each party reads its ids from a CSV file of its own. The first one conducts and has a table like the others; with three
parties or more what others say to each other passes it sealed. The result is compared with plain sets.
"""

import argparse
import json
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from children import heard, started
from cutlayer.data.ids import read_ids
from cutlayer.keys import PublicKeys, load_credentials, load_sealer, make_demo_kit
from cutlayer.keys.pairs import read_public_keys
from cutlayer.observe.facts import Fact, Noticed
from cutlayer.party.agreement import draft
from cutlayer.party.align import align
from cutlayer.party.alignment.star import circle
from cutlayer.party.run import Network
from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import Plan
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from worker import peak_mb

TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one party. `start_mb` is its memory before it reads its ids: Python and torch."""

    party: str
    ids: int
    common: int
    read_s: float
    align_s: float
    processor_s: float
    start_mb: float
    peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--parties", type=int, default=2)
    parser.add_argument("--common", type=float, default=0.5, help="the part of each party's ids that all hold")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = tuple(f"bank-{number}" for number in range(options.parties))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_demo_kit(folder, names)
        common = int(options.ids * options.common)
        for number, party in enumerate(names):
            own = range(10**9 * (number + 1), 10**9 * (number + 1) + options.ids - common)
            with (folder / f"{party}.csv").open("w") as file:
                file.writelines(["id\n", *(f"{each}\n" for each in (*own, *range(common)))])
        costs = measure(folder, names)
    assert all(cost.common == common for cost in costs), costs
    if options.json:
        print(json.dumps({"cores": os.cpu_count(), "parties": [asdict(cost) for cost in costs]}, indent=2))
        return
    for cost in costs:
        print(
            f"{cost.party}: {cost.ids:,} ids, {cost.common:,} common; read {cost.read_s:.1f} s, aligned "
            f"{cost.align_s:.1f} s ({cost.processor_s:.1f} s of processors); peak {cost.peak_mb:.0f} MB, of which "
            f"{cost.start_mb:.0f} MB before it read its ids"
        )


def measure(folder: Path, names: tuple[str, ...]) -> list[Cost]:
    """All parties at once; the first has the port."""
    with ExitStack() as stack:
        first = stack.enter_context(started({}, take_part, folder, names, names[0], 0))
        port = heard(first, TIMEOUT_S)
        pipes = [stack.enter_context(started({}, take_part, folder, names, name, port)) for name in names[1:]]
        return [heard(pipe, TIMEOUT_S) for pipe in (first, *pipes)]


def take_part(folder: Path, names: tuple[str, ...], party: str, port: int, pipe: "Connection[Any, Any]") -> None:
    torch.set_num_threads(1)
    keys: dict[str, PublicKeys] = {name: read_public_keys(folder / f"{name}.pub", name) for name in names}
    plan, start_mb = plan_of(names, keys), peak_mb()

    def notice(fact: Fact) -> None:
        if isinstance(fact, Noticed) and "listens on port" in fact.sentence:
            pipe.send(int(fact.sentence.split()[-1]))

    start = time.perf_counter()
    ids = read_ids(folder / f"{party}.csv", "id")
    read_s, processor = time.perf_counter() - start, time.process_time()
    network = Network(
        credentials=load_credentials(folder, party),
        seals=load_sealer(folder, party, keys),
        listen=("127.0.0.1", 0),
        connect=("127.0.0.1", port),
    )
    done = align(plan, party, circle(plan, names), ids, network, observer=notice)
    assert done.rows is not None
    pipe.send(
        Cost(
            party=party,
            ids=len(ids),
            common=len(done.rows),
            read_s=read_s,
            align_s=done.seconds,
            processor_s=time.process_time() - processor,
            start_mb=start_mb,
            peak_mb=peak_mb(),
        )
    )


def plan_of(names: tuple[str, ...], keys: dict[str, PublicKeys]) -> Plan:
    """A plan of any network: alignment looks only at its parties, pins and limits."""
    parties = {
        name: PartyTerms(
            role="client" if number else "server",
            address="" if number else "127.0.0.1:7443",
            signing_key=keys[name].signing,
            sealing_key=keys[name].sealing,
        )
        for number, name in enumerate(names)
    }
    terms = Terms(
        topology="vanilla",
        schedule="alternating",
        model=ModelTerms(cut=("1",)),
        input=InputTerms(shape=(4,)),
        training=Training(
            loss=Method(name="cross_entropy"), optimizer=Method(name="SGD", options={"lr": 0.1}), batch_size=4, rounds=1
        ),
        parties=parties,
        limits=Limits(progress_timeout_s=TIMEOUT_S),
    )
    torch.manual_seed(0)
    return draft(terms, nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))).plan


if __name__ == "__main__":
    main()
