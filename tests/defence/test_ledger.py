"""What was recorded is there after a crash, and what may have been released counts as released."""

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutlayer.defence.accountant import Release
from cutlayer.defence.composition import epsilon
from cutlayer.defence.defence import Mechanism
from cutlayer.defence.ledger import MARKS, Ledger
from cutlayer.errors import BudgetSpent, RunError
from cutlayer.plan.terms import BudgetTerms, Channel

PLAN, DELTA = "ab" * 32, 1e-5
GAUSSIAN = Mechanism(kind="gaussian", scale=8.0, sensitivity=2.0)
OTHER = Mechanism(kind="pure", scale=0.5, sensitivity=1.0)


def opened(path: Path | None, **told: Any) -> Ledger:
    return Ledger(path, **{"party": "clinic", "plan": PLAN} | told)


def rows(*places: int, **told: Any) -> Release:
    placed = np.array(places, np.int64)
    given: dict[str, Any] = {"channel": "activations", "edge": "bottom->top", "mechanism": GAUSSIAN} | told
    return Release(rows=len(places), places=placed, **given)


def some(number: int = 4, **told: Any) -> Release:
    given: dict[str, Any] = {"channel": "activations", "edge": "bottom->top", "mechanism": GAUSSIAN, "trained": True}
    return Release(rows=number, **given | told)


def count(ledger: Ledger, channel: Channel = "activations", mechanism: Mechanism = GAUSSIAN) -> int:
    counts = ledger.accountant.counts(channel)
    assert counts is not None
    return counts.get(mechanism, 0)


def kept(path: Path, releases: Iterable[Release], **told: Any) -> None:
    ledger = opened(path, **told)
    for number, release in enumerate(releases):
        ledger.record(release, f"digest {number}")
    ledger.close()


def crash(ledger: Ledger) -> None:
    """As a process ends that is killed: nothing more is written, and the lock is free."""
    assert ledger._log is not None
    ledger._log.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "releases"


# ---------------------------------------------------------------------- kept


def test_whoever_opens_it_again_counts_the_same(path: Path) -> None:
    told = [rows(0, 1, 2), rows(2, 3), some(5), rows(7, table="held-out"), some(3, mechanism=OTHER, channel="labels")]
    told += [rows(1, 2, channel="weights", edge="bottom", mechanism=OTHER, through=("activations",))]
    told += [rows(2**40 % 1000, channel="gradients", mechanism=None)]
    kept(path, told)
    memory = opened(None)
    for number, release in enumerate(told):
        memory.record(release, str(number))
    again = opened(path)
    for channel in ("activations", "labels", "weights", "gradients"):
        assert again.accountant.counts(channel) == memory.accountant.counts(channel)
        assert again.accountant.epsilon(channel, DELTA) == memory.accountant.epsilon(channel, DELTA)
    assert again.accountant.lines(DELTA) == memory.accountant.lines(DELTA)
    again.close()


def test_a_release_is_on_the_disk_before_record_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    fsync = os.fsync

    def counted(file: int) -> None:
        fsync(file)
        flushed.append(path.stat().st_size)

    monkeypatch.setattr(os, "fsync", counted)
    ledger = opened(path)
    for number in range(3):
        ledger.record(some(), str(number))
        assert flushed[-1] == path.stat().st_size
    crash(ledger)
    again = opened(path)
    assert count(again) == 12
    again.close()


def test_the_same_bits_again_are_free_even_for_another_process(path: Path) -> None:
    ledger = opened(path)
    assert ledger.record(rows(0, 1), "first")
    size = path.stat().st_size
    assert not ledger.record(rows(0, 1), "first")
    crash(ledger)
    ledger = opened(path)
    assert not ledger.record(rows(0, 1), "first")
    assert (count(ledger), path.stat().st_size) == (1, size)
    assert ledger.record(rows(0, 1), "second")
    assert ledger.record(rows(0, 2), "first"), "other rows that came out alike"
    assert ledger.record(rows(0, 1, edge="other->top"), "first"), "another edge"
    assert count(ledger) == 4
    ledger.close()


def test_a_resend_is_free_when_the_budget_is_spent() -> None:
    ledger = opened(None, budgets=[BudgetTerms(party="clinic", epsilon=epsilon({GAUSSIAN: 4}, DELTA))])
    ledger.record(some(), "first")
    with pytest.raises(BudgetSpent):
        ledger.record(some(), "second")
    assert not ledger.record(some(), "first")


