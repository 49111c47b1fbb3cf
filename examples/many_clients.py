"""Twenty clients with uneven digits train one network, ten of them a round: SplitFed V1, V2 and V3, and relay.

    python examples/many_clients.py

Rows are dealt with Dirichlet(0.3) label skew. Needs scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import cutlayer
from cutlayer.data.deal import deal

CLIENTS = 20


def network() -> nn.Sequential:
    """Scores `[B, 10]` for images as rows `[B, 64]`; cut after its first activation."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def clients() -> tuple[dict[str, TensorDataset], TensorDataset]:
    """Each client's rows, and some that nobody trains on."""
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    test = torch.arange(len(y)) % 5 == 0
    dealt = deal("dirichlet", y[~test].numpy(), CLIENTS, alpha=0.3, seed=1)
    rows = [torch.from_numpy(dealt.rows_of(number)) for number in range(CLIENTS)]
    data = {f"client-{number}": TensorDataset(x[~test][at], y[~test][at]) for number, at in enumerate(rows)}
    return data, TensorDataset(x[test], y[test])


def main() -> None:
    """Train by each schedule, and print what the first and the last client's whole model gets on the same rows."""
    data, (x, y) = clients()[0], clients()[1].tensors
    for schedule in ("relay", "splitfed_v1", "splitfed_v2", "splitfed_v3"):
        result = cutlayer.simulate(
            network(),
            cut="1",
            data=data,
            schedule=schedule,
            optimizer="adam",
            lr=2e-2,
            batch_size=32,
            rounds=10,
            clients_per_round=10,
            held_out=0.0,
            shuffle=True,
        )
        scores = [float((result.model_for(name)(x).argmax(1) == y).float().mean()) for name in (*data,)[:: CLIENTS - 1]]
        sent = sum(result.bytes[name]["sent"] for name in data)
        print(f"{schedule:12} accuracy {scores[0]:.3f} and {scores[1]:.3f}  sent {sent / 1e6:.1f} MB by all clients")


if __name__ == "__main__":
    main()
