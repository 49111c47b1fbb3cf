"""A run over a far, uneven link that is cut for half a minute: it finishes, with the bits of the undisturbed one."""

import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from faults.crew import Crew
from faults.jobs import LIMITS, differences, job_of, undisturbed

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from emulated import EmulatedLink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
CUT_S, CUT_AFTER_S = 30.0, 3.0


@pytest.mark.parametrize("silently", [False, True], ids=["reset", "half-open"])
@pytest.mark.parametrize("reconnect_timeout_s", [60.0, 5.0], ids=["the link stands again", "the run is taken up again"])
def test_a_far_link_is_cut_for_half_a_minute_and_nothing_is_different(
    crew: Crew, silently: bool, reconnect_timeout_s: float
) -> None:
    """50 ms each way, 10 more or less; what is shorter than the cut goes on from a save."""
    limits = replace(LIMITS, reconnect_timeout_s=reconnect_timeout_s, rejoin_timeout_s=90.0, progress_timeout_s=90.0)
    job = job_of("vanilla", crew, rounds=2, limits=limits)
    with ExitStack() as stack:

        def dialled(port: int) -> int:
            link = stack.enter_context(EmulatedLink(("127.0.0.1", port), delay_ms=50, jitter_ms=10))
            timer = threading.Timer(CUT_AFTER_S, link.cut, (CUT_S,), {"silently": silently})
            timer.start()
            stack.callback(timer.cancel)
            return link.port

        outcome = crew.run(job, dialled=dialled, pause_s=0.05)
    assert outcome.seconds > CUT_S, "the run was over before the cut"
    assert not differences(outcome, undisturbed().of(job)), outcome.story()
