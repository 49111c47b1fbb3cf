"""What a frame costs: round trips of one size, and computing while a large one leaves.

    python benchmarks/pingpong.py [--kib 32 1024 16384] [--seconds 2] [--only trips|overlap]
        [--compute-ms 9] [--rate-mbit 0] [--json]

Two processes without torch over loopback, mTLS, as parties have it. A round trip is a frame there and one of the same
size back; it is counted with the page faults at this end, which tell whether memory was taken anew for each frame.
The overlap is measured with one frame of 16 MiB and arithmetic that takes `--compute-ms`, in turns: first one
and then the other (`send(frame)`), and both at once (`send(frame, wait=False)`). Each ends when the peer has it all.
With a rate both go over an emulated link: there the sender waits for the line, not for a processor.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from children import ONE_THREAD, heard, started
from cutlayer.errors import ChannelClosed
from cutlayer.keys import load_credentials, make_demo_kit
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import Frame
from cutlayer.transport import Channel, Listener, dial
from emulated import EmulatedLink

KIB = 1024
LARGE_KIB = 16 * KIB
WARM_UP = 20
FEWEST = 5
TIMEOUT_S = 60.0
ECHO, PUSH = b"echo", b"push"
LIMIT_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Trips:
    """Round trips with frames of one size."""

    kib: int
    count: int
    median_us: float
    best_us: float
    faults: float
    """Page faults of this end's process for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Milliseconds, medians: computing, sending, one after the other, both at once; and until `send` came back."""

    compute_ms: float
    send_ms: float
    in_turn_ms: float
    at_once_ms: float
    handed_over_ms: float
    count: int

    @property
    def saved(self) -> float:
        """Of the shorter of both, how much cost no time."""
        return (self.in_turn_ms - self.at_once_ms) / min(self.compute_ms, self.send_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kib", type=int, nargs="+", default=[32, KIB, LARGE_KIB])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each size, and for the overlap")
    parser.add_argument("--compute-ms", type=float, default=9.0)
    parser.add_argument("--rate-mbit", type=float, default=0.0, help="of an emulated link; 0: loopback itself")
    parser.add_argument("--only", choices=["trips", "overlap"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.update(ONE_THREAD)
    with tempfile.TemporaryDirectory() as folder:
        kit = make_demo_kit(Path(folder), ["lab", "hospital-a"])
        listener = Listener(
            ("127.0.0.1", 0), load_credentials(kit, "lab"), party="lab", allowed=["hospital-a"], limits=Limits()
        )
        with ExitStack() as opened:
            opened.enter_context(closing(listener))
            port = listener.port
            if args.rate_mbit:
                port = opened.enter_context(EmulatedLink(("127.0.0.1", port), rate_mbit=args.rate_mbit)).port
            heard(opened.enter_context(started(ONE_THREAD, answer, str(kit), port)), TIMEOUT_S)
            channel = opened.enter_context(closing(listener.accept(TIMEOUT_S)))
            trips = [] if args.only == "overlap" else [round_trips(channel, kib, args.seconds) for kib in args.kib]
            overlap = None if args.only == "trips" else overlapped(channel, args.compute_ms, args.seconds)
    if args.json:
        found = {"trips": [asdict(each) for each in trips], "overlap": overlap and asdict(overlap)}
        print(json.dumps(found | {"load": os.getloadavg()}))
    else:
        print("\n".join(table(trips, overlap)))


def answer(kit: str, port: int, pipe: Connection) -> None:
    """The other end: what comes goes back, or a word for it."""
    credentials = load_credentials(Path(kit), "hospital-a")
    channel = dial(("127.0.0.1", port), credentials, party="hospital-a", peer="lab", limits=Limits())
    pipe.send("dialled")
    with closing(channel), suppress(ChannelClosed):
        while True:
            frame = channel.receive(LIMIT_BYTES)
            channel.send(frame if frame.header == ECHO else Frame(b"here"))
            del frame


def filled(header: bytes, kib: int) -> Frame:
    return Frame(header, (np.ones(kib * KIB, np.uint8).data,))


def round_trips(channel: Channel, kib: int, seconds: float) -> Trips:
    frame, took = filled(ECHO, kib), list[float]()
    for _ in range(WARM_UP):
        channel.send(frame)
        channel.receive(LIMIT_BYTES)
    faults, end = minor_faults(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        channel.send(frame)
        channel.receive(LIMIT_BYTES)
        took.append(1e6 * (time.perf_counter() - start))
    return Trips(
        kib=kib,
        count=len(took),
        median_us=statistics.median(took),
        best_us=min(took),
        faults=(minor_faults() - faults) / len(took),
    )


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def overlapped(channel: Channel, compute_ms: float, seconds: float) -> Overlap:
    frame, compute = filled(PUSH, LARGE_KIB), computing(compute_ms)
    handed: list[float] = []

    def send(wait: bool = True) -> None:
        start = time.perf_counter()
        channel.send(frame, wait=wait)
        if not wait:
            handed.append(1e3 * (time.perf_counter() - start))

    def arrive() -> None:
        channel.receive(LIMIT_BYTES)

    ways: dict[str, tuple[Callable[[], None], ...]] = {
        "compute": (compute,),
        "send": (send, arrive),
        "in turn": (send, compute, arrive),
        "at once": (lambda: send(wait=False), compute, arrive),
    }
    took: dict[str, list[float]] = {way: [] for way in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(handed) < FEWEST:
        for way, parts in ways.items():
            start = time.perf_counter()
            for part in parts:
                part()
            took[way].append(1e3 * (time.perf_counter() - start))
    medians = {way: statistics.median(each) for way, each in took.items()}
    return Overlap(
        compute_ms=medians["compute"],
        send_ms=medians["send"],
        in_turn_ms=medians["in turn"],
        at_once_ms=medians["at once"],
        handed_over_ms=statistics.median(handed),
        count=len(handed),
    )


def computing(compute_ms: float) -> Callable[[], None]:
    """As much arithmetic as takes so long here, in one thread and without the interpreter's lock."""
    a = np.ones((256, 256), np.float32)
    out = np.empty_like(a)
    took: list[float] = []
    for _ in range(WARM_UP):
        start = time.perf_counter()
        np.tanh(a, out=out)
        took.append(1e3 * (time.perf_counter() - start))
    count = max(1, round(compute_ms / statistics.median(took)))

    def compute() -> None:
        for _ in range(count):
            np.tanh(a, out=out)

    return compute


def table(trips: list[Trips], overlap: Overlap | None) -> Iterator[str]:
    if trips:
        yield f"{'KiB':>8}{'round trips':>14}{'median, µs':>14}{'best, µs':>12}{'page faults each':>19}"
    for each in trips:
        yield f"{each.kib:8,}{each.count:14,}{each.median_us:14,.0f}{each.best_us:12,.0f}{each.faults:19.2f}"
    if overlap is not None:
        yield (
            f"ms: {overlap.compute_ms:.1f} to compute, {overlap.send_ms:.1f} to send {LARGE_KIB // KIB} MiB; "
            f"{overlap.in_turn_ms:.1f} in turn, {overlap.at_once_ms:.1f} at once; {overlap.handed_over_ms:.3f} to hand "
            f"over. {overlap.saved:.0%} of the shorter cost no time ({overlap.count} each)"
        )
    yield f"load averages {', '.join(f'{load:.2f}' for load in os.getloadavg())}"


if __name__ == "__main__":
    main()
