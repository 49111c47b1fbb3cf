"""One crew for all tests of this folder: keys, and a process that forks parties quickly."""

from collections.abc import Iterator

import pytest

from faults.crew import Crew
from faults.jobs import PARTIES


@pytest.fixture(scope="session")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    with Crew(tmp_path_factory.mktemp("faults"), PARTIES) as crew:
        yield crew
