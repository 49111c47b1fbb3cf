"""The report measures what was asked for, says how sure each figure is, and goes on where it was stopped."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import callgrind
import report

WANTED = {"W1": 0.90, "W2": 0.33, "W2V": 0.25, "W3": 0.45}
OVERLAPPED = {"W1 raw": 0.97, "W3 raw": 0.62, "W3 half": 0.80}


def result(low: float = 0.9) -> dict[str, Any]:
    return {
        "ratio": 0.91, "low": 0.8, "high": 0.95, "ratio_tuned": 0.93, "low_tuned": low, "high_tuned": 0.97,
        "bound": 0.99, "decided": [4], "ms_per_step": {"tuned": 1.0, "split": 1.1}, "bytes_per_step": 2048,
        "pairs": 7, "measured_steps": 88, "load": [0.1, 0.2, 0.3],
    }  # fmt: skip


class Measuring:
    """Stands in for the benchmarks themselves; ends at a number of rows, as if somebody pressed Ctrl-C."""

    def __init__(self, until: int = 10_000, fault: str = "") -> None:
        self.until, self.fault, self.called = until, fault, list[str]()

    def __call__(self, script: Path, *arguments: str) -> dict[str, Any] | str:
        if len(self.called) == self.until:
            raise KeyboardInterrupt
        self.called.append(" ".join(arguments))
        if script.name == "callgrind.py":
            return {"3.11.7": {"vanilla": {"lab": 250_000}}}
        return self.fault if self.fault and arguments[0] == "W2V" else result()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["report.py", "--output", str(tmp_path / "docs" / "speed.md"), "--device", "cpu"])
    monkeypatch.setattr(callgrind, "missing", lambda: "")
    monkeypatch.setattr(report, "commit", lambda: "abc1234+")
    return tmp_path / "docs" / "speed.md"


def measuring(monkeypatch: pytest.MonkeyPatch, stand_in: Measuring) -> Measuring:
    monkeypatch.setattr(report, "measured", stand_in)
    return stand_in


def test_every_wanted_ratio_and_every_link_and_number_of_clients_is_a_row() -> None:
    planned = list(report.rows(quick=False, devices=("cpu",)))
    assert {row.name: row.wanted for row in planned if row.section == "Real runs"} == WANTED
    assert {row.name: row.wanted for row in planned if row.section == "Overlap"} == OVERLAPPED
    links = [" ".join(row.arguments) for row in planned if row.section == "Links"]
    for rate in (10, 100, 1000):
        for delay in (5, 50, 150):
            for workload in ("W1", "W2V", "W3"):
                assert any(line.startswith(f"{workload} --rate-mbit {rate} --delay-ms {delay} ") for line in links)
    clients = [row.arguments[2] for row in planned if row.section == "Clients"]
    assert clients == ["1", "4", "16", "64"]
    assert len({row.command for row in planned}) == len(planned)


def test_the_plain_rows_go_the_path_of_real_runs() -> None:
    planned = report.rows(quick=False, devices=("cpu",))
    assert [row.arguments for row in planned if row.section == "Real runs"] == [(name,) for name in WANTED]


def test_some_sections_alone_are_measured_with_as_many_pairs_as_asked_for_and_the_report_keeps_the_others(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, Measuring())
    report.main()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--pairs", "3", "--only", "Real runs"])
    again = measuring(monkeypatch, Measuring())
    report.main()
    assert again.called == [f"{name} --pairs 3 --json --quiet" for name in WANTED]
    assert "## Links" in place.read_text()


def test_a_stopped_report_goes_on_and_repeats_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measuring(monkeypatch, Measuring(until=5))
    with pytest.raises(KeyboardInterrupt):
        report.main()
    with place.with_suffix(".jsonl").open("a") as lines:
        lines.write('{"command": "cut sho')
    second = measuring(monkeypatch, Measuring())
    report.main()
    planned = list(report.rows(quick=False, devices=("cpu",)))
    assert len(first.called) == 5
    assert len(second.called) == len(planned) - 5 + 1, "and the instructions"
    assert not set(first.called) & set(second.called)
    third = measuring(monkeypatch, Measuring())
    report.main()
    assert not third.called


def test_rows_of_another_machine_are_measured_anew(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measuring(monkeypatch, Measuring())
    report.main()
    monkeypatch.setattr(report, "machine", lambda: {"processor": "another"})
    second = measuring(monkeypatch, Measuring())
    report.main()
    assert second.called == first.called


def test_what_fails_is_told_and_tried_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, Measuring(fault="no port is left"))
    with pytest.raises(SystemExit, match="no port is left"):
        report.main()
    assert "speed.py W2V: no port is left" in place.read_text()
    again = measuring(monkeypatch, Measuring())
    report.main()
    assert again.called
    assert all(line.startswith("W2V") for line in again.called)
    assert "no port is left" not in place.read_text()


def test_every_figure_has_its_interval_bound_steps_load_and_commit(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, Measuring())
    report.main()
    planned = list(report.rows(quick=False, devices=("cpu",)))
    text = place.read_text()
    lines = [line for line in text.splitlines() if line.endswith("| abc1234+ |")]
    assert len(lines) == len(planned)
    for line in lines:
        assert "**0.930** (0.900 to 0.970)" in line
        assert "| 0.990 | 0.910 (0.800 to 0.950) |" in line
        assert "| 7 × 88 | 0.1, 0.2, 0.3 |" in line
    assert all(row.command in text for row in planned)
    assert "- processor: " in text
    assert "| vanilla | lab | 250,000 |" in text


def test_a_wanted_ratio_is_judged_by_the_lower_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, Measuring())
    report.main()
    text = place.read_text()
    assert f"Of 7 wanted ratios {sum(each <= 0.9 for each in [*WANTED.values(), *OVERLAPPED.values()])} are" in text
    assert "| 0.97: **no** |" in text, "0.93 with 0.9 at the lower end"
    assert "| 0.90: yes |" in text


def test_a_benchmark_that_fails_gives_its_last_words(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text("import sys\nsys.exit('first\\nthe weights differ')\n")
    assert report.measured(script) == "the weights differ"
    script.write_text("print('{\"ratio\": 1}')\n")
    assert report.measured(script) == {"ratio": 1}


def test_what_is_kept_is_one_json_object_a_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, Measuring())
    report.main()
    for line in place.with_suffix(".jsonl").read_text().splitlines():
        assert {"command", "machine", "commit", "at", "load", "result"} == json.loads(line).keys()
