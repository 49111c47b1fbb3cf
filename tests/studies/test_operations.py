"""Operations of layers whose count is known, of parts, and of what cannot be counted."""

import pytest
import torch
from torch import Tensor, nn

from cutlayer.party.agreement import draft
from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.studies.flops import Operations, in_words, of_segments, per_row, spelled

ROW = TensorSpec(dtype="float32", shape=("B", 8), differentiable=False)
GRADIENT = TensorSpec(dtype="float32", shape=("B", 8))


def test_a_linear_layer_counts_two_operations_a_weight_and_again_for_each_gradient() -> None:
    layer = nn.Linear(8, 5)
    assert per_row(layer, [(ROW,)]) == Operations(forward=80, both=160)
    assert per_row(layer, [(GRADIENT,)]) == Operations(forward=80, both=240)


def test_a_convolution_counts_its_places_and_filters() -> None:
    images = TensorSpec(dtype="float32", shape=("B", 3, 6, 6), differentiable=False)
    flops = per_row(nn.Conv2d(3, 4, 3, padding=1), [(images,)])
    assert flops == Operations(forward=2 * 4 * 3 * 9 * 36, both=4 * 4 * 3 * 9 * 36)


def test_counting_changes_neither_weights_nor_mode_nor_random_numbers() -> None:
    part = nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True), nn.Dropout(), nn.BatchNorm1d(4)).eval()
    before = {name: tensor.clone() for name, tensor in part.state_dict().items()}
    state = torch.get_rng_state()
    assert per_row(part, [(GRADIENT,)]) is not None
    assert not part.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in part.state_dict().items())


def test_a_part_that_looks_at_its_numbers_is_not_counted() -> None:
    class Looks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if float(x.sum()) > 0 else -x)

    assert per_row(Looks(8, 5), [(ROW,)]) is None
    assert spelled(None) == "not counted"


def test_segments_of_a_plan_add_up_to_the_whole_model() -> None:
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 3))
    terms = Terms(
        topology="u_shaped",
        schedule="alternating",
        model=ModelTerms(cut=("1", "2")),
        input=InputTerms(shape=(8,)),
        training=Training(loss=Method(name="cross_entropy"), optimizer=Method(name="SGD"), batch_size=4, rounds=1),
        parties={"client": PartyTerms(role="client"), "server": PartyTerms(role="server")},
    )
    found = of_segments(draft(terms, model))
    whole = per_row(model, [(ROW,)])
    assert whole is not None
    assert [found[name].forward for name in ("bottom", "middle", "head")] == [80, 40, 24]  # type: ignore[union-attr]
    assert sum(flops.both for flops in found.values() if flops) == whole.both


@pytest.mark.parametrize(("count", "words"), [(0, "0"), (999, "999"), (1_234_567, "1.23 M"), (2e15, "2e+03 T")])
def test_large_numbers_have_units(count: float, words: str) -> None:
    assert in_words(count) == words
