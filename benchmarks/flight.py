"""Round trips over Flight beside lanes: a frame of one size there, and one of the same size back.

    python benchmarks/flight.py [--kib 16 784 16384] [--seconds 2] [--rounds 3] [--json]

Two processes without torch over loopback, mTLS, as parties have it. Both transports stand at once and take turns,
`--rounds` times, since machines drift. Beside the median time stands the processor time of this end for a round trip,
which a busy machine changes less.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import numpy as np

from children import ONE_THREAD, heard, started
from cutlayer.errors import ChannelClosed
from cutlayer.keys import load_credentials, make_demo_kit
from cutlayer.party.network import Network, Transport
from cutlayer.plan.limits import Limits
from cutlayer.protocol.wire import Frame
from cutlayer.transport import Channel

KIB = 1024
TRANSPORTS: tuple[Transport, ...] = ("lanes", "flight")
WARM_UP = 5
TIMEOUT_S = 60.0
LIMIT_BYTES = 2**30

Took = dict[tuple[int, Transport], list[tuple[float, float]]]
"""Seconds of each round trip and of this end's processor, by KiB and transport."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kib", type=int, nargs="+", default=[16, 784, 16 * KIB])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each size and transport, in all rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    os.environ.update(ONE_THREAD)
    took: Took = {(kib, transport): [] for kib in args.kib for transport in TRANSPORTS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        make_demo_kit(Path(folder), ["lab", "hospital-a"])
        links = {transport: linked(folder, transport, opened) for transport in TRANSPORTS}
        for _ in range(args.rounds):
            for kib, transport in took:
                took[kib, transport] += round_trips(links[transport], kib, args.seconds / args.rounds)
    medians = {key: [1e6 * statistics.median(each) for each in zip(*trips, strict=True)] for key, trips in took.items()}
    if args.json:
        found = [
            {"kib": kib, "transport": name, "median_us": median, "cpu_us": cpu}
            for (kib, name), (median, cpu) in medians.items()
        ]
        print(json.dumps({"trips": found, "load": os.getloadavg()}))
        return
    print(f"{'KiB':>8}{'transport':>12}{'median, µs':>14}{'processor, µs':>16}")
    for (kib, name), (median, cpu) in medians.items():
        print(f"{kib:>8,}{name:>12}{median:>14,.0f}{cpu:>16,.0f}")


def linked(folder: str, transport: Transport, opened: ExitStack) -> Channel:
    """This end of a link to a process that sends back what it receives."""
    network = Network(credentials=load_credentials(Path(folder), "lab"), transport=transport)
    listener = opened.enter_context(
        closing(network.listener(("127.0.0.1", 0), party="lab", allowed=["hospital-a"], limits=Limits()))
    )
    pipe = opened.enter_context(started(ONE_THREAD, echo, folder, transport, listener.port))
    heard(pipe, TIMEOUT_S)
    return cast(Channel, opened.enter_context(closing(listener.accept(TIMEOUT_S))))


def echo(folder: str, transport: Transport, port: int, pipe: Connection) -> None:
    """The other end."""
    network = Network(credentials=load_credentials(Path(folder), "hospital-a"), transport=transport)
    channel = network.dial(("127.0.0.1", port), party="hospital-a", peer="lab", limits=Limits())
    pipe.send("dialled")
    with closing(channel), suppress(ChannelClosed):
        while True:
            channel.send(channel.receive(LIMIT_BYTES))


def round_trips(channel: Channel, kib: int, seconds: float) -> list[tuple[float, float]]:
    frame, took = Frame(b"echo", (np.ones(kib * KIB, np.uint8).data,)), list[tuple[float, float]]()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(took) <= WARM_UP:
        start, worked = time.perf_counter(), time.process_time()
        channel.send(frame)
        channel.receive(LIMIT_BYTES)
        took.append((time.perf_counter() - start, time.process_time() - worked))
    return took[WARM_UP:]


if __name__ == "__main__":
    main()
