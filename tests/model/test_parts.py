"""Parts: given by a person, or made by cutting; their names, their modes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.errors import CutError
from cutlayer.model.cut import cut
from cutlayer.model.parts import Part, Parts


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.sum() > 0:  # what torch.fx cannot trace
            x = x + 1
        return self.fc(x), x.detach() * 0.5


class Join(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.fc(x + y)  # type: ignore[no-any-return]


def explicit() -> Parts:
    return Parts(bottom=Split(), middle=Join(), top=nn.Linear(2, 2))


def run(parts: dict[str, nn.Module], *tensors: Tensor) -> Tensor:
    return Parts(list(parts.items()))(*tensors)  # type: ignore[no-any-return]


def test_explicit_parts_are_the_uncut_model_and_keep_its_names() -> None:
    model, x = explicit(), torch.randn(3, 4)
    parts = cut(model, None, ("a", "b", "c"))
    assert list(parts) == ["a", "b", "c"]
    assert list(parts["b"].state_dict()) == ["middle.fc.weight", "middle.fc.bias"]
    assert [key for part in parts.values() for key in part.state_dict()] == list(model.state_dict())
    bottom, middle, top = model.children()
    by_hand = top(middle(*bottom(x)))
    assert torch.equal(model(x), by_hand)
    assert torch.equal(run(parts, x), by_hand)


def test_explicit_parts_are_grouped_by_the_cuts_that_are_named() -> None:
    model, x = explicit(), torch.randn(3, 4)
    for at in ("middle", 1, ["middle"]):
        parts = cut(model, at, ("bottom", "top"))
        assert {key.partition(".")[0] for key in parts["bottom"].state_dict()} == {"bottom", "middle"}
        assert torch.equal(run(parts, x), model(x))


def test_explicit_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CutError, match=r"3 parts \(bottom, middle, top\), but 2"):
        cut(explicit(), None, ("bottom", "top"))
    with pytest.raises(CutError, match=r"between 'bottom', 'middle', 'top', not inside, at 'bottom.fc'"):
        cut(explicit(), "bottom.fc", ("bottom", "top"))
    with pytest.raises(CutError, match="out of order or leave a part empty"):
        cut(explicit(), "top", ("bottom", "top"))
    with pytest.raises(CutError, match="out of order"):
        cut(explicit(), ["middle", "bottom"], ("a", "b", "c"))
    with pytest.raises(CutError, match="no layer 'nowhere'"):
        cut(explicit(), "nowhere", ("bottom", "top"))
    with pytest.raises(CutError, match="at least one part"):
        Parts()
    with pytest.raises(CutError, match="cannot be called 'train'"):
        Parts([("train", nn.ReLU())])
    with pytest.raises(CutError, match="cannot both be called 'a'"):
        Parts([("a", nn.ReLU())], a=nn.ReLU())


def test_explicit_parts_with_tied_or_missing_weights_are_refused() -> None:
    model = explicit()
    model.get_submodule("top").weight = model.get_parameter("middle.fc.weight")
    with pytest.raises(CutError, match=r"'middle.fc.weight' in part 'b' and 'top.weight' in part 'c' are one tensor"):
        cut(model, None, ("a", "b", "c"))
    with pytest.raises(CutError, match="part 'b' would have no parameters"):
        cut(Parts(a=nn.Linear(2, 2), b=nn.ReLU()), None, ("a", "b"))


def test_no_cut_is_the_model_itself() -> None:
    model = nn.Linear(2, 2)
    assert cut(model, None, ("whole",)) == {"whole": model}
    assert cut(model, [], ("whole",)) == {"whole": model}


def test_a_sequential_is_cut_by_number_by_name_and_by_nested_name() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), nn.Linear(3, 2))
    for at, keys in ((0, 2), ("0", 2), ("1.0", 2), (1, 4), ("1", 4), ("1.1", 4)):
        assert len(cut(model, at, ("bottom", "top"))["bottom"].state_dict()) == keys, at


class Modes(nn.Module):
    """Dropout as a layer, as a function, and in an if."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(4, 4), nn.Dropout(1.0), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.fc1(x))
        x = self.norm(F.dropout(self.fc2(x), 1.0, training=self.training))
        if self.training:
            x = x + 10
        return x


