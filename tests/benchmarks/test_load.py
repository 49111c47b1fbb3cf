"""The load benchmark in small: no step is lost, nothing grows with links that have gone, no process stays behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

LOAD = Path(__file__).parents[2] / "benchmarks" / "load.py"

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def loaded(*options: str) -> Any:
    ran = subprocess.run([sys.executable, LOAD, "--json", *options], capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_eight_clients_take_as_many_steps_as_four_and_not_much_longer() -> None:
    sizes = ["--clients", "8", "--few", "4", "--steps", "128", "--pairs", "1", "--processes", "2"]
    result = loaded(*sizes)
    assert result["lost"] == 0
    assert result["ratio_cpu"] > 0.6
    assert result["client_kb_joined"] < 2000
    assert result["server"]["joined"]["files"] - result["server"]["before"]["files"] <= 8 * 2 + 2
    assert result["server"]["joined"]["threads"] - result["server"]["before"]["threads"] <= 8 * 4 + 4


def test_a_client_that_comes_and_goes_leaves_nothing_behind() -> None:
    first, *stages = loaded("--reconnects", "50")
    assert [stage["links"] for stage in stages] == list(range(5, 51, 5))
    for party in ("server", "client"):
        early, late = stages[4][party], stages[-1][party]
        assert late["memory_mb"] - early["memory_mb"] < 2
        assert late["threads"] <= first[party]["threads"] + 4
        assert late["files"] <= first[party]["files"] + 4
