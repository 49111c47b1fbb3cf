"""Three clinics with different digits train a small conv net with a server that sees neither rows nor labels.

    python examples/three_clinics.py

The net is cut twice (u_shaped): its first layers, its last layers and the loss stay at each clinic. Needs scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import cutlayer


class DigitNet(nn.Module):
    """8x8 grey images to ten classes, with a skip connection that a cut may go through."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        self.hidden = nn.Linear(16 * 4 * 4, 64)
        self.answer = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores `[B, 10]` for images `[B, 1, 8, 8]`."""
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(torch.relu(x + self.block(x)), 2)
        x = torch.relu(self.hidden(x.flatten(1)))
        return self.answer(x)  # type: ignore[no-any-return]


def clinics() -> dict[str, TensorDataset]:
    """The digits dealt to three clinics: low ones, high ones, and some of each."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    shared = torch.arange(len(labels)) % 4 == 0
    chosen = {"low": (labels < 5) & ~shared, "high": (labels >= 5) & ~shared, "mixed": shared}
    return {name: TensorDataset(images[rows], labels[rows]) for name, rows in chosen.items()}


def main() -> None:
    """Train, and print what each clinic got and what crossed."""
    torch.manual_seed(0)
    result = cutlayer.simulate(
        DigitNet(),
        cut=["block.0", "hidden"],  # inside the skip connection: two tensors cross
        data=clinics(),
        topology="u_shaped",
        turn="batch",
        optimizer="adam",
        lr=3e-3,
        batch_size=32,
        rounds=4,
    )
    for clinic, scores in result.metrics.items():
        sent = result.bytes[clinic]["sent"]
        labels = result.meters[clinic].raw_rows_sent("labels")
        print(f"{clinic:6} accuracy {scores['accuracy']:.3f}  sent {sent / 1e6:.1f} MB, of it labels: {labels}")


if __name__ == "__main__":
    main()
