"""What the demo compares with: the same model, uncut, in plain PyTorch, on one hospital's rows or on all of them."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from cutlayer.cli.demo.hospitals import HOSPITALS
from cutlayer.data.factory import open_rows
from cutlayer.keys.certificates import party_secret
from cutlayer.party.agreement import Agreement
from cutlayer.party.local import read_party_file
from cutlayer.plan.streams import stream_seed

Accuracies = dict[str, float]
"""By hospital, on its held-out rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Uncut:
    """The uncut models' accuracies, `alone` and `pooled`; the pooled model, in eval mode, and the steps it took."""

    accuracies: Mapping[str, Accuracies]
    pooled: nn.Module
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """One hospital's, as it opens them itself, and the secret that their order follows."""

    train: TensorDataset
    held_out: TensorDataset
    secret: bytes

    def batches(self, size: int, epoch: int) -> list[Tensor]:
        """The rows of each batch of an epoch, by the rule that cutlayer documents; the last may be smaller."""
        dice = torch.Generator().manual_seed(stream_seed(self.secret, "order", epoch))
        order = torch.randperm(len(self.train), generator=dice)
        return [order[start : start + size] for start in range(0, len(order), size)]


def compare(agreement: Agreement, root: Path) -> Uncut:
    """Trains with the plan's initial weights, optimizer, batch size and rounds; pooled: on the relay's own batches."""
    torch.set_num_threads(1)  # the parties' processes need the cores, too
    hospitals = {name: _read(root / name, name) for name in HOSPITALS}
    pooled, steps = _train(agreement, hospitals)
    alone = {name: _train(agreement, {name: rows})[0] for name, rows in hospitals.items()}
    return Uncut(
        accuracies={
            "alone": {name: _accuracy(alone[name], rows.held_out) for name, rows in hospitals.items()},
            "pooled": {name: _accuracy(pooled, rows.held_out) for name, rows in hospitals.items()},
        },
        pooled=pooled,
        steps=steps,
    )


def _read(folder: Path, name: str) -> _Rows:
    here = read_party_file(folder / f"{name}.toml")

    def opened(reference: str) -> TensorDataset:
        rows: Dataset[tuple[Tensor, ...]] = open_rows(reference, label=here.label, classes=here.classes)
        assert isinstance(rows, TensorDataset)
        return rows

    # The demo made everybody's keys, so it may look at this secret, too. In earnest only the hospital itself can.
    secret = party_secret(Path(here.keys), name)
    return _Rows(train=opened(here.data), held_out=opened(here.held_out), secret=secret)


def _train(agreement: Agreement, hospitals: Mapping[str, _Rows]) -> tuple[nn.Module, int]:
    """One model on the batches of one hospital after another, a pass over each one's rows in every round."""
    training = agreement.plan.terms.training
    model = copy.deepcopy(agreement.model).train()
    optimizer = torch.optim.Adam(model.parameters(), **training.optimizer.options)  # type: ignore[arg-type]
    steps = 0
    for epoch in range(training.rounds):
        for rows in hospitals.values():
            for batch in rows.batches(training.batch_size, epoch):
                x, y = rows.train[batch]
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                steps += 1
    return model.eval(), steps


@torch.no_grad()
def _accuracy(model: nn.Module, rows: TensorDataset) -> float:
    x, y = rows.tensors
    return float((model(x).argmax(1) == y).double().mean())
