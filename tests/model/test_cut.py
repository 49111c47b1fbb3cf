"""Cut anywhere, the parts compute what the uncut model computes: outputs, gradients, buffers, in both modes."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from random import Random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutlayer.errors import CutError
from cutlayer.model.cut import cut
from cutlayer.model.merge import merge

Tensors = tuple[Tensor, ...]


def conv(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


class Block(nn.Module):
    """A residual block that works in place wherever it can."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        same = before == after
        self.downsample = None if same else nn.Sequential(nn.Conv2d(before, after, 1), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(2, 3)
        self.layer1 = nn.Sequential(Block(3, 3), Block(3, 3))
        self.layer2 = nn.Sequential(Block(3, 4))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layer2(self.layer1(self.stem(x))))
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2, self.mid = conv(2, 3), conv(3, 4), conv(4, 4)
        self.pool, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.dec2, self.dec1, self.out = conv(8, 3), conv(6, 3), nn.Conv2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.enc1(x)
        b = self.enc2(F.max_pool2d(a, 2))
        c = self.mid(self.pool(b))
        b = self.dec2(torch.cat([self.up(c), b], 1))
        return self.out(self.dec1(torch.cat([F.interpolate(b, size=a.shape[2:]), a], 1)))  # type: ignore[no-any-return]


class FunctionalDropout(nn.Module):
    """Asks `self.training` in a call and in an if, and draws noise only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(torch.relu(self.fc1(x)), 0.5, self.training)
        x = self.fc2(x)
        if self.training:
            x = x + torch.randn_like(x)
        return self.fc3(torch.tanh(x))  # type: ignore[no-any-return]


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.cls = nn.Conv2d(2, 4, 3, 3), nn.Parameter(torch.randn(1, 1, 4))
        self.pos = nn.Parameter(torch.randn(1, 5, 4))
        self.blocks = nn.ModuleList(Attend() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(batch, -1, -1), x], dim=1)
        x = x + self.pos[:, : x.size(1)]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


class Tagger(nn.Module):
    """Token ids in, the recurrent layer returns a nested tuple, a mask of constants on the receiver's device."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(11, 4), nn.LSTM(4, 3, batch_first=True)
        self.mix, self.out = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen, (state, _) = self.lstm(self.embed(ids), (torch.zeros(1, ids.size(0), 3).double(),) * 2)
        state = state.transpose(0, 1).expand(ids.size(0), ids.size(1), 3)
        h = torch.relu(self.mix(torch.cat([seen, state], -1)))
        if mask is not None:
            h = h * mask
        steps = (torch.ones(ids.size(1)) * torch.arange(ids.size(1), device=ids.device)).view(1, -1, 1)
        return self.out(h) + steps * torch.tensor(0.5), h


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(2, 3), nn.Conv2d(3, 2, 1), nn.Sequential(nn.Conv2d(3, 2, 1), conv(2, 2))
        self.pool, self.fc = nn.AvgPool2d(3, 1, 1), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([self.one(x), self.two(x), self.pool(x)], 1)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Sizes(nn.Module):
    """Sizes taken early and used late, as numbers, a product, a quotient, a whole shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(48, 4), nn.Linear(4, 48)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        n, shape = x.size(0), x.shape
        half = n * x.numel() / 2
        x = torch.relu(self.conv2(x)).view(n, -1)
        return self.fc2(self.fc1(x)).view(shape).mean((2, 3)).view(shape[0] * 1, -1) / half  # type: ignore[no-any-return]


class InPlace(nn.Module):
    """Changes tensors that others read before and after; two inputs; state that no forward uses."""

    counter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 5), nn.Linear(3, 5), nn.Linear(5, 5)
        self.side, self.fc4, self.fc5 = nn.Linear(5, 5), nn.Linear(5, 4), nn.Linear(4, 2)
        self.spare = nn.BatchNorm1d(5)
        self.register_buffer("counter", torch.zeros(()))
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.fc5.register_parameter("unused", nn.Parameter(torch.ones(2)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.counter.add_(1)
        x = self.fc1(a) + self.fc2(b)
        before = x + 1
        F.relu(x, inplace=True)
        y = self.fc3(before)
        y += x
        z = self.side(before) + y
        z.mul_(0.5)
        z[:, 1:].add_(1.0)
        return self.fc5(self.fc4(z.tanh()))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """A network, how to make its inputs, and the layers at which it must not be cut, each with words of the reason."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensors]
    refused: Mapping[str, str] = field(default_factory=dict)


def image() -> Tensors:
    return (torch.randn(3, 2, 6, 6),)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(5, 4), nn.Linear(4, 2))


def nested() -> nn.Module:
    features = nn.Sequential(conv(2, 3), nn.Dropout2d(0.4), conv(3, 4), nn.MaxPool2d(2))
    return nn.Sequential(
        *features.children(), nn.Flatten(), nn.Sequential(nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2))
    )


