"""What the live monitor measures, what it says, what it costs, and what it leaves as it was."""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cutlayer.defence.dependence import distance_correlation
from cutlayer.errors import PlanError
from cutlayer.observe.facts import Alarmed, Leaked, Stop, Way
from cutlayer.observe.hijacking import OwnTop
from cutlayer.observe.monitor import WAITING, Monitor
from cutlayer.observe.tap import Seen
from cutlayer.observe.watch import Budget, Watch
from cutlayer.protocol.messages import Purpose, Ticket

ROOT = Path(__file__).resolve().parents[2]
Said = list[Leaked | Alarmed]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(step: int, tensor: Tensor, way: Way = "forward", *, sent: bool = True, **more: Any) -> Seen:
    purpose: Purpose = more.pop("purpose", "train")
    return Seen(
        party="hospital-a",
        peer="lab",
        edge="bottom->top",
        way=way,
        sent=sent,
        ticket=Ticket(turn=0, owner="hospital-a", step=step, micro=0, purpose=purpose),
        tensor=tensor,
        **more,
    )


def watching(**options: Any) -> tuple[Monitor, Said]:
    """A monitor that may take all the time it wants, and what it says."""
    said: Said = []
    watch = Watch(**({"classes": 10, "share": 0.9, "advance_s": 1e6} | options))
    return Monitor(watch, said.append, seed=1), said


def values(said: Said, statistic: str) -> list[float]:
    return [fact.value for fact in said if isinstance(fact, Leaked) and fact.statistic == statistic]


def alarms(said: Said) -> list[Alarmed]:
    return [fact for fact in said if isinstance(fact, Alarmed)]


def rows(count: int, width: int = 12, per: int = 64) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Mini-batches of a party with 640 rows: the step, inputs, labels and places."""
    x = torch.randn(640, width, generator=generator(5))
    y = torch.randint(0, 10, (640,), generator=generator(6))
    for step in range(count):
        places = torch.randperm(640, generator=generator(step))[:per]
        yield step, x[places], y[places], places


# ---------------------------------------------------------------------- what it measures


def test_dependence_is_the_distance_correlation_of_every_eighth_batch() -> None:
    monitor, said = watching()
    expected = []
    for step, x, _, places in rows(24):
        z = torch.tanh(x @ torch.randn(12, 6, generator=generator(2)))
        monitor(seen(step, z, inputs=(x,), places=places))
        if step % 8 == 7:
            expected.append(float(distance_correlation(x, z)))
    assert values(said, "distance_correlation") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tells", [True, False])
def test_rows_that_were_only_scaled_score_one_and_others_as_chance_does(tells: bool) -> None:
    monitor, said = watching(every=1)
    for step, x, _, _ in rows(10):
        monitor(seen(step, 2 * x + 1 if tells else torch.randn(64, 12, generator=generator(step)), inputs=(x,)))
    found = [fact for fact in said if isinstance(fact, Leaked) and fact.statistic == "distance_correlation"]
    assert len(found) == 10
    if tells:
        assert values(said, "distance_correlation") == pytest.approx([1.0] * 10)
    else:
        assert abs(sum(fact.value - fact.chance for fact in found)) / 10 < 0.03


def test_a_decoder_rebuilds_rows_that_were_only_turned() -> None:
    monitor, said = watching()
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator(3))).Q
    for step, x, _, places in rows(296):
        monitor(seen(step, x @ turn, inputs=(x,), places=places))
    assert len(values(said, "decoder")) == 37
    assert min(values(said, "decoder")) > 0.99


def test_a_decoder_is_scored_on_rows_that_it_never_learned_from() -> None:
    """What is released is a row's name, with nothing of the row in it: it can be learned by heart, and only so."""
    monitor, said = watching()
    names = torch.randn(640, 32, generator=generator(7))
    for step, x, _, places in rows(300):
        monitor(seen(step, names[places], inputs=(x,), places=places))
    assert len(values(said, "decoder")) == 37
    assert max(values(said, "decoder")) < 0.05


