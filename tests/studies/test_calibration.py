"""What a step costs beside the arithmetic is found by a real run of two processes, which leaves nothing behind."""

import multiprocessing
import threading

import pytest

from cutlayer.studies.calibration import calibrate


@pytest.mark.slow
def test_a_calibration_finds_plausible_costs_and_leaves_nothing_behind() -> None:
    threads = threading.active_count()
    found = calibrate()
    assert 1e-5 < found.step_s + found.micro_s < 0.5
    assert 1e-5 < found.loopback_rtt_s < 0.1
    assert found.tls_bytes_per_s > 1e6
    assert multiprocessing.active_children() == []
    assert threading.active_count() <= threads