LAST = "no parameters"
FX = {f"blocks.{i}.attention.out_proj": "torch.fx cannot follow" for i in range(2)}
CASES = {
    "mlp": Case(mlp, lambda: (torch.randn(3, 6),), {"4": LAST}),
    "nested": Case(nested, image, {"5": LAST, "5.2": LAST}),
    "resnet": Case(
        ResNet,
        image,
        {
            "fc": LAST,
            "layer1.0.relu": "2 times",
            "layer1.1.relu": "2 times",
            "layer2.0.relu": "2 times",
        },
    ),
    "unet": Case(UNet, lambda: (torch.randn(3, 2, 8, 8),), {"out": LAST}),
    "functional dropout": Case(FunctionalDropout, lambda: (torch.randn(3, 6),), {"fc3": LAST}),
    "vit": Case(ViT, image, {"head": LAST, "blocks": "never called"} | FX),
    "tagger": Case(Tagger, lambda: (torch.randint(0, 11, (3, 4)),), {"out": LAST}),
    "inception": Case(Inception, image, {"fc": LAST}),
    "sizes": Case(Sizes, image, {"fc2": LAST}),
    "in place": Case(
        InPlace,
        lambda: (torch.randn(3, 6), torch.randn(3, 3)),
        {"fc1": "raw input 'b'", "fc2": "raw input", "fc5": LAST, "spare": "never called"},
    ),
}


def made(case: Case) -> tuple[nn.Module, Tensors]:
    torch.manual_seed(1)
    model = case.build().double()
    return model, tuple(x.double() if x.is_floating_point() else x for x in case.inputs())


def layers(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def as_tuple(out: Tensor | Tensors) -> Tensors:
    return out if isinstance(out, tuple) else (out,)


def loss(out: Tensors) -> Tensor:
    return torch.stack([(t * torch.arange(t.numel()).view(t.shape).cos()).sum() for t in out]).sum()


def split_step(parts: Sequence[nn.Module], inputs: Tensors) -> Tensors:
    """Forward and backward as parties do it: every part gets tensors of its own, gradients come back for them."""
    sent: list[tuple[Tensors, Tensors]] = []
    tensors = inputs
    for part in parts:
        leaves = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
        tensors = as_tuple(part(*leaves))
        sent.append((leaves, tensors))
    torch.autograd.backward(loss(tensors))
    for (above, _), (_, below) in zip(sent[:0:-1], sent[-2::-1], strict=True):
        pairs = [(out, leaf.grad) for out, leaf in zip(below, above, strict=True) if leaf.grad is not None]
        torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
    return tensors


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}


def assert_equal_step(model: nn.Module, at: Sequence[str], inputs: Tensors, *, training: bool) -> None:
    """One step of the parts equals one step of the uncut model."""
    whole, model = copy.deepcopy(model), copy.deepcopy(model)
    parts = cut(model, at, [f"part{i}" for i in range(len(at) + 1)])
    for module in (whole, *parts.values()):
        module.train(training)
    torch.manual_seed(2)
    wanted = as_tuple(whole(*inputs))
    torch.autograd.backward(loss(wanted))
    torch.manual_seed(2)
    torch.testing.assert_close(split_step(list(parts.values()), inputs), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(model), gradients(whole), rtol=0, atol=1e-12)
    torch.testing.assert_close(dict(model.named_buffers()), dict(whole.named_buffers()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_parts_equal_the_uncut_model_at_every_cut(name: str) -> None:
    case = CASES[name]
    model, inputs = made(case)
    for number, layer in enumerate(layers(model)):
        if layer in case.refused:
            with pytest.raises(CutError, match=case.refused[layer]):
                cut(model, layer, ("bottom", "top"))
        else:
            assert_equal_step(model, [layer], inputs, training=True)
            if number % 3 == 0:
                assert_equal_step(model, [layer], inputs, training=False)


def assert_equal_at_pairs(case: Case, most: int) -> None:
    model, inputs = made(case)
    possible = list(combinations([layer for layer in layers(model) if layer not in case.refused], 2))
    equal = 0
    for pair in Random(3).sample(possible, min(most, len(possible))):  # noqa: S311
        try:
            assert_equal_step(model, pair, inputs, training=True)
            equal += 1
        except CutError as error:
            assert re.search("out of order|does not depend|no parameters", str(error)), pair  # noqa: PT017
    assert equal


@pytest.mark.parametrize("name", CASES)
def test_three_parts_equal_the_uncut_model_at_some_pairs_of_cuts(name: str) -> None:
    assert_equal_at_pairs(CASES[name], 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_three_parts_equal_the_uncut_model_at_many_pairs_of_cuts(name: str) -> None:
    assert_equal_at_pairs(CASES[name], 100)


@pytest.mark.parametrize("name", CASES)
def test_states_of_the_parts_add_up_to_the_models_at_every_cut(name: str) -> None:
    model, _ = made(CASES[name])
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for layer in layers(model):
        if layer not in CASES[name].refused:
            parts = cut(model, layer, ("bottom", "top")).values()
            assert sorted(key for part in parts for key in part.state_dict()) == sorted(model.state_dict())
            held = {n: t for part in parts for n, t in (*part.named_parameters(), *part.named_buffers())}
            assert all(held[n] is t for n, t in own.items())
            assert all(part.training for part in parts)


@pytest.mark.parametrize("name", CASES)
def test_copies_of_the_parts_share_nothing_and_merge_to_the_uncut_model(name: str) -> None:
    model, inputs = made(CASES[name])
    layer = next(layer for layer in layers(model) if layer not in CASES[name].refused)
    parts = cut(model, layer, ("bottom", "top"))
    copies = copy.deepcopy(parts)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    split_step(list(copies.values()), inputs)
    with torch.no_grad():
        for tensor in (t for part in copies.values() for t in (*part.parameters(), *part.buffers())):
            tensor.add_(1)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    trained = {key: value for part in copies.values() for key, value in part.state_dict().items()}
    for given in (copies.values(), [part.state_dict() for part in copies.values()]):
        torch.testing.assert_close(dict(merge(model, given).state_dict()), trained, rtol=0, atol=0)
