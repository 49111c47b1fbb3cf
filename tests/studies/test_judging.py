"""How `benchmarks/advise.py` judges: which rows lie within 15%, and what following the advice would have cost."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import advise
from cutlayer.studies.calibration import Overheads

NOTHING = Overheads(step_s=0.0, micro_s=0.0, tls_bytes_per_s=1.0, loopback_rtt_s=0.0)
FLOOR = {"round_trip_us": 0.0, "most_mbit": 1.0}


def rows(*speeds: tuple[float, float]) -> list[advise.Row]:
    """For each link a row of each of these predicted and measured speeds."""
    return [
        advise.Row(
            rate_mbit=rate, rtt_ms=rtt, cut=str(number), codec="raw", micro_batches=1,
            predicted=predicted, measured=measured,
        )
        for rate, rtt in advise.LINKS
        for number, (predicted, measured) in enumerate(speeds)
    ]  # fmt: skip


def test_a_row_is_judged_by_the_measured_figure() -> None:
    found = rows((1.14, 1.0), (1.16, 1.0), (0.86, 1.0), (0.84, 1.0))
    result = advise.summary(found, FLOOR, NOTHING)
    assert result["within"] == 0.5
    assert found[0].deviation == pytest.approx(0.14)


def test_the_advice_is_judged_by_what_it_would_have_cost() -> None:
    result = advise.summary(rows((2.0, 0.9), (1.0, 1.0)), FLOOR, NOTHING)
    assert all(best["holds"] and best["lost"] == pytest.approx(0.1) for best in result["bests"])
    worse = advise.summary(rows((2.0, 0.8), (1.0, 1.0)), FLOOR, NOTHING)
    assert not any(best["holds"] for best in worse["bests"])
    assert "20.0% less" in advise.table(rows((2.0, 0.8)), worse)


def test_a_run_is_of_the_model_that_was_surveyed() -> None:
    job = advise.Job(cut="7", codec="half", micro_batches=4, steps=9)
    plan = advise.agreement(job).plan
    assert (plan.terms.model.cut, plan.terms.training.micro_batches, plan.terms.training.local_steps) == (("7",), 4, 9)
    assert [stage.name for stage in plan.terms.codec[0].forward] == ["half"]
