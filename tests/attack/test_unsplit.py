"""UnSplit: labels behind a top of which only the architecture is known, and inputs behind such a bottom."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attack.test_decoder import Constant, blobs, crossed, drawn
from cutlayer.attack.attack import Knowledge
from cutlayer.attack.matching import Matcher, fresh, groups_by_direction
from cutlayer.attack.traffic import Traffic
from cutlayer.attack.unsplit import UnsplitInputs, UnsplitLabels
from cutlayer.errors import DataError, PlanError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

Make = Callable[[], nn.Module]


def one_layer() -> nn.Module:
    return nn.Linear(12, 5)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))


def one_logit() -> nn.Module:
    return nn.Linear(12, 1)


def answered(
    make: Make, *, seed: int = 0, rows: int = 320, batch: int = 16, lr: float = 0.05, of_weights: bool = False
) -> Traffic:
    """What crosses while a top, and nothing else, learns random labels of random activations."""
    top = fresh(make, seed)
    z, first = drawn(5, rows, 12), next(top.parameters())
    classes = max(2, top(z).shape[1])
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(6))
    gradients = []
    for at in torch.split(torch.arange(rows), batch):
        part = z[at].clone().requires_grad_()
        scores = top(part)
        if scores.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(scores[:, 0], labels[at].float(), reduction="sum")
        else:
            loss = F.cross_entropy(scores, labels[at], reduction="sum")
        top.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert part.grad is not None
        assert first.grad is not None
        gradients.append(first.grad[None].clone() if of_weights else part.grad)
        with torch.no_grad():
            for parameter in top.parameters():
                assert parameter.grad is not None
                parameter.sub_(lr * parameter.grad / len(at))
    steps = torch.arange(rows) // batch
    return Traffic(steps=steps, activations=z, gradients=torch.cat(gradients), rows=torch.arange(rows), labels=labels)


# ------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("clone", ["still", "taught"])
def test_one_layers_own_gradient_gives_every_label_away_to_any_clone(clone: str) -> None:
    """As in the paper: 100% with one layer."""
    traffic = answered(one_layer, rows=100, batch=1, of_weights=True)
    attack = UnsplitLabels(clone=clone, seen="weights", named=0, lr=0.05)
    score = attack.run(traffic, Knowledge(top=one_layer, classes=5), seed=77)
    assert (score.unit, score.value, score.rows) == ("accuracy", 1.0, 100)
    assert score.leaks


def test_two_layers_own_gradient_gives_nothing_away_to_clones_of_other_weights() -> None:
    """As in the paper: a guess's accuracy with two, over clones."""
    traffic = answered(two_layers, rows=60, batch=1, of_weights=True)
    attack = UnsplitLabels(clone="still", seen="weights", named=0)
    values = [attack.run(traffic, Knowledge(top=two_layers), seed).value for seed in range(100, 140)]
    assert sum(values) / len(values) == pytest.approx(1 / 5, abs=0.1)


@pytest.mark.parametrize("make", [one_layer, two_layers, one_logit])
def test_a_clone_that_learns_in_step_from_the_owners_own_beginning_reads_every_label(make: Make) -> None:
    """An oracle: gradients and steps are then those of the owner, whatever the size of a mini-batch."""
    attack = UnsplitLabels(clone="taught", named=0, lr=0.05)
    assert attack.run(answered(make, seed=3), Knowledge(top=make), seed=3).value == 1.0
    assert attack.run(answered(make, seed=3, lr=0.5), Knowledge(top=make), seed=3).value < 1.0


def test_at_the_cut_a_strange_clone_does_not_know_the_classes_names() -> None:
    traffic = answered(one_layer)
    attack = UnsplitLabels(clone="still", named=0)
    values = [attack.run(traffic, Knowledge(top=one_layer), seed).value for seed in range(100, 140)]
    assert sum(values) / len(values) == pytest.approx(1 / 5, abs=0.1)


@pytest.mark.parametrize(("make", "least"), [(one_layer, 0.97), (two_layers, 0.7)])
def test_at_the_cut_a_fitted_clone_reads_labels_once_a_few_rows_are_named(make: Make, least: float) -> None:
    """Behind two layers of random activations; MNIST's are read as well as behind one."""
    score = UnsplitLabels(named=30, passes=10).run(answered(make), Knowledge(top=make), seed=77)
    assert score.rows == 290
    assert score.value > least


def test_gradients_of_noise_tell_nothing() -> None:
    traffic = replace(answered(one_layer), gradients=drawn(9, 320, 12))
    score = UnsplitLabels(named=30, passes=4).run(traffic, Knowledge(top=one_layer), seed=0)
    assert not score.leaks


def test_rows_whose_labels_are_known_are_not_scored_whenever_they_crossed() -> None:
    """Labels and gradients of noise, every row four times."""
    rows = torch.arange(50).repeat(4)
    labels = torch.arange(50) % 5
    traffic = Traffic(
        steps=torch.arange(200), rows=rows, activations=drawn(1, 200, 12), gradients=drawn(2, 200, 12),
        labels=labels[rows],
    )  # fmt: skip
    score = UnsplitLabels(named=20, passes=1).run(traffic, Knowledge(top=one_layer), seed=0)
    assert score.rows == 30


