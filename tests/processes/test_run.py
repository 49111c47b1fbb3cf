"""`cutlayer run` as people use it: a process a party, in any order, and what happens when one of them goes away."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cutlayer.cli.app import app
from processes.commands import Running, forked, new

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

HOSPITALS = ("hospital-a", "hospital-b", "hospital-c")
SHORT = "\n[limits]\njoin_timeout_s = 60\nsilence_timeout_s = 4\nreconnect_timeout_s = 2\n"


Start = Callable[..., Running]


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[list[Running]]:
    """Commands that were started; what still runs at the end is killed."""
    started: list[Running] = []
    yield started
    for running in started:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGCONT)
            running.process.kill()
        running.process.wait(30)


@pytest.fixture
def terminal(tmp_path: Path, begun: list[Running]) -> Start:
    """`terminal("run", "--as", "lab")` types `cutlayer run --as lab`."""

    def go(*arguments: object, folder: Path | None = None) -> Running:
        begun.append(new([*map(str, arguments)], folder or tmp_path / "job", tmp_path / f"told-{len(begun)}.txt"))
        return begun[-1]

    return go


@pytest.fixture
def start(tmp_path: Path, begun: list[Running]) -> Start:
    """The same, in a process that need not load torch first."""

    def go(*arguments: object, folder: Path | None = None) -> Running:
        begun.append(forked([*map(str, arguments)], folder or tmp_path / "job", tmp_path / f"told-{len(begun)}.txt"))
        return begun[-1]

    return go


def here(*arguments: object) -> None:
    """A command that needs no process of its own."""
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The project of `cutlayer init`, with keys, ready to be accepted."""
    folder = tmp_path / "job"
    here("init", folder)
    here("keys", "demo", folder / "plan.toml", "--keys", folder / "keys")
    return folder


def accepted(job: Path, rounds: int, rejoin_timeout_s: int = 6, more: str = "") -> None:
    text = (job / "plan.toml").read_text().replace("rounds = 10", f"rounds = {rounds}")
    (job / "plan.toml").write_text(f"{text}{SHORT}rejoin_timeout_s = {rejoin_timeout_s}\n{more}")
    here("accept", job / "plan.toml")


def lab_and_port(start: Start) -> tuple[Running, str]:
    lab = start("run", "--as", "lab", "--listen", "127.0.0.1:0", "--facts", "--threads", 1)
    port = re.search(r"listens on port (\d+)", lab.wait_for(r"listens on port \d+"))
    assert port
    return lab, port.group(1)


def hospital(start: Start, name: str, port: str, *more: object) -> Running:
    return start("run", "--as", name, "--connect", f"127.0.0.1:{port}", "--facts", "--threads", 1, *more)


def test_four_terminals_in_any_order_give_the_bits_of_the_simulation(terminal: Start, job: Path) -> None:
    accepted(job, rounds=10)
    probe, port = lab_and_port(terminal)
    probe.process.send_signal(signal.SIGINT)
    assert probe.end() == 130
    parties = [
        hospital(terminal, name, port, "--json", f"{name}.json") for name in ("hospital-b", "hospital-a", "hospital-c")
    ]
    parties[0].wait_for("dials lab")
    lab = terminal("run", "--as", "lab", "--listen", f"127.0.0.1:{port}", "--threads", 1, "--json", "lab.json")
    for running in (*parties, lab):
        assert running.end() == 0, running.text
    threads = torch.get_num_threads()
    simulated = job / "simulated.json"
    here("simulate", job / "plan.toml", "--keys", job / "keys", "--threads", 1, "--json", simulated)
    torch.set_num_threads(threads)
    wanted = json.loads(simulated.read_text())
    for name in (*HOSPITALS, "lab"):
        report = json.loads((job / f"{name}.json").read_text())
        assert report["weights"] == wanted["weights"][name]
        assert report["bytes"] == wanted["bytes"][name]
        assert (job / report["saved"]).is_file()
    assert json.loads((job / "lab.json").read_text())["metrics"] == wanted["metrics"]


def test_ctrl_c_at_one_party_ends_all_with_a_sentence(start: Start, job: Path) -> None:
    accepted(job, rounds=100_000)
    lab, port = lab_and_port(start)
    hospitals = [hospital(start, name, port) for name in HOSPITALS]
    lab.wait_for("Progressed")
    hospitals[1].process.send_signal(signal.SIGINT)
    assert hospitals[1].end(20) == 130
    for other in (lab, hospitals[0], hospitals[2]):
        assert other.end(20) == 2
        assert "hospital-b was stopped by hand" in other.text
        assert "Traceback" not in other.text


