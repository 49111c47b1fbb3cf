"""`cutlayer audit verify` as an auditor types it."""

from functools import partial
from pathlib import Path

import pytest

from cli.typed import CommandLine
from cutlayer.keys.pairs import make_pairs, read_public_keys
from cutlayer.keys.signing import is_signed, load_signer
from cutlayer.observe.audit import Audit
from cutlayer.observe.facts import Fact
from observe.trails import PLAN, both, clock, edit, moved, steps

Logs = tuple[Path, Path]


@pytest.fixture
def signed(tmp_path: Path) -> Logs:
    """The logs of two parties that have keys of their own in `keys`."""
    logs = []
    for party in ("lab", "clinic"):
        make_pairs(tmp_path / "keys", party)
        log, sign = tmp_path / f"{party}.audit", load_signer(tmp_path / "keys", party)
        audit = Audit(log, party=party, plan=PLAN, sign=sign, clock=clock())
        facts: list[Fact] = [*steps(party, range(3)), moved(party, 7)]
        for fact in facts:
            audit(fact)
        audit.close()
        logs.append(log)
    return logs[0], logs[1]


def test_whole_logs_that_agree_are_said_to(cutlayer: CommandLine, signed: Logs, tmp_path: Path) -> None:
    told = cutlayer("audit", "verify", *signed, "--keys", tmp_path / "keys")
    assert told.code == 0
    lines = [line.split() for line in told.out.splitlines()]
    assert [line[-5:] for line in lines if line and line[0].startswith(str(tmp_path)[:6])] == [
        ["aaaaaaaaaaaa", "10", "10", "3", "4"],
        ["aaaaaaaaaaaa", "10", "10", "4", "3"],
    ]
    assert ["ffffffff", "clinic", "→", "lab", "4", "4", "0", "0"] in lines
    assert told.out.endswith("the logs are whole, and agree\n")


def test_one_log_alone_is_verified(cutlayer: CommandLine, signed: Logs, tmp_path: Path) -> None:
    told = cutlayer("audit", "verify", signed[0], "--keys", tmp_path / "keys")
    assert (told.code, told.out.splitlines()[-1]) == (0, "the log is whole")


def test_a_fault_is_one_sentence_and_an_exit_code(cutlayer: CommandLine, signed: Logs, tmp_path: Path) -> None:
    edit(signed[0], 4, digest="0" * 64)
    told = cutlayer("audit", "verify", *signed, "--keys", tmp_path / "keys")
    assert told.code == 1
    faults = [line for line in told.out.splitlines() if line.startswith("fault: ")]
    assert faults[0] == f"fault: {signed[0]} line 5 does not follow: line 4 was changed after it was written"
    assert faults[1].startswith(f"fault: {signed[1]} line 4 and {signed[0]} line 4 differ in digest: ")
    assert len(faults) == 2


def test_without_keys_a_note_says_what_is_not_known(cutlayer: CommandLine, tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    told = cutlayer("audit", "verify", lab)
    assert told.code == 0
    assert "note: " in told.out
    assert "no public key of lab was given" in told.out


def test_keys_come_from_the_plan(cutlayer: CommandLine, project: Path) -> None:
    assert cutlayer("keys", "demo").code == 0
    sign = load_signer(project / "keys", "lab")
    audit = Audit(project / "lab.audit", party="lab", plan=PLAN, sign=sign)
    audit.close()
    told = cutlayer("audit", "verify", "lab.audit", "--plan", "plan.toml")
    assert told.code == 0
    pinned = "signing_key" in (project / "plan.toml").read_text()
    assert ("no public key" in told.out) != pinned


def test_a_log_of_no_party_of_the_plan_is_refused(cutlayer: CommandLine, project: Path, tmp_path: Path) -> None:
    _, clinic = both(tmp_path)
    told = cutlayer("audit", "verify", clinic, "--plan", project / "plan.toml")
    assert told.code == 2
    assert "clinic is no party of" in told.sentence


def test_what_is_no_log_is_refused(cutlayer: CommandLine, tmp_path: Path) -> None:
    assert cutlayer("audit", "verify", tmp_path / "none").code == 2
    (tmp_path / "letter").write_text("Dear all\n")
    assert "does not begin as an audit log" in cutlayer("audit", "verify", tmp_path / "letter").sentence


def test_a_signature_is_of_its_statement_and_its_key(tmp_path: Path) -> None:
    make_pairs(tmp_path, "lab")
    sign = load_signer(tmp_path, "lab")
    verify = partial(is_signed, read_public_keys(tmp_path / "lab.pub", "lab").signing)
    assert verify(sign(b"this"), b"this")
    assert not verify(sign(b"this"), b"that")
    assert not verify(b"", b"this")
    assert not is_signed("0" * 64, sign(b"this"), b"this")
    assert not is_signed("no key", sign(b"this"), b"this")
