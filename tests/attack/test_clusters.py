"""Labels from clusters."""

import pytest
import torch

from cutlayer.attack.attack import Knowledge
from cutlayer.attack.clusters import Clusters, GradientClusters, named_elsewhere
from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError

NOTHING = Knowledge()


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_separate_clusters_tell_all_labels_whatever_the_classes_are_called() -> None:
    labels = torch.tensor([7, 2, -1, 40, 5])[torch.randint(5, (300,), generator=drawn(0))]
    centres = {number: 9 * torch.randn(4, 3, generator=drawn(number + 50)) for number in labels.tolist()}
    rows = torch.stack([centres[number] for number in labels.tolist()]) + torch.randn(300, 4, 3, generator=drawn(1))
    traffic = Traffic(steps=torch.arange(300), activations=rows, labels=labels)
    score = Clusters().run(traffic, NOTHING, 0)
    assert (score.value, score.leaks, score.rows) == (1, True, 300)


def test_clusters_that_follow_something_else_tell_only_what_goes_with_it() -> None:
    """Two clusters, which 80 of 100 rows of either class agree with: an accuracy of 0.8."""
    side = torch.arange(2000) % 2
    labels = torch.where(torch.rand(2000, generator=drawn(2)) < 0.8, side, 1 - side)
    rows = 20.0 * side[:, None] + torch.randn(2000, 3, generator=drawn(3))
    score = Clusters().run(Traffic(steps=torch.arange(2000), activations=rows, labels=labels), NOTHING, 0)
    assert score.value == float((labels == side).double().mean())
    assert score.low <= 0.8 <= score.high


@pytest.mark.parametrize("classes", [2, 10])
def test_independent_labels_leak_in_at_most_6_of_100(classes: int) -> None:
    """With ten classes and few rows the best of 10! names would be right far more often than the best constant."""
    leaks, values, chances = 0, 0.0, 0.0
    for seed in range(100):
        labels = torch.randint(classes, (60,), generator=drawn(seed))
        rows = torch.randn(60, 3, generator=drawn(seed + 500))
        score = Clusters().run(Traffic(steps=torch.arange(60), activations=rows, labels=labels), NOTHING, seed)
        leaks, values, chances = leaks + score.leaks, values + score.value, chances + score.chance
    assert leaks <= 6
    assert values < chances


def test_gradients_are_clustered_by_direction_for_their_size_is_the_models_doubt() -> None:
    """A softmax top's gradient (p − e_y) W shrinks as the model grows sure, and keeps its direction."""
    labels = torch.randint(4, (400,), generator=drawn(4))
    sizes = 10 ** (3 * torch.rand(400, 1, generator=drawn(5)) - 3)
    weights = torch.randn(4, 20, generator=drawn(6))
    gradients = sizes * (0.25 - torch.nn.functional.one_hot(labels, 4)) @ weights
    traffic = Traffic(steps=torch.arange(400), gradients=gradients, activations=gradients, labels=labels)
    assert GradientClusters().run(traffic, NOTHING, 0).value == 1
    assert Clusters().run(traffic, NOTHING, 0).value < 0.9


def test_the_names_of_clusters_come_from_other_rows() -> None:
    """Clusters that are all different rows: a name from the row itself would be right each time."""
    classes = torch.randint(30, (30,), generator=drawn(7)).clamp(max=29)
    classes[0] = 29
    guesses = named_elsewhere(torch.arange(30), classes, 0)
    assert float((guesses == classes).double().mean()) < 0.2
    same = torch.arange(40) % 4
    assert torch.equal(named_elsewhere(3 - same, same, 0), same)


def test_too_few_different_rows_are_refused() -> None:
    traffic = Traffic(steps=torch.arange(40), activations=torch.ones(40, 3), labels=torch.arange(40) % 4)
    with pytest.raises(DataError, match="fewer than 4 different rows of 40"):
        Clusters().run(traffic, NOTHING, 0)
    with pytest.raises(DataError, match="one class only"):
        Clusters().run(Traffic(steps=torch.arange(4), activations=torch.ones(4, 3), labels=torch.ones(4)), NOTHING, 0)