def test_marks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutlayer.defence.ledger.MARKS", 3)
    ledger = opened(None)
    for number in range(5):
        ledger.record(some(), str(number))
    assert not ledger.record(some(), "4")
    assert ledger.record(some(), "0"), "an older one counts anew"
    assert MARKS == 65_536


# ---------------------------------------------------------------------- crashes


def test_a_torn_line_counts_as_one_more_release_of_each_kind(path: Path) -> None:
    kept(path, [some(6), some(4), rows(0, 1, channel="labels", mechanism=OTHER)])
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last):
        path.write_bytes(whole[:-cut])
        for _ in range(2):
            ledger = opened(path)
            assert (count(ledger), count(ledger, "labels", OTHER)) == (10 + 6, 1), cut
            ledger.close()


def test_after_a_torn_line_the_record_goes_on(path: Path) -> None:
    kept(path, [some(4)])
    with path.open("ab") as file:
        file.write(b'0123456789abcdef {"n":5')
    ledger = opened(path)
    assert count(ledger) == 8
    ledger.record(some(3), "next")
    crash(ledger)
    again = opened(path)
    assert count(again) == 11
    again.close()


def test_a_crash_while_a_torn_line_is_recovered_counts_no_less(path: Path) -> None:
    kept(path, [some(4)])
    whole = path.read_bytes()
    path.write_bytes(whole + b"torn")
    opened(path).close()
    recovered = path.read_bytes()
    assert recovered.startswith(whole + b"torn#\n")
    for cut in range(1, len(recovered) - len(whole) - 5):
        path.write_bytes(recovered[:-cut])
        ledger = opened(path)
        assert count(ledger) == 8
        ledger.close()


def test_a_file_that_a_power_cut_left_with_zeros_or_half_a_first_line_is_begun_anew(path: Path) -> None:
    opened(path).close()
    first = path.read_bytes()
    for left in (b"", first[:20], first[:-1], first[:20] + bytes(100), bytes(512)):
        path.write_bytes(left)
        ledger = opened(path)
        ledger.record(some(), "one")
        crash(ledger)
        again = opened(path)
        assert count(again) == 4
        again.close()


