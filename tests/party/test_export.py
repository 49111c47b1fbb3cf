"""What owners release, put together: the model that `load_model` gives, and ONNX, answer as the parties did."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from cutlayer import load_model
from cutlayer.errors import CutError, CutlayerError, PlanError, RunError
from cutlayer.party.agreement import Agreement, read_agreement
from cutlayer.party.agreement import write_weights as draw_weights
from cutlayer.party.export import released, write_model, write_onnx
from cutlayer.party.saved import read_weights, write_weights
from cutlayer.simulation import Result, simulate_plan

ROWS, FRESH = 40, 9
"""Fewer fresh rows than a mini-batch has: all are answered at once, so that not one bit may differ."""

TERMS = """
[training]
loss = "cross_entropy"
optimizer = { name = "Adam", lr = 0.05 }
batch_size = 16
rounds = 2
[model]
"""
CHAIN = """
from torch import nn

def build():
    return nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 6),
        nn.ReLU(), nn.Linear(6, 3),
    )
"""
PARTS = """
from torch import nn
from cutlayer import Parts

def tanh(before, after):
    return nn.Sequential(nn.Linear(before, after), nn.Dropout(0.3), nn.Tanh())

class Town(nn.Module):
    def __init__(self):
        super().__init__()
        self.town, self.rest = nn.Embedding(5, 4), nn.Linear(3, 4)
    def forward(self, x, codes):
        return self.town(codes[:, 0]) + self.rest(x)

def build():
    return Parts(PARTS)
"""
BANKS = '[parties.bank-a]\nrole = "client"\ninput = [{ shape = [3] }, { shape = [1], dtype = "int64" }]\n'
BANKS += '[parties.bank-b]\nrole = "client"\ninput = { shape = [2] }\n'
SERVER = '[parties.lab]\nrole = "server"\n'
BOTTOMS = "bottom_bank_a=Town(), bottom_bank_b=tanh(2, 4)"
ONE = "[input]\nshape = [3]\n" + SERVER + '[parties.clinic]\nrole = "client"\n'
TWO = ONE + '[parties.ward]\nrole = "client"\n'


def normal(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(width))


def classes(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 3, (rows,), generator=torch.Generator().manual_seed(seed))


def codes(rows: int) -> Tensor:
    return torch.randint(0, 5, (rows, 1), generator=torch.Generator().manual_seed(5))


def clients(*names: str) -> dict[str, Any]:
    return {name: TensorDataset(normal(ROWS, 3), classes(ROWS, seed)) for seed, name in enumerate(names)}


def banks(rows: int, **labels: Tensor) -> dict[str, Any]:
    columns = {"bank-a": (normal(rows, 3), codes(rows)), "bank-b": (normal(rows, 2),)}
    return {
        name: TensorDataset(*columns.get(name, ()), *([labels[name]] if name in labels else []))
        for name in (*columns, *(name for name in labels if name not in columns))
    }


@dataclass(frozen=True, kw_only=True)
class Network:
    """A project's files, and its rows."""

    head: str
    cut: str = ""
    parties: str
    model: str
    data: Mapping[str, Dataset[Any]]

    def write(self, folder: Path) -> Path:
        plan = folder / "plan.toml"
        plan.write_text(f'name = "x"\nformat = 6\n{self.head}{TERMS}{self.cut}\n{self.parties}')
        (folder / "model.py").write_text(self.model)
        draw_weights(plan)
        return plan


def of_parts(parts: str) -> str:
    return PARTS.replace("Parts(PARTS)", f"Parts({parts})")