@pytest.mark.parametrize("of_weights", [False, True])
@pytest.mark.parametrize("make", [two_layers, one_logit])
def test_the_distance_of_every_class_is_that_of_longhand(make: Make, of_weights: bool) -> None:
    traffic = answered(make, rows=4, batch=1, of_weights=of_weights)
    assert traffic.activations is not None
    assert traffic.gradients is not None
    top = fresh(make, 1)
    matcher = Matcher.made(top, traffic.activations, traffic.gradients, of_weights=of_weights, classes=0)
    size = float(traffic.gradients.flatten(1).square().sum(1).mean())
    for row in range(4):
        longhand = []
        for label in range(matcher.classes):
            z = traffic.activations[row : row + 1].clone().requires_grad_()
            by = next(top.parameters()) if of_weights else z
            scores = top(z) if make is two_layers else torch.cat([torch.zeros(1, 1), top(z)], 1)
            (made,) = torch.autograd.grad(F.cross_entropy(scores, torch.tensor([label])), by)
            longhand.append(float((made.reshape(-1) - traffic.gradients[row].reshape(-1)).square().sum()) / size)
        at = torch.full((matcher.classes,), row)
        torch.testing.assert_close(matcher.distances(at, torch.arange(matcher.classes)), torch.tensor(longhand))
        assert int(matcher.nearest(at[:1])) == longhand.index(min(longhand))


def test_groups_are_of_one_direction_whatever_their_length() -> None:
    which = torch.arange(60) % 3
    gradients = torch.eye(3, 7)[which] * torch.logspace(-3, 3, 60)[:, None]
    groups = groups_by_direction(gradients, 3, torch.Generator().manual_seed(0))
    assert len(set(zip(groups.tolist(), which.tolist(), strict=True))) == 3


# ------------------------------------------------------------------------------------------------- inputs


def bottom() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU())


def test_images_are_seen_behind_a_convolution_of_unknown_weights() -> None:
    """Dimly: the clone is as free as the inputs."""
    traffic = crossed(fresh(bottom, 0), blobs(2, 16))
    knowledge = Knowledge(bottom=bottom, auxiliary=(blobs(1, 50), None))
    score = UnsplitInputs(rounds=15, clone_lr=0.01).run(traffic, knowledge, seed=78)
    assert (score.unit, score.rows) == ("SSIM", 16)
    assert score.leaks


def test_a_constant_bottom_tells_nothing_of_inputs() -> None:
    x: Tensor = blobs(2, 16)
    score = UnsplitInputs(rounds=2).run(crossed(Constant(), x), Knowledge(bottom=ConstantWithWeight), seed=0)
    assert not score.leaks


class ConstantWithWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.expand(len(x), 4)


# ------------------------------------------------------------------------------------------------- both


def test_one_seed_gives_one_score_and_the_global_generator_is_left_as_it_was() -> None:
    state = torch.get_rng_state()
    inputs, labels = crossed(fresh(bottom, 0), blobs(2, 6)), answered(one_layer, rows=80)
    attacks: tuple[Callable[[int], float], ...] = (
        lambda seed: UnsplitInputs(rounds=2).run(inputs, Knowledge(bottom=bottom), seed).value,
        lambda seed: UnsplitLabels(clone="still", named=0).run(labels, Knowledge(top=one_layer), seed).value,
        lambda seed: UnsplitLabels(named=10, passes=2).run(labels, Knowledge(top=one_layer), seed).value,
    )
    values = [[attack(seed) for attack in attacks] for seed in (3, 3, 4)]
    assert values[0] == values[1]
    assert values[0][0] != values[2][0]
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_lacking_is_said() -> None:
    traffic = answered(one_layer, rows=80)
    with pytest.raises(DataError, match="needs the top's architecture"):
        UnsplitLabels().run(traffic, Knowledge(), 0)
    with pytest.raises(DataError, match="needs labels"):
        UnsplitLabels().run(replace(traffic, labels=None), Knowledge(top=one_layer), 0)
    with pytest.raises(DataError, match="scores a row, for 7 classes"):
        UnsplitLabels().run(traffic, Knowledge(top=one_layer, classes=7), 0)
    with pytest.raises(DataError, match=r"\[12\] came where \[5, 12\]"):
        UnsplitLabels(seen="weights").run(traffic, Knowledge(top=one_layer), 0)
    with pytest.raises(DataError, match="no row left to be scored"):
        UnsplitLabels(named=80).run(traffic, Knowledge(top=one_layer), 0)
    with pytest.raises(DataError, match="needs the client's architecture"):
        UnsplitInputs().run(crossed(fresh(bottom, 0), blobs(2, 4)), Knowledge(), 0)
    with pytest.raises(PlanError) as caught:
        UnsplitLabels(clone="other", seen="all", named=-1, lr=0.0, passes=0)
    assert len(caught.value.faults) == 5
    with pytest.raises(PlanError, match="have no names"):
        UnsplitLabels(named=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_papers_figures_on_mnist() -> None:
    from papers import unsplit

    path = unsplit.found(None)
    if path is None:
        pytest.skip("MNIST is neither beside the repository nor where CUTLAYER_DATA says")
    figures = unsplit.measured(unsplit.mnist(path), quick=True)
    print(unsplit.table(figures))
    paper = {one.layers: one.ours for one in figures if one.published}
    assert paper[1] >= 0.99
    assert paper[2] <= 0.20
    assert all(one.ours >= 0.99 for one in figures if one.clone.startswith("fitted"))
