"""Claims about the digest: it covers all that was agreed, and is the same on all machines."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from msgspec import Struct, structs

from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import Contents, Cutting, Plan, SegmentContents
from cutlayer.plan.tensors import TensorShape, TensorSpec
from cutlayer.plan.terms import (
    BudgetTerms,
    CodecTerms,
    DefenceTerms,
    InputTerms,
    Method,
    ModelTerms,
    PartyTerms,
    SaveTerms,
    Terms,
    Training,
)
from cutlayer.plan.topology import Edge, SegmentNode, Source

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
            server_optimizer=Method(name="SGD", options={"lr": 0.2}),
            averaging=Method(name="trimmed_mean", options={"trim": 0.1}),
            losses={"top_2": Method(name="mse_loss")},
            loss_weights={"top_2": 0.5},
            batch_size=16,
            rounds=2,
        ),
        parties={
            "hospital-b": PartyTerms(role="client", key="0a"),
            "hospital-a": PartyTerms(role="client"),
            "lab": PartyTerms(
                role="server", address="lab.example.org:7443", input=(InputTerms(shape=(2,), dtype="int64"),)
            ),
        },
        conductor="lab",
        labels="hospital-a",
        source=(Source(name="x", role="client", kind="rows"),),
        segment=(SegmentNode(name="top", role="lab", loss=True, join="sum", auxiliary=True),),
        edge=(Edge(source="x", target="top", gradient=False, every=3),),
        codec=(CodecTerms(edge="bottom->top", forward=(Method(name="half"),)),),
        defence=(DefenceTerms(edge="bottom->top", forward=(Method(name="gaussian", options={"clip": 1.0}),)),),
        budget=(BudgetTerms(party="hospital-a", epsilon=8.0),),
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
        classes={"y": 2},
        model_digest="ab",
        weights_digest="cd",
        personal=("layer1.bias",),
        cuttings={
            "hospital-a": Cutting(
                segments={"bottom": SegmentContents(state={}, parameters=40)},
                edges={"bottom->top": (TensorSpec(dtype="float32", shape=("B", 2)),)},
            )
        },
    ),
)
GOLDEN = "b73f905b4d79bfb124c46568b0390e8d9eb0745031e170e683512749f0007a0c"


def changes(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """`value` with one thing in it changed, for each thing there is, with its path."""
    if isinstance(value, bool | int | float | str):
        yield path, _other(value)
        return
    for where, part, put_back in _parts(value):
        for inner, changed in changes(part, f"{path}.{where}"):
            yield inner, put_back(changed)
    if isinstance(value, dict):
        for key in value:
            yield f"{path} without {key}", {k: v for k, v in value.items() if k != key}
            yield f"{path} with {key} renamed", {k + "x" * (k == key): v for k, v in value.items()}
    if isinstance(value, list | tuple):
        yield f"{path} with one more", type(value)([*value, *(value[:1] or ["layer9"])])


def _parts(value: Any) -> list[tuple[str, Any, Callable[[Any], Any]]]:
    """What a value consists of: names, parts, and how to put a changed part back."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        names = getattr(value, "__struct_fields__", None) or [field.name for field in dataclasses.fields(value)]
        items = [(name, getattr(value, name)) for name in names]
    return [(str(name), part, partial(_with, value, name)) for name, part in items]


def _with(value: Any, name: Any, part: Any) -> Any:
    if isinstance(value, dict):
        return value | {name: part}
    if isinstance(value, list | tuple):
        return type(value)([*value[:name], part, *value[name + 1 :]])
    return (structs.replace if isinstance(value, Struct) else dataclasses.replace)(value, **{name: part})


def _other(value: bool | float | str) -> bool | float | str:
    if isinstance(value, bool):
        return not value
    return value + "x" if isinstance(value, str) else value + 1


CHANGED = dict(changes(PLAN, "plan"))


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED.keys())
def test_the_digest_changes_with_everything_that_was_agreed(changed: Plan) -> None:
    assert changed.digest != PLAN.digest


def test_all_fields_are_among_the_changes_above() -> None:
    graph = (Source, SegmentNode, Edge)
    terms = (Terms, ModelTerms, InputTerms, Training, PartyTerms, Limits, Method, SaveTerms)
    safety = (CodecTerms, DefenceTerms, BudgetTerms)
    kinds = (*terms, *safety, SegmentContents, Contents, *graph)
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
