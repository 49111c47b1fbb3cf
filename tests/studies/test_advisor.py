"""Predictions from a survey that was written down here, not measured: sums that can be checked by hand."""

from dataclasses import replace

import pytest

from cutlayer.studies.advisor import FRAME_BYTES, PRIVACY, Setting, advise, line_of, measured_line
from cutlayer.studies.calibration import Overheads
from cutlayer.studies.codecs import Passage
from cutlayer.studies.costs import Memory, Times
from cutlayer.studies.lines import Measured
from cutlayer.studies.survey import Place, Survey, Trial

NOTHING = Overheads(step_s=0.0, micro_s=0.0, tls_bytes_per_s=1e12, loopback_rtt_s=0.0)
HELD = Memory(parameters=1, gradients=1, optimizer=0, activations=1)


def trial(codec: str, up: int, down: int, *, client_s: float, server_s: float, encode_s: float = 0.0) -> Trial:
    times = Times(
        forward_s=client_s / 2, server_s=server_s, backward_s=client_s / 2, client_step_s=0.0, server_step_s=0.0
    )
    ways = (Passage(nbytes=nbytes - FRAME_BYTES, encode_s=encode_s, decode_s=0.0) for nbytes in (up, down))
    return Trial(codec=codec, micro_batches=1, times=times, up=next(ways), down=next(ways))


def place(layer: str, *trials: Trial) -> Place:
    return Place(
        layer=layer, crosses="", bytes_forward=1, bytes_back=1, client_flops=None, server_flops=None,
        client_memory=HELD, server_memory=HELD, trials=trials,
    )  # fmt: skip


SURVEY = Survey(
    rows=10,
    data_rows=100,
    label_bytes=0,
    load_s={1: 0.0},
    places=(
        place(
            "shallow",
            trial("raw", 1_000_000, 1_000_000, client_s=0.01, server_s=0.1),
            trial("half", 500_000, 500_000, client_s=0.01, server_s=0.1, encode_s=0.01),
        ),
        place("deep", trial("raw", 100_000, 100_000, client_s=0.2, server_s=0.01)),
    ),
    whole_step_s=0.25,
    whole_bytes=5_000_000,
    whole_flops=None,
    whole_memory=HELD,
)
SLOW, FAST = line_of(1e6, 0.1), line_of(1e9, 0.001)


def speed(setting: Setting, layer: str, codec: str = "raw") -> float:
    found = advise(SURVEY, setting)
    return next(c.step_s for c in found.choices if (c.layer, c.codec) == (layer, codec))


def test_a_step_is_the_computing_the_bytes_and_the_round_trip() -> None:
    setting = Setting(line=SLOW, overheads=NOTHING)
    labels_s = FRAME_BYTES / 1e6  # leave while the client computes
    assert speed(setting, "shallow") == pytest.approx(0.01 + 0.1 + 2.0 + 0.1, abs=labels_s)
    assert speed(setting, "shallow", "half") == pytest.approx(0.01 + 0.1 + 1.0 + 0.1 + 0.02, abs=labels_s)
    assert speed(setting, "deep") == pytest.approx(0.2 + 0.01 + 0.2 + 0.1, abs=labels_s)


def test_the_best_cut_follows_the_link_and_the_servers_speed() -> None:
    assert advise(SURVEY, Setting(line=SLOW, overheads=NOTHING)).best.layer == "deep"
    fast = advise(SURVEY, Setting(line=FAST, overheads=NOTHING))
    assert fast.best.layer == "shallow"
    assert (fast.best.codec, fast.best_at("deep").codec) == ("raw", "raw")
    quick = Setting(line=FAST, overheads=NOTHING, server_speed=10)
    assert speed(quick, "shallow") == pytest.approx(speed(replace(quick, server_speed=1), "shallow") - 0.09)


def test_overheads_are_paid_once_a_step_and_once_a_micro_batch_and_tls_bounds_the_rate() -> None:
    plain = Setting(line=FAST, overheads=NOTHING)
    dear = replace(plain, overheads=replace(NOTHING, step_s=0.5, micro_s=0.25))
    assert speed(dear, "deep") == pytest.approx(speed(plain, "deep") + 0.75)
    bound = replace(plain, overheads=replace(NOTHING, tls_bytes_per_s=1e5))
    assert speed(bound, "deep") == pytest.approx(0.21 + 2.0 + 0.001, rel=0.01)


def test_the_links_share_is_what_a_step_would_take_less_without_it() -> None:
    found = advise(SURVEY, Setting(line=SLOW, overheads=NOTHING))
    assert found.best.link_share == pytest.approx(0.3 / 0.51, rel=0.01)


def test_federated_averaging_moves_the_model_twice_a_round() -> None:
    found = advise(SURVEY, Setting(line=SLOW, overheads=NOTHING)).federated
    assert (found.local_steps, found.bytes_per_round) == (10, 10_000_000)
    assert found.steps_per_s == pytest.approx(10 / (10 * 0.25 + 10.0 + 0.1))
    rare = advise(SURVEY, Setting(line=SLOW, overheads=NOTHING), local_steps=1000).federated
    assert rare.steps_per_s == pytest.approx(1 / 0.25, rel=0.05)


def test_a_measured_link_knows_its_directions_and_counts_no_frame_twice() -> None:
    found = Measured(
        dialler="hospital-a", listener="lab", rtt_s=0.0103, lowest_rtt_s=0.01, up_bytes_per_s=1e6,
        down_bytes_per_s=2e6, frames=1, largest_bytes=1,
    )  # fmt: skip
    line = measured_line(found, replace(NOTHING, loopback_rtt_s=0.0003))
    assert (line.up_bytes_per_s, line.down_bytes_per_s) == (1e6, 2e6)
    assert line.delay_s == pytest.approx(0.005)
    assert measured_line(found, replace(NOTHING, loopback_rtt_s=1.0)).delay_s == 0.0


def test_the_advice_never_speaks_of_speed_without_privacy() -> None:
    for line in (SLOW, FAST):
        told = list(advise(SURVEY, Setting(line=line, overheads=NOTHING)).sentences())
        assert told[-1] == PRIVACY
        assert "Federated averaging" in " ".join(told)
    compressed = replace(SURVEY, places=SURVEY.places[:1])
    told = list(advise(compressed, Setting(line=SLOW, overheads=NOTHING)).sentences())
    assert "half may cost accuracy" in told[1]
