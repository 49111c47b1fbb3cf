"""Claims about bytes from a stranger: a stream is read or refused, soon, and takes no more memory than was allowed.

Run as a program, with a folder of streams and libFuzzer's options, this file is the target of a fuzzer.
"""

import importlib
import os
import random
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.errors import FrameRefused
from cutlayer.plan.limits import Limits
from cutlayer.protocol import wire
from cutlayer.protocol.messages import Control, Message
from cutlayer.protocol.wire import PRELUDE_BYTES, Frame
from protocol.test_wire import MESSAGES, contents

HEADER_LIMIT = Limits().header_bytes
BODY_LIMIT = 2**20
MOST_A_BYTE_MAKES = 64
"""An entry of a mapping takes a few bytes in a header, and a few hundred in memory."""
MOST_MIB = 512
"""Of memory, that a fuzzed process takes; it holds 64."""
SOON_S = 5.0

messages = st.one_of(*MESSAGES.values())


def framed(header: bytes, body: int = 0, *, header_bytes: int = -1) -> bytes:
    """A header under a prelude that announces so long a body, and perhaps another length for the header itself."""
    prelude = Frame(header).prelude()
    announced = len(header) if header_bytes < 0 else header_bytes
    return prelude[:4] + announced.to_bytes(4) + body.to_bytes(8) + prelude[16:] + header


def stream_of(message: Message | Control) -> bytes:
    frame = wire.encode(message, contents(message))
    return b"".join((frame.prelude(), frame.header, *frame.parts))


def read(stream: bytes) -> list[Message | Control]:
    """What a receiver makes of a stream: frame after frame, until too little is left. Raises `FrameRefused`."""
    said, left = [], memoryview(stream)
    while len(left) >= PRELUDE_BYTES:
        header_bytes, body_bytes = wire.read_prelude(
            left[:PRELUDE_BYTES], header_limit=HEADER_LIMIT, body_limit=BODY_LIMIT
        )
        left = left[PRELUDE_BYTES:]
        if len(left) < header_bytes + body_bytes:
            break
        header, body = bytes(left[:header_bytes]), left[header_bytes : header_bytes + body_bytes]
        message, views = wire.decode(Frame(header, (body,)))
        assert [view.nbytes for view in views] == [tensor.nbytes for tensor in getattr(message, "tensors", ())]
        said.append(message)
        left = left[header_bytes + body_bytes :]
    return said


def read_or_refused(stream: bytes) -> None:
    """What is read can be said again; nothing but a refusal may be raised."""
    with suppress(FrameRefused):
        for message in read(stream):
            stream_of(message)


# ---------------------------------------------------------------------- damage


def _changed(data: bytes, at: int, dice: random.Random) -> bytes:
    return data[:at] + dice.randbytes(1) + data[at + 1 :]


def _lacking(data: bytes, at: int, dice: random.Random) -> bytes:
    return data[:at] + data[at + dice.randint(1, 8) :]


def _inserted(data: bytes, at: int, dice: random.Random) -> bytes:
    return data[:at] + dice.randbytes(dice.randint(1, 8)) + data[at:]


def _repeated(data: bytes, at: int, dice: random.Random) -> bytes:
    return data[:at] + data[at : at + dice.randint(1, 64)] * dice.randint(2, 5) + data[at:]


def _inflated(data: bytes, at: int, dice: random.Random) -> bytes:
    """A length of four bytes, that of a list, a mapping, a text or bytes, in some value's place."""
    return data[:at] + dice.choice(HUGE) + data[at + 1 :]


HUGE = [bytes([kind]) + length for kind in (0xDD, 0xDF, 0xDB, 0xC6) for length in (b"\xff" * 4, b"\x7f\xff\xff\xff")]
DAMAGES: tuple[Callable[[bytes, int, random.Random], bytes], ...] = (
    _changed, _changed, _lacking, _inserted, _repeated, _inflated,
)  # fmt: skip


def damaged(stream: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.randint(1, 4)):
        stream = dice.choice(DAMAGES)(stream, dice.randrange(len(stream) + 1), dice)
    return stream


def damaged_within(stream: bytes, dice: random.Random) -> bytes:
    """Damage to the header alone, under a prelude that fits."""
    header, body = parted(stream)
    return framed(damaged(header, dice), len(body)) + body


def parted(stream: bytes) -> tuple[bytes, bytes]:
    """A stream's one header and its body."""
    end = PRELUDE_BYTES + int.from_bytes(stream[4:8])
    return stream[PRELUDE_BYTES:end], stream[end:]


@settings(max_examples=80, deadline=None)
@given(st.lists(messages, min_size=1, max_size=3), st.randoms(use_true_random=False), st.booleans())
def test_a_damaged_stream_is_read_or_refused(said: list[Message | Control], dice: random.Random, within: bool) -> None:
    streams = list(map(stream_of, said))
    assert read(b"".join(streams)) == said
    if within:
        streams[-1] = damaged_within(streams[-1], dice)
        read_or_refused(b"".join(streams))
    else:
        read_or_refused(damaged(b"".join(streams), dice))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_hundred_thousand_damaged_streams_are_read_or_refused() -> None:
    dice = random.Random(time.time_ns())  # noqa: S311 (no secret)
    streams = _samples(200)
    for _ in range(100_000):
        stream = dice.choice(streams)
        harm = dice.choice((damaged, damaged_within))(stream, dice)
        try:
            read_or_refused(harm)
        except BaseException:
            print("the stream:", harm.hex())
            raise


