"""An audit log shows whoever changes it, and two of them show whoever does not tell the truth."""

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from cutlayer import simulate
from cutlayer.errors import RunError
from cutlayer.observe.audit import Audit
from cutlayer.observe.chain import SEAL_EVERY, digest_of
from cutlayer.observe.compare import compare
from cutlayer.observe.facts import Fact, Resumed, Spent, Stop
from cutlayer.observe.trail import read_trail
from observe.trails import (
    KEYS,
    both,
    chained_anew,
    compared,
    crossed,
    edit,
    keep,
    lines_of,
    moved,
    opened,
    steps,
    trail,
)


def resumed(party: str) -> Resumed:
    return Resumed(party=party, save=3, round=1, absent=(), returned=(), scored=())


# ---------------------------------------------------------------------- kept


def test_two_logs_of_an_undisturbed_run_are_whole_and_agree(tmp_path: Path) -> None:
    lab, clinic = both(tmp_path)
    faults, pairs = compared(lab, clinic)
    assert faults == []
    assert [(pair.sender, pair.receiver, pair.sent, pair.came, pair.lost) for pair in pairs] == [
        ("clinic", "lab", 7, 7, 0),
        ("lab", "clinic", 6, 6, 0),
    ]
    read = trail(lab)
    assert (read.lines, read.signed, read.count("sent"), read.count("came")) == (16, 16, 6, 7)
    assert read.notices == [] == [notice for pair in pairs for notice in pair.notices]


