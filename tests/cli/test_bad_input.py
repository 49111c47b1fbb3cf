"""What people get wrong: one sentence with the mend, exit code 2, no traceback, nothing lost."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.typed import CommandLine

Edit = Callable[[str, str, str], None]


@pytest.fixture
def ready(cutlayer: CommandLine, project: Path) -> Path:
    """A project with keys and an accepted plan."""
    assert cutlayer("keys", "demo").code == 0
    assert cutlayer("accept", "plan.toml").code == 0
    return project


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


TABLES = {
    "age,bmi,blood_pressure,smoker,disease\n1,2,3,4,0\n": ("glucose", "column"),
    "age,bmi,blood_pressure,glucose,smoker,disease\n1,2,three,4,5,0\n": ("three", "blood_pressure"),
    "": ("empty", "hospital-a.csv"),
    "age,bmi,blood_pressure,glucose,smoker,disease\n": ("hospital-a.csv", "row"),
    "age,bmi,blood_pressure,glucose,smoker,disease\n" + "1,2,3,4,5,0\n" * 9 + "1,2,3,4,5,7\n": ("7", "2 classes"),
    "age,bmi,blood_pressure,glucose,smoker,disease\n" + "1,2,3,4,5,0\n" * 9 + "nan,2,3,4,5,1\n": ("age", "nan"),
}


@pytest.mark.parametrize(("table", "words"), TABLES.items())
def test_a_table_that_cannot_be_used(cutlayer: CommandLine, project: Path, table: str, words: tuple[str, str]) -> None:
    (project / "hospital-a.csv").write_text(table)
    sentence = cutlayer("simulate").sentence.lower()
    for word in words:
        assert word.lower() in sentence


def test_numbers_that_are_none_any_more_stop_the_run_and_it_says_where(
    cutlayer: CommandLine, project: Path, edit: Edit
) -> None:
    edit("plan.toml", "lr = 0.01", "lr = 1e30")
    sentence = cutlayer("simulate").sentence
    assert "middle->head" in sentence
    assert "hospital-" in sentence
    assert "learning rate" in sentence


def test_unknown_party(cutlayer: CommandLine, ready: Path) -> None:
    assert "hospital-a, hospital-b" in cutlayer("run", "--as", "hospital-x").sentence


def test_a_plan_that_was_not_accepted_does_not_run(cutlayer: CommandLine, project: Path) -> None:
    assert "cutlayer accept plan.toml" in cutlayer("run", "--as", "lab").sentence


def test_a_changed_model_is_refused_before_it_runs(cutlayer: CommandLine, ready: Path) -> None:
    with (ready / "model.py").open("a") as model:
        model.write("\nraise SystemExit('model.py ran')\n")
    assert "has not been accepted as it stands" in cutlayer("run", "--as", "lab").sentence


def test_weights_that_do_not_fit(cutlayer: CommandLine, project: Path, edit: Edit) -> None:
    edit("model.py", "bottom=nn.Linear(5, 16)", "bottom=nn.Linear(5, 16, bias=False)")
    assert "cutlayer plan weights" in cutlayer("plan", "check").sentence
    assert cutlayer("plan", "weights").code == 0
    assert cutlayer("plan", "check").code == 0


def test_a_layer_that_is_not_there(cutlayer: CommandLine, project: Path, edit: Edit) -> None:
    edit("plan.toml", '"bottom_relu"', '"botom_relu"')
    assert "bottom_relu" in cutlayer("plan", "check").sentence


def test_missing_keys(cutlayer: CommandLine, project: Path) -> None:
    assert cutlayer("accept").code == 0
    assert "cutlayer keys request lab" in cutlayer("run", "--as", "lab").sentence


def test_port_in_use(cutlayer: CommandLine, ready: Path, taken_port: int) -> None:
    sentence = cutlayer("run", "--as", "lab", "--listen", f"127.0.0.1:{taken_port}").sentence
    assert str(taken_port) in sentence


def test_an_unreachable_server_is_tried_and_then_named(cutlayer: CommandLine, project: Path, edit: Edit) -> None:
    with (project / "plan.toml").open("a") as plan:
        plan.write("\n[limits]\njoin_timeout_s = 0.6\n")
    assert cutlayer("keys", "demo").code == 0
    assert cutlayer("accept").code == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    sentence = cutlayer("run", "--as", "hospital-a", "--connect", f"127.0.0.1:{port}").sentence
    assert "0.6 s" in sentence
    assert f"lab at 127.0.0.1:{port}" in sentence


def test_no_address(cutlayer: CommandLine, ready: Path) -> None:
    assert "host:port" in cutlayer("run", "--as", "hospital-a", "--connect", "nowhere").sentence


def test_no_data(cutlayer: CommandLine, ready: Path, edit: Edit) -> None:
    edit("hospital-a.toml", 'data = "hospital-a.csv"', "")
    assert "no data is given" in cutlayer("run", "--as", "hospital-a").sentence


def test_keys_that_others_can_read_warn(cutlayer: CommandLine, ready: Path, taken_port: int) -> None:
    (ready / "keys" / "lab.key").chmod(0o644)
    told = cutlayer("run", "--as", "lab", "--listen", f"127.0.0.1:{taken_port}").err
    assert "warning" in told
    assert "chmod 600" in told


def test_a_partys_file_with_an_unknown_key(cutlayer: CommandLine, ready: Path, edit: Edit) -> None:
    edit("hospital-a.toml", "label =", "lable =")
    assert "did you mean 'label'?" in cutlayer("run", "--as", "hospital-a").sentence


def test_a_factory_that_is_not_there(cutlayer: CommandLine, ready: Path, edit: Edit) -> None:
    edit("hospital-a.toml", 'features = ["age", "bmi", "blood_pressure", "glucose", "smoker"]', "")
    edit("hospital-a.toml", 'label = "disease"', "")
    assert "nowhere" in cutlayer("run", "--as", "hospital-a", "--data", "nowhere:rows").sentence


def test_debug_shows_the_traceback(cutlayer: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = cutlayer("--debug", "plan", "check")
    assert told.code == 2
    assert "Traceback" in told.err
    assert "Traceback" not in cutlayer("plan", "check").err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_that_cannot_be_written(cutlayer: CommandLine, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert cutlayer("init", tmp_path / "project").sentence
