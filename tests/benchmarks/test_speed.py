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
from typing import Any

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed.py"
sys.path.append(str(SPEED.parent))

from speed import Pair, bound, interval_of_steps  # noqa: E402 (benchmarks are no package)
from worker import Record  # noqa: E402
from workloads import TRIAL_STEPS, Job, Setting  # noqa: E402

SPLIT_RUN = 4  # processes: the benchmark, multiprocessing's own, a client and a server

TLS_S = 1e-9
"""For each byte, at either end."""
MIB = 2**20


def compared(*options: str) -> tuple[dict[str, Any], str]:
    """A short comparison: its JSON object, and its progress."""
    command = [sys.executable, str(SPEED), *options, "--pairs", "1", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), ran.stderr


def pair(*clients_s: float, server_s: float, stepping_s: float = 0.0, step_bytes: float = 0.0) -> Pair:
    """Parties that compute as long as the uncut model does, which takes 100 ms; so many bytes go each way."""

    def record(**measured: Any) -> Record:
        return Record(step_s=[0.1], loss=0.0, peak_mb=0.0, cpu_ms=0.0, **measured)

    return Pair(
        uncut=record(),
        tuned=record(),
        client=record(tls_s=(TLS_S, TLS_S)),
        server=record(stage_s={"step": 10 * stepping_s}, steps=10),
        step_s=[0.2],
        computed_s=(*clients_s, server_s),
        up_bytes=step_bytes,
        down_bytes=step_bytes,
        weight_difference=0.0,
    )


def test_a_chain_of_one_micro_batch_is_as_long_as_the_uncut_step_and_the_bytes() -> None:
    """But the server's optimizer steps while the gradient is on its way."""
    assert bound(pair(0.06, server_s=0.04), Setting()) == pytest.approx(1.0)
    assert bound(pair(0.06, server_s=0.04, stepping_s=0.01), Setting()) == pytest.approx(0.1 / 0.09)
    chain_s = 0.1 + 2 * 5 * MIB * TLS_S
    assert bound(pair(0.06, server_s=0.04, step_bytes=5 * MIB), Setting()) == pytest.approx(0.1 / chain_s)


def test_micro_batches_are_bound_by_the_busiest_core() -> None:
    for setting in (Setting(micro_batches=4), Setting(micro_batches="auto"), Setting(staleness=1), Setting(clients=4)):
        assert bound(pair(0.06, server_s=0.04), setting) == pytest.approx(0.1 / 0.06)
        busiest_s = 0.06 + 2 * 5 * MIB * TLS_S
        assert bound(pair(0.06, server_s=0.04, step_bytes=5 * MIB), setting) == pytest.approx(0.1 / busiest_s)


def test_three_parties_share_two_cores() -> None:
    """Two feature parties compute at once; with micro-batches no schedule is shorter than half of all work."""
    three = pair(0.03, 0.03, server_s=0.04)
    assert bound(three, Setting()) == pytest.approx(0.1 / 0.07)
    assert bound(three, Setting(micro_batches=4)) == pytest.approx(0.1 / 0.05)


def test_a_link_bounds_by_its_rate_and_one_micro_batch_by_its_delay_too() -> None:
    crossing_s = 2 * MIB / 1e6
    for setting, step_s in (
        (Setting(rate_mbit=8.0, delay_ms=50.0), 0.1 + crossing_s + 0.1),
        (Setting(rate_mbit=8.0, delay_ms=50.0, micro_batches=4), crossing_s / 2),
    ):
        assert bound(pair(0.06, server_s=0.04, step_bytes=MIB), setting) == pytest.approx(0.1 / step_s)


def test_of_a_single_pair_the_interval_is_that_of_its_steps() -> None:
    low, high = interval_of_steps(0.1, [0.1, 0.2, 0.1, 0.2, 0.1, 0.2])
    assert low < 0.1 / 0.15 < high
    assert interval_of_steps(0.1, [0.2, 0.2]) == pytest.approx((0.5, 0.5))


def test_only_what_comes_after_trials_and_first_turns_is_measured() -> None:
    auto = Job.of("W3", 16, Setting(micro_batches="auto"))
    assert (auto.warm_up, auto.steps) == (5 + TRIAL_STEPS, 16 + TRIAL_STEPS)
    several = Job.of("W1", 8, Setting(clients=4))
    assert (several.warm_up, several.steps) == (8, 16), "the second round"
    with pytest.raises(ValueError, match="W3 has 8 batches, too few for 16 clients"):
        Job.of("W3", 8, Setting(clients=16))


def test_weights_are_compared_where_they_are_meant_to_agree() -> None:
    exact = [Setting(), Setting(micro_batches="auto"), Setting(codec="zstd"), Setting(rate_mbit=10, delay_ms=5)]
    others = [Setting(codec="half"), Setting(codec="topk(share=0.1)+zstd"), Setting(clients=4), Setting(staleness=1)]
    assert [each.exact for each in (*exact, *others)] == [True] * len(exact) + [False] * len(others)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_short_comparison_is_one_json_object_and_the_weights_agree() -> None:
    result, progress = compared("W2", "--steps", "30")
    assert result["workload"] == "W2"
    assert 0 < result["low"] <= result["ratio"] <= result["high"]
    assert result["ratio_tuned"] > 0
    assert result["peak_mb"] > 50
    activation_and_gradient, labels = 2 * 256 * 64 * 4, 256 * 4
    assert activation_and_gradient + labels < result["bytes_per_step"] < 1.02 * (activation_and_gradient + labels)
    assert result["max_weight_difference"] < 1e-5
    assert result["loss_difference"] < 1e-5
    assert 0 < result["bound"] < 1.2
    assert progress.startswith("pair 1 of 1: ")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_a_vertical_run_tries_micro_batches_first_and_agrees_still() -> None:
    result, _ = compared("W2V", "--steps", "12", "--micro-batches", "auto")
    assert result["decided"][0] in {1, 2, 4, 8}
    assert result["steps"] == 2 * 78, "whole epochs"
    assert result["measured_steps"] == 2 * 78 - TRIAL_STEPS - 5
    assert result["max_weight_difference"] < 1e-5


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_an_emulated_link_is_waited_for_and_a_codec_saves_bytes() -> None:
    link = ["--rate-mbit", "100", "--delay-ms", "20", "--codec", "half"]
    result, _ = compared("W2", "--steps", "8", "--warm-up", "2", *link)
    assert result["ms_per_step"]["split"] > 40
    activation_and_gradient, labels = 256 * 64 * 4, 256 * 4
    assert result["bytes_per_step"] < 1.1 * (activation_and_gradient + labels)
    assert result["max_weight_difference"] is None


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_clients_take_turns() -> None:
    result, _ = compared("W2", "--clients", "3", "--steps", "12")
    assert (result["steps"], result["measured_steps"]) == (24, 12)
    assert result["ratio"] > 0


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_a_benchmark_that_is_interrupted(number: signal.Signals) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else ignored in a shell's background
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
