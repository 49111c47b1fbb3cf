"""Where a model cannot be cut, the error says why and what to do; and the model stays as it was."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.errors import CutError
from cutlayer.model.cut import At, cut

Run = Callable[["Net", Tensor], object]


class Net(nn.Module):
    """Three layers, a shared ReLU and dropout, and a forward that each test gives."""

    scale: Tensor

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(4, 4) for _ in range(3))
        self.norm, self.relu, self.drop = nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout()
        self.register_buffer("scale", torch.ones(()))
        self.kept: object = None
        self.run = run

    def forward(self, x: Tensor) -> object:
        return self.run(self, x)


def straight(net: Net, x: Tensor) -> Tensor:
    return net.fc3(net.relu(net.fc2(net.relu(net.fc1(x)))))  # type: ignore[no-any-return]


def dropped(net: Net, x: Tensor) -> Tensor:
    return net.fc2(net.drop(net.fc1(x)))  # type: ignore[no-any-return]


def refused(match: str, model: nn.Module | Run, at: At = "fc1", names: tuple[str, ...] = ("bottom", "top")) -> None:
    with pytest.raises(CutError, match=match):
        cut(model if isinstance(model, nn.Module) else Net(model), at, names)


def test_unknown_layers_are_refused_with_the_nearest_names() -> None:
    refused(r"no layer 'fc11': name one of its layers, such as 'fc1'", straight, "fc11")
    refused("no layer 7", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 7)
    refused("no layer 0", straight, 0)
    refused("cannot be cut after itself", straight, "")


def test_numbers_of_cuts_and_names_must_fit() -> None:
    refused("1 cuts make 2 parts, but 3 are wanted", straight, "fc1", ("bottom", "middle", "head"))
    refused("0 cuts make 1 parts, but 2 are wanted", straight, None)
    refused("different names", straight, "fc1", ("bottom", "bottom"))
    refused("different names", straight, "fc1", ())


def test_cuts_out_of_order_or_apart_are_refused() -> None:
    names = ("bottom", "middle", "head")
    refused("'fc2', 'fc1' are out of order", straight, ["fc2", "fc1"], names)
    refused("'fc1', 'fc1' are out of order", straight, ["fc1", "fc1"], names)
    refused("'fc2' does not depend on 'fc1'", lambda n, x: n.fc3(n.fc1(x) + n.fc2(x)), ["fc1", "fc2"], names)


def test_a_layer_that_is_called_twice_never_or_for_nothing_is_refused() -> None:
    refused("called 2 times", lambda n, x: n.fc2(n.relu(n.fc1(n.relu(x)))), "relu")
    refused("'norm' is never called", straight, "norm")
    refused("does not depend on 'fc1'", lambda n, x: (n.fc1(x), n.fc2(x))[1])
    refused("no tensor crosses", lambda n, x: n.fc2(torch.ones(n.fc1(x).size(0), 4)))


def test_the_raw_input_never_crosses() -> None:
    refused(
        "the raw input 'x' would leave its owner at the cut 'fc1', since layer 'fc2'", lambda n, x: n.fc1(x) + n.fc2(x)
    )
    refused("raw input 'x'.*since `add` in the model's forward", lambda n, x: n.fc2(n.fc1(x)) + x)
    refused("raw input 'x'", lambda n, x: n.fc2(n.fc1(x)) + x[:, :1])
    refused("raw input 'x'", lambda n, x: n.fc2(n.fc1(x)) + x.mean(1, keepdim=True))
    refused("raw input 'x'", lambda n, x: (n.fc2(n.fc1(x)), x))
    refused("raw input 'x'", lambda n, x: _used_twice(n, torch.cat([x[:, :2], n.fc2(x)[:, :2]], 1)))


def _as_first(net: Net, x: Tensor) -> object:
    return net.fc3(net.fc2(x)).to(x.dtype)


def _used_twice(net: Net, x: Tensor) -> object:
    return net.fc3(net.fc1(x)) + x


def test_a_part_without_parameters_is_refused() -> None:
    refused("part 'top' would have no parameters", lambda n, x: n.relu(n.fc3(n.fc2(n.norm(n.fc1(x))))), "fc3")
    refused("part 'middle' would have no parameters", dropped, ["fc1", "drop"], ("bottom", "middle", "head"))
    refused("raw input", nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), 0)


def test_tied_weights_and_shared_state_are_refused_but_a_shared_relu_is_not() -> None:
    tied = Net(straight)
    tied.fc3.weight = tied.fc1.weight
    refused(r"'fc1.weight' in part 'bottom' and 'fc3.weight' in part 'top' are one tensor", tied)
    refused("'fc1.weight' is used in parts", lambda n, x: n.fc2(n.fc1(x) @ n.fc1.weight))
    refused("'norm.weight' is used in parts", lambda n, x: n.fc2(n.norm(n.fc1(n.norm(x)))))
    refused("'scale' is used in parts", lambda n, x: n.fc2(n.fc1(x * n.scale)) * n.scale)
    shared = Net(straight)
    shared.norm.running_var = shared.scale
    shared.run = lambda n, x: n.fc2(n.norm(n.fc1(x * n.scale)))
    refused("tied weights", shared)
    cut(Net(straight), "fc2", ("bottom", "top"))


def test_what_fx_cannot_trace_is_refused_with_its_reason_and_the_way_out() -> None:
    def by_data(net: Net, x: Tensor) -> Tensor:
        return straight(net, x) if x.sum() > 0 else x

    refused(r"the model \(Net\) \(.*control flow\): give explicit parts instead, `Parts\(bottom", by_data)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, enable_nested_tensor=False
    )
    refused("give explicit parts", encoder, "layers.0")
    refused(r"takes '\*x: ", Starred())
    refused("returns a dict", lambda n, x: {"out": straight(n, x)})


def test_a_forward_that_does_what_its_graph_would_not_is_refused() -> None:
    def without_gradients(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = net.fc1(x)
        return net.fc2(x)  # type: ignore[no-any-return]

    def in_half(net: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = net.fc1(x)
        return net.fc2(x.float())  # type: ignore[no-any-return]

    def skipping(net: Net, x: Tensor) -> Tensor:
        x = net.fc1(x)
        return net.fc2(x) if random.random() > 0.1 else net.fc3(x)  # type: ignore[no-any-return]  # noqa: S311

    refused("switches gradients or autocast", without_gradients)
    refused("switches gradients or autocast", in_half)
    refused("draws random numbers", skipping)
    refused("draws random numbers", lambda n, x: straight(n, x) + torch.randn(4))
    refused("makes a tensor of parameters", lambda n, x: n.fc2(n.fc1(x)) + list(n.fc3.parameters())[1].abs())
    refused("or of its mode", lambda n, x: n.fc2(n.fc1(x)) + torch.tensor(1.0 if n.training else 2.0))


class Starred(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 4)

    def forward(self, *x: Tensor) -> object:
        return self.fc1(x[0])


def test_a_crossing_that_depends_on_the_mode_is_refused() -> None:
    def auxiliary(net: Net, x: Tensor) -> object:
        first = net.fc1(x)
        out = net.fc3(net.fc2(first))
        return (out, net.norm(first)) if net.training else out

    refused("2 tensors cross the cut 'fc2' in training, in evaluation 1", auxiliary, "fc2")


def test_a_dtype_or_an_unpacked_tuple_cannot_cross() -> None:
    refused("dtype", lambda n, x: _as_first(n, n.fc1(x)), "fc2")
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4), nn.Linear(4, 4))
    parts = cut(model, 1, ("bottom", "top"))
    with pytest.raises(CutError, match=r"output 1 of a part is a tuple.*unpack it"):
        parts["bottom"](torch.ones(2, 3, 4))


def test_a_view_that_crosses_beside_its_tensor_and_is_written_above_is_refused() -> None:
    def written(net: Net, x: Tensor) -> Tensor:
        h = net.fc1(x)
        view = h.view(-1, 4)
        h = net.fc2(h + view)
        return net.fc3(h) + view.mul_(2) + net.norm(view)  # type: ignore[no-any-return]

    def twice(net: Net, x: Tensor) -> Tensor:
        h = net.fc1(x)
        view = h.view(2, -1)
        out = net.fc2(h + view.view(-1, 4))
        view.mul_(2)
        return net.fc3(out) + h + view.view(-1, 4)  # type: ignore[no-any-return]

    cut(Net(written), "fc2", ("bottom", "top"))
    refused("as itself and as a view", twice, "fc2")


class Frozen(nn.Sequential):
    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def test_what_a_cut_would_drop_is_refused() -> None:
    refused("overrides train", Frozen(nn.Linear(4, 4), nn.Linear(4, 4)), 0)
    mixed = nn.Sequential(Net(lambda n, x: n.fc2(F.dropout(n.fc1(x), 0.5, n.training))))
    mixed[0].training = False
    refused("differ in it", mixed, "0.fc1")
    hooked = Net(straight)
    hooked.register_forward_hook(lambda *_: None)
    refused("hooks", hooked)
    refused(r"would not add up to the model's \(_extra_state\)", Extra(nn.Linear(4, 4), nn.Linear(4, 4)), 0)


class Extra(nn.Sequential):
    def get_extra_state(self) -> Tensor:
        return torch.ones(1)


def test_a_refused_cut_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    def stores(net: Net, x: Tensor) -> Tensor:
        net.kept = net.fc1(x)
        return net.fc2(net.kept) + torch.randn(4) * random.random()  # type: ignore[no-any-return]  # noqa: S311

    model = Net(stores).eval()
    held, drawn = set(model.__dict__), (random.getstate(), torch.get_rng_state())
    refused("random numbers", model)
    assert set(model.__dict__) == held
    assert model.kept is None
    assert not any(module.training for module in model.modules())
    assert random.getstate() == drawn[0]
    assert torch.equal(torch.get_rng_state(), drawn[1])
