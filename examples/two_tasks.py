"""Two sites have other columns of the same tumours; one server learns the diagnosis from them, another a size.

    python examples/two_tasks.py

Both tasks train the sites' bottoms, each with its weight; no server sees the other's labels. Needs scikit-learn.
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import cutlayer

SITES, SERVERS = ("imaging", "biopsy"), ("pathology", "surgery")
WORST_AREA = 23
"""The column that surgery wants to know beforehand."""


def network() -> cutlayer.Parts:
    """A bottom for each site's columns `[B, 10]`; on both of them a top for two classes and a top for a number."""
    torch.manual_seed(0)
    bottoms = {f"bottom_{site}": nn.Sequential(nn.Linear(10, 16), nn.ReLU()) for site in SITES}
    return cutlayer.Parts(**bottoms, top_pathology=nn.Linear(32, 2), top_surgery=nn.Linear(32, 1))


def tumours() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each party has of the same tumours: to train on, and every fourth to test with. Numbers are scaled."""
    table = load_breast_cancer()
    x = torch.tensor(table.data, dtype=torch.float32)
    test = torch.arange(len(x)) % 4 == 0
    x = (x - x[~test].mean(0)) / x[~test].std(0)
    held = {"imaging": x[:, :10], "biopsy": x[:, 10:20]}
    held |= {"pathology": torch.tensor(table.target), "surgery": x[:, [WORST_AREA]]}
    return {name: values[~test] for name, values in held.items()}, {name: values[test] for name, values in held.items()}


def main() -> None:
    """Train with three pairs of weights; print what each server's answers are worth on tumours not trained on."""
    train, test = tumours()
    for weight in (0.0, 0.5, 1.0):
        result = cutlayer.simulate(
            network(),
            data={name: TensorDataset(values) for name, values in train.items()},
            roles=dict.fromkeys(SERVERS, "server"),
            topology="multi_task",
            losses={"top_pathology": "cross_entropy", "top_surgery": "mse_loss"},
            loss_weights={"top_pathology": 1 - weight, "top_surgery": weight},
            optimizer="adam",
            lr=5e-3,
            batch_size=32,
            rounds=15,
            held_out=0.0,
        )
        told = result.predict({site: TensorDataset(test[site]) for site in SITES})
        diagnosis, area = (told[f"top_{server}"]["all"] for server in SERVERS)
        accuracy = float((diagnosis.argmax(1) == test["pathology"]).float().mean())
        explained = 1 - float((area - test["surgery"]).square().mean() / test["surgery"].var(correction=0))
        print(f"weights {1 - weight:.1f} and {weight:.1f}: diagnosis accuracy {accuracy:.3f}, size R2 {explained:.3f}")
    left = {party: meter.raw_rows_sent("labels") for party, meter in result.meters.items()}
    print(f"labels that left their party: {left}")


if __name__ == "__main__":
    main()
