"""`describe` tells what crosses for any number of rows, and touches nothing."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.errors import CutError
from cutlayer.model.cut import cut
from cutlayer.model.describe import describe, state_specs
from cutlayer.plan.tensors import TensorSpec

ROWS = TensorSpec(dtype="float32", shape=("B", 4), differentiable=False)


class Through(nn.Module):
    """A trainable layer whose output goes through a function."""

    def __init__(self, run: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.fc, self.run = nn.Linear(4, 4), run

    def forward(self, x: Tensor) -> object:
        return self.run(self.fc(x))


def outputs(run: Callable[[Tensor], object]) -> list[str]:
    return [str(spec) for spec in describe({"only": Through(run)}, (ROWS,))["only"]]


def test_sizes_are_told_for_any_number_of_rows() -> None:
    assert outputs(lambda x: x) == ["float32[B, 4]"]
    assert outputs(lambda x: x.repeat(12, 1)) == ["float32[12*B, 4]"]
    assert outputs(lambda x: (x.T, x.sum(), x[:1], x[:0])) == [
        "float32[4, B]",
        "float32[]",
        "float32[1, 4]",
        "float32[0, 4]",
    ]
    assert outputs(lambda x: x.argmax(1)) == ["int64[B]"]


def test_sizes_that_follow_the_rows_otherwise_are_refused() -> None:
    odd: dict[str, Callable[[Tensor], object]] = {
        "one more": lambda x: x.new_ones(x.shape[0] + 1),
        "at most four": lambda x: x[:4],
        "squared": lambda x: x.repeat(x.shape[0], 1),
        "more dimensions": lambda x: x[:, 0].view(-1, *[1] * x.shape[0]),
    }
    for run in odd.values():
        with pytest.raises(CutError, match="only fixed sizes and multiples of the rows"):
            outputs(run)
    with pytest.raises(CutError, match="another number of tensors"):
        outputs(lambda x: tuple(x))
    with pytest.raises(CutError, match="complex64"):
        outputs(lambda x: torch.complex(x, x))


def test_parts_are_run_in_turn_and_each_is_described() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Dropout(), nn.LSTM(6, 5, batch_first=True))
    parts = {"bottom": model[:2], "top": model[2], "head": nn.Identity()}
    with pytest.raises(CutError, match="part 'top': output 1 of a part is a tuple"):
        describe(parts, (TensorSpec(dtype="int64", shape=("B", 7)),))
    parts = cut(nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(42, 2)), [0], ("bottom", "top"))
    specs = describe(parts, (TensorSpec(dtype="int64", shape=("B", 7)),))
    assert {name: list(map(str, found)) for name, found in specs.items()} == {
        "bottom": ["float32[B, 7, 6]"],
        "top": ["float32[B, 2]"],
    }


def test_differentiable_is_a_float_that_depends_on_something_trainable() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            h = self.fc(x)
            return h, h.argmax(1), h.detach(), x * 2, h > 0

    found = describe({"only": Several()}, (ROWS,))["only"]
    assert [spec.differentiable for spec in found] == [True, False, False, False, False]
    frozen = Several().requires_grad_(False)
    assert not any(spec.differentiable for spec in describe({"only": frozen}, (ROWS,))["only"])
    upstream = TensorSpec(dtype="float32", shape=("B", 4))
    assert [spec.differentiable for spec in describe({"only": frozen}, (upstream,))["only"]][:4] == [
        True,
        False,
        False,
        True,
    ]
    with torch.no_grad():
        assert describe({"below": nn.Linear(4, 4), "frozen": frozen}, (ROWS,))["frozen"][0].differentiable


def test_an_input_that_does_not_fit_is_refused_with_the_part_that_fails() -> None:
    parts = {"bottom": nn.Linear(4, 3), "top": nn.Linear(4, 2)}
    with pytest.raises(CutError, match=r"part 'top' fails on float32\[2, 3\] \(.*shapes.*\): check \[input\] shape"):
        describe(parts, (ROWS,))


def test_shapes_are_those_of_evaluation() -> None:
    class Auxiliary(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out.repeat(2, 1) if self.training else out

    assert str(describe({"only": Auxiliary(4, 3)}, (ROWS,))["only"][0]) == "float32[B, 3]"


def test_describing_touches_no_parameter_buffer_mode_or_random_number() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    part = nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.ReLU(inplace=True), nn.Linear(4, 2), Noise())
    part[0].eval()
    modes = [module.training for module in part.modules()]
    before, random = copy.deepcopy(part.state_dict()), torch.get_rng_state()
    describe({"only": part}, (ROWS,))
    assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())
    assert [module.training for module in part.modules()] == modes
    assert all(parameter.grad is None for parameter in part.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_state_specs_are_what_a_part_saves() -> None:
    bottom = cut(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2).half()), 0, ("bottom", "top"))
    assert {name: str(spec) for name, spec in state_specs(bottom["bottom"]).items()} == {
        "0.weight": "float32[4]",
        "0.bias": "float32[4]",
        "0.running_mean": "float32[4]",
        "0.running_var": "float32[4]",
        "0.num_batches_tracked": "int64[]",
    }
    assert str(state_specs(bottom["top"])["1.weight"]) == "float16[2, 4]"
    with pytest.raises(CutError, match=r"complex64 tensor, which cannot cross"):
        state_specs(nn.Linear(2, 2, dtype=torch.complex64))
