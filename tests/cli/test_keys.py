"""Keys by hand: each party makes its own, sends what may be seen, and the plan pins it."""

import tomllib
from pathlib import Path

import pytest

from cli.typed import CommandLine

PARTIES = ("lab", "hospital-a", "hospital-b", "hospital-c")


@pytest.fixture
def ready(cutlayer: CommandLine, project: Path) -> Path:
    assert cutlayer("keys", "demo").code == 0
    return project


def test_request_says_what_stays_and_what_is_sent(cutlayer: CommandLine, tmp_path: Path) -> None:
    lines = cutlayer("keys", "request", "bank", "--keys", tmp_path).out.splitlines()
    assert [line.split()[0] for line in lines] == [
        str(tmp_path / name) for name in ("bank.key", "bank.csr", "bank.seal.key", "bank.pub")
    ]
    assert "never leaves this machine" in lines[0]
    assert "cutlayer keys sign bank.csr" in lines[1]
    assert "never leaves this machine" in lines[2]
    assert "cutlayer keys pin" in lines[3]


def test_request_adds_what_a_party_from_before_lacks(cutlayer: CommandLine, tmp_path: Path) -> None:
    assert cutlayer("keys", "request", "bank", "--keys", tmp_path).code == 0
    for name in ("bank.seal.key", "bank.pub"):
        (tmp_path / name).unlink()
    key = (tmp_path / "bank.key").read_bytes()
    added = cutlayer("keys", "request", "bank", "--keys", tmp_path).out.splitlines()
    assert [line.split()[0] for line in added] == [str(tmp_path / name) for name in ("bank.seal.key", "bank.pub")]
    assert (tmp_path / "bank.key").read_bytes() == key
    assert "never overwritten" in cutlayer("keys", "request", "bank", "--keys", tmp_path).sentence


def test_demo_ends_with_what_schedules_that_move_weights_need(cutlayer: CommandLine, project: Path) -> None:
    last = cutlayer("keys", "demo").out.splitlines()[-1]
    assert "`cutlayer keys pin plan.toml --keys keys`" in last


def test_pin_makes_a_new_plan_that_all_accept_again(cutlayer: CommandLine, ready: Path) -> None:
    before = cutlayer("accept").out.split()[2]
    told = cutlayer("keys", "pin")
    assert told.code == 0, told.err
    assert told.out.splitlines() == [
        *(f"{name}: pinned key, signing_key, sealing_key" for name in PARTIES),
        "plan.toml is a new plan: all accept it again, and compare its digest",
    ]
    parties = tomllib.loads(Path("plan.toml").read_text())["parties"]
    assert all(len(parties[name]["sealing_key"]) == 64 for name in PARTIES)
    assert cutlayer("plan", "check").code == 0
    assert cutlayer("accept").out.split()[2] != before


def test_pin_twice_says_that_nothing_changed(cutlayer: CommandLine, ready: Path) -> None:
    assert cutlayer("keys", "pin").code == 0
    told = cutlayer("keys", "pin").out
    assert "lab: pinned already key, signing_key, sealing_key" in told
    assert told.endswith("plan.toml is unchanged\n")


def test_pin_tells_whose_files_are_not_there(cutlayer: CommandLine, ready: Path) -> None:
    for name in ("lab.crt", "lab.pub", "hospital-b.pub"):
        Path("keys", name).unlink()
    told = cutlayer("keys", "pin").out
    assert "lab: keys has no lab.crt and no lab.pub\n" in told
    assert "hospital-b: pinned key; keys has no hospital-b.pub\n" in told


def test_pin_without_any_partys_file_is_an_error(cutlayer: CommandLine, project: Path) -> None:
    assert "--keys" in cutlayer("keys", "pin").sentence


def test_pin_changes_a_pin_only_if_told(cutlayer: CommandLine, ready: Path) -> None:
    assert cutlayer("keys", "pin").code == 0
    assert cutlayer("keys", "demo", "--keys", "other").code == 0
    before = Path("plan.toml").read_text()
    assert "--replace" in cutlayer("keys", "pin", "--keys", "other").sentence
    assert Path("plan.toml").read_text() == before
    assert cutlayer("keys", "pin", "--keys", "other", "--replace").code == 0
    assert Path("plan.toml").read_text() != before


def test_sign_says_how_the_keys_get_into_the_plan(cutlayer: CommandLine, tmp_path: Path) -> None:
    assert cutlayer("keys", "request", "bank", "--keys", tmp_path).code == 0
    signed = cutlayer("keys", "sign", tmp_path / "bank.csr", "--authority", tmp_path / "authority", "--new").out
    assert "`cutlayer keys pin`" in signed
    assert "bank.pub" in signed
