"""A fault is one line, which reads as it is written."""

import pytest

from faults import faults
from faults.faults import Fault, corrupt, delay, kill, stop


@pytest.mark.parametrize(
    "fault",
    [
        kill("server", ticket=57, at="forward"),
        kill("a", save=2, at="commit", life=2),
        stop("b", ticket=3, at="backward", seconds=4),
        delay("a", frame=4, seconds=0.25),
        corrupt("a", frame=30, life=3),
    ],
    ids=str,
)
def test_a_fault_is_written_as_the_call_that_makes_it(fault: Fault) -> None:
    assert eval(str(fault), vars(faults)) == fault  # noqa: S307 (our own line)


@pytest.mark.parametrize(
    "place", [{}, {"ticket": 3, "save": 3}, {"ticket": 3, "at": "commit"}, {"save": 3, "at": "load"}]
)
def test_a_place_that_is_none_is_refused(place: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="name a ticket and one of load"):
        kill("a", **place)  # type: ignore[arg-type]