def test_parts_follow_train_and_eval_whatever_mode_they_were_cut_in() -> None:
    x = torch.randn(3, 4)
    for training in (True, False):
        model = Modes().train(training)
        parts = cut(model, "drop", ("bottom", "top"))
        assert all(module.training is training for part in parts.values() for module in part.modules())
        for mode in (False, True, False):
            for part in parts.values():
                part.train(mode)
            bottom, top = parts["bottom"](x), run(parts, x)
            model.train(mode)
            torch.testing.assert_close(top, model(x))
            assert bool(bottom.eq(0).all()) is mode
            assert bool(top.min() > 5) is mode


def test_a_part_clones_a_received_tensor_that_it_works_on_in_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4)))
    top = cut(model, 0, ("bottom", "top"))["top"]
    received = torch.randn(3, 4).requires_grad_()
    before = received.detach().clone()
    top(received).sum().backward()
    assert torch.equal(received.detach(), before)
    assert received.grad is not None


def test_cutting_a_model_leaves_it_and_the_random_numbers_as_they_were() -> None:
    model = Modes()
    held = {name: set(module.__dict__) for name, module in model.named_modules()}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    cut(model, "fc1", ("bottom", "top"))
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == held
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in model.modules())


class Spares(nn.Module):
    """State that no forward uses, deep and shallow, and buffers that are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.ModuleDict({"a": nn.Linear(4, 4), "spare": nn.Linear(4, 4)})
        self.dec = nn.ModuleDict({"a": nn.Linear(4, 4), "spare": nn.BatchNorm1d(4)})
        self.enc.register_buffer("noted", torch.ones(1))
        self.dec.register_buffer("unsaved", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.dec["a"](self.enc["a"](x)) * self.dec.unsaved  # type: ignore[no-any-return]


def test_state_that_no_forward_uses_goes_where_its_siblings_live() -> None:
    model = Spares()
    for at in ("enc.a",):
        parts = cut(model, at, ("bottom", "top"))
        assert {key.partition(".")[0] for key in parts["bottom"].state_dict()} == {"enc"}
        assert {key.partition(".")[0] for key in parts["top"].state_dict()} == {"dec"}
        assert [name for name, _ in parts["top"].named_buffers() if "unsaved" in name] == ["dec.unsaved"]
        assert isinstance(parts["top"], Part)


class ReadThenWritten(nn.Module):
    """A tensor read above the cut before it is changed in place below it, and a first layer for each mode."""

    def __init__(self) -> None:
        super().__init__()
        self.train_only, self.fc, self.last, self.eval_only = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.train_only(x) if self.training else self.eval_only(x)
        before = x + 1
        x.relu_()
        return self.last(self.fc(x) + before)  # type: ignore[no-any-return]


def test_a_tensor_is_read_before_it_is_changed_in_place_even_across_a_cut() -> None:
    model, x = ReadThenWritten(), torch.randn(3, 4)
    for mode in (True, False):
        parts = cut(model.train(mode), "fc", ("bottom", "top"))
        torch.testing.assert_close(run(parts, x), model(x))


def test_a_layer_that_only_one_mode_uses_lies_where_that_mode_uses_it() -> None:
    model, x = ReadThenWritten(), torch.randn(3, 4)
    parts = cut(model, "fc", ("bottom", "top"))
    assert "eval_only.weight" in parts["bottom"].state_dict()
    for mode in (True, False):
        for part in (model, *parts.values()):
            part.train(mode)
        torch.testing.assert_close(run(parts, x), model(x))
