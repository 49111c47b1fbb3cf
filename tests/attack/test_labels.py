"""Labels from the size, the direction and the spectrum of what crossed, and what holds for every attack on traffic."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import f as f_distribution
from torch import Tensor

from cutlayer.attack.attack import Attack, Knowledge
from cutlayer.attack.clusters import Clusters, GradientClusters
from cutlayer.attack.completion import Completion
from cutlayer.attack.cosine import Cosine, LabelLeak, label_leak
from cutlayer.attack.norm import Norm
from cutlayer.attack.property import Property
from cutlayer.attack.spectrum import GradientSpectrum, Spectrum, along
from cutlayer.attack.traffic import Traffic
from cutlayer.errors import DataError

BY_STEP: list[Attack] = [Norm(), Cosine(), LabelLeak(), Spectrum(), GradientSpectrum()]
EVERY: list[Attack] = [*BY_STEP, Clusters(), GradientClusters(), Completion(labels=8, rounds=0), Property()]
NOTHING = Knowledge()
every_attack = pytest.mark.parametrize("attack", EVERY, ids=lambda attack: attack.name)
by_step = pytest.mark.parametrize("attack", BY_STEP, ids=lambda attack: attack.name)


def crossed(labels: Tensor, tensors: Tensor, batch: int = 20) -> Traffic:
    return Traffic(steps=torch.arange(len(labels)) // batch, activations=tensors, gradients=tensors, labels=labels)


def without(traffic: Traffic, names: Collection[str]) -> Traffic:
    missing: dict[str, Any] = dict.fromkeys(names)
    return replace(traffic, **missing)


def labels_of(count: int, seed: int, share: float = 0.3) -> Tensor:
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share).long()


def noise(count: int, seed: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1000 + seed))


@by_step
def test_an_attack_on_independent_tensors_leaks_in_at_most_6_of_100(attack: Attack) -> None:
    leaks = [attack.run(crossed(labels_of(120, seed), noise(120, seed, 4)), NOTHING, seed).leaks for seed in range(100)]
    assert sum(leaks) <= 6


def test_the_norm_attack_equals_the_closed_form_of_two_gaussian_families() -> None:
    """‖g‖² is s² χ²_d: rows of the class are longer in P(F_dd > (s₀/s₁)²) of the pairs."""
    for ratio in (0.8, 1.0, 1.4):
        labels, scale = labels_of(6000, 0), 10 ** torch.linspace(-3, 3, 6000)[:, None, None]
        tensors = noise(6000, 1, 2, 3) * (1 + (ratio - 1) * labels[:, None, None])
        steps = torch.arange(6000) // 200
        score = Norm().run(crossed(labels, tensors * scale[steps * 200], 200), NOTHING, 0)
        area = float(f_distribution.sf(ratio**-2, 6, 6))
        assert score.low <= max(area, 1 - area) <= score.high
        assert score.high - score.low < 0.04
        assert score.leaks == (ratio != 1)


def test_longer_gradients_of_the_class_leak_all_its_labels_and_shorter_ones_too() -> None:
    labels = labels_of(200, 2)
    directions = torch.nn.functional.normalize(noise(200, 2, 5), dim=1)
    for sizes in (1 + labels, 2 - labels):
        score = Norm().run(crossed(labels, directions * sizes[:, None]), NOTHING, 0)
        assert (score.value, score.unit, score.leaks, score.rows) == (1, "leak AUC", True, 200)


def test_opposite_directions_leak_all_labels_to_the_cosine_and_none_to_the_norm() -> None:
    """A logistic top's gradient is (p − y) w: of equal size where p = ½, and of the sign of the class."""
    labels = labels_of(400, 3)
    gradients = (0.5 - labels[:, None]) * torch.tensor([1.0, -2.0, 0.5])
    traffic = crossed(labels, gradients)
    direction, size = Cosine().run(traffic, NOTHING, 0), Norm().run(traffic, NOTHING, 0)
    assert (direction.value, direction.leaks, size.value, size.leaks) == (1, True, 0.5, False)
    both = label_leak(traffic)
    assert (both.value, both.leaks, both.attack) == (1, True, "label_leak")
    assert both.low < direction.low


