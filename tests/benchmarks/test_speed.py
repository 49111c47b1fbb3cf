"""The speed benchmark says what it promises to say, of a split run that is the uncut run; and leaves nobody behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed.py"

SPLIT_RUN = 4  # processes: the benchmark, multiprocessing's own, a client and a server

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_a_short_comparison_is_one_json_object_and_the_weights_agree() -> None:
    ran = subprocess.run(
        [sys.executable, SPEED, "W2", "--steps", "30", "--pairs", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    result = json.loads(ran.stdout)
    assert result["workload"] == "W2"
    assert 0 < result["low"] <= result["ratio"] <= result["high"]
    assert result["ratio_tuned"] > 0
    assert result["peak_mb"] > 50
    activation_and_gradient, labels = 2 * 256 * 64 * 4, 256 * 4
    assert activation_and_gradient + labels < result["bytes_per_step"] < 1.02 * (activation_and_gradient + labels)
    assert result["max_weight_difference"] < 1e-5
    assert result["loss_difference"] < 1e-5
    assert ran.stderr.startswith("pair 1 of 1: ")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_a_benchmark_that_is_interrupted(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, SPEED, "W2", "--steps", "2000", "--pairs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as benchmark:
        try:
            _until(lambda: len(_session(benchmark.pid)) >= SPLIT_RUN, 240)
            benchmark.send_signal(number)
            assert benchmark.wait(30) != 0
            _until(lambda: not _session(benchmark.pid), 10)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(benchmark.pid, signal.SIGKILL)


def _session(leader: int) -> list[int]:
    """The processes of a session that are alive."""
    listed = subprocess.run(["ps", "-s", str(leader), "-o", "pid=,stat="], capture_output=True, text=True, timeout=10)
    return [int(pid) for pid, state in map(str.split, listed.stdout.splitlines()) if not state.startswith("Z")]


def _until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
