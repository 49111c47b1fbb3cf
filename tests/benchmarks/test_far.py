"""What is said of long round trips rests on a true AUC, and on runs that are exact where they are said to be."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from cutlayer import simulate

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import far
from worker import SERVER
from workloads import LR, WORKLOADS


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_how_often_a_row_of_class_one_scores_higher(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = random.normal(size=60).astype(np.float32), (random.random(60) < 0.3).astype(np.float32)
    above = [one > other for one in scores[labels > 0] for other in scores[labels == 0]]
    assert far.area(scores, labels) == pytest.approx(np.mean(above), abs=1e-12)


def test_two_parties_with_two_bands_each_train_the_uncut_model() -> None:
    workload = WORKLOADS["W3V"]
    x, y, _ = workload.epochs(2)
    model = workload.model()
    shares = dict(zip(workload.clients, x.chunk(2, 1), strict=True)) | {SERVER: y}
    result = simulate(
        model,
        data={name: TensorDataset(share) for name, share in shares.items()},
        roles={SERVER: "server"},
        topology="vertical",
        optimizer={"name": "SGD", "lr": LR},
        batch_size=workload.batch,
        shuffle=False,
        held_out=0.0,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for at in range(0, len(x), workload.batch):
        rows = slice(at, at + workload.batch)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, weights in result.model_for().state_dict().items():
        torch.testing.assert_close(weights, model.state_dict()[name], rtol=0, atol=1e-6)
