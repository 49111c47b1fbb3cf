"""The codecs by name, and chains of them.

A chain is at most one reducer (which leaves a smaller tensor of numbers, and bytes that say where they belong), then at
most one quantiser (which makes bytes of numbers), then at most one packer (which makes bytes fewer).

>>> build([Method(name="topk", options={"share": 0.01}), Method(name="int8", options={"scale": "row"})]).name
"topk(share=0.01)+int8(scale='row')"
"""

from collections.abc import Sequence

from cutlayer.codec.adaptive import Adaptive
from cutlayer.codec.codec import Codec
from cutlayer.codec.feature_dropout import FeatureDropout
from cutlayer.codec.fp8 import Fp8
from cutlayer.codec.half import Half
from cutlayer.codec.int4 import Int4
from cutlayer.codec.int8 import Int8
from cutlayer.codec.lz4 import Lz4
from cutlayer.codec.pq import ProductQuantiser
from cutlayer.codec.random_topk import RandomTopK
from cutlayer.codec.raw import Raw
from cutlayer.codec.sign import Sign
from cutlayer.codec.spelling import INNER
from cutlayer.codec.topk import TopK
from cutlayer.codec.zstd import Zstd
from cutlayer.errors import PlanError
from cutlayer.plan import methods
from cutlayer.plan.terms import Method

REDUCERS: dict[str, type[Codec]] = {
    "topk": TopK,
    "random_topk": RandomTopK,
    "pq": ProductQuantiser,
    "feature_dropout": FeatureDropout,
}
QUANTISERS: dict[str, type[Codec]] = {
    "raw": Raw,
    "half": Half,
    "fp8": Fp8,
    "int8": Int8,
    "int4": Int4,
    "sign": Sign,
    "adaptive": Adaptive,
}
PACKERS: dict[str, type[Codec]] = {"zstd": Zstd, "lz4": Lz4}
METHODS: dict[str, type[Codec]] = REDUCERS | QUANTISERS | PACKERS

_KINDS = {"reducer": REDUCERS, "quantiser": QUANTISERS, "packer": PACKERS}
_ORDER = "a chain is a reducer, a quantiser, a packer, at most one of each, in this order"


def faults(stages: Sequence[Method]) -> list[str]:
    """What is wrong with a chain: one sentence each."""
    found = [fault for stage in stages for fault in methods.method_faults("codec", stage, METHODS, (INNER,))]
    if all(stage.name in METHODS for stage in stages):
        places = [_place(stage.name) for stage in stages]
        if places != sorted(set(places)):
            told = " + ".join(
                f"{stage.name} ({list(_KINDS)[place]})" for stage, place in zip(stages, places, strict=True)
            )
            found.append(f"codec = {told}: {_ORDER}")
    return found


def build(stages: Sequence[Method]) -> Codec:
    """The codec of these stages, in the order in which they work; without any it is raw. Raises `PlanError`."""
    if found := faults(stages):
        raise PlanError(found)
    codec: Codec = Raw()
    by_place = {_place(stage.name): stage for stage in stages}
    for place in (1, 0, 2):
        if (stage := by_place.get(place)) is not None:
            inner = {} if place == 1 else {INNER: codec}
            codec = METHODS[stage.name](**stage.options, **inner)
    return codec


def options_of(name: str) -> dict[str, type]:
    """The options of a method, and their types."""
    return methods.options_of(METHODS[name], (INNER,))


def _place(name: str) -> int:
    return next(place for place, methods in enumerate(_KINDS.values()) if name in methods)
