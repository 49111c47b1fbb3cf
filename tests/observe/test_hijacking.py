"""What tells honest gradients from hijacked ones, how soon, and how often wrongly."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.errors import PlanError
from cutlayer.observe.hijacking import CAP, LEAST_ROWS, Detector, OwnTop, label_trace
from cutlayer.observe.thresholds import Wager

ALPHA = 0.001
Answer = Callable[[Tensor, Tensor], Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------- the wager


def test_a_wager_is_a_fair_game_at_its_limit() -> None:
    """All series of eight scores that are 0 or 1 with the same chance: the mean of the money is what was put in."""
    series, put_in = 2**8, sum(1 / (n * (n + 1)) for n in range(1, 9))
    total = 0.0
    for bits in range(series):
        wager = Wager(limit=0.5, false_alarms=1e-9)
        for place in range(8):
            wager.add(float(bits >> place & 1))
        total += wager.money
    assert total / series == pytest.approx(put_in)


def test_a_wager_is_as_often_wrong_as_it_says_at_most() -> None:
    """The hardest honest scores, 0 or 1 with a mean at the limit, in 300 runs of 100 looks, at a chance of 5%."""
    draws = torch.rand(300, 100, generator=generator(1))
    wrong = 0
    for run in (draws < 0.5).double().tolist():
        wager = Wager(limit=0.5, false_alarms=0.05)
        wrong += any(wager.add(score) for score in run)
    assert wrong / 300 <= 0.05


def test_a_wager_finds_a_change_late_in_a_run_as_well() -> None:
    for honest in (0, 1000):
        wager = Wager(limit=0.5, false_alarms=ALPHA)
        assert not any(wager.add(0.05) for _ in range(honest))
        took = next(n for n in range(1, 200) if wager.add(0.9))
        assert took <= 40


def test_an_alarm_stays() -> None:
    wager = Wager(limit=0.5, false_alarms=ALPHA)
    assert any(wager.add(1.0) for _ in range(30))
    assert wager.add(0.0)


def test_a_score_that_is_no_number_counts_against_the_claim() -> None:
    one, other = (Wager(limit=0.5, false_alarms=ALPHA) for _ in range(2))
    one.add(math.nan)
    other.add(1.0)
    assert one.money == other.money


@pytest.mark.parametrize(("limit", "rate"), [(0.0, 0.1), (1.0, 0.1), (0.5, 0.0), (0.5, 1.0), (math.nan, 0.1)])
def test_a_wager_that_means_nothing_is_refused(limit: float, rate: float) -> None:
    with pytest.raises(PlanError):
        Wager(limit=limit, false_alarms=rate)


def test_a_limit_of_a_single_score_changes_the_bet_on_that_score_alone() -> None:
    """At its limit, a score leaves the money as it is, but for what is put in; above, the more the smaller it is."""
    told, usual = (Wager(limit=0.5, false_alarms=1e-9) for _ in range(2))
    told.add(0.2, 0.2)
    assert told.money == pytest.approx(1 / 2)
    usual.add(0.5)
    assert told.money == usual.money
    told.add(1.0, 0.2)
    usual.add(1.0)
    assert told.money == pytest.approx(usual.money * (1 + 4 * 1.6 / 3) / (1 + 1.6 / 3))


# ---------------------------------------------------------------------- the score of a batch


def batch(seed: int, rows: int = 64, classes: int = 10, width: int = 64) -> tuple[Tensor, Tensor]:
    """Activations that say something of their labels, as those of a trained segment do."""
    g = generator(seed)
    labels = torch.randint(0, classes, (rows,), generator=g)
    middle = torch.randn(classes, width, generator=generator(99))
    return middle[labels] + torch.randn(rows, width, generator=g), labels


def errors(activations: Tensor, labels: Tensor, classes: int = 10) -> Tensor:
    return OwnTop(activations.shape[1], classes).errors(activations, labels)


def test_gradients_of_a_linear_top_show_the_labels_in_full() -> None:
    """g = (p − e_y) W with orthonormal W: cosines of gradients are those of errors."""
    z, y = batch(1)
    weight = torch.linalg.qr(torch.randn(64, 10, generator=generator(3))).Q.T
    assert label_trace(z, errors(z, y) @ weight, errors(z, y)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("bend", [lambda z: z, torch.tanh, lambda z: z.relu() + 0.3, lambda z: z @ z.T @ z / 64])
def test_gradients_made_of_activations_alone_show_nothing(bend: Callable[[Tensor], Tensor]) -> None:
    """Though classes are told apart by their activations: plain cosines within and between labels differ much."""
    traces, plain = [], []
    for seed in range(10):
        z, y = batch(seed)
        g = bend(z)
        found = label_trace(z, g, errors(z, y))
        assert found is not None
        traces.append(found)
        cosines, same = F.normalize(g) @ F.normalize(g).T, y[:, None] == y
        plain.append(float(cosines[same].mean() - cosines[~same].mean()))
    assert min(plain) > 0.05
    assert abs(sum(traces) / 10) < CAP / 2


def test_few_large_gradients_count_where_the_rest_is_mixed() -> None:
    """As behind BatchNorm: small rows have what others' errors make of them, large ones their own."""
    z, y = batch(4)
    own = errors(z, y) @ torch.randn(10, 64, generator=generator(5))
    common = torch.randn(64, 64, generator=generator(6))
    g = torch.where(torch.arange(64)[:, None] < 20, 10 * own, common)
    as_is, all_alike = (label_trace(z, part, errors(z, y)) for part in (g, F.normalize(g)))
    assert as_is is not None
    assert all_alike is not None
    assert as_is > 2 * all_alike


