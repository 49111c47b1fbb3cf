"""How well `emulated.py` keeps what it is asked for, and what it costs by itself.

    python benchmarks/calibrate.py [--seconds 1] [--json]

Round trips of one byte, and one long stream in each direction, to a process that answers: directly, and through an
emulated link of each setting. Round trips go one after another, so with jitter their mean is what was asked for.
"""

import argparse
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

from children import heard, started
from emulated import EmulatedLink

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 30.0
STREAM_TIMEOUT_S = 60.0
PIECE = 256 * 1024
SMALLEST_STREAM, LARGEST_STREAM = 256 * 1024, 256 * 2**20
ROUND_TRIPS = 200
UPLOAD, DOWNLOAD, ECHO = b"u", b"d", b"e"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is asked of a link."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_mbit: float = 0.0

    def __str__(self) -> str:
        jitter = f" ± {self.jitter_ms:g}" if self.jitter_ms else ""
        return f"{self.delay_ms:g}{jitter} ms, {f'{self.rate_mbit:g} Mbit/s' if self.rate_mbit else 'any rate'}"


SETTINGS = (
    Setting(),
    Setting(delay_ms=1),
    Setting(delay_ms=5),
    Setting(delay_ms=25),
    Setting(delay_ms=50, jitter_ms=10),
    Setting(rate_mbit=10),
    Setting(rate_mbit=100),
    Setting(rate_mbit=1000),
    Setting(delay_ms=25, rate_mbit=100),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What came of it. Rates are of what arrives, from the first byte to the last."""

    round_trip_ms: float
    """The median; where there is jitter, the mean."""
    up_mbit: float
    down_mbit: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a stream of the asked rate takes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with started({}, answer) as pipe:
        port = heard(pipe, START_TIMEOUT_S)
        direct = measure(port, Setting(), args.seconds)
        through = [(setting, measure_through(port, setting, args.seconds)) for setting in SETTINGS]
    if args.json:
        found = [asdict(setting) | asdict(measured) for setting, measured in through]
        print(json.dumps({"direct": asdict(direct), "through": found, "load": os.getloadavg()}))
    else:
        print("\n".join(map(str.rstrip, table(direct, through))))


# ---------------------------------------------------------------------- the other end


def answer(pipe: Connection) -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        pipe.send(listening.getsockname()[1])
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


def serve(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind = connection.recv(1)
        nbytes = int.from_bytes(exactly(connection, 8))
        if kind == UPLOAD:
            connection.sendall(str(arrival_mbit(connection, nbytes)).encode())
        elif kind == DOWNLOAD:
            stream(connection, nbytes)
        else:
            while data := connection.recv(1):
                connection.sendall(data)


# ---------------------------------------------------------------------- this end


def measure_through(port: int, setting: Setting, seconds: float) -> Measured:
    with EmulatedLink((LOOPBACK, port), **asdict(setting)) as link:
        return measure(link.port, setting, seconds)


def measure(port: int, setting: Setting, seconds: float) -> Measured:
    took = round_trips_ms(port, setting, seconds)
    nbytes = min(LARGEST_STREAM, max(SMALLEST_STREAM, round(setting.rate_mbit * 1e6 / 8 * seconds)))
    nbytes = nbytes if setting.rate_mbit else round(LARGEST_STREAM * min(1.0, seconds))
    return Measured(
        round_trip_ms=statistics.fmean(took) if setting.jitter_ms else statistics.median(took),
        up_mbit=up_mbit(port, nbytes),
        down_mbit=down_mbit(port, nbytes),
    )


def called(port: int, kind: bytes, nbytes: int = 0) -> socket.socket:
    connection = socket.create_connection((LOOPBACK, port), STREAM_TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(kind + nbytes.to_bytes(8))
    return connection


def round_trips_ms(port: int, setting: Setting, seconds: float) -> list[float]:
    took: list[float] = []
    most_s = max(0.2, 2 * seconds, 0.2 * setting.jitter_ms * seconds)
    with closing(called(port, ECHO)) as connection:
        start = time.perf_counter()
        while len(took) < 10 or (len(took) < ROUND_TRIPS and time.perf_counter() < start + most_s):
            before = time.perf_counter()
            connection.sendall(b"x")
            connection.recv(1)
            took.append(1e3 * (time.perf_counter() - before))
    return took


def up_mbit(port: int, nbytes: int) -> float:
    with closing(called(port, UPLOAD, nbytes)) as connection:
        stream(connection, nbytes)
        return float(connection.recv(64))


def down_mbit(port: int, nbytes: int) -> float:
    with closing(called(port, DOWNLOAD, nbytes)) as connection:
        return arrival_mbit(connection, nbytes)


def stream(connection: socket.socket, nbytes: int) -> None:
    piece = memoryview(bytes(PIECE))
    for start in range(0, nbytes, PIECE):
        connection.sendall(piece[: nbytes - start])


def arrival_mbit(connection: socket.socket, nbytes: int) -> float:
    """The rate of what comes after the first piece, which has spent its time before it came."""
    into = memoryview(bytearray(PIECE))
    first = arrived = connection.recv_into(into)
    start = time.perf_counter()
    while arrived < nbytes:
        if not (got := connection.recv_into(into)):
            raise EOFError
        arrived += got
    return 8e-6 * (arrived - first) / (time.perf_counter() - start)


def exactly(connection: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        data += connection.recv(nbytes - len(data))
    return data


# ---------------------------------------------------------------------- what comes of it


def table(direct: Measured, through: list[tuple[Setting, Measured]]) -> Iterator[str]:
    yield f"{'':28}{'round trip, ms':>26}{'up, Mbit/s':>18}{'down, Mbit/s':>18}"
    yield f"{'directly':28}{direct.round_trip_ms:17.3f}{'':9}{direct.up_mbit:10,.1f}{'':8}{direct.down_mbit:10,.1f}"
    for setting, got in through:
        trip = off(got.round_trip_ms, 2 * setting.delay_ms)
        up, down = off(got.up_mbit, setting.rate_mbit), off(got.down_mbit, setting.rate_mbit)
        yield f"{setting!s:28}{got.round_trip_ms:17.3f}{trip:9}{got.up_mbit:10,.1f}{up:8}{got.down_mbit:10,.1f}{down:8}"
    floor = through[0][1]
    yield (
        f"by itself it adds {1e3 * (floor.round_trip_ms - direct.round_trip_ms):.0f} µs to a round trip, and passes at "
        f"most {min(floor.up_mbit, floor.down_mbit):,.0f} Mbit/s"
    )
    yield f"load averages {', '.join(f'{load:.2f}' for load in os.getloadavg())}"


def off(got: float, asked: float) -> str:
    return f" {100 * (got / asked - 1):+.1f}%" if asked else ""


if __name__ == "__main__":
    main()
