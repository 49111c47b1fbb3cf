"""The defences by name.

>>> build([Method(name="gaussian", options={"clip": 1.0, "sigma": 0.5})])[0].name
'gaussian(clip=1.0, sigma=0.5)'
"""

from collections.abc import Sequence

from cutlayer.defence.decorrelation import Decorrelation
from cutlayer.defence.defence import Defence
from cutlayer.defence.dp_sgd import DpSgd
from cutlayer.defence.gaussian import Gaussian
from cutlayer.defence.isotropic import Isotropic
from cutlayer.defence.label_dp import LabelDp
from cutlayer.defence.laplace import Laplace
from cutlayer.defence.marvell import Marvell
from cutlayer.defence.max_norm import MaxNorm
from cutlayer.defence.nopeek import NoPeek
from cutlayer.defence.patch_shuffle import PatchShuffle
from cutlayer.defence.shredder import Shredder
from cutlayer.errors import PlanError
from cutlayer.plan.methods import method_faults
from cutlayer.plan.terms import Method

METHODS: dict[str, type[Defence]] = {
    "gaussian": Gaussian,
    "laplace": Laplace,
    "isotropic": Isotropic,
    "max_norm": MaxNorm,
    "marvell": Marvell,
    "label_dp": LabelDp,
    "patch_shuffle": PatchShuffle,
    "shredder": Shredder,
    "nopeek": NoPeek,
    "decorrelation": Decorrelation,
    "dp_sgd": DpSgd,
}


def faults(methods: Sequence[Method]) -> list[str]:
    """What is wrong with methods that a plan names, one after another: one sentence each."""
    return [fault for method in methods for fault in method_faults("defence", method, METHODS)]


def build(methods: Sequence[Method]) -> list[Defence]:
    """The defences of these names, in the order in which they work. Raises `PlanError`."""
    if found := faults(methods):
        raise PlanError(found)
    return [METHODS[method.name](**method.options) for method in methods]
