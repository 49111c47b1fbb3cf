"""Claims about the digest: it covers all that was agreed, and stays the same from one machine and version to the next."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import (
    Contents,
    InputTerms,
    Method,
    ModelTerms,
    PartyTerms,
    Plan,
    SegmentContents,
    Terms,
    Training,
)
from cutlayer.plan.tensors import TensorShape, TensorSpec

PLAN = Plan(
    terms=Terms(
        topology="vanilla",
        schedule="alternating",
        model=ModelTerms(cut=("layer1",)),
        input=InputTerms(shape=(3, 8), dtype="float32"),
        training=Training(
            loss=Method(name="cross_entropy", options={"weight": [1.0, 2.5]}),
            optimizer=Method(name="SGD", options={"lr": 0.1, "nesterov": False}),
            lr_schedule=Method(name="StepLR", options={"step_size": 2}),
            batch_size=16,
            rounds=2,
        ),
        parties={
            "hospital-b": PartyTerms(role="client", key="0a"),
            "hospital-a": PartyTerms(role="client"),
            "lab": PartyTerms(role="server", address="lab.example.org:7443"),
        },
        conductor="lab",
    ),
    contents=Contents(
        segments={
            "bottom": SegmentContents(state={"layer1.weight": TensorShape("float32", (4, 8))}, parameters=32),
            "top": SegmentContents(state={"layer2.weight": TensorShape("float32", (2, 4))}, parameters=8),
        },
        edges={
            "x->bottom": (TensorSpec(dtype="float32", shape=("B", 3, 8), differentiable=False),),
            "bottom->top": (TensorSpec(dtype="float32", shape=("B", 4)),),
            "y->top": (TensorSpec(dtype="int64", shape=("B",), differentiable=False),),
        },
        classes=2,
        model_digest="ab",
        weights_digest="cd",
    ),
)
GOLDEN = "?"


def changes(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """`value` with one thing in it changed, for each thing there is, with its path."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            for where, changed in changes(getattr(value, field.name), f"{path}.{field.name}"):
                yield where, dataclasses.replace(value, **{field.name: changed})
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            for where, changed in changes(getattr(value, name), f"{path}.{name}"):
                yield where, msgspec.structs.replace(value, **{name: changed})
    elif isinstance(value, dict):
        for key in value:
            yield f"{path}: without {key}", {k: v for k, v in value.items() if k != key}
            yield f"{path}: {key} renamed", {k + "x" * (k == key): v for k, v in value.items()}
            for where, changed in changes(value[key], f"{path}.{key}"):
                yield where, value | {key: changed}
    elif isinstance(value, list | tuple):
        yield f"{path}: one more", type(value)([*value, *(value[:1] or ["layer9"])])
        for i, item in enumerate(value):
            for where, changed in changes(item, f"{path}[{i}]"):
                yield where, type(value)([*value[:i], changed, *value[i + 1 :]])
    else:
        yield path, _other(value)


def _other(value: bool | float | str) -> bool | float | str:
    if isinstance(value, bool):
        return not value
    return value + "x" if isinstance(value, str) else value + 1


CHANGED = dict(changes(PLAN, "plan"))


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED.keys())
def test_the_digest_changes_with_everything_that_was_agreed(changed: Plan) -> None:
    assert changed.digest != PLAN.digest


def test_all_fields_are_among_the_changes_above() -> None:
    kinds = (Terms, ModelTerms, InputTerms, Training, PartyTerms, Limits, Method, SegmentContents, Contents, TensorSpec)
    for kind in kinds:
        names = getattr(kind, "__struct_fields__", None) or [field.name for field in dataclasses.fields(kind)]
        for name in names:
            assert any(f".{name}" in path for path in CHANGED), name


def test_the_digest_changes_with_the_order_of_the_parties_since_turns_follow_it() -> None:
    parties = dict(reversed(PLAN.terms.parties.items()))
    other = dataclasses.replace(PLAN, terms=dataclasses.replace(PLAN.terms, parties=parties))
    assert other.digest != PLAN.digest


def test_the_digest_does_not_change_with_the_order_of_options() -> None:
    options = dict(reversed(PLAN.terms.training.optimizer.options.items()))
    training = dataclasses.replace(PLAN.terms.training, optimizer=Method(name="SGD", options=options))
    assert dataclasses.replace(PLAN, terms=dataclasses.replace(PLAN.terms, training=training)).digest == PLAN.digest


def test_the_digest_of_a_known_plan_is_known() -> None:
    """If this fails, plans that were accepted are not the same plans any more: raise FORMAT."""
    assert PLAN.digest == GOLDEN


def test_the_conductor_is_the_server_unless_the_plan_says_otherwise() -> None:
    assert PLAN.conductor == "lab"
    assert dataclasses.replace(PLAN, terms=dataclasses.replace(PLAN.terms, conductor="")).conductor == "lab"
    assert PLAN.first == {"client": "hospital-b", "server": "lab"}
    assert PLAN.terms.filling("client") == ("hospital-b", "hospital-a")
    assert PLAN.terms.pins == {"hospital-b": "0a"}
