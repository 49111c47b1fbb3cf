"""From terms and a model to a plan, and from files to both: what follows from them, and every way they do not fit."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cutlayer.errors import CutError, PlanError
from cutlayer.model.replica import state_digest
from cutlayer.party.agreement import build_model, draft, files_digest, read_agreement, write_weights
from cutlayer.plan.tensors import TensorSpec
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training

TERMS = Terms(
    topology="vanilla",
    schedule="alternating",
    model=ModelTerms(cut=("1",)),
    input=InputTerms(shape=(4,), dtype="float64"),
    training=Training(
        loss=Method(name="cross_entropy"),
        optimizer=Method(name="sgd", options={"lr": 0.1}),
        batch_size=8,
        rounds=1,
    ),
    parties={"a": PartyTerms(role="client"), "lab": PartyTerms(role="server")},
)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def terms(**training: Any) -> Terms:
    return replace(TERMS, training=replace(TERMS.training, **training))


# ---------------------------------------------------------------------- a draft


def test_a_draft_says_what_lies_where_and_what_crosses() -> None:
    agreement = draft(TERMS, mlp())
    contents = agreement.plan.contents
    assert list(contents.segments["bottom"].state) == ["0.weight", "0.bias"]
    assert list(contents.segments["top"].state) == ["2.weight", "2.bias"]
    assert (contents.segments["bottom"].parameters, contents.segments["top"].parameters) == (25, 18)
    assert contents.edges["bottom->top"] == (TensorSpec(dtype="float64", shape=("B", 5)),)
    assert agreement.inputs == (TensorSpec(dtype="float64", shape=("B", 4), differentiable=False),)
    assert agreement.labels == TensorSpec(dtype="int64", shape=("B",), differentiable=False)
    assert contents.classes == {"y": 3}
    assert agreement.plan.terms.training.optimizer.name == "SGD"


def test_frozen_parameters_are_not_counted_and_give_no_gradient() -> None:
    model = mlp()
    model.get_submodule("0").requires_grad_(False)
    contents = draft(TERMS, model).plan.contents
    assert contents.segments["bottom"].parameters == 0
    assert not contents.edges["bottom->top"][0].differentiable


@pytest.mark.parametrize("other", ["weights", "terms", "cut", "frozen"])
def test_the_digest_is_equal_for_equal_plans_and_differs_with_anything_else(other: str) -> None:
    one, same, model, changed = draft(TERMS, mlp()), draft(copy.deepcopy(TERMS), mlp()), mlp(), TERMS
    if other == "weights":
        torch.nn.init.zeros_(model.get_parameter("2.bias"))
    elif other == "frozen":
        model.get_parameter("0.bias").requires_grad_(False)
    else:
        changed = terms(rounds=2) if other == "terms" else replace(TERMS, model=ModelTerms(cut=("0",)))
    assert one.plan.digest == same.plan.digest
    assert one.plan.digest != draft(changed, model).plan.digest


def test_drafting_leaves_the_model_and_the_random_numbers_alone() -> None:
    model, state = mlp(), torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    draft(TERMS, model)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.training


def test_all_faults_of_terms_and_methods_are_listed_at_once() -> None:
    wrong = replace(
        terms(optimizer=Method(name="sdg"), loss=Method(name="crossentropy"), batch_size=0), topology="vanila"
    )
    with pytest.raises(PlanError) as caught:
        draft(wrong, mlp())
    assert len(caught.value.faults) == 4
    told = str(caught.value)
    for words in ("did you mean 'SGD'", "did you mean 'cross_entropy'", "batch_size = 0", "did you mean 'vanilla'"):
        assert words in told


def test_micro_batches_are_refused_beside_layers_that_normalise_over_the_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    with pytest.raises(PlanError, match=r"micro_batches = 2, but 1 normalise.*use GroupNorm, or micro_batches = 1"):
        draft(terms(micro_batches=2), model)
    draft(terms(micro_batches=1), model)


@pytest.mark.parametrize(
    ("loss", "options", "words"),
    [
        ("cross_entropy", {"weight": [1.0, 2.0]}, "weight tensor should be defined either for all"),
        ("cross_entropy", {"label_smoothing": 2.0}, "label_smoothing must be between 0.0 and 1.0"),
        ("cross_entropy", {"ignore_index": "none"}, "ignore_index"),
        ("huber_loss", {"delta": -1.0}, "delta"),
        ("binary_cross_entropy_with_logits", {"pos_weight": [1.0, 2.0]}, "size of tensor"),
    ],
)
def test_options_that_the_loss_would_refuse_in_the_first_batch_are_refused_in_the_plan(
    loss: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        draft(terms(loss=Method(name=loss, options=options)), mlp())
    assert f"training.loss: torch's {loss} refuses" in str(caught.value)


def test_an_output_that_the_loss_cannot_take_is_refused_in_the_plan() -> None:
    with pytest.raises(PlanError, match=r"the model's output float64\[B\]"):
        draft(TERMS, nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(0)).double())


def test_an_input_that_the_model_cannot_take_is_refused_in_the_plan() -> None:
    with pytest.raises(CutError, match=r"part 'bottom' fails on float64\[2, 7\].*check \[input\] shape"):
        draft(replace(TERMS, input=InputTerms(shape=(7,), dtype="float64")), mlp())


# ---------------------------------------------------------------------- files

MODEL = """
from torch import nn


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
"""
PLAN = """
topology = "vanilla"
schedule = "alternating"
seed = 7