def _samples(count: int) -> list[bytes]:
    """Streams of all kinds of messages."""
    found: list[bytes] = []

    @settings(max_examples=count, database=None, deadline=None)
    @given(messages)
    def collect(message: Message | Control) -> None:
        found.append(stream_of(message))

    collect()
    return found


# ---------------------------------------------------------------------- memory and time


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@settings(max_examples=60, deadline=None)
@given(messages, st.randoms(use_true_random=False))
def test_a_header_takes_memory_by_its_own_length_and_not_by_what_it_announces(
    message: Message | Control, dice: random.Random
) -> None:
    header, _ = parted(stream_of(message))
    for at in range(0, len(header), max(1, len(header) // 30)):
        announcing = framed(_inflated(header, at, dice))
        assert _peak_bytes(lambda stream=announcing: read_or_refused(stream)) < 2**20  # type: ignore[misc]


@pytest.mark.parametrize("kind", [0xDD, 0xDF, 0xDB, 0xC6], ids=["list", "mapping", "text", "bytes"])
def test_a_header_that_is_all_announcement_takes_nothing(kind: int) -> None:
    stream = framed((bytes([kind]) + b"\xff" * 4) * 1000)
    start = time.perf_counter()
    assert _peak_bytes(lambda: read_or_refused(stream)) < 2**20
    assert time.perf_counter() - start < SOON_S


@pytest.mark.parametrize("lengths", [(2**32 - 1, 0), (0, 2**64 - 1), (HEADER_LIMIT + 1, 0), (0, BODY_LIMIT + 1)])
def test_a_frame_above_the_limits_takes_nothing(lengths: tuple[int, int]) -> None:
    stream = framed(bytes(1000), lengths[1], header_bytes=lengths[0])
    with pytest.raises(FrameRefused):
        read(stream)
    assert _peak_bytes(lambda: read_or_refused(stream)) < 2**16


def _fullest() -> Iterator[tuple[str, bytes]]:
    """The largest headers that are allowed, of what takes most memory for a byte."""
    member = b"\xa4%04d\x93\x00\x00\xc4\x00"
    count = (HEADER_LIMIT - 40) // len(member % 0)
    members = b"".join(member % (number % 10_000) for number in range(count))
    yield "members", b"\x83\xa4type\xa7welcome\xa3run\xa0\xa7members\xdf" + count.to_bytes(4) + members
    parties = b"\xa1x" * 32_000
    yield (
        "parties",
        (
            b"\x85\xa4type\xa4turn\xa6number\x00\xa4work\xa5train\xa5steps\x01\xa7parties\xdd"
            + (32_000).to_bytes(4)
            + parties
        ),
    )


@pytest.mark.parametrize(("name", "header"), list(_fullest()), ids=["members", "parties"])
def test_the_fullest_header_takes_a_bounded_multiple_of_its_length(name: str, header: bytes) -> None:
    assert len(header) <= HEADER_LIMIT
    stream = framed(header)
    (said,) = read(stream)
    assert len(getattr(said, name)) >= 1000
    start = time.perf_counter()
    assert _peak_bytes(lambda: read(stream)) < MOST_A_BYTE_MAKES * HEADER_LIMIT
    assert time.perf_counter() - start < SOON_S


# ---------------------------------------------------------------------- guided by coverage


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_fuzzer_that_sees_which_lines_run_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this Python or machine")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, stream in enumerate(_samples(300)):
        (corpus / f"{number:03}").write_bytes(stream)
    # What libFuzzer holds to its limit is a peak, and a child begins with its parent's.
    most = MOST_MIB + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10
    limits = ["-max_total_time=30", "-timeout=5", f"-rss_limit_mb={most}", "-max_len=8192", "-print_final_stats=1"]
    ran = subprocess.run(
        [sys.executable, __file__, str(corpus), *limits, f"-artifact_prefix={tmp_path}/"],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])},
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    tried = int(ran.stderr.partition("stat::number_of_executed_units:")[2].split()[0])
    print(f"{tried:,} streams tried")
    assert tried > 10_000


INSTRUMENTED: tuple[Literal["read_prelude", "decode", "decode_of", "body_bytes", "padded"], ...] = (
    "read_prelude", "decode", "decode_of", "body_bytes", "padded",
)  # fmt: skip


def main() -> None:
    atheris: Any = importlib.import_module("atheris")
    for name in INSTRUMENTED:
        setattr(wire, name, atheris.instrument_func(getattr(wire, name)))
    atheris.Setup(sys.argv, atheris.instrument_func(read_or_refused))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