def test_images_are_scored_by_their_structure() -> None:
    monitor, said = watching()
    for step in range(150):
        low = torch.rand(32, 1, 3, 3, generator=generator(step))
        images = F.interpolate(low, (12, 12), mode="bilinear")
        places = torch.arange(32 * step, 32 * step + 32)
        monitor(seen(step, images.flatten(1)[:, ::2], inputs=(images,), places=places))
    found = [fact for fact in said if isinstance(fact, Leaked) and fact.statistic == "decoder"]
    assert found[-1].value > 0.8 > found[-1].chance


@pytest.mark.parametrize("leaks", [True, False])
def test_gradients_that_are_sent_tell_labels_or_do_not(leaks: bool) -> None:
    monitor, said = watching(classes=2)
    draws = generator(8)
    for step in range(16):
        y = (torch.rand(64, generator=draws) < 0.2).long()
        g = torch.randn(64, 20, generator=draws) + (3.0 * y[:, None] if leaks else 0.0)
        monitor(seen(step, g, "backward", labels=y))
    found = values(said, "label_auc")
    assert len(found) == 2
    assert min(found) > 0.95 if leaks else max(found) < 0.62


# ---------------------------------------------------------------------- alarms


def attacked(monitor: Monitor, steps: int, gradient: Callable[[Tensor, Tensor], Tensor]) -> list[Stop | None]:
    stops = []
    for step, x, y, places in rows(steps):
        z = torch.tanh(x)
        stops.append(monitor(seen(step, z, inputs=(x,), labels=y, places=places)))
        stops.append(monitor(seen(step, gradient(z, y), "backward", sent=False, labels=y)))
    return stops


def label_free(z: Tensor, _: Tensor) -> Tensor:
    gradient: Tensor = (z - 0.5) / (1 + z.norm(dim=1, keepdim=True))
    return gradient


def agreed(z: Tensor, y: Tensor) -> Tensor:
    gradient: Tensor = OwnTop(12, 10).errors(z, y) @ torch.randn(10, 12, generator=generator(9))
    return gradient


def test_a_hijacked_cut_gives_one_alarm_in_a_sentence() -> None:
    monitor, said = watching()
    assert not any(attacked(monitor, 60, label_free))
    (alarm,) = alarms(said)
    assert (alarm.edge, alarm.statistic, alarm.false_alarms) == ("bottom->top", "hijack", 0.001)
    assert alarm.batches <= 40
    assert "the gradients that lab sends on bottom->top do not depend on the labels" in alarm.sentence


@pytest.mark.parametrize("edges", [frozenset({"y->top"}), frozenset[str]()], ids=["known", "not known"])
def test_a_server_that_trains_by_the_answers_it_was_sent_is_not_accused(edges: frozenset[str]) -> None:
    """Labels that a defence has replaced by chance: by the true ones its gradients would show nothing of labels."""
    monitor, said = watching(label_edges=edges)
    for step, x, y, places in rows(80):
        z, answers = torch.tanh(x), torch.randint(0, 10, (64,), generator=generator(step + 500))
        monitor(seen(step, z, inputs=(x,), labels=y, places=places))
        monitor(replace(seen(step, answers, labels=y), edge="y->top"))
        monitor(seen(step, agreed(z, answers), "backward", sent=False, labels=y))
    assert [alarm.statistic for alarm in alarms(said)] == ([] if edges else ["hijack"])
    assert len(monitor._answers) == (80 if edges else 0)


def test_an_alarm_ends_the_run_where_the_party_wants_that() -> None:
    monitor, said = watching(stops=True)
    stops = attacked(monitor, 60, label_free)
    (alarm,) = alarms(said)
    assert stops[-1] == Stop(reason=alarm.sentence)
    assert stops[0] is None
    first = next(place for place, stop in enumerate(stops) if stop)
    assert all(stops[first:])


def test_agreed_training_gives_no_alarm() -> None:
    monitor, said = watching(stops=True)
    assert not any(attacked(monitor, 60, agreed))
    assert not alarms(said)
    assert min(values(said, "hijack")) > 0.2


def test_a_limit_of_a_leak_gives_an_alarm_and_none_does_not() -> None:
    for limits, count in (({"distance_correlation": 0.7}, 1), ({}, 0), ({"distance_correlation": 0.999}, 0)):
        monitor, said = watching(every=1, limits=limits)
        for step, x, _, _ in rows(60):
            z = x + torch.randn(x.shape, generator=generator(step))
            monitor(seen(step, z, inputs=(x,)))
        assert len(alarms(said)) == (count if max(values(said, "distance_correlation")) < 0.999 else 0)


