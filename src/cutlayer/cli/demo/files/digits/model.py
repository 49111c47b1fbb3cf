"""The network that three hospitals train together. It is cut after the layers that plan.toml names."""

from collections import OrderedDict

from torch import nn


def build() -> nn.Module:
    """The whole, uncut model: a grey image of 8 times 8 pixels in, a score for each of ten digits out."""
    return nn.Sequential(
        OrderedDict(
            bottom=nn.Conv2d(1, 8, 3, padding=1),
            bottom_relu=nn.ReLU(),
            bottom_pool=nn.MaxPool2d(2),
            middle_1=nn.Conv2d(8, 16, 3, padding=1),
            middle_1_relu=nn.ReLU(),
            middle_1_pool=nn.MaxPool2d(2),
            flat=nn.Flatten(),
            middle_2=nn.Linear(64, 32),
            middle_2_relu=nn.ReLU(),
            head=nn.Linear(32, 10),
        )
    )
