"""What a person writes of a link, and what a ping has written."""

from pathlib import Path

import msgspec
import pytest

from cutlayer.errors import PlanError
from cutlayer.studies.lines import Measured, read_bandwidth, read_measured, read_time, write_measured

FOUND = Measured(
    dialler="hospital-a",
    listener="lab",
    rtt_s=0.05,
    lowest_rtt_s=0.049,
    up_bytes_per_s=1e6,
    down_bytes_per_s=2e6,
    frames=30,
    largest_bytes=2**20,
)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [("100Mbit", 12.5e6), ("1 Gbit/s", 125e6), ("56kbit", 7e3), ("12.5MB", 12.5e6), ("1.5mbps", None), ("8 Mbit", 1e6)],
)
def test_a_bandwidth_is_read_in_bytes_a_second(text: str, bytes_per_s: float | None) -> None:
    if bytes_per_s is None:
        with pytest.raises(PlanError, match="write 100Mbit"):
            read_bandwidth(text)
    else:
        assert read_bandwidth(text) == pytest.approx(bytes_per_s)


@pytest.mark.parametrize(("text", "time_s"), [("50ms", 0.05), ("0.2 s", 0.2), ("80us", 8e-5), ("0ms", 0.0)])
def test_a_time_is_read_in_seconds(text: str, time_s: float) -> None:
    assert read_time(text) == pytest.approx(time_s)


@pytest.mark.parametrize("text", ["", "fast", "100", "-5Mbit", "0Mbit", "1e400Mbit", "100Mbit; rm", "nan Mbit"])
def test_what_is_no_bandwidth_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(PlanError, match="write 100Mbit"):
        read_bandwidth(text)


def test_a_measured_link_is_what_it_was_when_written(tmp_path: Path) -> None:
    write_measured(tmp_path / "ping.json", FOUND)
    assert read_measured(tmp_path / "ping.json") == FOUND


@pytest.mark.parametrize("change", [{"up_bytes_per_s": 0}, {"rtt_s": -1}, {"frames": "many"}, {"more": 1}])
def test_a_file_that_no_ping_wrote_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    told = msgspec.to_builtins(FOUND) | change
    (tmp_path / "ping.json").write_bytes(msgspec.json.encode(told))
    with pytest.raises(PlanError, match="is not what `cutlayer ping --json` writes"):
        read_measured(tmp_path / "ping.json")
    with pytest.raises(PlanError, match="cannot be read"):
        read_measured(tmp_path / "missing.json")
