"""Topologies of several parties over lanes with mTLS, some of their talk sealed by the conductor: the same bits."""

from collections.abc import Iterator

import pytest

from equivalence.test_network import assert_network_equals_simulation
from equivalence.topology_jobs import JOBS, PARTIES
from processes.crew import Crew


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with Crew(tmp_path_factory.mktemp("keys"), PARTIES) as crew:
        yield crew


@pytest.mark.parametrize("name", JOBS)
def test_a_topology_over_lanes_gives_the_bits_of_the_simulation(crew: Crew, name: str) -> None:
    assert_network_equals_simulation(crew, crew.pinned(JOBS[name]))