def test_a_log_says_what_crossed_and_not_what_was_in_it(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    lines = lines_of(lab)
    assert [line["entry"] for line in lines[:3]] == ["opened", "came", "sent"]
    assert lines[1] == {
        "n": 2,
        "at": "2030-01-01T00:00:01+00:00",
        "entry": "came",
        "peer": "clinic",
        "run": "f" * 32,
        "edge": "bottom->top",
        "way": "forward",
        "ticket": "turn 0, clinic, step 0.0 (train)",
        "carries": "activation",
        "shapes": ["float32[8, 4]"],
        "bytes": 128,
        "codec": "raw",
        "defence": "none",
        "digest": digest_of([b"forward", b"\0"]),
        "before": digest_of([lab.read_bytes().splitlines()[0]]),
    }
    assert [line["entry"] for line in lines[-2:]] == ["closed", "signed"]


@pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX's")
def test_a_log_is_for_its_owner_alone(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    assert stat.S_IMODE(lab.stat().st_mode) == 0o600


def test_other_facts_and_other_parties_facts_leave_no_line(tmp_path: Path) -> None:
    audit = opened(tmp_path / "lab.audit", "lab")
    audit(Spent(party="lab", on="wire", seconds=1.0))
    audit(crossed("clinic", 0, "forward"))
    audit.close()
    audit.close()
    assert [line["entry"] for line in lines_of(tmp_path / "lab.audit")] == ["opened", "closed", "signed"]


def test_many_lines_are_signed_in_between(tmp_path: Path) -> None:
    lab = tmp_path / "lab.audit"
    audit = opened(lab, "lab")
    for fact in steps("lab", range(SEAL_EVERY)):
        audit(fact)
    signed = [line["n"] for line in lines_of(lab) if line["entry"] == "signed"]
    assert signed == [SEAL_EVERY + 1, 2 * (SEAL_EVERY + 1)]
    assert trail(lab).signed == signed[-1]


def test_a_simulated_run_gives_logs_that_agree(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    rows = {
        name: TensorDataset(torch.randn(9, 4, generator=random), torch.randint(0, 3, (9,), generator=random))
        for name in ("a", "b")
    }
    audits = [Audit(tmp_path / f"{name}.audit", party=name) for name in ("a", "b", "server")]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    simulate(model, cut="0", data=rows, lr=0.1, batch_size=4, rounds=2, schedule="relay", observers=audits)
    for audit in audits:
        audit.close()
    trails = [read_trail(tmp_path / f"{name}.audit") for name in ("a", "b", "server")]
    pairs = compare(trails)
    assert [each.faults for each in trails] == [[]] * 3
    assert [pair.faults for pair in pairs] == [[]] * len(pairs)
    assert {(pair.sender, pair.receiver) for pair in pairs} >= {("a", "server"), ("server", "a"), ("a", "b")}
    assert all(pair.sent == pair.came > 0 for pair in pairs)
    lines = lines_of(tmp_path / "a.audit")
    assert {line["state"] for line in lines if "state" in line} == {"replica"}
    assert all(len(line["digest"]) == 64 for line in lines if line["entry"] in ("sent", "came"))


# ---------------------------------------------------------------------- changed


def test_an_edited_line_is_named(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    edit(lab, 5, bytes=64)
    assert trail(lab).faults == [f"{lab} line 6 does not follow: line 5 was changed after it was written"]


def test_an_edited_last_line_is_named(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    edit(lab, 16, signature="00" * 64)
    assert trail(lab).faults[0] == (
        f"{lab} line 16 is no signature of lab for the lines before it: they were changed after it"
    )


def test_a_removed_line_is_named(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    lines = lab.read_bytes().splitlines(keepends=True)
    lab.write_bytes(b"".join(lines[:4] + lines[6:]))
    assert trail(lab).faults == [f"{lab} line 5 has the number 7: lines 5 to 6 are missing before it"]


def test_lines_out_of_order_are_named(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    lines = lab.read_bytes().splitlines(keepends=True)
    lab.write_bytes(b"".join([*lines[:4], lines[5], lines[4], *lines[6:]]))
    assert trail(lab).faults == [
        f"{lab} line 5 has the number 6: line 5 is missing before it",
        f"{lab} line 6 has the number 5, and should have 7: it is out of order",
        f"{lab} line 7 has the number 7: line 6 is missing before it",
    ]


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    lines = lab.read_bytes().splitlines(keepends=True)
    lines[4] = b"[" * 5000 + b"\n"
    lab.write_bytes(b"".join(lines))
    assert trail(lab).faults == [
        f"{lab} line 5 is no line of an audit log: it was changed",
        f"{lab} line 6 does not follow: line 5 was changed after it was written",
    ]


@pytest.mark.parametrize("left", range(1, 16))
def test_a_log_without_its_end_is_told_from_a_whole_one(left: int, tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    lab.write_bytes(b"".join(lab.read_bytes().splitlines(keepends=True)[:left]))
    faults = trail(lab).faults
    assert any("was not closed" in fault for fault in faults) == (left < 15)
    assert any("are not signed by lab" in fault for fault in faults)


def test_a_log_that_ends_at_a_signature_is_not_whole_either(tmp_path: Path) -> None:
    lab = tmp_path / "lab.audit"
    keep(lab, "lab", steps("lab", range(SEAL_EVERY)))
    lab.write_bytes(b"".join(lab.read_bytes().splitlines(keepends=True)[: SEAL_EVERY + 1]))
    [fault] = trail(lab).faults
    assert f"ends at line {SEAL_EVERY + 1} and was not closed" in fault


def test_a_chain_made_anew_without_the_key_is_not_signed(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    lines = lines_of(lab)
    del lines[4]
    for sign in (None, KEYS["clinic"].sign):
        chained_anew(lab, lines, "lab", sign)
        assert trail(lab).faults == [
            f"{lab} line 15 is no signature of lab for the lines before it: they were changed after it",
            f"{lab}: its lines are not signed by lab: anyone may have written them",
        ]
    chained_anew(lab, lines[:-1], "lab")
    assert trail(lab).faults == [f"{lab}: its lines are not signed by lab: anyone may have written them"]


def test_without_a_key_a_log_is_said_to_prove_little(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    read = read_trail(lab)
    assert (read.faults, read.signed) == ([], 0)
    assert read.notices == [f"{lab}: no public key of lab was given, so whoever had the file may have rewritten it"]


def test_a_signature_is_of_one_party_and_one_place(tmp_path: Path) -> None:
    lab, clinic = both(tmp_path)
    edit(clinic, 16, signature=lines_of(lab)[-1]["signature"])
    assert "is no signature of clinic" in trail(clinic).faults[0]


# ---------------------------------------------------------------------- one party's word against the other's


def rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    """As the log's own party can do, with its key."""
    chained_anew(path, lines, path.stem, KEYS[path.stem].sign)
    assert trail(path).faults == []


@pytest.mark.parametrize(
    ("field", "value"), [("digest", "0" * 64), ("shapes", ["float32[9, 4]"]), ("bytes", 1), ("codec", "half")]
)
@pytest.mark.parametrize("party", ["lab", "clinic"])
def test_a_party_that_rewrites_its_own_log_differs_from_the_other(
    party: str, field: str, value: Any, tmp_path: Path
) -> None:
    lab, clinic = both(tmp_path)
    log = tmp_path / f"{party}.audit"
    lines = lines_of(log)
    true, lines[3][field] = lines[3][field], value
    rewrite(log, lines)
    faults, _ = compared(lab, clinic)
    was_sent, came = (value, true) if party == "clinic" else (true, value)
    assert faults == [
        f"{clinic} line 4 and {lab} line 4 differ in {field}: {was_sent!r} was sent, {came!r} came"
    ]  # fmt: skip


def test_what_a_receiver_leaves_out_is_named(tmp_path: Path) -> None:
    lab, clinic = both(tmp_path)
    lines = lines_of(lab)
    del lines[3]
    rewrite(lab, lines)
    faults, _ = compared(lab, clinic)
    assert faults == [
        f"{clinic} line 4: bottom->top forward of turn 0, clinic, step 1.0 (train) was sent, and later ones came, but "
        f"{lab} leaves it out"
    ]


def test_what_a_sender_leaves_out_is_named(tmp_path: Path) -> None:
    lab, clinic = both(tmp_path)
    lines = lines_of(clinic)
    del lines[3]
    rewrite(clinic, lines)
    faults, _ = compared(lab, clinic)
    what = "bottom->top forward of turn 0, clinic, step 1.0 (train)"
    assert faults == [f"{lab} line 4: {what} came from clinic, but {clinic} does not have it"]


def test_what_comes_twice_or_out_of_order_is_named(tmp_path: Path) -> None:
    lab, clinic = both(tmp_path)
    lines = lines_of(lab)
    rewrite(lab, [*lines[:4], lines[3], *lines[4:]])
    faults, _ = compared(lab, clinic)
    assert len(faults) == 1
    assert faults[0].endswith("came from clinic again, or out of order")


def test_a_state_that_differs_is_named(tmp_path: Path) -> None:
    lab = keep(tmp_path / "lab.audit", "lab", [moved("lab", 1), moved("lab", 2, digest="0" * 64)])
    clinic = keep(tmp_path / "clinic.audit", "clinic", [moved("clinic", 1), moved("clinic", 2)])
    faults, _ = compared(lab, clinic)
    assert len(faults) == 1
    assert faults[0].startswith(f"{clinic} line 3 and {lab} line 3 differ in digest")


def test_two_logs_of_one_party_are_not_compared(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    with pytest.raises(RunError, match=r"are both lab's: give one of them"):
        compare([trail(lab), trail(lab)])


# ---------------------------------------------------------------------- links break and processes die


def test_what_was_sent_last_and_never_came_is_told_and_is_no_fault(tmp_path: Path) -> None:
    lab = keep(tmp_path / "lab.audit", "lab", steps("lab", range(3)))
    clinic = keep(tmp_path / "clinic.audit", "clinic", [*steps("clinic", range(3)), crossed("clinic", 3, "forward")])
    faults, pairs = compared(lab, clinic)
    assert faults == []
    [notice] = [notice for pair in pairs for notice in pair.notices]
    assert notice == f"run ffffffff: 1 message(s) that clinic sent are not in {lab}: never arrived"


def test_what_was_lost_before_the_run_was_taken_up_again_is_no_fault(tmp_path: Path) -> None:
    logs = []
    for party in ("lab", "clinic"):
        lost = [crossed("clinic", 3, "forward")]  # of which the lab keeps no line
        facts: list[Fact] = [*steps(party, range(3)), *lost, resumed(party), *steps(party, range(1, 5))]
        logs.append(keep(tmp_path / f"{party}.audit", party, facts))
    faults, pairs = compared(*logs)
    assert faults == []
    assert [(pair.sent, pair.came, pair.lost) for pair in pairs] == [(8, 7, 1), (7, 7, 0)]


def killed(path: Path, party: str, told: list[Any], torn: bytes = b"") -> None:
    """A log whose process was killed: with nothing after its last line but the beginning of another."""
    audit = opened(path, party)
    for fact in told:
        audit(fact)
    os.close(audit._chain._file)
    with path.open("ab") as file:
        file.write(torn)


@pytest.mark.parametrize("torn", [b"", b'{"n":9,"at":"2030-01-', b"{", b'{"n":9,\0\0\0\0', b"\0" * 4096])
def test_a_killed_process_log_is_continued_and_says_so(torn: bytes, tmp_path: Path) -> None:
    lab = tmp_path / "lab.audit"
    killed(lab, "lab", steps("lab", range(3)), torn)
    assert any("was not closed" in fault for fault in trail(lab).faults)
    clinic = keep(tmp_path / "clinic.audit", "clinic", [*steps("clinic", range(3)), *steps("clinic", range(3, 5))])
    keep(lab, "lab", steps("lab", range(3, 5)))
    faults, _ = compared(lab, clinic)
    assert faults == []
    assert trail(lab).notices == [f"{lab}: lab's process was killed after line 7, and another went on"]
    entries = [(line["entry"], line.get("bytes")) for line in lines_of(lab)[7:9]]
    assert entries[0] == ("opened", None)
    assert (entries[1] == ("torn", len(torn))) == bool(torn)
    assert trail(lab).signed == trail(lab).lines


def test_one_message_sent_just_before_a_kill_may_be_missing(tmp_path: Path) -> None:
    """It was sent, and the process was killed before it was written down."""
    clinic = tmp_path / "clinic.audit"
    killed(clinic, "clinic", steps("clinic", range(3)))
    keep(clinic, "clinic", [resumed("clinic"), *steps("clinic", range(3, 5))])
    lab = keep(tmp_path / "lab.audit", "lab", [
        *steps("lab", range(3)), crossed("lab", 3, "forward"), resumed("lab"), *steps("lab", range(3, 5)),
    ])  # fmt: skip
    told = trail(clinic)
    faults, pairs = compared(lab, clinic)
    assert (told.faults, faults) == ([], [])
    assert [pair.lost for pair in pairs] == [0, 0]


def test_a_closed_log_is_continued_without_a_word(tmp_path: Path) -> None:
    lab, clinic = both(tmp_path)
    keep(lab, "lab", steps("lab", range(6, 8)))
    keep(clinic, "clinic", steps("clinic", range(6, 8)))
    faults, pairs = compared(lab, clinic)
    assert (faults, trail(lab).notices, [pair.lost for pair in pairs]) == ([], [], [0, 0])


def test_a_log_longer_than_what_is_verified_of_it_is_continued(tmp_path: Path) -> None:
    lab = tmp_path / "lab.audit"
    shapes = crossed("lab", 0, "forward").shapes * 60
    keep(lab, "lab", [replace(fact, shapes=shapes) for fact in steps("lab", range(250)) * 2])
    assert lab.stat().st_size > 2**20
    keep(lab, "lab", steps("lab", range(2)))
    assert trail(lab).faults == []


@pytest.mark.parametrize("number", [1, 5, 16])
def test_a_changed_log_is_not_continued(number: int, tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    if number == 16:
        lab.write_bytes(lab.read_bytes().replace(b'"entry":"closed"', b'"entry":"opened"'))
    else:
        edit(lab, number, at="2031-01-01")
    before = lab.read_bytes()
    with pytest.raises(RunError, match=r"is not lab's own audit log, or was changed .* name another file"):
        opened(lab, "lab")
    assert lab.read_bytes() == before


@pytest.mark.parametrize("data", [b"a letter\nto a friend", b"a letter", b'{"n":1}\n', b"\n", b"x" * (2**20 + 5)])
def test_a_file_that_is_no_log_is_left_alone(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(RunError, match="name another file"):
        opened(tmp_path / "file", "lab")
    assert (tmp_path / "file").read_bytes() == data
    with pytest.raises(RunError, match="does not begin as an audit log"):
        read_trail(tmp_path / "file")


def test_another_partys_log_is_left_alone(tmp_path: Path) -> None:
    lab, _ = both(tmp_path)
    with pytest.raises(RunError, match="is not clinic's own audit log"):
        opened(lab, "clinic")


def test_a_log_that_cannot_be_written_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = opened(tmp_path / "lab.audit", "lab")

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    stop = audit(crossed("lab", 0, "forward"))
    monkeypatch.undo()
    assert isinstance(stop, Stop)
    assert stop.reason == (
        "lab cannot write its audit log (No space left on device), and does not go on without it"
    )  # fmt: skip
    assert audit(crossed("lab", 0, "backward")) == stop
    with pytest.raises(RunError, match="is not complete"):
        audit.close()
    assert len(lines_of(tmp_path / "lab.audit")) == 1


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="name another file for the audit"):
        opened(tmp_path / "nowhere" / "lab.audit", "lab")
