"""`cutlayer demo`, as a person runs it: a command, its answer, and what is left behind."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cli.typed import CommandLine
from cutlayer.cli.demo import uncut
from cutlayer.cli.demo.crew import REPORT, Crew
from cutlayer.cli.demo.hospitals import HOSPITALS, deal
from cutlayer.cli.demo.project import LAB, PARTIES, deal_rows, workplace, write_project
from cutlayer.cli.demo.result import Result, gather, show
from cutlayer.cli.demo.sets import SETS, chosen
from cutlayer.cli.demo.weights import Difference
from cutlayer.data.factory import open_rows
from cutlayer.errors import PlanError, RunError
from cutlayer.keys.certificates import party_secret
from cutlayer.party.agreement import draft
from cutlayer.party.local import read_party_file
from cutlayer.party.run import Outcome
from cutlayer.simulation import simulate_plan

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


def left_by_the_demo(temporary: Path) -> list[Path]:
    """What is in the folder of temporary files, but the cache that torch makes there with its first optimizer."""
    return [path for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]


def play(start: Start, tmp_path: Path, *options: object) -> tuple[str, dict[str, Any]]:
    """What a demo printed, and its JSON."""
    file = tmp_path / "demo.json"
    out, err = start("--json", file, *options).communicate(timeout=280)
    assert "Traceback" not in err, err
    assert file.exists(), err
    return out, json.loads(file.read_text())


def simulated(root: Path, data: str, topology: str = "u_shaped", schedule: str = "relay", rounds: int = 1) -> Result:
    """The result of a demo whose four parties ran in this process, and left in their folders what processes leave."""
    agreed = write_project(root, data, topology, rounds)
    wards = deal_rows(root, data)
    compared = uncut.compare(agreed, root)
    agreement = draft(replace(agreed.plan.terms, schedule=schedule), agreed.model)
    rows: dict[str, dict[str, Any]] = {"data": {}, "held_out": {}}
    for name in HOSPITALS:
        here = read_party_file(root / name / f"{name}.toml")
        for which, opened in rows.items():
            opened[name] = open_rows(getattr(here, which), label=here.label, classes=here.classes)
    secrets = {name: party_secret(root / name / "keys", name) for name in PARTIES}
    run = simulate_plan(agreement, rows["data"], held_out=rows["held_out"], secrets=secrets)
    for name in PARTIES:
        outcome = Outcome(party=run.parties[name], meter=run.meters[name], seconds=0.0)
        saved = outcome.save(root / name / "runs").relative_to(root / name)
        (root / name / REPORT).write_text(json.dumps(outcome.report() | {"saved": str(saved)}))
    return gather(root, data, wards, compared, {"total": 0.0, "training": 0.0})


def told(result: Result, width: int, **terminal: Any) -> str:
    """What is shown on a console of this width."""
    text = io.StringIO()
    show(result, Console(file=text, width=width, highlight=False, **terminal))
    return text.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_u_shaped_no_label_leaves_and_the_hospitals_learn(start: Start, tmp_path: Path) -> None:
    out, shown = play(start, tmp_path)
    assert "rows: 0, labels: 0" in out
    assert (shown["rows"], shown["labels"]) == (0, 0)
    accuracy = shown["all"]["accuracy"]
    assert accuracy["together"] >= 0.93
    assert accuracy["together"] == pytest.approx(accuracy["pooled"], abs=0.005)
    assert {line["carries"] for line in shown["crossings"]} == {"activation", "gradient"}
    assert list(shown["hospitals"]) == list(HOSPITALS)
    for hospital in shown["hospitals"].values():
        assert min(hospital["bytes"].values()) > 10_000
    assert left_by_the_demo(tmp_path / "temporary") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_digits_four_processes_train_the_weights_of_the_pooled_model(start: Start, tmp_path: Path) -> None:
    out, shown = play(start, tmp_path, "--data", "digits", "--rounds", 2)
    assert "(rounding)" in out or "(bit for bit)" in out
    assert shown["difference"]["rounding"]
    assert shown["difference"]["largest"] < 1e-4
    assert {(move["what"], move["of"], move["sealed"]) for move in shown["moved"]} == {("replica", "weights", True)}
    assert {(move["sender"], move["receiver"]): move["frames"] for move in shown["moved"]} == {
        ("hospital-a", "hospital-b"): 2,
        ("hospital-b", "hospital-c"): 2,
        ("hospital-c", "hospital-a"): 2,
        ("hospital-c", "hospital-b"): 1,
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_vanilla_the_labels_of_every_round_leave(start: Start, tmp_path: Path) -> None:
    out, shown = play(start, tmp_path, "--topology", "vanilla", "--rounds", 2, "--keep", tmp_path / "kept")
    scores = shown["hospitals"]
    evaluations = {name: 2 if name == HOSPITALS[0] else 3 for name in HOSPITALS}  # who begins has nothing received yet
    assert shown["labels"] == sum(2 * scores[n]["train"] + evaluations[n] * scores[n]["held_out"] for n in HOSPITALS)
    assert f"rows: 0, labels: {shown['labels']}" in out
    assert shown["difference"]["rounding"]
    for name in HOSPITALS:
        assert sorted(file.name for file in (tmp_path / "kept" / name / "keys").iterdir()) == [
            "ca.crt", f"{name}.crt", f"{name}.csr", f"{name}.key", f"{name}.pub", f"{name}.seal.key", f"{name}.secret",
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
    assert left_by_the_demo(tmp_path / "temporary") == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_proc
def test_a_party_that_fails_is_named_in_one_sentence_and_stops_the_others(tmp_path: Path) -> None:
    write_project(tmp_path, "wisconsin", "u_shaped", 1)
    (tmp_path / "hospital-b" / "model.py").write_text("def build(): return 3")
    with Crew() as crew:
        crew.start(LAB, tmp_path / LAB, "--listen", "127.0.0.1:0")
        crew.start("hospital-b", tmp_path / "hospital-b", "--connect", "127.0.0.1:1")
        with pytest.raises(RunError, match=r"^hospital-b failed: plan\.toml has not been accepted as it stands"):
            list(crew.facts())
    assert processes_below(tmp_path) == []


@pytest.mark.parametrize("topology", ["u_shaped", "vanilla"])
@pytest.mark.parametrize("data", list(SETS))
def test_weights_trained_by_relay_are_the_pooled_models_to_rounding(data: str, topology: str, tmp_path: Path) -> None:
    result = simulated(tmp_path, data, topology, rounds=2)
    assert result.difference.rounding, result.difference
    assert result.difference.relative < 1e-4
    for score in result.hospitals.values():
        assert score.accuracy["together"] == pytest.approx(score.accuracy["pooled"], abs=0.02)


@pytest.mark.parametrize("data", list(SETS))
def test_without_handing_over_they_are_far_from_it(data: str, tmp_path: Path) -> None:
    result = simulated(tmp_path, data, schedule="alternating")
    assert not result.difference.rounding
    assert result.difference.relative > 1e-2
    assert "MORE THAN ROUNDING" in told(result, 80)
    red = "\x1b[1;31m"
    assert f"{red}{result.difference}" in told(result, 80, force_terminal=True, color_system="standard", no_color=False)
    assert result.sheet.moves == ()


@pytest.mark.parametrize("data", list(SETS))
def test_all_that_is_shown_fits_terminals_of_80_and_120_columns(data: str, tmp_path: Path) -> None:
    result = simulated(tmp_path, data)
    narrow, wide = told(result, 80), told(result, 120)
    for width, text in ((80, narrow), (120, wide)):
        assert "…" not in text
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width
        assert "hospital-a → hospital-b  weights and optimizer, sealed" in text
        assert chosen(data).counted[0] in text
        assert f"Largest difference from the pooled model's weights: {result.difference}" in text
    assert len(narrow.splitlines()) == len(wide.splitlines()), "something wraps in 80 columns"
    assert result.as_data()["difference"]["rounding"] is True


@pytest.mark.parametrize(
    ("largest", "relative", "words"),
    [
        (0.0, 0.0, "0 (bit for bit)"),
        (1.2e-7, 1e-6, "1.2e-07 (rounding)"),
        (1.2e-7, 1e-3, "1.2e-07 (MORE THAN ROUNDING)"),
        (float("nan"), float("nan"), "nan (MORE THAN ROUNDING)"),
    ],
)
def test_a_difference_says_what_it_is(largest: float, relative: float, words: str) -> None:
    assert str(Difference(largest=largest, relative=relative, steps=100)) == words


def test_the_deals_are_fixed_and_use_every_row_once() -> None:
    sizes = {}
    for name, data in SETS.items():
        rows = data.load()
        wards, again = deal(rows, data.shares), deal(rows, data.shares)
        parts = [part for ward in wards.values() for part in (ward.train, ward.held_out)]
        for part, same in zip(parts, [p for ward in again.values() for p in (ward.train, ward.held_out)], strict=True):
            assert np.array_equal(part.x, same.x)
        labelled = [np.c_[part.x.reshape(len(part), -1), part.y] for part in parts]
        whole = np.c_[rows.x.reshape(len(rows), -1), rows.y]
        assert np.array_equal(np.sort(np.concatenate(labelled), axis=0), np.sort(whole, axis=0))
        sizes[name] = [len(ward.train) for ward in wards.values()]
    assert sizes == {"wisconsin": [205, 95, 41], "digits": [630, 270, 178]}


def test_no_hospital_has_a_last_batch_of_one_row() -> None:
    for data in SETS.values():
        sizes = [len(ward.train) for ward in deal(data.load(), data.shares).values()]
        assert all(size % int(data.terms["batch_size"]) != 1 for size in sizes)


def test_a_hospitals_folder_has_its_own_keys_only(tmp_path: Path) -> None:
    write_project(tmp_path, "wisconsin", "u_shaped", 1)
    for name in PARTIES:
        endings = ("crt", "csr", "key", "pub", "seal.key")
        own = {f"{name}.{ending}" for ending in endings}
        assert {file.name for file in (tmp_path / name / "keys").iterdir()} == {"ca.crt"} | own
    assert {folder.name for folder in tmp_path.iterdir()} == set(PARTIES)


def test_the_plan_pins_all_keys_of_all_parties(tmp_path: Path) -> None:
    for party in write_project(tmp_path, "digits", "vanilla", 1).plan.terms.parties.values():
        assert party.key
        assert party.signing_key
        assert party.sealing_key


def test_the_temporary_folder_goes_even_if_the_demo_fails() -> None:
    with pytest.raises(ZeroDivisionError), workplace(None) as folder:
        raise ZeroDivisionError
    assert not folder.exists()


def test_a_folder_to_keep_must_be_empty(cutlayer: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    assert "is there already" in cutlayer("demo", "--keep", tmp_path).sentence


def test_an_unknown_topology_is_answered_with_those_there_are(cutlayer: CommandLine) -> None:
    assert "u_shaped and vanilla" in cutlayer("demo", "--topology", "circle").sentence


def test_unknown_data_are_answered_with_those_there_are(cutlayer: CommandLine) -> None:
    assert "wisconsin and digits" in cutlayer("demo", "--data", "iris").sentence


def test_json_into_a_folder_that_is_not_there_is_refused_at_once(cutlayer: CommandLine, tmp_path: Path) -> None:
    assert "cannot be written" in cutlayer("demo", "--json", tmp_path / "no" / "demo.json").sentence
    with pytest.raises(PlanError), workplace(Path(__file__)):
        pass
