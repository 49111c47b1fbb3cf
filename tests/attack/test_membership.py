"""Whether a row was trained on, from the loss of the final model."""

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from cutlayer.attack.membership import found_at_few_alarms, membership
from cutlayer.errors import DataError


class Told(nn.Module):
    """Gives each row's first column as the logit of class 0."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.stack([rows[:, 0], torch.zeros(len(rows))], 1)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def set_of(column: Tensor) -> tuple[Tensor, Tensor]:
    return torch.stack([column, torch.zeros(len(column))], 1), torch.zeros(len(column), dtype=torch.int64)


def normals(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, generator=drawn(seed)) + shift


def test_a_model_that_knows_its_rows_by_heart_is_found_out() -> None:
    area, found = membership(Told(), set_of(torch.full((600,), 9.0)), set_of(torch.full((600,), -9.0)))
    assert (area.value, area.leaks, found.value, found.leaks, found.chance) == (1, True, 1, True, 0.01)
    assert found.unit == "members found at 1% false alarms"
    assert area.rows == found.rows == 1200


def test_the_scores_of_two_gaussians_are_their_closed_forms() -> None:
    """Losses are monotone in the logit: AUC Φ(d/√2), found at 1% Φ(d − 2.326)."""
    area, found = membership(Told(), set_of(normals(5000, 0, 1.5)), set_of(normals(5000, 1)))
    for score, expected in ((area, norm.cdf(1.5 / 2**0.5)), (found, norm.cdf(1.5 - norm.isf(0.01)))):
        assert score.low <= expected <= score.high
        assert score.value == pytest.approx(expected, abs=0.03)
        assert score.leaks


def test_rows_that_were_not_trained_on_leak_in_at_most_6_of_100() -> None:
    leaks = torch.zeros(2)
    for seed in range(100):
        scores = membership(Told(), set_of(normals(500, seed)), set_of(normals(500, seed + 900)))
        leaks += torch.tensor([score.leaks for score in scores])
    assert bool((leaks <= 6).all()), leaks


def test_the_share_found_has_an_interval_that_knows_that_the_threshold_is_estimated() -> None:
    expected, held, runs = norm.cdf(1 - norm.isf(0.01)), 0, 200
    for seed in range(runs):
        score = found_at_few_alarms("x", normals(1000, seed, 1.0), normals(1000, seed + 900))
        held += score.low <= expected <= score.high
    assert held >= 0.95 * runs


def test_few_others_promise_nothing() -> None:
    for others in (1, 50, 436):
        score = found_at_few_alarms("x", torch.full((900,), 5.0), torch.zeros(others))
        assert (score.value, score.low, score.high) == (1, 0, 1)
        assert not score.leaks
    assert found_at_few_alarms("x", torch.full((900,), 5.0), torch.zeros(437)).leaks


def test_a_tie_with_the_threshold_is_no_member_found() -> None:
    assert found_at_few_alarms("x", torch.zeros(100), torch.zeros(1000)).value == 0
    others = torch.cat([torch.ones(10), torch.zeros(990)])
    assert found_at_few_alarms("x", torch.ones(100), others).value == 1
    assert found_at_few_alarms("x", torch.ones(100), torch.cat([others, torch.ones(1)])).value == 0


def test_a_reference_model_takes_away_how_hard_a_row_is() -> None:
    """Rows differ more by how hard they are than by membership; a model that saw none of them knows the former."""

    class Second(nn.Module):
        def forward(self, rows: Tensor) -> Tensor:
            return torch.stack([rows[:, 1], torch.zeros(len(rows))], 1)

    def rows(seed: int, shift: float) -> tuple[Tensor, Tensor]:
        hard = 4 * normals(800, seed) - 2
        return torch.stack([hard + shift + normals(800, seed + 1) / 4, hard], 1), torch.zeros(800, dtype=torch.int64)

    plain, _ = membership(Told(), rows(0, 0.6), rows(2, 0.0))
    calibrated, _ = membership(Told(), rows(0, 0.6), rows(2, 0.0), reference=Second())
    assert plain.value < 0.6
    assert calibrated.value > 0.75
    assert calibrated.attack == "membership(reference)"


def test_an_overfitted_model_leaks_and_is_left_as_it_was() -> None:
    rows, labels = torch.randn(1200, 30, generator=drawn(5)), torch.randint(2, (1200,), generator=drawn(6))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(30, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.ReLU(), nn.Linear(64, 2))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(120):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(rows[:600]), labels[:600]))
            optimizer.step()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    first = membership(model, (rows[:600], labels[:600]), (rows[600:], labels[600:]))
    assert first == membership(model, (rows[:600], labels[:600]), (rows[600:], labels[600:]))
    assert first[0].leaks
    assert first[0].value > 0.8
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_scored_is_refused() -> None:
    rows = set_of(normals(10, 8))
    with pytest.raises(DataError, match="at least one of each"):
        membership(Told(), rows, set_of(torch.zeros(0)))
    with pytest.raises(DataError, match="one loss for each row"):
        membership(Told(), rows, rows, loss=nn.functional.cross_entropy)
    with pytest.raises(DataError, match="nan"):
        membership(Told(), rows, set_of(torch.full((4,), torch.nan)))
