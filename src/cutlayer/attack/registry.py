"""The attacks by name.

>>> build([Method(name="completion", options={"labels": 20})])[0][0].name
'completion(labels=20)'
"""

from collections.abc import Sequence

from cutlayer.attack.attack import Attack
from cutlayer.attack.clusters import Clusters, GradientClusters
from cutlayer.attack.completion import Completion
from cutlayer.attack.cosine import Cosine, LabelLeak
from cutlayer.attack.decoder import AlignedDecoder, Decoder
from cutlayer.attack.fsha import Fsha
from cutlayer.attack.hijack import Insider
from cutlayer.attack.norm import Norm
from cutlayer.attack.optimise import Optimise
from cutlayer.attack.pcat import Pcat
from cutlayer.attack.property import Property
from cutlayer.attack.sdar import Sdar
from cutlayer.attack.spectrum import GradientSpectrum, Spectrum
from cutlayer.attack.unsplit import UnsplitInputs, UnsplitLabels
from cutlayer.errors import PlanError
from cutlayer.plan.methods import method_faults
from cutlayer.plan.terms import Method

ON_TRAFFIC: dict[str, type[Attack]] = {
    "norm": Norm,
    "cosine": Cosine,
    "label_leak": LabelLeak,
    "gradient_spectrum": GradientSpectrum,
    "gradient_clusters": GradientClusters,
    "spectrum": Spectrum,
    "clusters": Clusters,
    "completion": Completion,
    "property": Property,
    "unsplit_labels": UnsplitLabels,
    "decoder": Decoder,
    "aligned_decoder": AlignedDecoder,
    "optimise": Optimise,
    "unsplit_inputs": UnsplitInputs,
}
"""On what was recorded of a run."""
INSIDERS: dict[str, type[Insider]] = {"fsha": Fsha, "pcat": Pcat, "sdar": Sdar}
"""By a server, while the run goes on."""
METHODS: dict[str, type] = ON_TRAFFIC | INSIDERS


def faults(methods: Sequence[Method]) -> list[str]:
    """What is wrong with attacks that a person names: one sentence each."""
    return [fault for method in methods for fault in method_faults("attack", method, METHODS)]


def build(methods: Sequence[Method]) -> tuple[list[Attack], list[Insider]]:
    """The attacks of these names: those on traffic, and insiders. Raises `PlanError`."""
    if found := faults(methods):
        raise PlanError(found)
    on_traffic = [ON_TRAFFIC[method.name](**method.options) for method in methods if method.name in ON_TRAFFIC]
    insiders = [INSIDERS[method.name](**method.options) for method in methods if method.name in INSIDERS]
    return on_traffic, insiders