[model]
cut = "1"

[input]
shape = [4]

[training]
loss = "cross_entropy"
optimizer = { name = "adam", lr = 0.01 }
batch_size = 8
rounds = 1

[parties.a]
role = "client"

[parties.lab]
role = "server"
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_files_give_the_agreement_that_a_draft_gives(plan: Path) -> None:
    write_weights(plan)
    agreement = read_agreement(plan)
    assert agreement.plan.terms.training.optimizer == Method(name="Adam", options={"lr": 0.01})
    assert agreement.plan.contents.weights_digest == state_digest(agreement.model.state_dict())
    assert len(agreement.plan.contents.model_digest) == 64
    assert read_agreement(plan).plan.digest == agreement.plan.digest


def test_initial_weights_are_drawn_by_the_plans_seed_and_by_nothing_else(plan: Path) -> None:
    state = torch.get_rng_state()
    first = write_weights(plan).read_bytes()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(5)
    assert write_weights(plan).read_bytes() == first
    plan.write_text(PLAN.replace("seed = 7", "seed = 8"))
    assert write_weights(plan).read_bytes() != first


def test_weights_that_are_missing_broken_or_of_another_model_are_refused(plan: Path) -> None:
    with pytest.raises(PlanError, match=r"initial.safetensors is missing.*cutlayer plan weights"):
        read_agreement(plan)
    weights = write_weights(plan)
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(CutError, match="does not fit the model"):
        read_agreement(plan)
    write_weights(plan)
    (plan.parent / "model.py").write_text(MODEL.replace("5, 3", "5, 4"))
    with pytest.raises(CutError, match="does not fit the model"):
        read_agreement(plan)


@pytest.mark.parametrize("line", ["seed = 7", "nn.ReLU()"])
def test_the_digest_of_the_files_covers_plan_and_model_and_runs_neither(plan: Path, line: str) -> None:
    write_weights(plan)
    before = files_digest(plan)
    model = plan.parent / "model.py"
    model.write_text(MODEL + "raise SystemExit\n")
    assert files_digest(plan) != before
    model.write_text(MODEL)
    assert files_digest(plan) == before
    for path in (plan, model):
        path.write_text(path.read_text().replace(line, line.replace("7", "8").replace("ReLU", "Tanh")))
    assert files_digest(plan) != before


def test_the_digest_of_the_files_covers_the_weights(plan: Path) -> None:
    write_weights(plan)
    before = files_digest(plan)
    weights = plan.parent / "initial.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert files_digest(plan) != before


@pytest.mark.parametrize("name", ["../outside.py", "/etc/passwd", "sub/../../outside.py"])
def test_a_plan_names_no_file_outside_its_folder(plan: Path, name: str) -> None:
    (plan.parent.parent / "outside.py").write_text("raise AssertionError('this must not run')\n")
    plan.write_text(PLAN.replace('cut = "1"', f'cut = "1"\nsource = "{name}"'))
    with pytest.raises(PlanError, match="leads out of the plan's folder"):
        read_agreement(plan)
    with pytest.raises(PlanError, match="leads out of the plan's folder"):
        files_digest(plan)


def test_a_link_out_of_the_folder_is_not_followed(plan: Path) -> None:
    outside = plan.parent.parent / "outside.py"
    outside.write_text("raise AssertionError('this must not run')\n")
    (plan.parent / "model.py").unlink()
    (plan.parent / "model.py").symlink_to(outside)
    with pytest.raises(PlanError, match="leads out of the plan's folder"):
        read_agreement(plan)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def build(:\n", "SyntaxError"),
        ("import does_not_exist_anywhere\n", "ModuleNotFoundError: No module named 'does_not_exist_anywhere'"),
        ("x = 1\n", "has no function build"),
        ("def build():\n    return None.x\n", "build.. failed: 'NoneType' object has no attribute 'x'"),
        ("def build():\n    return 3\n", "returned int, not an nn.Module"),
        ("def build(size):\n    return size\n", "TypeError: build.. missing 1 required positional argument"),
    ],
)
def test_a_source_that_builds_no_model_is_told_in_a_sentence(tmp_path: Path, source: str, words: str) -> None:
    path = tmp_path / "model.py"
    path.write_text(source)
    with pytest.raises(PlanError, match=words):
        build_model(path)


def test_a_source_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is no Python file"):
        build_model(tmp_path / "model.py")
    with pytest.raises(PlanError, match=r"plan.toml cannot be read .*`cutlayer init` writes one"):
        read_agreement(tmp_path / "plan.toml")
