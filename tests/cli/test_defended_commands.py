"""`cutlayer run` of a defended plan, its ledger and its recording; `cutlayer attack`; what `plan check` says."""

import re
from pathlib import Path

import pytest

from cli.terminals import Terminals
from cli.trained import Project, hospitals, trained
from cli.typed import CommandLine

DEFENDED = """
on_alarm = "tell"
[[defence]]
forward = { name = "gaussian", clip = 1.0, sigma = 20.0 }
[[budget]]
party = "hospital-a"
epsilon = 50.0
"""


@pytest.fixture(scope="module")
def defended(terminals: Terminals, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = hospitals(tmp_path_factory.mktemp("defended") / "hospitals")
    plan, own = project.folder / "plan.toml", project.folder / "hospital-a.toml"
    top, training = plan.read_text().split("[training]", 1)
    plan.write_text(top + DEFENDED.split("[[")[0] + "[training]" + training + "[[" + DEFENDED.split("[[", 1)[1])
    own.write_text(own.read_text() + "monitor = true\n")
    return trained(project, terminals)


def ledger_of(project: Project, party: str) -> Path:
    (path,) = (project.folder / "keys").glob(f"{party}-*.ledger")
    return path


def again(project: Project, terminals: Terminals) -> float:
    """Trained once more, from the beginning: the ε of hospital-a's activations by its report."""
    commands = {party: ["run", "--anew", "--json", f"{party}.json"] for party in project.parties}
    ends = terminals.together(project.folder, commands)
    assert not any(end.code for end in ends.values()), ends
    found = re.search(r"activations: ε = ([0-9.]+)", (project.folder / "hospital-a.json").read_text())
    assert found
    return float(found[1])


def test_a_run_tells_what_it_released_and_its_ledger_outlives_it(defended: Project, terminals: Terminals) -> None:
    before = ledger_of(defended, "hospital-a").stat().st_size
    assert before > 500
    first = again(defended, terminals)
    assert ledger_of(defended, "hospital-a").stat().st_size > before
    assert again(defended, terminals) > first > 0


def test_predictions_are_written_down_too(defended: Project, terminals: Terminals) -> None:
    before = ledger_of(defended, "hospital-a").stat().st_size
    ends = terminals.together(
        defended.folder,
        {party: ["predict", *(() if party == "lab" else ("--data", f"new-{party}.csv"))] for party in defended.parties},
    )
    assert not any(end.code for end in ends.values()), ends
    assert ledger_of(defended, "hospital-a").stat().st_size > before


def test_plan_check_says_what_is_protected_by_what(defended: Project, cutlayer: CommandLine) -> None:
    told = cutlayer("plan", "check", defended.folder / "plan.toml")
    assert told.code == 0
    assert "replace one row" in told.out
    assert "gaussian(clip=1.0" in told.out
    assert "hospital-a stops before its activations would tell more of a row than ε = 50" in told.out


def test_attack_prints_scores_beside_what_guessing_gives(
    defended: Project, cutlayer: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(defended.folder)
    picture, figures = tmp_path / "leak.png", tmp_path / "leak.json"
    told = cutlayer(
        "attack", "plan.toml", "--attacks", "decoder(epochs=5),label_leak", "--picture", picture, "--json", figures
    )
    assert told.code == 0, told.err
    assert "as planned" in told.out
    assert "defence none" in told.out
    assert "guessing" in told.out
    assert picture.exists()
    assert '"attack": "decoder(epochs=5)"' in figures.read_text()


def test_a_recording_of_a_run_can_be_attacked(defended: Project, terminals: Terminals, cutlayer: CommandLine) -> None:
    ends = terminals.together(
        defended.folder,
        {
            party: ["run", "--anew", *(("--record", "kept") if party == "hospital-a" else ())]
            for party in defended.parties
        },
    )
    assert not any(end.code for end in ends.values()), ends
    (path,) = (defended.folder / "kept").glob("hospital-a-on-bottom-to-*.safetensors")
    told = cutlayer(
        "attack", defended.folder / "plan.toml", "--recording", path, "--attacks", "clusters,label_leak,decoder"
    )
    assert told.code == 0, told.err
    assert "clusters" in told.out
    assert "decoder on bottom-to-middle of hospital-a was not tried" in told.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--attacks", "norn"), "did you mean 'norm'"),
        (("--defences", "none"), "--matrix"),
        (("--matrix", "--defences", "gausian(clip=1)"), "is no defence"),
    ],
)
def test_what_cannot_be_asked_is_said(
    defended: Project, cutlayer: CommandLine, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(defended.folder)
    told = cutlayer("attack", "plan.toml", *words)
    assert told.code == 2
    assert said in told.err
