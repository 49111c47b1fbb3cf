"""The codecs by name, and chains of them.

A chain is at most one reducer (which leaves a smaller tensor of numbers, and bytes that say where they belong), then at
most one quantiser (which makes bytes of numbers), then at most one packer (which makes bytes fewer).

>>> build([Method(name="topk", options={"share": 0.01}), Method(name="int8", options={"scale": "row"})]).name
"topk(share=0.01)+int8(scale='row')"
"""

import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields

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
from cutlayer.plan.document import nearest
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
    found = [fault for stage in stages for fault in _stage_faults(stage)]
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


def options_of(name: str) -> dict[str, typing.Any]:
    """The options of a method, and their types."""
    hints = typing.get_type_hints(METHODS[name])
    return {field.name: hints[field.name] for field in _options(name)}


def _options(name: str) -> list[typing.Any]:
    return [field for field in fields(METHODS[name]) if field.name != INNER]  # type: ignore[arg-type]


def _place(name: str) -> int:
    return next(place for place, methods in enumerate(_KINDS.values()) if name in methods)


def _stage_faults(stage: Method) -> list[str]:
    if stage.name not in METHODS:
        return [f"codec = {stage.name!r} is unknown{nearest(stage.name, METHODS)}"]
    known = options_of(stage.name)
    found = [
        f"codec {stage.name}: {option} is no option of it{nearest(option, known or {'none': None})}"
        for option in stage.options
        if option not in known
    ]
    found += [
        f"codec {stage.name}: {option} = {value!r} must be {_WORDS[known[option]]}"
        for option, value in stage.options.items()
        if option in known and not _fits(value, known[option])
    ]
    found += [
        f"codec {stage.name}: {field.name} is missing"
        for field in _options(stage.name)
        if field.default is MISSING and field.name not in stage.options
    ]
    return found or _refusal(stage)


_WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if kind is float else kind)


def _refusal(stage: Method) -> list[str]:
    """What the method itself says to its options' values."""
    try:
        METHODS[stage.name](**stage.options)
    except PlanError as error:
        return [f"codec {fault}" for fault in error.faults]
    return []