@pytest.mark.parametrize("change", [160, 1000], ids=["grows", "stays"])
def test_without_a_limit_a_leak_alarms_when_it_grows_and_only_then(change: int) -> None:
    monitor, said = watching(every=1)
    for step, x, _, places in rows(560, width=4):
        noise = 2.0 if step < change else 0.0
        z = x + noise * torch.randn(x.shape, generator=generator(step))
        monitor(seen(step, z, inputs=(x,), places=places))
        assert step >= change or not alarms(said)
    told = {"distance_correlation", "decoder"} if change < 560 else set()
    assert {alarm.statistic for alarm in alarms(said)} == told


def test_gradients_that_begin_to_tell_labels_give_an_alarm() -> None:
    monitor, said = watching(classes=2)
    draws = generator(8)
    for step in range(600):
        y = (torch.rand(64, generator=draws) < 0.2).long()
        g = torch.randn(64, 20, generator=draws) + (3.0 * y[:, None] if step >= 400 else 0.0)
        monitor(seen(step, g, "backward", labels=y))
        assert step >= 400 or not alarms(said)
    (alarm,) = alarms(said)
    assert alarm.statistic == "label_auc"
    assert "tell its labels better than they may" in alarm.sentence


def test_each_clients_rows_have_a_level_of_their_own() -> None:
    """A server sends gradients to two clients by turns: those of one tell more from the first on, and always did."""
    monitor, said = watching(classes=2)
    draws = generator(8)
    for step in range(1400):
        owner = ("hospital-a", "hospital-b")[step // 400 % 2]
        y = (torch.rand(64, generator=draws) < 0.2).long()
        g = torch.randn(64, 20, generator=draws) + (1.0 * y[:, None] if owner == "hospital-b" else 0.0)
        shown = seen(step, g, "backward", labels=y)
        monitor(replace(shown, ticket=Ticket(turn=0, owner=owner, step=step, micro=0, purpose="train")))
    assert len(values(said, "label_auc")) == 175
    assert not alarms(said)


# ---------------------------------------------------------------------- what it leaves as it was


def test_it_changes_no_tensor_and_draws_nothing_globally() -> None:
    monitor, _ = watching(every=1)
    before = torch.get_rng_state()
    for step, x, y, places in rows(12):
        z, g = torch.tanh(x), agreed(torch.tanh(x), y)
        kept = [part.clone() for part in (z, g, x, y)]
        monitor(seen(step, z, inputs=(x,), labels=y, places=places))
        monitor(seen(step, g, "backward", sent=False, labels=y))
        monitor(seen(step, g, "backward", labels=y))
        assert all(torch.equal(one, other) for one, other in zip((z, g, x, y), kept, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_it_looks_at_own_rows_in_training_alone() -> None:
    monitor, said = watching(every=1)
    for step, x, y, _ in rows(20):
        for purpose in ("eval", "predict"):
            monitor(seen(step, x, inputs=(x,), labels=y, purpose=purpose))
        monitor(seen(step, x, sent=False, labels=y))
        monitor(seen(step, x, labels=y))
        monitor(seen(step, x, "backward", sent=False, labels=y))
        monitor(seen(step, x.long(), inputs=(x,), labels=y))
    assert said == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_numbers_that_are_none_break_nothing(value: float) -> None:
    monitor, said = watching(every=1)
    attacked(monitor, 40, lambda z, _: torch.full_like(z, value))
    for step, x, y, places in rows(20):
        monitor(seen(step, torch.full_like(x, value), inputs=(x,), labels=y, places=places))
    assert not alarms(said)


def test_tensors_that_fit_no_rows_are_left_alone() -> None:
    """Without a dimension for rows, empty, or with another number of rows than inputs and labels have."""
    monitor, said = watching(every=1)
    x, y = torch.randn(64, 12, generator=generator(1)), torch.randint(0, 10, (64,), generator=generator(2))
    for step in range(80):
        for tensor in (torch.tensor(1.0), torch.zeros(64, 0), torch.randn(32, 6), torch.randn(256, 6)):
            monitor(seen(step, tensor, inputs=(x,), labels=y))
            monitor(seen(step, tensor, "backward", labels=y))
            monitor(seen(step, tensor, "backward", sent=False, labels=y))
    assert said == []


def test_single_numbers_a_row_are_measured_too() -> None:
    monitor, said = watching(every=1, classes=2)
    for step in range(64):
        x, y = torch.randn(64, generator=generator(step)), torch.randint(0, 2, (64,), generator=generator(step))
        monitor(seen(step, 2 * x, inputs=(x,), labels=y, places=torch.arange(64)))
        monitor(seen(step, x, "backward", labels=y))
    assert min(values(said, "distance_correlation")) == pytest.approx(1)
    assert min(values(said, "decoder")) > 0.99
    assert len(values(said, "label_auc")) == 8


def test_small_batches_are_put_together() -> None:
    """Of four rows chance alone would give nearly 1."""
    monitor, said = watching(every=1)
    for step in range(160):
        x = torch.randn(4, 12, generator=generator(step))
        monitor(seen(step, torch.randn(4, 12, generator=generator(step + 999)), inputs=(x,)))
    assert len(values(said, "distance_correlation")) == 10
    assert max(values(said, "distance_correlation")) < 0.7


def test_columns_count_alike_whatever_their_size_and_none_that_is_constant() -> None:
    """The first column is not told, and a million times as large as the second, which is."""
    monitor, said = watching()
    for step in range(16):
        x = torch.randn(64, 3, generator=generator(step)) * torch.tensor([1e6, 1.0, 0.0]) + 5
        monitor(seen(step, x[:, 1:], inputs=(x,), places=torch.arange(64 * step, 64 * step + 64)))
    assert values(said, "decoder") == pytest.approx([0.5, 0.5], abs=0.05)


def test_rows_that_are_all_the_same_have_no_score() -> None:
    monitor, said = watching(every=1)
    for step in range(32):
        z = torch.randn(64, 3, generator=generator(step))
        places = torch.arange(64 * step, 64 * step + 64)
        monitor(seen(step, z, inputs=(torch.full((64, 3), 0.3),), places=places))
        monitor(seen(step + 1000, z, inputs=(torch.full((64, 1, 5, 5), 0.3),), places=places))
    assert values(said, "decoder") == []
    assert set(values(said, "distance_correlation")) <= {0.0}


def test_images_need_no_range_that_is_told() -> None:
    """Scaled and shifted images have the same scores: their range is that of the first rows."""
    found = []
    for scale, shift in ((1.0, 0.0), (50.0, -20.0)):
        monitor, said = watching()
        for step in range(20):
            low = torch.rand(32, 1, 3, 3, generator=generator(step))
            images = F.interpolate(low, (12, 12), mode="bilinear")
            z = images.flatten(1)[:, ::2]
            monitor(seen(step, z, inputs=(scale * images + shift,), places=torch.arange(32 * step, 32 * step + 32)))
        found.append(values(said, "decoder"))
    assert len(found[0]) == 1
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_one_batch_that_diverged_does_not_spoil_those_that_follow() -> None:
    monitor, said = watching(every=1)
    for step, x, _, places in rows(24):
        z = torch.full_like(x, float("nan")) if step == 3 else x
        monitor(seen(step, z, inputs=(x,), places=places))
    assert values(said, "distance_correlation") == pytest.approx([1.0] * 23)
    assert min(values(said, "decoder")) > 0.99


def test_rows_that_the_loss_leaves_out_are_no_class() -> None:
    """Their gradients are 0: who counted them as a class would find it told in full."""
    monitor, said = watching(classes=2)
    draws = generator(8)
    for step in range(16):
        y = torch.where(torch.rand(64, generator=draws) < 0.1, -100, torch.randint(0, 2, (64,), generator=draws))
        g = torch.randn(64, 20, generator=draws) * (y >= 0)[:, None]
        monitor(seen(step, g, "backward", labels=y))
    assert len(values(said, "label_auc")) == 2
    assert max(values(said, "label_auc")) < 0.62


def test_what_waits_for_a_gradient_is_bounded() -> None:
    monitor, _ = watching()
    for step in range(WAITING + 50):
        x, y = torch.randn(4, 3, generator=generator(step)), torch.tensor([0, 1, 2, 3])
        monitor(seen(step, x, inputs=(x,), labels=y))
    assert len(monitor._waiting) == WAITING


def test_of_two_tensors_each_is_measured_by_itself() -> None:
    """Every eighth batch of both: not every eighth tensor, which would always be the second."""
    monitor, said = watching()
    for step, x, _, places in rows(32):
        for tensor in (x, torch.randn(64, 12, generator=generator(step))):
            monitor(seen(step, tensor, inputs=(x,), places=places))
    assert len(values(said, "distance_correlation")) == 8
    assert values(said, "distance_correlation")[::2] == pytest.approx([1.0] * 4)
    assert max(values(said, "distance_correlation")[1::2]) < 0.7
    assert [round(value) for value in values(said, "decoder")] == [1, 0] * 4


def test_gradients_of_several_widths_are_not_put_together() -> None:
    """Of two tensors of an edge, and of sequences whose length differs from batch to batch."""
    monitor, said = watching(classes=2)
    for step in range(64):
        y = torch.randint(0, 2, (64,), generator=generator(step))
        for width in (3, 5 + step % 2):
            monitor(seen(step, torch.randn(64, width, 4, generator=generator(step)), "backward", labels=y))
    assert len(values(said, "label_auc")) == 16


def test_an_edge_may_carry_tensors_of_several_shapes() -> None:
    monitor, said = watching()
    for step, x, y, _ in rows(80):
        one, other = torch.tanh(x), x[:, :7]
        for tensor in (one, other):
            monitor(seen(step, tensor, inputs=(x,), labels=y))
        for tensor in (label_free(one, y), label_free(other, y)):
            monitor(seen(step, tensor, "backward", sent=False))
    assert len(alarms(said)) == 1


# ---------------------------------------------------------------------- what it costs


class Clock:
    """Each step of a run takes `step_s`; looking at it takes `look_s`."""

    def __init__(self, look_s: float) -> None:
        self.now, self._look_s = 0.0, look_s

    def __call__(self) -> float:
        self.now += self._look_s
        return self.now


@pytest.mark.parametrize("look_s", [0.0002, 0.005, 0.1])
def test_it_keeps_to_its_share_of_the_time_however_slow_it_is(look_s: float) -> None:
    clock = Clock(look_s)
    budget = Budget(clock=clock, share=0.05, advance_s=0.01)
    longest = 0.0
    for _ in range(5000):
        clock.now += 0.02
        if budget.begins():
            began = clock.now
            clock.now += 0.004
            budget.ends()
            longest = max(longest, clock.now - began)
        assert budget.spent_s <= 0.05 * clock.now + 0.01 + longest
    assert budget.spent_s > 0.02 * clock.now or look_s > 0.004


def test_a_monitor_without_time_measures_nothing() -> None:
    said: Said = []
    monitor = Monitor(Watch(classes=10, advance_s=0.0), said.append, seed=1, clock=lambda: 0.0)
    attacked(monitor, 20, label_free)
    assert said == []
    assert monitor.spent_s == 0.0


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"rows": 1},
        {"pixels": (1.0, 0.0)},
        {"classes": -1},
        {"calibrate": -1},
        {"false_alarms": 0.0},
        {"share": 1.0},
        {"limits": {"hijack": 0.5}},
        {"limits": {"decoder": 1.0}},
    ],
)
def test_a_watch_that_means_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="monitor"):
        Watch(**options)


# ---------------------------------------------------------------------- on MNIST


def quickly(benchmark: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a benchmark prints of a few short runs."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("monitor", "leaks"):
        sys.modules.pop(name, None)
    if importlib.import_module("monitor").found(None) is None:
        pytest.skip("MNIST is not beside the repository, nor named by CUTLAYER_DATA")
    monkeypatch.setattr(sys, "argv", [f"{benchmark}.py", "--quick"])
    importlib.import_module(benchmark).main()
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hijacked_clients_on_mnist_are_found_before_step_500_and_honest_runs_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = quickly("monitor", monkeypatch, capsys)
    assert "| all | 3 | 3 |" in said
    assert "| 3 | 0 |" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_begins_to_leak_on_mnist_is_found_and_honest_runs_left_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = quickly("leaks", monkeypatch, capsys)
    assert "| all: 3 | 0 |" in said
    assert "| isotropic noise removed from gradients | 1 | 1 |" in said
