"""The network that all parties train together. It is cut after the layers that plan.toml names."""

from collections import OrderedDict

from torch import nn


def build() -> nn.Module:
    """The whole, uncut model. Five columns go in; a score for each of two classes comes out."""
    return nn.Sequential(
        OrderedDict(
            normalise=nn.BatchNorm1d(5),
            bottom=nn.Linear(5, 16),
            bottom_relu=nn.ReLU(),
            middle=nn.Linear(16, 16),
            middle_relu=nn.ReLU(),
            head=nn.Linear(16, 2),
        )
    )