NETWORKS = {
    "vanilla": Network(
        head='topology = "vanilla"\nschedule = "splitfed_v2"\naggregator_sees_weights = true\n',
        cut='cut = "2"',
        parties=TWO,
        model=CHAIN,
        data=clients("clinic", "ward"),
    ),
    "u_shaped": Network(
        head='topology = "u_shaped"\nschedule = "relay"\n',
        cut='cut = ["2", "5"]',
        parties=ONE,
        model=CHAIN,
        data=clients("clinic"),
    ),
    "multi_hop": Network(
        head='topology = "multi_hop"\nschedule = "alternating"\n',
        cut='cut = ["2", "5", "7"]',
        parties=ONE + '[parties.hop-1]\nrole = "hop"\n[parties.hop-2]\nrole = "hop"\n',
        model=CHAIN,
        data=clients("clinic"),
    ),
    "vertical": Network(
        head='topology = "vertical"\nschedule = "joint"\n',
        parties=BANKS + SERVER,
        model=of_parts(f"top=tanh(8, 3), {BOTTOMS}"),
        data=banks(ROWS, lab=classes(ROWS)),
    ),
    "multi_task": Network(
        head='topology = "multi_task"\nschedule = "joint"\n',
        parties=SERVER + BANKS + '[parties.shop]\nrole = "server"\n',
        model=of_parts(f"{BOTTOMS}, top_lab=tanh(8, 3), top_shop=tanh(8, 3)"),
        data=banks(ROWS, lab=classes(ROWS), shop=classes(ROWS, seed=1)),
    ),
    "semi_supervised": Network(
        head='topology = "semi_supervised"\nschedule = "alternating"\n',
        parties=ONE,
        model=of_parts("bottom=tanh(3, 4), decoder=nn.Linear(4, 3), top=nn.Linear(4, 3)"),
        data=clients("clinic"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A project after its run, each party's weights in its folder."""

    plan: Path
    agreement: Agreement
    result: Result

    @property
    def folder(self) -> Path:
        return self.plan.parent

    def weights(self, *parties: str) -> list[dict[str, Tensor]]:
        return [read_weights(self.folder / party, self.agreement.plan) for party in parties]

    @property
    def owners(self) -> tuple[str, ...]:
        """The parties that release what one model needs: one client, and all others."""
        parties = self.agreement.plan.terms.parties
        return tuple(name for name in parties if name != "ward")


def trained(name: str, folder: Path) -> Trained:
    folder.mkdir(exist_ok=True)
    plan = NETWORKS[name].write(folder)
    agreement = read_agreement(plan)
    result = simulate_plan(agreement, NETWORKS[name].data)
    for party in result.parties:
        (folder / party).mkdir(exist_ok=True)
        write_weights(folder / party / "weights.safetensors", result.weights_of(party), agreement.plan, party)
    return Trained(plan=plan, agreement=agreement, result=result)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    return {name: trained(name, tmp_path_factory.mktemp(name)) for name in NETWORKS}


def asked(name: str) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Fresh rows as the parties have them, and as the whole model takes them."""
    if "bank" in NETWORKS[name].parties:
        return banks(FRESH), ((normal(FRESH, 3), codes(FRESH)), normal(FRESH, 2))
    return {"clinic": TensorDataset(normal(FRESH, 3))}, (normal(FRESH, 3),)


def answered(networks: dict[str, Trained], name: str) -> list[Tensor]:
    """What the parties answer together, by task."""
    told = networks[name].result.predict(asked(name)[0])
    return [next(iter(each.values())) for each in told.values()]


def as_list(answer: Any) -> list[Tensor]:
    return list(answer) if isinstance(answer, tuple) else [answer]


# ---------------------------------------------------------------------- a folder with a model


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_model_answers_bit_for_bit_as_the_parties_did(
    networks: dict[str, Trained], name: str, tmp_path: Path
) -> None:
    run = networks[name]
    model = released(run.agreement, run.weights(*run.owners))
    path = write_model(tmp_path / "model", run.plan, run.agreement, model)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.py", "model.safetensors", "plan.toml"]
    loaded = load_model(str(tmp_path / "model"))
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        found = as_list(loaded(*asked(name)[1]))
    wanted = answered(networks, name)
    assert [f.shape for f in found] == [(FRESH, 3)] * len(wanted)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_state_is_that_of_the_trained_model(
    networks: dict[str, Trained], name: str, tmp_path: Path
) -> None:
    run = networks[name]
    model = released(run.agreement, run.weights(*reversed(run.owners)))
    wanted = run.result.model_for("clinic").state_dict()
    saved = load_file(write_model(tmp_path / "model", run.plan, run.agreement, model))
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[key], value) for key, value in wanted.items())
    initial = run.agreement.model.state_dict()
    assert all(not torch.equal(saved[key], initial[key]) for key in wanted if key.endswith("weight"))


def test_several_tasks_answer_under_one_call(networks: dict[str, Trained], tmp_path: Path) -> None:
    run = networks["multi_task"]
    write_model(tmp_path, run.plan, run.agreement, released(run.agreement, run.weights(*run.owners)))
    one, other = load_model(tmp_path)(*asked("multi_task")[1])
    assert not torch.equal(one, other)


# ---------------------------------------------------------------------- what is not released


@pytest.mark.parametrize(("name", "kept", "told"), [
    ("vanilla", "clinic", "bottom (of client)"),
    ("u_shaped", "lab", "middle (of server)"),
    ("multi_hop", "hop-2", "hop_2 (of hop-2)"),
    ("vertical", "bank-b", "bottom_bank_b (of bank-b)"),
    ("multi_task", "shop", "top_shop (of shop)"),
    ("semi_supervised", "lab", "top (of server)"),
])  # fmt: skip
def test_segments_that_nobody_released_are_named_with_their_owner(
    networks: dict[str, Trained], name: str, kept: str, told: str
) -> None:
    run = networks[name]
    with pytest.raises(RunError) as caught:
        released(run.agreement, run.weights(*(party for party in run.owners if party != kept)))
    assert str(caught.value) == f"nobody has released {told}: give the folder of weights of each of its owners"


def test_all_missing_segments_are_named_at_once(networks: dict[str, Trained]) -> None:
    run = networks["vertical"]
    with pytest.raises(RunError, match=r"bottom_bank_a \(of bank-a\), bottom_bank_b \(of bank-b\):"):
        released(run.agreement, run.weights("lab"))


def test_what_only_training_needs_need_not_be_released(networks: dict[str, Trained], tmp_path: Path) -> None:
    run = networks["semi_supervised"]
    bare = [{k: t for k, t in each.items() if not k.startswith("decoder")} for each in run.weights(*run.owners)]
    write_model(tmp_path, run.plan, run.agreement, released(run.agreement, bare))
    loaded = load_model(tmp_path)
    assert not any("decoder" in name for name in loaded.state_dict())
    with torch.no_grad():
        assert torch.equal(loaded(*asked("semi_supervised")[1]), answered(networks, "semi_supervised")[0])


def test_a_second_owner_of_the_same_segment_is_refused(networks: dict[str, Trained]) -> None:
    run = networks["vanilla"]
    with pytest.raises(CutError, match=r"in two parts: 0.bias, .*: give each of its parts once"):
        released(run.agreement, run.weights("lab", "clinic", "ward"))


# ---------------------------------------------------------------------- files that are not what they should be


def test_a_model_that_lost_its_weights_or_holds_others_is_refused(networks: dict[str, Trained], tmp_path: Path) -> None:
    run = networks["u_shaped"]
    path = write_model(tmp_path, run.plan, run.agreement, released(run.agreement, run.weights(*run.owners)))
    whole = path.read_bytes()
    for spoilt in (b"", whole[: len(whole) // 2]):
        path.write_bytes(spoilt)
        with pytest.raises(RunError, match=r"model.safetensors does not fit the model: export it anew"):
            load_model(tmp_path)
    save_file({"0.weight": torch.ones(6, 3)}, path)
    with pytest.raises(RunError, match=r"does not fit the model: export it anew"):
        load_model(tmp_path)
    path.unlink()
    with pytest.raises(RunError, match=r"export it anew"):
        load_model(tmp_path)
    (tmp_path / "plan.toml").unlink()
    with pytest.raises(PlanError, match=r"plan.toml cannot be read"):
        load_model(tmp_path)


def test_weights_say_whose_and_of_which_plan_they_are(networks: dict[str, Trained], tmp_path: Path) -> None:
    one, other = networks["vanilla"], networks["u_shaped"]
    plan = one.agreement.plan
    assert read_weights(one.folder / "clinic" / "weights.safetensors", plan, "clinic").keys()
    refusals: dict[str, tuple[Path, str]] = {
        "was trained under another plan": (other.folder / "clinic", "clinic"),
        "has the weights of ward, not of clinic": (one.folder / "ward", "clinic"),
        "is not there: name the folder": (tmp_path, "clinic"),
    }
    for told, (path, party) in refusals.items():
        with pytest.raises(RunError, match=told):
            read_weights(path, plan, party)
    save_file({"0.weight": torch.ones(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(RunError, match=r"was trained under another plan \(none…\)"):
        read_weights(tmp_path / "plain.safetensors", plan)
    (tmp_path / "weights.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(RunError, match="cannot be read as weights"):
        read_weights(tmp_path, plan)


# ---------------------------------------------------------------------- ONNX


def by_onnx(path: Path, tensors: list[Tensor]) -> list[Tensor]:
    """What onnx's own evaluator answers."""
    onnx, reference = pytest.importorskip("onnx"), pytest.importorskip("onnx.reference")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    evaluator = reference.ReferenceEvaluator(model)
    feeds = dict(zip(evaluator.input_names, (tensor.numpy() for tensor in tensors), strict=True))
    return [torch.from_numpy(answer) for answer in evaluator.run(None, feeds)]


def flat(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [tensor for each in inputs for tensor in (each if isinstance(each, tuple) else (each,))]


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[] if name == "vertical" else [pytest.mark.slow]) for name in NETWORKS
])  # fmt: skip
def test_onnx_answers_as_the_module_does_for_any_number_of_rows(
    networks: dict[str, Trained], name: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="torch writes ONNX by onnxscript")
    run = networks[name]
    model = released(run.agreement, run.weights(*run.owners))
    path = write_onnx(tmp_path / "model.onnx", run.agreement, model)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    tensors = flat(asked(name)[1])
    wanted = answered(networks, name)
    for rows in (FRESH, 1):
        found = by_onnx(path, [tensor[:rows] for tensor in tensors])
        for mine, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(mine, theirs[:rows], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_model_that_onnx_has_no_word_for_is_refused_and_leaves_no_file(
    networks: dict[str, Trained], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="torch writes ONNX by onnxscript")

    class Counting(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    run = networks["u_shaped"]
    with pytest.raises(CutlayerError, match=r"torch cannot write this model as ONNX: [^\n]+$"):
        write_onnx(tmp_path / "model.onnx", run.agreement, torch.nn.Sequential(Counting()))
    assert not list(tmp_path.iterdir())