def test_the_size_of_all_gradients_changes_nothing() -> None:
    z, y = batch(7)
    g = errors(z, y) @ torch.randn(10, 64, generator=generator(8))
    one, other = (label_trace(z, g * scale, errors(z, y)) for scale in (1.0, 1e-6))
    assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_gradients_without_a_direction_say_nothing(value: float) -> None:
    z, y = batch(9)
    assert label_trace(z, torch.full_like(z, value), errors(z, y)) is None


def test_the_own_top_learns_its_labels_and_numbers_too() -> None:
    top = OwnTop(64, 10)
    for seed in range(60):
        z, y = batch(seed)
        found = top.errors(z, y)
    assert float((found.argmax(1) == y).float().mean()) < 0.1
    assert float(found.abs().sum(1).mean()) < 0.8
    line = OwnTop(64, 0)
    slope = torch.randn(64, 1, generator=generator(1))
    sizes = [float(line.errors(z, z @ slope).square().mean()) for z in (batch(seed)[0] for seed in range(300))]
    assert sum(sizes[-20:]) < 0.3 * sum(sizes[:20])


# ---------------------------------------------------------------------- runs


def critic(width: int) -> Answer:
    """A server that never looks at labels: it draws activations to where its own are, by a critic that it teaches."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        judge = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    adam = torch.optim.Adam(judge.parameters(), 1e-3)
    draws = generator(4)

    def answer(z: Tensor, _: Tensor) -> Tensor:
        wanted = torch.randn(z.shape, generator=draws).relu()
        loss = F.softplus(judge(z)).mean() + F.softplus(-judge(wanted)).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        leaf = z.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.softplus(-judge(leaf)).sum(), leaf)
        return gradient

    return answer


def honest(width: int, classes: int, lr: float) -> Answer:
    """The agreed training: cross-entropy, or squared error where `classes` is 0."""
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        top = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, max(1, classes)))
    sgd = torch.optim.SGD(top.parameters(), lr, momentum=0.9)

    def answer(z: Tensor, y: Tensor) -> Tensor:
        leaf = z.clone().requires_grad_()
        said = top(leaf)
        loss = F.cross_entropy(said, y, reduction="sum") if classes else F.mse_loss(said, y, reduction="sum")
        sgd.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in top.parameters():
            assert parameter.grad is not None
            parameter.grad /= len(z)
        sgd.step()
        assert leaf.grad is not None
        return leaf.grad

    return answer


def trained(
    answer: Answer, *, classes: int, rows: int = 64, noise: float = 0.0, steps: int = 80, seed: int = 0
) -> Detector:
    """A client's segment, trained by what is answered, under a detector's eyes until it alarms."""
    draws, slope = generator(seed), torch.randn(64, 1, generator=generator(7))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        bottom = nn.Sequential(nn.Linear(64, 48), nn.ReLU())
    adam = torch.optim.Adam(bottom.parameters(), 3e-3)
    detector = Detector(classes=classes, generator=generator(seed), false_alarms=ALPHA)
    for step in range(steps):
        x, y = batch(1000 * seed + step, rows, max(2, classes))
        y = y if classes else torch.tanh(x @ slope / 8) + 0.1 * torch.randn(rows, 1, generator=draws)
        z = bottom(x)
        released = z + noise * torch.randn(z.shape, generator=draws)
        sample = detector.sample(released, y)
        gradient = answer(released.detach(), y)
        if sample is not None:
            detector.add(sample, gradient)
        if detector.wager.alarmed:
            break
        adam.zero_grad()
        released.backward(gradient / rows)
        adam.step()
    return detector


@pytest.mark.parametrize("classes", [2, 10, 0], ids=["two classes", "ten classes", "numbers"])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_server_that_never_looks_at_labels_is_found_in_forty_batches(classes: int, noise: float) -> None:
    detector = trained(critic(48), classes=classes, noise=noise)
    assert detector.wager.alarmed
    assert detector.wager.scores <= 40


@pytest.mark.parametrize("classes", [2, 10, 0], ids=["two classes", "ten classes", "numbers"])
@pytest.mark.parametrize(("noise", "lr"), [(0.0, 0.01), (1.0, 0.01), (0.0, 0.3)], ids=["plain", "noise", "high lr"])
def test_an_honest_server_is_left_alone(classes: int, noise: float, lr: float) -> None:
    rate = lr if classes else lr / 10
    detector = trained(honest(48, classes, rate), classes=classes, noise=noise)
    assert not detector.wager.alarmed
    assert detector.wager.money < 1


def test_small_batches_are_put_together() -> None:
    detector = trained(critic(48), classes=10, rows=8, steps=240)
    assert detector.wager.alarmed
    assert not trained(honest(48, 10, 0.01), classes=10, rows=8, steps=240).wager.alarmed
    assert detector.wager.scores <= 240 * 8 / LEAST_ROWS


def test_rows_of_one_label_give_no_alarm_since_they_show_nothing() -> None:
    detector = Detector(classes=10, generator=generator(), false_alarms=ALPHA)
    for step in range(60):
        z, _ = batch(step)
        sample = detector.sample(z, torch.full((64,), 3))
        assert sample is not None
        assert detector.add(sample, torch.tanh(z)) is None
    assert detector.wager.scores == 0


def test_rows_without_a_usable_label_are_left_out() -> None:
    detector = Detector(classes=10, generator=generator())
    z, y = batch(1)
    sample = detector.sample(z, torch.where(torch.arange(64) < 60, -100, y))
    assert sample is not None
    assert sample.rows.tolist() == [60, 61, 62, 63]
    assert detector.sample(z, torch.full((64,), -100)) is None
    assert detector.sample(z, y[:, None].expand(64, 4)) is None


def test_a_run_whose_honest_gradients_fade_slowly_is_not_accused() -> None:
    """As at the end of training: what they tell of labels falls to nothing over hundreds of scores."""
    detector = Detector(classes=10, generator=generator(), false_alarms=ALPHA)
    weight, noise = torch.randn(10, 64, generator=generator(1)), generator(2)
    for step in range(700):
        z, y = batch(step, 32)
        share = max(0.0, 1 - step / 650)
        g = share * errors(z, y) @ weight + (1 - share) * 3 * torch.randn(32, 64, generator=noise)
        sample = detector.sample(z, y)
        assert sample is not None
        detector.add(sample, g)
    assert not detector.wager.alarmed
    assert detector.threshold is None


def test_an_attack_in_the_middle_of_a_run_is_found() -> None:
    detector = Detector(classes=10, generator=generator(), false_alarms=ALPHA)
    weight, attack = torch.randn(10, 64, generator=generator(1)), critic(64)
    for step in range(260):
        z, y = batch(step)
        sample = detector.sample(z, y)
        assert sample is not None
        detector.add(sample, errors(z, y) @ weight if step < 200 else attack(z, y))
        assert step >= 200 or not detector.wager.alarmed
    assert detector.wager.alarmed


# ---------------------------------------------------------------------- labels that say little


def test_numbers_are_scaled_by_all_that_came_though_the_first_were_all_the_same() -> None:
    """Counts that are mostly 0, beside a column that never varies, and one far from 0."""
    top, draws = OwnTop(64, 0), generator(1)
    for step in range(40):
        counts = (torch.rand(8, generator=draws) * 3).floor() * (step > 3)
        labels = torch.stack([counts, torch.full((8,), 0.1), 1.7e9 + 1000.0 * torch.rand(8, generator=draws)], 1)
        found = top.errors(batch(step, 8)[0], labels)
        assert bool(found.isfinite().all())
        assert float(found.abs().max()) < 100
        assert step > 3 or not bool(found[:, :2].any())


@pytest.mark.parametrize("rows", [8, 64])
def test_rare_ones_among_numbers_accuse_nobody(rows: int) -> None:
    """Few labels are 1, the rest 0, and they are compared as numbers: most rows err alike, which shows nothing."""
    detector, answer = Detector(classes=0, generator=generator(), false_alarms=ALPHA), honest(64, 0, 1e-3)
    slope = torch.randn(64, generator=generator(7))
    for step in range(300):
        z, _ = batch(step, rows)
        labels = (z @ slope > 24).float()[:, None]
        sample = detector.sample(z, labels)
        assert sample is not None
        detector.add(sample, answer(z, labels))
    assert not detector.wager.alarmed
    assert detector.wager.money < 100


def test_labels_that_are_no_numbers_are_left_out() -> None:
    detector = Detector(classes=0, generator=generator(), false_alarms=ALPHA)
    z, _ = batch(1)
    labels = torch.randn(64, 1, generator=generator(2))
    labels[10:] = math.nan
    sample = detector.sample(z, labels)
    assert sample is not None
    assert sample.rows.tolist() == list(range(10))
    assert detector.sample(z, torch.full((64, 1), math.inf)) is None


def test_a_single_number_a_row_is_enough_of_an_activation() -> None:
    detector = Detector(classes=2, generator=generator(), false_alarms=ALPHA)
    z, y = batch(1, classes=2)
    sample = detector.sample(z[:, 0], y)
    assert sample is not None
    assert sample.activations.shape == (64, 1)
    assert detector.add(sample, torch.randn(64, generator=generator(1))) is not None
