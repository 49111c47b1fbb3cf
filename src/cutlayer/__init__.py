"""Split learning: one network, cut into segments; only activations and gradients cross."""

from importlib import import_module
from typing import TYPE_CHECKING

from cutlayer.errors import CutlayerError

if TYPE_CHECKING:
    from cutlayer.model.parts import Parts
    from cutlayer.party.export import load_model
    from cutlayer.simulation import Result, simulate

# (The room is called `simulation`: a module called like the function would take its place when it is imported.)
__version__ = "0.1.0"
__all__ = ["CutlayerError", "Parts", "Result", "__version__", "load_model", "simulate"]

_ROOMS = {
    "Parts": "cutlayer.model.parts",
    "Result": "cutlayer.simulation",
    "load_model": "cutlayer.party.export",
    "simulate": "cutlayer.simulation",
}


def __getattr__(name: str) -> object:
    """Bring in torch only with the first name that needs it: keys, plans and transports do not."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'cutlayer' has no attribute {name!r}")
    value = getattr(import_module(_ROOMS[name]), name)
    globals()[name] = value
    return value
