"""The network that three hospitals train together. It is cut after the layers that plan.toml names."""

from collections import OrderedDict

from torch import nn


def build() -> nn.Module:
    """The whole, uncut model: 30 measurements of a cell sample in, a score each for malignant and benign out.

    The first layer scales the measurements by what each hospital's own batches look like; it learns nothing else.
    """
    return nn.Sequential(
        OrderedDict(
            scale=nn.BatchNorm1d(30, affine=False),
            bottom=nn.Linear(30, 32),
            bottom_relu=nn.ReLU(),
            middle_1=nn.Linear(32, 64),
            middle_1_relu=nn.ReLU(),
            middle_2=nn.Linear(64, 32),
            middle_2_relu=nn.ReLU(),
            head=nn.Linear(32, 2),
        )
    )
