"""How well `cutlayer plan advise` predicts real runs, over emulated links.

    python benchmarks/advise.py [--codecs raw,half] [--micro-batches 1 4] [--seconds 3] [--json] [--quiet]

A convolutional network is cut at several places. Each row is a run of two processes, client and server, over lanes
with mTLS through an emulated link of some rate and round trip, beside what was predicted for it before, from the parts
measured in this process and the link as it was asked for. Fails if less than 80% of the rows lie within 15%, or if on
any link the predicted best is not within 15% of the measured best.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import calibrate as emulator
from children import ONE_THREAD, heard, started
from cutlayer.codec.codec import Codec
from cutlayer.keys import load_credentials, make_demo_kit
from cutlayer.observe.facts import Fact, Noticed, Progressed
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.memory import keep_freed_memory
from cutlayer.party.run import Network, run
from cutlayer.plan.methods import methods_from
from cutlayer.plan.terms import CodecTerms, Method, ModelTerms, Training
from cutlayer.studies import codecs
from cutlayer.studies.advisor import Advice, Setting, advise, line_of
from cutlayer.studies.calibration import Overheads, calibrate
from cutlayer.studies.cuts import CLIENT, SERVER, inputs_of, vanilla
from cutlayer.studies.survey import survey
from emulated import EmulatedLink
from workloads import images, w1

BATCH, DATA_ROWS = 64, 640
CUTS = ("2", "5", "7")
LINKS = ((20.0, 20.0), (100.0, 50.0), (200.0, 10.0))
"""Mbit/s, and milliseconds there and back."""
WITHIN, SHARE = 0.15, 0.8
FEWEST, MOST, WARM_UP = 6, 60, 2
START_TIMEOUT_S, RUN_TIMEOUT_S = 120.0, 180.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run: where the model is cut, how it is split and encoded, for how many steps."""

    cut: str
    codec: str
    micro_batches: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A prediction and what came of it, in steps a second."""

    rate_mbit: float
    rtt_ms: float
    cut: str
    codec: str
    micro_batches: int
    predicted: float
    measured: float

    @property
    def deviation(self) -> float:
        """Of the prediction, from the measured figure."""
        return self.predicted / self.measured - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", default="raw,half", help="with commas between (default: raw,half)")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4], help="M (default: 1 4)")
    parser.add_argument("--cuts", nargs="+", default=list(CUTS), help=f"layers (default: {' '.join(CUTS)})")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a run, about (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    torch.set_num_threads(1)
    floor, overheads = floor_of_emulator(), calibrate()
    found = []
    with tempfile.TemporaryDirectory(prefix="cutlayer-advise-") as folder, Crew(Path(folder)) as crew:
        for link in LINKS:
            for cut in args.cuts:
                advice = predicted(cut, link, floor, overheads, codecs.named(args.codecs), args.micro_batches)
                for row in measure(crew, advice, link, args.seconds):
                    found.append(row)
                    if not args.quiet:
                        print(in_words(row), file=sys.stderr)
    result = summary(found, floor, overheads)
    print(json.dumps(result) if args.json else table(found, result))
    if result["within"] < SHARE or not all(best["holds"] for best in result["bests"]):
        sys.exit("the predictions do not hold")


def model() -> nn.Sequential:
    torch.manual_seed(1)
    bottom, top = w1()
    return nn.Sequential(*bottom.children(), *top.children())


def rows() -> TensorDataset:
    return TensorDataset(*images(DATA_ROWS, 1, 28))


def training(micro_batches: int, steps: int = 1) -> Training:
    return Training(
        loss=Method(name="cross_entropy"),
        optimizer=Method(name="SGD", options={"lr": 0.01}),
        batch_size=BATCH,
        micro_batches=micro_batches,
        rounds=1,
        local_steps=steps,
        shuffle=False,
        held_out=0.0,
    )


def predicted(
    cut: str,
    link: tuple[float, float],
    floor: dict[str, float],
    overheads: Overheads,
    named: Mapping[str, Codec | None],
    micros: Sequence[int],
) -> Advice:
    """The advice for one cut, its parts measured just before its runs are, as machines drift."""
    surveyed = survey(model(), rows(), training(1), named=named, micros=micros, only=(cut,))
    line = line_of(link[0] * 1e6 / 8, link[1] / 1e3 + floor["round_trip_us"] / 1e6)
    return advise(surveyed, Setting(line=line, overheads=overheads))


# ---------------------------------------------------------------------- real runs


class Crew:
    """A client and a server, each in a process of its own that does one job after another."""

    def __init__(self, folder: Path) -> None:
        self._keys = folder / "keys"
        if not self._keys.exists():
            make_demo_kit(self._keys, (CLIENT, SERVER))
        self._stack = ExitStack()

    def __enter__(self) -> "Crew":
        self._server, self._client = (
            self._stack.enter_context(started(ONE_THREAD, work, self._keys, party)) for party in (SERVER, CLIENT)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def steps(self, job: Job, rate_mbit: float, rtt_ms: float) -> list[float]:
        """Seconds of each step, as the client saw them."""
        self._server.send((job, 0))
        port = heard(self._server, START_TIMEOUT_S)
        with EmulatedLink(("127.0.0.1", port), delay_ms=rtt_ms / 2, rate_mbit=rate_mbit) as link:
            self._client.send((job, link.port))
            took: list[float] = heard(self._client, RUN_TIMEOUT_S)
            heard(self._server, RUN_TIMEOUT_S)
        return took


def work(keys: Path, party: str, pipe: Connection) -> None:
    """Jobs come through the pipe; a server answers with its port first, and all with the seconds of their steps."""
    keep_freed_memory()
    torch.set_num_threads(1)
    while True:
        job, port = pipe.recv()
        ends: list[float] = []

        def observe(fact: Fact, ends: list[float] = ends) -> None:
            if isinstance(fact, Progressed):
                ends.append(time.perf_counter())
            elif isinstance(fact, Noticed) and "listens on port" in fact.sentence:
                pipe.send(int(fact.sentence.rpartition(" ")[2]))

        address = ("127.0.0.1", port)
        network = Network(credentials=load_credentials(keys, party), listen=address, connect=address)
        data = rows() if party == CLIENT else None
        run(agreement(job), party, network, secret=bytes(32), data=data, observers=(observe,))
        pipe.send([stop - start for start, stop in pairwise(ends[WARM_UP:])])


def agreement(job: Job) -> Agreement:
    net = model()
    terms = vanilla(training(job.micro_batches, job.steps), inputs_of(net, rows()))
    stages = () if job.codec == codecs.RAW else tuple(methods_from(job.codec))
    coding = (CodecTerms(forward=stages, backward=stages),) if stages else ()
    return draft(replace(terms, model=ModelTerms(cut=(job.cut,)), codec=coding), net)


def measure(crew: Crew, advice: Advice, link: tuple[float, float], seconds: float) -> Iterator[Row]:
    """Each choice of the advice, run for about so many seconds."""
    rate, rtt = link
    for choice in advice.choices:
        count = WARM_UP + 1 + min(MOST, max(FEWEST, round(seconds * choice.steps_per_s)))
        job = Job(cut=choice.layer, codec=choice.codec, micro_batches=choice.micro_batches, steps=count)
        yield Row(
            rate_mbit=rate,
            rtt_ms=rtt,
            cut=choice.layer,
            codec=choice.codec,
            micro_batches=choice.micro_batches,
            predicted=choice.steps_per_s,
            measured=1 / statistics.median(crew.steps(job, rate, rtt)),
        )


def floor_of_emulator() -> dict[str, float]:
    """What an emulated link costs that was asked for nothing."""
    with started({}, emulator.answer) as pipe:
        port = heard(pipe, START_TIMEOUT_S)
        direct = emulator.measure(port, emulator.Setting(), 0.5)
        through = emulator.measure_through(port, emulator.Setting(), 0.5)
    return {
        "round_trip_us": 1e3 * max(0.0, through.round_trip_ms - direct.round_trip_ms),
        "most_mbit": min(through.up_mbit, through.down_mbit),
    }


# ---------------------------------------------------------------------- what comes of it


def summary(found: Sequence[Row], floor: dict[str, float], overheads: Overheads) -> dict[str, Any]:
    within = [abs(row.deviation) <= WITHIN for row in found]
    return {
        "rows": [asdict(row) | {"deviation": row.deviation} for row in found],
        "within": sum(within) / len(within),
        "bests": [best(link, [row for row in found if (row.rate_mbit, row.rtt_ms) == link]) for link in LINKS],
        "emulator": floor,
        "overheads": asdict(overheads),
        "load": os.getloadavg(),
    }


def best(link: tuple[float, float], found: Sequence[Row]) -> dict[str, Any]:
    """What the row that was predicted to be the fastest has in fact come to, beside the fastest."""
    chosen, fastest = max(found, key=lambda row: row.predicted), max(found, key=lambda row: row.measured)
    lost = 1 - chosen.measured / fastest.measured
    return {
        "link": link,
        "predicted": asdict(chosen),
        "measured": asdict(fastest),
        "lost": lost,
        "holds": lost <= WITHIN,
    }


def in_words(row: Row) -> str:
    return (
        f"{row.rate_mbit:5g} Mbit/s {row.rtt_ms:4g} ms  cut {row.cut:>3}  {row.codec:8}  M = {row.micro_batches}  "
        f"predicted {row.predicted:7.2f}  measured {row.measured:7.2f}  {row.deviation:+7.1%}"
    )


def table(found: Sequence[Row], result: dict[str, Any]) -> str:
    floor, overheads = result["emulator"], result["overheads"]
    lines = ["steps/s", *map(in_words, found), f"within {WITHIN:.0%}: {result['within']:.0%} of {len(found)} rows"]
    for each in result["bests"]:
        chosen, fastest = (Row(**each[name]) for name in ("predicted", "measured"))
        lines.append(
            f"{each['link'][0]:g} Mbit/s, {each['link'][1]:g} ms: predicted best cut {chosen.cut} {chosen.codec} "
            f"M = {chosen.micro_batches} makes {chosen.measured:.2f} steps/s; the measured best is cut {fastest.cut} "
            f"{fastest.codec} M = {fastest.micro_batches} with {fastest.measured:.2f}: {each['lost']:.1%} less"
        )
    lines.append(
        f"the emulator by itself adds {floor['round_trip_us']:.0f} µs to a round trip, and passes at most "
        f"{floor['most_mbit']:,.0f} Mbit/s"
    )
    lines.append(
        f"overheads of this machine: {1e3 * overheads['step_s']:.2f} ms a step, {1e3 * overheads['micro_s']:.2f} ms a "
        f"micro-batch; TLS {1e-6 * overheads['tls_bytes_per_s']:,.0f} MB/s"
    )
    return "\n".join([*lines, f"load averages {', '.join(f'{load:.2f}' for load in result['load'])}"])


if __name__ == "__main__":
    main()
