"""Faults of mixed kinds at random acts: whatever goes wrong, the bits of the undisturbed run."""

import random
from functools import cache

import pytest

from faults.crew import Crew
from faults.jobs import JOBS, differences, job_of, undisturbed
from faults.seeded import Acts, draw

SEEDS = 20


@cache
def acts_of(crew: Crew, name: str) -> Acts:
    members = crew.run(job_of(name, crew)).members
    return {party: member.news("acts")[0] for party, member in members.items()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_goes_wrong_makes_no_difference(crew: Crew, seed: int) -> None:
    name = list(JOBS)[seed % len(JOBS)]
    job, dice = job_of(name, crew), random.Random(seed)  # noqa: S311
    faults = draw(dice, acts_of(crew, name), dice.randint(1, 3))
    outcome = crew.run(job, *faults)
    told = "\n".join([name, *map(str, faults), outcome.story()])
    assert outcome.struck, told
    assert not differences(outcome, undisturbed().of(job)), told
