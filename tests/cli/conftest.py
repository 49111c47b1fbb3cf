"""Runs the command line in this process, as a person would type it."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.terminals import Terminals
from cli.typed import CommandLine, Typed
from cutlayer.cli import main


@pytest.fixture(scope="module")
def terminals() -> Iterator[Terminals]:
    """Three terminals, in which processes compute with one thread each."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    with Terminals(3) as terminals:
        yield terminals
    if before is None:
        del os.environ["OMP_NUM_THREADS"]


@pytest.fixture
def cutlayer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """`cutlayer("plan", "check")` types `cutlayer plan check`."""

    def typed(*arguments: object) -> Typed:
        monkeypatch.setattr(sys, "argv", ["cutlayer", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "160")
        code = 0
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
        told = capsys.readouterr()
        return Typed(code, told.out, told.err)

    return typed


@pytest.fixture
def project(cutlayer: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project that `cutlayer init` writes; the test runs inside it."""
    folder = tmp_path / "first-run"
    assert cutlayer("init", folder).code == 0
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def edit(project: Path) -> Callable[[str, str, str], None]:
    """`edit("plan.toml", old, new)` changes a file of the project; `old` must be there."""

    def edited(name: str, old: str, new: str) -> None:
        text = (project / name).read_text()
        assert old in text
        (project / name).write_text(text.replace(old, new))

    return edited
