"""Two parties have a half of each image, a third its label: trained together, and used with a half missing.

    python examples/vertical_images.py

The server joins the halves, and sees neither pixels nor labels (vertical_u_shaped). Needs scikit-learn.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import cutlayer

HALVES = ("left", "right")


def network() -> cutlayer.Parts:
    """A bottom for each half `[B, 32]`, a middle on both side by side, a head that tells ten digits."""
    torch.manual_seed(0)
    bottoms = {f"bottom_{half}": nn.Sequential(nn.Linear(32, 64), nn.ReLU()) for half in HALVES}
    return cutlayer.Parts(**bottoms, middle=nn.Sequential(nn.Linear(128, 64), nn.ReLU()), head=nn.Linear(64, 10))


def digits() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each party has of the same images: to train on, and every fifth to test with."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16
    held = {
        "left": images[:, :, :4].flatten(1),
        "right": images[:, :, 4:].flatten(1),
        "clinic": torch.tensor(data.target),
    }
    test = torch.arange(len(images)) % 5 == 0
    return {name: values[~test] for name, values in held.items()}, {name: values[test] for name, values in held.items()}


def trained(train: dict[str, Tensor], party_dropout: float) -> cutlayer.Result:
    """The network trained through its cuts; in a part of the steps a half is left out."""
    return cutlayer.simulate(
        network(),
        data={name: TensorDataset(values) for name, values in train.items()},
        roles={"clinic": "labels"},
        topology="vertical_u_shaped",
        party_dropout=party_dropout,
        optimizer="adam",
        lr=5e-3,
        rounds=12,
        held_out=0.0,
    )


def main() -> None:
    """Print how well digits are told from all pixels and from half, trained with party dropout and without."""
    train, test = digits()
    result, plain = trained(train, 0.3), trained(train, 0.0).model_for()
    for absent in ([], ["right"], ["left"]):
        halves = {half: TensorDataset(test[half]) for half in HALVES if half not in absent}
        told = result.predict(halves, absent=absent)["head"]["all"]
        outs = [plain.get_submodule(f"bottom_{half}")(test[half]) * (half in halves) for half in HALVES]
        untaught = plain.get_submodule("head")(plain.get_submodule("middle")(torch.cat(outs, 1)))
        with_it, without = (float((each.argmax(1) == test["clinic"]).float().mean()) for each in (told, untaught))
        print(f"{' and '.join(halves):14} accuracy {with_it:.3f}  trained without dropout {without:.3f}")
    left = {party: meter.raw_rows_sent("labels") for party, meter in result.meters.items()}
    print(f"labels that left their party: {left}")


if __name__ == "__main__":
    main()