def test_the_known_row_is_not_scored() -> None:
    labels = torch.tensor([1, 1, 0, 0, 0, 0])
    score = Cosine().run(crossed(labels, noise(6, 0, 3)), NOTHING, 0)
    assert score.rows == 5


def test_without_two_rows_of_the_class_in_a_step_the_label_leak_is_that_of_the_size() -> None:
    labels = torch.tensor([1, 0, 0, 0] * 10)
    traffic = crossed(labels, (1 + labels[:, None]) * torch.ones(40, 3), 4)
    with pytest.raises(DataError, match="two rows"):
        Cosine().run(traffic, NOTHING, 0)
    both, size = label_leak(traffic), Norm().run(traffic, NOTHING, 0)
    assert both.value == size.value == 1
    assert 0.5 < both.low < size.low


@pytest.mark.parametrize(("attack", "wide"), [(Spectrum(), 3), (Spectrum(), 90), (GradientSpectrum(), 90)], ids=str)
def test_two_groups_far_apart_leak_to_the_spectrum_though_each_step_has_its_own_sign(attack: Attack, wide: int) -> None:
    labels = labels_of(400, 4, 0.5)
    direction = noise(1, 5, wide)
    tensors = noise(400, 6, wide) / 9 + 50 + torch.where(labels[:, None] == 1, 3.0, -3.0) * direction
    assert attack.run(crossed(labels, tensors), NOTHING, 0).value == 1


def test_the_spectrum_is_the_top_singular_vector_of_the_centred_step() -> None:
    tensors, steps = noise(60, 7, 2, 4).double(), torch.arange(60) // 30
    found = along(tensors, steps)
    for step in (0, 1):
        rows = tensors[steps == step].flatten(1)
        left, values, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        assert torch.allclose(found[steps == step].abs(), (left[:, 0] * values[0]).abs(), atol=1e-9)


def test_of_many_classes_the_rarest_is_told_from_the_rest() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3] * 12)
    sizes = torch.where(labels == 0, 2.0, 1.0)[:, None]
    assert Norm().run(crossed(labels, sizes), NOTHING, 0).value == 1
    assert Norm().run(crossed(labels, torch.where(labels == 3, 2.0, 1.0)[:, None]), NOTHING, 0).value < 0.8


@every_attack
def test_every_attack_is_drawn_by_its_seed_alone_and_changes_nothing(attack: Attack) -> None:
    traffic = crossed(labels_of(120, 8), noise(120, 8, 3, 4))
    kept, state = traffic.activations.clone() if traffic.activations is not None else None, torch.get_rng_state()
    first = attack.run(traffic, NOTHING, 5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    with torch.no_grad():
        assert attack.run(traffic, NOTHING, 5) == first
    torch.set_rng_state(state)
    assert kept is not None
    assert traffic.activations is not None
    assert torch.equal(traffic.activations, kept)


@every_attack
def test_every_attack_names_what_it_needs_and_does_not_get(attack: Attack) -> None:
    traffic = crossed(labels_of(120, 9), noise(120, 9, 4))
    for name in {"activations", "gradients", "labels"} & {*attack.needs, "labels"}:
        with pytest.raises(DataError, match=f"{attack.word}.* needs {name}, which the recording lacks: record"):
            attack.run(without(traffic, {name}), NOTHING, 0)
    attack.run(without(traffic, {"activations", "gradients"} - attack.needs), NOTHING, 0)


@every_attack
def test_every_attack_takes_labels_in_a_column_of_floats_and_half_precision(attack: Attack) -> None:
    labels, tensors = labels_of(120, 10), noise(120, 10, 4).half()
    plain = attack.run(crossed(labels, tensors), NOTHING, 0)
    assert attack.run(crossed(labels[:, None].float(), tensors.float()), NOTHING, 0) == plain


@every_attack
def test_every_score_is_an_interval_about_its_value(attack: Attack) -> None:
    score = attack.run(crossed(labels_of(120, 11), noise(120, 11, 4)), NOTHING, 0)
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert score.attack == attack.name
    assert 0 < score.rows <= 120
