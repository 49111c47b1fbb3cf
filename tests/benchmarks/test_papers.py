"""Narrow runs of the benchmarks that repeat papers' figures and price defences: what they find stays what it was."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
MNIST = Path(os.environ.get("CUTLAYER_DATA", REPOSITORY / "../shared/data/mnist.npz"))
FASHION = Path(os.environ.get("CUTLAYER_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))

pytestmark = pytest.mark.slow
needs_mnist = pytest.mark.skipif(not MNIST.is_file(), reason="no MNIST: name a file in CUTLAYER_DATA")


def ran(script: str, *words: str) -> Any:
    """What a benchmark prints with `--json`."""
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@needs_mnist
def test_nopeek_lowers_what_the_cut_has_to_do_with_the_rows_at_little_cost() -> None:
    """Published: 0.843 and 0.435 for the weights 0 and 0.5, 0.6 points of accuracy apart, after ten passes."""
    words = ("--rows", "1500", "--rounds", "4", "--lr", "0.2", "--test-rows", "640", "--weights", "0", "0.5")
    plain, defended = ran("papers/nopeek.py", "--data", str(MNIST), *words)
    assert plain["leak"] > 0.8
    assert defended["leak"] < plain["leak"] - 0.07
    assert defended["distance_correlation"] < plain["distance_correlation"] - 0.05
    assert min(plain["accuracy"], defended["accuracy"]) > 80


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"no {FASHION}: install dataset-fashion-mnist")
def test_gradients_leak_labels_and_max_norm_and_marvell_hide_most_of_it() -> None:
    """Published: 1.0 bare, .584 with max-norm; for Marvell the bound of the paper's theorem, roughly."""
    bare, max_norm, marvell = ran("papers/label_leak.py", "--data", str(FASHION), "--epochs", "1", "--marvell", "4")
    assert bare["leak"] > 0.99
    assert max_norm["leak"] < 0.65
    assert marvell["leak"] < 0.65
    assert min(each["auc"] for each in (bare, max_norm, marvell)) > 0.9


@needs_mnist
def test_what_hides_labels_in_gradients_has_its_price() -> None:
    found = ran("prices.py", "binary", "--data", str(MNIST), "--rows", "1500")["binary"]
    leak = {each["defence"]: each["value"] for each in found}
    assert leak["none"] > 0.95
    assert leak["max_norm"] < leak["none"] - 0.05
    assert max(leak["marvell(s=4)"], leak["label_dp(epsilon=1)"]) < leak["none"] - 0.2
    assert all(each["accuracy"] is not None for each in found)