@pytest.mark.slow
def test_a_process_that_is_killed_has_recorded_what_it_released(path: Path) -> None:
    program = """
        import sys
        from cutlayer.defence.accountant import Release
        from cutlayer.defence.defence import Mechanism
        from cutlayer.defence.ledger import Ledger
        told = Mechanism(kind="gaussian", scale=8.0, sensitivity=2.0)
        ledger = Ledger(sys.argv[1], party="clinic", plan=sys.argv[2])
        number = 0
        while True:
            release = Release(channel="activations", edge="bottom->top", mechanism=told, rows=1, trained=True)
            ledger.record(release, str(number))
            number += 1
            print(number, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(path), PLAN]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 20:
                process.send_signal(signal.SIGKILL)
                break
        released = max([20, *(int(line) for line in process.stdout if line.endswith("\n"))])
    ledger = opened(path)
    assert released <= count(ledger) <= released + 2
    ledger.close()


# ---------------------------------------------------------------------- reservations


def test_under_a_reservation_nothing_is_flushed_nor_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(path)
    assert ledger.reserve(some(4), 10)
    flushes: list[int] = []
    monkeypatch.setattr(os, "fsync", flushes.append)
    for number in range(10):
        ledger.record(some(4), str(number))
    assert flushes == []
    ledger.record(some(4), "beyond it")
    assert len(flushes) == 1
    crash(ledger)
    again = opened(path)
    assert count(again) == 44
    again.close()


@pytest.mark.parametrize("seen", range(4))
def test_what_of_a_reservation_is_not_seen_after_a_crash_counts_as_released(path: Path, seen: int) -> None:
    ledger = opened(path)
    ledger.reserve(some(4), 10)
    size = path.stat().st_size
    sizes = []
    for number in range(6):
        ledger.record(some(4), str(number))
        sizes.append(path.stat().st_size)
    crash(ledger)
    os.truncate(path, [size, sizes[0], sizes[2], sizes[5]][seen])
    for _ in range(2):
        again = opened(path)
        assert count(again) == 40
        crash(again)


def test_what_of_a_reservation_is_not_used_is_free_after_a_good_end(path: Path) -> None:
    ledger = opened(path)
    ledger.reserve(some(4), 10)
    ledger.record(some(4), "one")
    ledger.reserve(some(4), 5)
    ledger.record(some(4), "two")
    ledger.close()
    ledger.close()
    again = opened(path)
    assert count(again) == 8
    again.close()


def test_a_pass_over_rows_that_a_crash_cut_short_counts_once_for_each_row(path: Path) -> None:
    ledger = opened(path)
    ledger.record(rows(0, 1), "an earlier pass")
    ledger.reserve(rows(0, 1), 50)
    ledger.record(rows(0, 1), "first")
    ledger.record(rows(2, 3), "second")
    crash(ledger)
    again = opened(path)
    assert count(again) == 2 + 1
    again.close()


def test_a_row_that_comes_twice_in_a_reservation_is_flushed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(path)
    ledger.reserve(rows(0, 1), 50)
    ledger.record(rows(0, 1), "first")
    flushes: list[int] = []
    monkeypatch.setattr(os, "fsync", flushes.append)
    ledger.record(rows(1, 2), "again")
    ledger.record(rows(3, 3), "twice")
    ledger.record(rows(4, 5, 6), "more rows than reserved")
    assert len(flushes) == 3
    ledger.record(rows(4, 5), "of it")
    assert len(flushes) == 3
    crash(ledger)


def test_a_bottom_that_begins_to_learn_makes_all_that_was_reserved_count(path: Path) -> None:
    ledger = opened(path)
    ledger.reserve(rows(0, 1), 5)
    ledger.record(rows(0, 1), "first")
    ledger.record(some(3), "it learns")
    crash(ledger)
    again = opened(path)
    assert count(again) == 1 + 3 + 4 * 2
    again.close()


def test_lines_that_a_power_cut_took_out_of_a_reservation_are_covered_by_it(path: Path) -> None:
    ledger = opened(path)
    ledger.reserve(some(4), 10)
    for number in range(6):
        ledger.record(some(4), str(number))
    crash(ledger)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = bytes(len(lines[4]))
    path.write_bytes(b"".join(lines))
    again = opened(path)
    assert count(again) >= 40
    again.record(some(4), "next")
    before = count(again)
    crash(again)
    again = opened(path)
    assert count(again) == before
    again.close()


# ---------------------------------------------------------------------- refused


def test_what_a_power_cut_cannot_have_done_is_refused(path: Path) -> None:
    kept(path, [some(4), some(5), some(6), rows(1, 2)])
    lines = path.read_bytes().splitlines(keepends=True)
    spoilt = [
        [*lines[:2], *lines[3:]],
        [*lines[:3], lines[2], *lines[3:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:2], lines[2].replace(b'"rows":4', b'"rows":1'), *lines[3:]],
        [*lines[:2], b"\0" * 40 + b"\n", *lines[2:]],
        lines[1:],
        [b"not at all a record\n"],
        [b"\x89PNG"],
    ]
    for each in spoilt:
        assert each != lines
        path.write_bytes(b"".join(each))
        with pytest.raises(RunError, match=r"is damaged .*: put a whole copy of it back") as refusal:
            opened(path)
        assert "delete" not in str(refusal.value)
        assert path.read_bytes() == b"".join(each), "nothing of it is changed"


def test_another_partys_or_plans_record_is_refused(path: Path) -> None:
    kept(path, [some()])
    with pytest.raises(RunError, match="what clinic releases under the plan abababababab, and not lab's"):
        opened(path, party="lab")
    with pytest.raises(RunError, match="and not clinic's under cdcdcdcdcdcd: keep it, and name another file"):
        opened(path, plan="cd" * 32)
    opened(path).close()


def test_two_processes_cannot_write_one_record(path: Path) -> None:
    ledger = opened(path)
    with pytest.raises(RunError, match="another process writes"):
        opened(path)
    ledger.close()
    opened(path).close()


def test_a_place_where_nothing_can_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"clinic cannot write .*: make room or mend its rights"):
        opened(tmp_path / "file" / "releases")
    with pytest.raises(RunError, match=r"clinic cannot write .*: make room or mend its rights"):
        opened(tmp_path)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_nothing_is_released_once_the_disk_is_full(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    ledger = opened(path)
    ledger.record(some(), "one")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(RunError, match=r"No space left on device.*releases nothing that is not recorded"):
            ledger.record(some(), "two")
    with pytest.raises(RunError, match="No space left"):
        ledger.record(some(), "two")
    assert count(ledger) == 4
    crash(ledger)


# ---------------------------------------------------------------------- budgets


def test_the_release_that_would_exceed_a_budget_is_not_recorded(path: Path) -> None:
    budget = BudgetTerms(party="clinic", epsilon=2.0, delta=DELTA)
    ledger = opened(path, budgets=[budget, BudgetTerms(party="lab", epsilon=0.0)])
    made = 0
    while True:
        try:
            ledger.check(some(4))
        except BudgetSpent as error:
            spent = error
            break
        ledger.record(some(4), str(made))
        made += 1
    assert made > 1
    assert epsilon({GAUSSIAN: 4 * made}, DELTA) <= 2.0 < epsilon({GAUSSIAN: 4 * made + 4}, DELTA)
    told = ledger.accountant.epsilon("activations", DELTA)
    assert str(spent) == (
        f"clinic has told ε = {told:.4g} of a row by its activations, and one more release would make it "
        f"{epsilon({GAUSSIAN: 4 * made + 4}, DELTA):.4g}, over its budget of 2 at δ = 1e-05: agree on a plan with more "
        "noise, fewer rounds or a larger budget"
    )
    size = path.stat().st_size
    with pytest.raises(BudgetSpent):
        ledger.record(some(4), "more")
    assert (path.stat().st_size, count(ledger)) == (size, 4 * made)
    ledger.record(some(4, channel="labels"), "of another channel")
    ledger.close()
    again = opened(path, budgets=[budget])
    with pytest.raises(BudgetSpent):
        again.record(some(4), "after a resume")
    again.close()


def test_a_heuristic_has_no_budget() -> None:
    ledger = opened(None, budgets=[BudgetTerms(party="clinic", epsilon=100.0)])
    with pytest.raises(BudgetSpent, match=r"would tell without a bound.*a defence with a mechanism there"):
        ledger.record(some(mechanism=None), "one")
    ledger.record(some(mechanism=None, channel="gradients"), "without a budget")


def test_a_budget_holds_for_what_composes_with_its_channel() -> None:
    budget = BudgetTerms(party="clinic", channel="activations", epsilon=epsilon({GAUSSIAN: 3}, DELTA))
    ledger = opened(None, budgets=[budget])
    step = rows(0, 1, channel="weights", edge="bottom")
    ledger.record(rows(0, 1, through=("weights",)), "activations")
    ledger.record(step, "a step")
    ledger.record(step, "another")
    with pytest.raises(BudgetSpent, match="by its activations"):
        ledger.record(step, "one too many")


def test_a_reservation_that_a_budget_does_not_allow_is_not_made(path: Path) -> None:
    ledger = opened(path, budgets=[BudgetTerms(party="clinic", epsilon=epsilon({GAUSSIAN: 20}, DELTA))])
    assert not ledger.reserve(some(4), 6)
    assert ledger.reserve(some(4), 5)
    crash(ledger)
    again = opened(path, budgets=[BudgetTerms(party="clinic", epsilon=epsilon({GAUSSIAN: 20}, DELTA))])
    with pytest.raises(BudgetSpent):
        again.record(some(1), "after it")
    again.close()


@pytest.mark.alone
def test_a_reserved_release_costs_less_than_a_millisecond(path: Path) -> None:
    ledger = opened(path, budgets=[BudgetTerms(party="clinic", epsilon=8.0)])
    order = np.random.default_rng(0).permutation(64_000)
    told = [rows(*order[start : start + 64]) for start in range(0, 64_000, 64)]
    assert ledger.reserve(told[0], len(told))
    began = time.process_time()
    for number, release in enumerate(told):
        ledger.record(release, str(number))
    assert (time.process_time() - began) / len(told) < 1e-3
    assert count(ledger) == 1
    ledger.close()
    assert re.search(rb'"reserved":true', path.read_bytes())
