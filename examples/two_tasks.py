"""Two sites have other columns of the same patients; one server learns a diagnosis of them, another a size.

    python examples/two_tasks.py

Both tasks train the sites' bottoms, each with its weight; no server sees the other's labels. Needs scikit-learn.
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import cutlayer

SITES, SERVERS = ("imaging", "texture"), ("pathology", "surgery")


def network() -> cutlayer.Parts:
    """A bottom for each site's columns `[B, 10]`, and on both a top that tells two classes and one that tells a number."""
    torch.manual_seed(0)
    bottoms = {f"bottom_{site}": nn.Sequential(nn.Linear(10, 16), nn.ReLU()) for site in SITES}
    return cutlayer.Parts(**bottoms, top_pathology=nn.Linear(32, 2), top_surgery=nn.Linear(32, 1))
