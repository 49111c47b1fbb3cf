"""Networks that are cut in several tests: small, in float64, each hard to cut in a way of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from cutlayer import Parts


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.Linear(8, 7),
        nn.Tanh(),
        nn.Sequential(nn.Linear(7, 5), nn.Dropout(0.2, inplace=True), nn.ReLU(inplace=True)),
        nn.Linear(5, 3),
    )


def conv_net() -> nn.Module:
    """BatchNorm in train mode, a bias before it whose gradient is zero, dropout of elements and of channels."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.3),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=None)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.4),
        nn.Linear(4, 3),
    )


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        same = before == after
        self.downsample = (
            None if same else nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu2(out)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True))
        self.layer1, self.layer2 = nn.Sequential(Block(3, 3)), nn.Sequential(Block(3, 4))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.layer2(self.layer1(self.stem(x))))
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Scores per pixel; what the encoder gives passes by the middle to the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.mid, self.up = nn.Conv2d(4, 4, 3, padding=1), nn.Upsample(scale_factor=2)
        self.dec2, self.dec1 = nn.Conv2d(8, 3, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.enc1(x))
        b = torch.relu(self.enc2(F.max_pool2d(a, 2)))
        c = torch.relu(self.mid(F.avg_pool2d(b, 2)))
        b = torch.relu(self.dec2(torch.cat([self.up(c), b], 1)))
        a = torch.tanh(self.dec1(torch.cat([F.interpolate(b, size=a.shape[2:]), a], 1)))
        return self.out(a)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(9, 4), nn.Parameter(torch.randn(5, 4))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.position
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h).mean(1))  # type: ignore[no-any-return]


class Reader(nn.Module):
    """A recurrent layer that torch.fx need not follow; two tensors cross after it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru = nn.Embedding(9, 4), nn.GRU(4, 5, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.gru(self.embed(ids))
        return states, last.transpose(0, 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(5, 1)

    def forward(self, states: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        weights = torch.softmax(self.score(states), 1)
        longest = states.shape[1] if bool((weights > 0).all()) else 0  # what no tracer follows
        return (weights * states)[:, :longest].sum(1), last


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.fc = nn.Dropout(0.2), nn.Linear(15, 3)

    def forward(self, seen: Tensor, last: Tensor) -> Tensor:
        return self.fc(self.dropout(torch.cat([seen, last.flatten(1)], 1)))  # type: ignore[no-any-return]


def recurrent() -> nn.Module:
    return Parts(reader=Reader(), attention=Attention(), scorer=Scorer())


class Gate(nn.Module):
    """Returns a tensor with a gradient, one of whole numbers and one of truth values without."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.fc1(x)
        return torch.tanh(self.fc2(h)), h.argsort(1), h > 0


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)

    def forward(self, h: Tensor, rank: Tensor, open_: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.where(open_, h, 0.1 * h).gather(1, rank)
        return torch.relu(self.fc(h)), rank


class Ranked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, h: Tensor, rank: Tensor) -> Tensor:
        return self.fc(h) * rank[:, :3]  # type: ignore[no-any-return]


def gated() -> nn.Module:
    return Parts(gate=Gate(), gated=Gated(), ranked=Ranked())


class InPlaceFirst(nn.Module):
    """Its first layer would write into the rows themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.clip, self.fc1, self.fc2 = nn.ReLU(inplace=True), nn.Linear(6, 5), nn.Linear(5, 4)
        self.elu, self.fc3 = nn.ELU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(torch.relu_(self.fc1(self.clip(x))))
        return self.fc3(self.elu(x))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and rows for it; `cuts` is how many of its layers it can be cut after."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    cuts: int
    vocabulary: int = 0
    label_shape: tuple[int, ...] = ()

    def model(self) -> nn.Module:
        torch.manual_seed(1)
        return self.build().double()

    def rows(self, count: int, seed: int = 0) -> TensorDataset:
        random = torch.Generator().manual_seed(100 + seed)
        if self.vocabulary:
            x = torch.randint(0, self.vocabulary, (count, *self.shape), generator=random)
        else:
            x = torch.randn((count, *self.shape), generator=random, dtype=torch.float64)
        return TensorDataset(x, torch.randint(0, 3, (count, *self.label_shape), generator=random))


CASES: dict[str, Case] = {
    "mlp": Case(build=mlp, shape=(6,), cuts=9),
    "conv net": Case(build=conv_net, shape=(2, 6, 6), cuts=11),
    "resnet": Case(build=ResNet, shape=(2, 4, 4), cuts=24),
    "unet": Case(build=UNet, shape=(2, 4, 4), cuts=6, label_shape=(4, 4)),
    "transformer": Case(build=Transformer, shape=(5,), cuts=4, vocabulary=9),
    "recurrent": Case(build=recurrent, shape=(4,), cuts=2, vocabulary=9),
    "gated": Case(build=gated, shape=(6,), cuts=2),
    "in place first": Case(build=InPlaceFirst, shape=(6,), cuts=3),
}


def layers(model: nn.Module) -> Sequence[str]:
    return [name for name, _ in model.named_modules() if name]
