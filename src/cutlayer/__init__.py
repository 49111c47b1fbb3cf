"""Split learning: one network, cut into segments; only activations and gradients cross."""

from cutlayer.errors import CutlayerError
from cutlayer.model.parts import Parts
from cutlayer.simulate import Result, simulate

__version__ = "0.1.0"
__all__ = ["CutlayerError", "Parts", "Result", "__version__", "simulate"]
