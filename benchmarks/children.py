"""Processes of a benchmark, and what they say. It imports nothing large: some of them are to do without."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_spawning = get_context("spawn")
_forking = get_context("forkserver")
_forking.set_forkserver_preload(["cutlayer.party.run", "torch._dynamo"])  # what tracing a model imports, too


@contextmanager
def started(
    environment: Mapping[str, str], work: Callable[..., None], *args: object, one_of_many: bool = False
) -> Iterator[Connection]:
    """A process that does `work(*args, pipe)`, and our end of the pipe. It does not outlive this block.

    `one_of_many`: it is forked from a process that has imported torch and has the environment of the first of them, so
    that many start soon and share what they only read.
    """
    context = _forking if one_of_many else _spawning
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(*args, theirs), daemon=True)
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()


def heard(pipe: Connection, timeout_s: float) -> Any:
    """What the process at the other end says next."""
    try:
        if not pipe.poll(timeout_s):
            sys.exit(f"a process of the benchmark said nothing for {timeout_s:g} s: see --timeout")
        return pipe.recv()
    except EOFError:
        sys.exit("a process of the benchmark failed: its own words are above")
