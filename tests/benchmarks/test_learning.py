"""Every schedule learns: real MNIST, ten clients with rows alike, 97% of the test images."""

import sys
from pathlib import Path

import pytest
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import learning  # noqa: E402

MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not MNIST.is_file(), reason="MNIST is not beside the repository"),
]
Data = tuple[dict[str, TensorDataset], TensorDataset]


@pytest.fixture(scope="module")
def data() -> Data:
    rows, test = learning.mnist(MNIST)
    return learning.dealt(rows, "iid", 1.0), test


@pytest.mark.parametrize(
    "schedule",
    [pytest.param(name, marks=pytest.mark.slow if name == "relay" else pytest.mark.long) for name in learning.ROUNDS],
)
def test_a_schedule_reaches_97_percent_on_mnist_with_ten_clients(schedule: str, data: Data) -> None:
    clients, test = data
    score = learning.score(schedule, "iid", clients, test)
    print(learning.line(score))
    assert score.mean >= 0.97
