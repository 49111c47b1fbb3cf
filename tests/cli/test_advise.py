"""`cutlayer plan advise`: a table, a picture and all figures, from a model and a sample; `plan check` shows FLOPs."""

import json
from pathlib import Path

import pytest

from cli.typed import CommandLine
from cutlayer.studies import calibration, costs
from cutlayer.studies.advisor import PRIVACY
from cutlayer.studies.calibration import Overheads
from cutlayer.studies.lines import Measured, write_measured

KNOWN = Overheads(step_s=0.001, micro_s=0.001, tls_bytes_per_s=5e8, loopback_rtt_s=0.0002)
LINK = ("--bandwidth", "10Mbit", "--rtt", "50ms")
SAMPLE = ("plan", "advise", "model.py", "--party-file", "hospital-a.toml", "--batch-size", 16)
MODEL = """
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
"""


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured elsewhere is not measured again here: the calibration starts a process."""
    monkeypatch.setattr(calibration, "calibrate", lambda: KNOWN)
    monkeypatch.setattr(costs, "ENOUGH_S", 0.0)


@pytest.fixture
def plain(project: Path) -> None:
    (project / "model.py").write_text(MODEL)


@pytest.mark.usefixtures("plain")
def test_a_table_a_picture_and_all_figures_over_every_cut(cutlayer: CommandLine, project: Path) -> None:
    shown = cutlayer(*SAMPLE, *LINK, "--micro-batches", "1,2", "--json", "advice.json", "--picture", "advice.png")
    assert shown.code == 0, shown.err
    told = json.loads((project / "advice.json").read_text())
    assert [place["layer"] for place in told["survey"]["places"]] == ["0", "1", "2", "3"]
    assert len(told["choices"]) == 4 * 3 * 2
    assert [place["bytes_forward"] for place in told["survey"]["places"]] == [256, 256, 32, 32]
    assert told["survey"]["places"][2]["client_flops"]["forward"] == 2 * (5 * 64 + 64 * 8)
    assert told["best"]["steps_per_s"] == max(choice["steps_per_s"] for choice in told["choices"])
    assert told["best"]["layer"] in {"2", "3"}  # on a slow link the narrow cut
    assert told["best"]["steps_per_s"] < 1 / 0.05  # no step is faster than a round trip
    assert told["setting"]["line"]["up_bytes_per_s"] == pytest.approx(1.25e6)
    assert (project / "advice.png").read_bytes().startswith(b"\x89PNG")
    for words in ("10 Mbit/s, round trip 50 ms", "M = 2", "federated", PRIVACY[:60], "half", "int8"):
        assert words in shown.out, words


@pytest.mark.usefixtures("plain")
def test_a_link_that_was_measured_is_taken_from_its_file(cutlayer: CommandLine, project: Path) -> None:
    found = Measured(
        dialler="hospital-a", listener="lab", rtt_s=0.0202, lowest_rtt_s=0.02, up_bytes_per_s=1e6,
        down_bytes_per_s=2e6, frames=1, largest_bytes=1,
    )  # fmt: skip
    write_measured(project / "ping.json", found)
    shown = cutlayer(*SAMPLE, "--link", "ping.json", "--codecs", "raw", "--micro-batches", "1", "--cuts", "2")
    assert shown.code == 0, shown.err
    assert "8 Mbit/s up, 16 down, round trip 20 ms" in shown.out
    assert "half" not in shown.out


def test_what_is_wrong_is_one_sentence(cutlayer: CommandLine, project: Path) -> None:
    assert "name the link" in cutlayer(*SAMPLE).sentence
    assert "name the link" in cutlayer(*SAMPLE, "--rtt", "5ms").sentence
    assert "name the link" in cutlayer(*SAMPLE, *LINK, "--link", "ping.json").sentence
    assert "write 100Mbit" in cutlayer(*SAMPLE, "--bandwidth", "fast", "--rtt", "5ms").sentence
    assert "no sample is named" in cutlayer("plan", "advise", "model.py", *LINK).sentence
    assert "--micro-batches 'many'" in cutlayer(*SAMPLE, *LINK, "--micro-batches", "many").sentence
    assert "--server-speed 0" in cutlayer(*SAMPLE, *LINK, "--server-speed", "0").sentence
    assert "no layer 'top'" in cutlayer(*SAMPLE, *LINK, "--cuts", "top").sentence
    assert "Adam" in cutlayer(*SAMPLE, *LINK, "--optimizer", "Adamm").sentence
    assert "no Python file" in cutlayer("plan", "advise", "none.py", "--data", "hospital-a.csv", "--label", "disease",
                                        *LINK).sentence  # fmt: skip


def test_plan_check_shows_the_operations_of_each_segment(cutlayer: CommandLine, project: Path) -> None:
    shown = cutlayer("plan", "check").out
    assert "FLOPs a row: forward, with backward" in shown
    assert "512 / 1.54 k" in shown  # 16 to 16, and the gradients of weights and input
