"""Labels from activations and a few labelled rows."""

import pytest
import torch
from torch import Tensor

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.completion import Completion, drawn_evenly, principal
from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError, PlanError

NOTHING = Knowledge()


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int, seed: int, apart: float, classes: int = 3, wide: int = 6) -> tuple[Tensor, Tensor]:
    """Rows about a centre for each class, the centres `apart` on axes of their own."""
    labels = torch.randint(classes, (count,), generator=drawn(seed))
    return torch.randn(count, wide, generator=drawn(seed + 1)) + apart * torch.eye(classes, wide)[labels], labels


def test_separate_classes_are_told_from_one_labelled_row_of_each() -> None:
    activations, labels = blobs(200, 0, 12.0)
    score = Completion(labels=3).run(
        Traffic(steps=torch.arange(200), activations=activations, labels=labels), NOTHING, 0
    )
    assert (score.value, score.rows, score.leaks, score.attack) == (1, 197, True, "completion(labels=3)")
    assert score.chance == pytest.approx(float(labels.bincount().max()) / 197, abs=0.01)


def test_unlabelled_rows_help() -> None:
    """In 30 dimensions eight rows leave the boundary between two classes open; the others show where few rows lie."""
    activations, labels = blobs(600, 2, 3.5, classes=2, wide=30)
    traffic = Traffic(steps=torch.arange(600), activations=activations, labels=labels)
    alone, helped = (
        [Completion(labels=8, rounds=rounds).run(traffic, NOTHING, seed).value for seed in range(3)]
        for rounds in (0, 2)
    )
    assert 3 - sum(helped) < (3 - sum(alone)) / 2


@pytest.mark.parametrize("runs", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_independent_labels_leak_in_at_most_6_of_100(runs: int) -> None:
    leaks = 0
    for seed in range(runs):
        activations, labels = blobs(80, seed, 0.0, classes=2)
        traffic = Traffic(steps=torch.arange(80), activations=activations, labels=labels)
        leaks += Completion(labels=10, rounds=0).run(traffic, NOTHING, seed).leaks
    assert leaks <= 0.06 * runs


def test_a_row_counts_once_and_as_it_crossed_last() -> None:
    """Early crossings are noise; were a known row's other crossings scored, it would tell its own label."""
    late, labels = blobs(120, 4, 12.0)
    early = torch.randn(240, 6, generator=drawn(5))
    rows = torch.arange(120).repeat(3)
    traffic = Traffic(steps=torch.arange(360), activations=torch.cat([early, late]), labels=labels.repeat(3), rows=rows)
    score = Completion(labels=6).run(traffic, NOTHING, 0)
    assert (score.value, score.rows) == (1, 114)


def test_labelled_rows_are_drawn_as_evenly_as_can_be() -> None:
    classes = torch.tensor([0] * 50 + [1] * 9 + [2] * 2)
    assert classes[drawn_evenly(classes, 12, 0)].bincount().tolist() == [5, 5, 2]
    assert not torch.equal(drawn_evenly(classes, 12, 0), drawn_evenly(classes, 12, 1))


def test_principal_components_keep_the_distances_of_rows_that_lie_in_few_dimensions() -> None:
    rows = torch.randn(90, 30, generator=drawn(6)) @ torch.randn(30, 300, generator=drawn(7)) + 5
    found, kept = principal(rows.view(90, 3, 100), 0), torch.cdist(rows.double(), rows.double())
    ratio = (torch.cdist(found.double(), found.double()) / kept)[kept > 1]
    assert found.shape == (90, 64)
    assert float(ratio.std() / ratio.mean()) < 1e-3
    assert principal(torch.ones(5, 3), 0).abs().max() == 0


@pytest.mark.parametrize("options", [{"labels": 0}, {"rounds": -1}, {"sure": 0.0}, {"sure": 1.1}], ids=str)
def test_settings_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(PlanError, match=f"completion: {next(iter(options))} = "):
        Completion(**options)  # type: ignore[arg-type]


def test_too_few_rows_are_refused() -> None:
    activations, labels = blobs(40, 8, 1.0)
    with pytest.raises(DataError, match="found 40 rows"):
        Completion().run(Traffic(steps=torch.arange(40), activations=activations, labels=labels), NOTHING, 0)
