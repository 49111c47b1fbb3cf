"""What the demo compares with: the same model, uncut, in plain PyTorch, on one hospital's rows or on all of them."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cutlayer.cli.demo.hospitals import DIAGNOSES
from cutlayer.cli.demo.project import HOSPITALS
from cutlayer.data.tables import read_table
from cutlayer.party.agreement import Agreement

Accuracies = dict[str, float]
"""By hospital, on its held-out rows."""


def compare(agreement: Agreement, root: Path) -> dict[str, Accuracies]:
    """Accuracies `alone` and `pooled`, with the plan's initial weights, optimizer, batch size and rounds."""
    torch.set_num_threads(1)  # the parties' processes need the cores, too
    train = {name: _rows(root / name / "train.csv") for name in HOSPITALS}
    held_out = {name: _rows(root / name / "held_out.csv") for name in HOSPITALS}
    pooled = _train(agreement, _pool(train))
    return {
        "alone": {name: _accuracy(_train(agreement, train[name]), held_out[name]) for name in HOSPITALS},
        "pooled": {name: _accuracy(pooled, held_out[name]) for name in HOSPITALS},
    }


def _rows(path: Path) -> TensorDataset:
    return read_table(path, None, "diagnosis", classes=DIAGNOSES)


def _pool(rows: Mapping[str, TensorDataset]) -> TensorDataset:
    return TensorDataset(*(torch.cat(column) for column in zip(*(r.tensors for r in rows.values()), strict=True)))


def _train(agreement: Agreement, rows: TensorDataset) -> nn.Module:
    training = agreement.plan.terms.training
    model = copy.deepcopy(agreement.model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=training.optimizer.options["lr"])  # type: ignore[arg-type]
    order = torch.Generator().manual_seed(agreement.plan.terms.seed)
    for _ in range(training.rounds):
        for x, y in DataLoader(rows, training.batch_size, shuffle=True, generator=order):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module, rows: TensorDataset) -> float:
    x, y = rows.tensors
    return float((model(x).argmax(1) == y).double().mean())
