"""Claim: a ticket takes a session as many instructions as it did, on any machine, whatever else that does."""

import platform
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import callgrind


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_ticket_takes_as_many_instructions_as_the_golden_file_says() -> None:
    """Fewer count, too: then the golden file is to be renewed, so that the next regression shows."""
    kept = callgrind.golden()
    if reason := callgrind.missing():
        pytest.skip(reason)
    if not kept:
        pytest.skip(f"no counts are kept for Python {platform.python_version()}: benchmarks/callgrind.py --write")
    counts = callgrind.counted()
    print(callgrind.table(counts, kept))
    assert counts.keys() == kept.keys()
    for case, parties in counts.items():
        assert parties == pytest.approx(kept[case], rel=callgrind.MARGIN), case


def test_counts_of_other_pythons_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callgrind, "GOLDEN", tmp_path / "golden" / "counts.json")
    monkeypatch.setattr(platform, "python_version", lambda: "3.98.0")
    callgrind.write({"vanilla": {"lab": 3}})
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    assert callgrind.golden() == {}
    callgrind.write({"vanilla": {"lab": 4}})
    assert callgrind.golden() == {"vanilla": {"lab": 4}}
    monkeypatch.setattr(platform, "python_version", lambda: "3.98.0")
    assert callgrind.golden() == {"vanilla": {"lab": 3}}
