"""What a plan may name: torch's losses, optimizers and LR schedules, in any case; the rest is refused with a reason."""

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from cutlayer.model.methods import batch_norm_layers, canonical
from cutlayer.plan.terms import Method, Training

SOUND = Training(
    loss=Method(name="cross_entropy"),
    optimizer=Method(name="SGD", options={"lr": 0.1}),
    batch_size=4,
    rounds=1,
)


def faults(**terms: Method) -> list[str]:
    return canonical(replace(SOUND, **terms))[1]  # type: ignore[arg-type]


def method(name: str, **options: Any) -> Method:
    return Method(name=name, options=options)


def test_names_get_torchs_own_spelling_whatever_their_case() -> None:
    given = replace(
        SOUND,
        loss=method("Cross_Entropy"),
        optimizer=method("adamw"),
        lr_schedule=method("steplr", step_size=2, every="step"),
    )
    training, found = canonical(given)
    assert not found
    assert training.lr_schedule is not None
    assert (training.loss.name, training.optimizer.name) == ("cross_entropy", "AdamW")
    assert (training.lr_schedule.name, training.lr_schedule.options) == ("StepLR", {"step_size": 2, "every": "step"})


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"loss": method("crossentropy")}, "training.loss = 'crossentropy' is unknown: did you mean 'cross_entropy'?"),
        ({"optimizer": method("adan")}, "training.optimizer = 'adan' is unknown: did you mean 'Adam'?"),
        ({"lr_schedule": method("CosineLR")}, "training.lr_schedule = 'CosineLR' is unknown: did you mean 'Co"),
        ({"loss": method("zzz")}, "training.loss = 'zzz' is unknown; known are binary_cross_entropy_with_logits, "),
        ({"optimizer": method("LBFGS")}, "'LBFGS' cannot be used across a cut: it needs the loss again and again"),
        ({"optimizer": method("lbfgs")}, "'lbfgs' cannot be used across a cut"),
        ({"optimizer": method("SparseAdam")}, "it needs sparse gradients, which do not cross"),
        ({"lr_schedule": method("ReduceLROnPlateau")}, "it needs a metric that only one party sees"),
        ({"lr_schedule": method("LambdaLR")}, "it needs a function, which a plan cannot carry"),
        ({"lr_schedule": method("SequentialLR")}, "it needs other schedule objects"),
        (
            {"optimizer": method("SGD", lr=-1.0)},
            "training.optimizer: torch's SGD refuses its options: Invalid learning",
        ),
        ({"optimizer": method("SGD", momentun=0.9)}, "unexpected keyword argument 'momentun'"),
        ({"lr_schedule": method("StepLR")}, "training.lr_schedule: torch's StepLR refuses its options: "),
        ({"lr_schedule": method("StepLR", steps=1)}, "unexpected keyword argument 'steps'"),
        ({"loss": method("cross_entropy", weigth=[1.0])}, "training.loss.weigth is no option of cross_entropy: did yo"),
        ({"loss": method("cross_entropy", reduction="sum")}, "training.loss.reduction is no option of cross_entropy"),
        ({"loss": method("mse_loss", delta=1.0)}, "training.loss.delta is no option of mse_loss"),
    ],
)
def test_what_cannot_be_named_is_refused_with_the_nearest_word_or_the_reason(
    terms: dict[str, Method], words: str
) -> None:
    (fault,) = faults(**terms)
    assert words in fault


def test_all_unknown_names_are_found_at_once() -> None:
    found = faults(loss=method("a"), optimizer=method("b"), lr_schedule=method("c"))
    assert [fault.split(" ")[0] for fault in found] == ["training.loss", "training.optimizer", "training.lr_schedule"]


def test_layers_that_normalise_over_the_batch_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2)), nn.GroupNorm(1, 2), nn.BatchNorm2d(2))
    assert batch_norm_layers(model) == ["1.0", "3"]
    assert batch_norm_layers(nn.Sequential(nn.InstanceNorm2d(2, affine=True), nn.LayerNorm(2))) == []