def test_a_killed_party_is_named_by_the_others_who_do_not_wait_for_ever(start: Start, job: Path) -> None:
    accepted(job, rounds=100_000)
    lab, port = lab_and_port(start)
    hospitals = [hospital(start, name, port) for name in HOSPITALS]
    lab.wait_for("Progressed")
    hospitals[2].process.kill()
    for other in (lab, *hospitals[:2]):
        assert other.end(60) == 2
        assert "hospital-c to join" in other.text
    assert "hospital-c is lost" in lab.text


def test_killed_parties_come_back_by_the_same_command_and_the_result_is_that_of_the_simulation(
    start: Start, job: Path
) -> None:
    accepted(job, rounds=30, rejoin_timeout_s=100)
    lab, port = lab_and_port(start)
    hospitals = [hospital(start, name, port) for name in HOSPITALS]
    lab.wait_for('"Saved"')
    hospitals[1].process.kill()
    again = hospital(start, HOSPITALS[1], port)
    again.wait_for('"Saved"')
    lab.process.kill()
    lab = start("run", "--as", "lab", "--listen", f"127.0.0.1:{port}", "--facts", "--threads", 1, "--json", "lab.json")
    for running in (lab, hospitals[0], again, hospitals[2]):
        assert running.end(120) == 0, running.text
    here("simulate", job / "plan.toml", "--keys", job / "keys", "--threads", 1, "--json", job / "simulated.json")
    found, wanted = (json.loads((job / name).read_text()) for name in ("lab.json", "simulated.json"))
    assert found["weights"] == wanted["parties"]["lab"]["weights"]
    assert found["history"] == wanted["parties"]["lab"]["history"]
    assert start("run", "--as", "lab", "--listen", "127.0.0.1:0").end() == 0, "a finished run says so"


def test_a_frozen_party_is_noticed_within_the_limit(start: Start, job: Path) -> None:
    accepted(job, rounds=100_000)
    lab, port = lab_and_port(start)
    hospitals = [hospital(start, name, port) for name in HOSPITALS]
    lab.wait_for("Progressed")
    hospitals[0].process.send_signal(signal.SIGSTOP)
    frozen = time.monotonic()
    lab.wait_for("link to hospital-a broke .*silent for 4 s", 30)
    assert time.monotonic() - frozen < 4 + 6
    assert lab.end(60) == 2
    assert "hospital-a is lost" in lab.text


def test_a_party_with_another_plan_is_sent_away_and_the_others_wait_for_it(
    start: Start, job: Path, tmp_path: Path
) -> None:
    accepted(job, rounds=3)
    other = tmp_path / "other"
    other.mkdir()
    for file in job.iterdir():
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes())
    text = (other / "plan.toml").read_text()
    (other / "plan.toml").write_text(text.replace("batch_size = 16", "batch_size = 17"))
    here("accept", other / "plan.toml")
    lab, port = lab_and_port(start)
    keys = ("--keys", job / "keys")
    wrong = start("run", "--as", "hospital-a", "--connect", f"127.0.0.1:{port}", *keys, folder=other)
    assert wrong.end() == 2
    assert "wrong-plan" in wrong.text
    hospitals = [hospital(start, name, port) for name in HOSPITALS]
    for running in (lab, *hospitals):
        assert running.end() == 0, running.text


def test_strangers_and_a_second_process_of_a_party_do_not_disturb_the_run(
    start: Start, job: Path, tmp_path: Path
) -> None:
    accepted(job, rounds=60, more="[saves]\nevery_rounds = 50\n")
    here("keys", "demo", job / "plan.toml", "--keys", job / "forged")
    lab, port = lab_and_port(start)
    stranger = hospital(start, "hospital-a", port, "--keys", job / "forged")
    assert stranger.end() == 2
    assert "certificate" in stranger.text.lower()
    hospitals = [hospital(start, name, port) for name in HOSPITALS]
    lab.wait_for("Progressed")
    second = hospital(start, "hospital-a", port)
    assert second.end() == 2
    assert "another process keeps the saves" in second.text
    for running in (lab, *hospitals):
        assert running.end() == 0, running.text
    assert "refused a connection" in lab.text
