"""`cutlayer demo`, as a person runs it: a command, its answer, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.typed import CommandLine
from cutlayer.cli.demo.crew import Crew
from cutlayer.cli.demo.hospitals import SHARES, deal
from cutlayer.cli.demo.project import HOSPITALS, LAB, workplace, write_project
from cutlayer.errors import PlanError, RunError

PROC = Path("/proc")
needs_proc = pytest.mark.skipif(not (PROC / "self" / "cwd").exists(), reason="finds processes by /proc")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts the demo in a process group of its own, its temporary folder below `tmp_path`."""

    def started(*options: object) -> "subprocess.Popen[str]":
        temporary = tmp_path / "temporary"
        temporary.mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "cutlayer", "demo", *map(str, options)],
            env=os.environ | {"TMPDIR": str(temporary), "COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return started


def processes_below(folder: Path) -> list[int]:
    """Processes that work in a folder or below it."""
    found = []
    for entry in PROC.glob("[0-9]*/cwd"):
        try:
            found += [int(entry.parent.name)] if entry.readlink().is_relative_to(folder) else []
        except OSError:
            continue
    return found


def play(start: Start, tmp_path: Path, *options: object) -> tuple[str, dict[str, Any]]:
    """What a demo printed, and its JSON."""
    file = tmp_path / "demo.json"
    out, err = start("--json", file, *options).communicate(timeout=280)
    assert "Traceback" not in err, err
    assert file.exists(), err
    return out, json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_u_shaped_no_label_leaves_and_the_hospitals_learn(start: Start, tmp_path: Path) -> None:
    out, shown = play(start, tmp_path)
    assert "rows: 0, labels: 0" in out
    assert (shown["rows"], shown["labels"]) == (0, 0)
    accuracy = shown["all"]["accuracy"]
    assert accuracy["together"] >= 0.94
    assert accuracy["together"] >= accuracy["pooled"] - 0.04
    assert {line["carries"] for line in shown["crossings"]} == {"activation", "gradient"}
    assert list(shown["hospitals"]) == list(HOSPITALS)
    for hospital in shown["hospitals"].values():
        assert min(hospital["bytes"].values()) > 10_000
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_vanilla_the_labels_of_every_round_leave(start: Start, tmp_path: Path) -> None:
    out, shown = play(start, tmp_path, "--topology", "vanilla", "--rounds", 2, "--keep", tmp_path / "kept")
    assert shown["labels"] == 2 * sum(sum(counts) for counts in SHARES.values())
    assert f"rows: 0, labels: {shown['labels']}" in out
    for name in HOSPITALS:
        assert sorted(file.name for file in (tmp_path / "kept" / name / "keys").iterdir()) == [
            "ca.crt", f"{name}.crt", f"{name}.key", f"{name}.secret",
        ]  # fmt: skip
    assert not (tmp_path / "kept" / LAB / "train.csv").exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_proc
def test_ctrl_c_while_training_ends_all_four_processes(start: Start, tmp_path: Path) -> None:
    demo = start("--rounds", 30)
    assert demo.stderr is not None
    while "steps" not in (line := demo.stderr.readline()):
        assert line, "the demo ended before it trained"
    assert len(processes_below(tmp_path)) == 4
    begun = time.monotonic()
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=15)
    assert time.monotonic() - begun < 15
    assert demo.returncode == 130
    assert out.splitlines()[-1] == "Stopped by hand: no process of the demo is left."
    assert "Traceback" not in err
    assert processes_below(tmp_path) == []
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_proc
def test_a_party_that_fails_is_named_in_one_sentence_and_stops_the_others(tmp_path: Path) -> None:
    write_project(tmp_path, "u_shaped", 1)
    (tmp_path / "hospital-b" / "model.py").write_text("def build(): return 3")
    with Crew() as crew:
        crew.start(LAB, tmp_path / LAB, "--listen", "127.0.0.1:0")
        crew.start("hospital-b", tmp_path / "hospital-b", "--connect", "127.0.0.1:1")
        with pytest.raises(RunError, match=r"^hospital-b failed: plan\.toml has not been accepted as it stands"):
            list(crew.facts())
    assert processes_below(tmp_path) == []


def test_the_deal_is_fixed_and_uses_every_sample_once() -> None:
    columns, wards = deal()
    assert (columns, wards) == deal()
    assert len(columns) == 31
    rows = [row for ward in wards.values() for row in (*ward.train, *ward.held_out)]
    assert len(rows) == len(set(rows)) == 569
    assert [len(ward.train) for ward in wards.values()] == [205, 95, 41]


def test_no_hospital_has_a_last_batch_of_one_row() -> None:
    sizes = [len(ward.train) for ward in deal()[1].values()]
    assert all(size % 16 != 1 for size in (*sizes, sum(sizes)))


def test_a_hospitals_folder_has_its_own_keys_only(tmp_path: Path) -> None:
    write_project(tmp_path, "u_shaped", 1)
    for name in (LAB, *HOSPITALS):
        assert {file.name for file in (tmp_path / name / "keys").iterdir()} == {"ca.crt", f"{name}.crt", f"{name}.key"}
    assert {folder.name for folder in tmp_path.iterdir()} == {LAB, *HOSPITALS}


def test_the_temporary_folder_goes_even_if_the_demo_fails() -> None:
    with pytest.raises(ZeroDivisionError), workplace(None) as folder:
        raise ZeroDivisionError
    assert not folder.exists()


def test_a_folder_to_keep_must_be_empty(cutlayer: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    assert "is there already" in cutlayer("demo", "--keep", tmp_path).sentence


def test_an_unknown_topology_is_answered_with_those_there_are(cutlayer: CommandLine) -> None:
    assert "u_shaped and vanilla" in cutlayer("demo", "--topology", "circle").sentence


def test_json_into_a_folder_that_is_not_there_is_refused_at_once(cutlayer: CommandLine, tmp_path: Path) -> None:
    assert "cannot be written" in cutlayer("demo", "--json", tmp_path / "no" / "demo.json").sentence
    with pytest.raises(PlanError), workplace(Path(__file__)):
        pass
