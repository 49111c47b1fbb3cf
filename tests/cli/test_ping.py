"""`cutlayer ping`, both ends of it, over lanes with mutual TLS on loopback; its file serves `plan advise --link`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest

from cli.typed import CommandLine
from cutlayer.cli.ping import ping
from cutlayer.studies import ping as words
from cutlayer.studies.lines import read_measured

WAIT_S = 30.0


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """`told("listens")` waits for a line with that word, of either end."""
    lines: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr("cutlayer.cli.ping.print", lambda line, **_: lines.put(line), raising=False)
    monkeypatch.setattr(words, "LARGEST_BYTES", 2**20)

    def heard(word: str) -> str:
        while word not in (line := lines.get(timeout=WAIT_S)):
            pass
        return line

    return heard


@pytest.fixture
def keyed(cutlayer: CommandLine, project: Path) -> Path:
    assert cutlayer("keys", "demo").code == 0
    return project


def test_both_ends_say_the_same_and_write_what_advise_reads(keyed: Path, told: Callable[[str], str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        lab = pool.submit(
            ping, Path("plan.toml"), party="lab", peer="hospital-b", listen="127.0.0.1:0", json_file=Path("lab.json")
        )
        port = told("listens on port").split()[4]
        ping(Path("plan.toml"), party="hospital-b", connect=f"127.0.0.1:{port}", json_file=Path("b.json"))
        lab.result(WAIT_S)
    found = read_measured(keyed / "b.json")
    assert read_measured(keyed / "lab.json") == found
    assert (found.dialler, found.listener) == ("hospital-b", "lab")
    assert 0 < found.lowest_rtt_s <= found.rtt_s < 1
    assert min(found.up_bytes_per_s, found.down_bytes_per_s) > 1e5
    first, second = told("round trip"), told("round trip")
    assert first == second
    assert first.startswith("hospital-b and lab: round trip ")


def test_a_party_that_was_not_asked_for_is_not_measured(keyed: Path, told: Callable[[str], str]) -> None:
    with ThreadPoolExecutor(1) as pool:
        lab = pool.submit(ping, Path("plan.toml"), party="lab", peer="hospital-b", listen="127.0.0.1:0")
        port = told("listens on port").split()[4]
        with pytest.raises(Exception, match="none of the parties that lab waits for"):
            ping(Path("plan.toml"), party="hospital-a", connect=f"127.0.0.1:{port}")
        assert "refused a connection" in told("refused")
        ping(Path("plan.toml"), party="hospital-b", connect=f"127.0.0.1:{port}")
        lab.result(WAIT_S)


def test_what_is_wrong_is_one_sentence(cutlayer: CommandLine, keyed: Path) -> None:
    assert "'nobody' is no party of the plan" in cutlayer("ping", "--as", "nobody").sentence
    assert "has a link to lab only" in cutlayer("ping", "--as", "hospital-a", "--peer", "hospital-b").sentence
    assert "no link to itself" in cutlayer("ping", "--as", "lab", "--peer", "lab").sentence
    assert "cannot be read" in cutlayer("ping", "none.toml", "--as", "lab").sentence
