"""simulate(): what it leaves alone, what it gives back, and what it says when something is wrong."""

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from cutlayer import CutlayerError, Parts, Result, simulate
from cutlayer.data.loader import Loader
from cutlayer.errors import CutError, DataError, Diverged, PlanError, RemoteProtocolError
from cutlayer.observe.meter import Crossing
from cutlayer.plan.batches import Batch
from cutlayer.plan.limits import Limits
from cutlayer.plan.tensors import TensorSpec

SECRETS = {name: bytes([number]) * 32 for number, name in enumerate(["a", "b", "server"])}
CUTS: dict[str, Any] = {"vanilla": "3", "u_shaped": ["0", "3"]}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(6, 5), nn.Linear(5, 3)
    ).double()


def rows(count: int, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def clients() -> dict[str, TensorDataset]:
    return {"a": rows(22), "b": rows(14, 1)}


def run(topology: str = "vanilla", model: nn.Module | None = None, **terms: Any) -> Result:
    settings: dict[str, Any] = {
        "cut": CUTS.get(topology),
        "data": clients(),
        "topology": topology,
        "lr": 0.1,
        "batch_size": 4,
        "rounds": 3,
        "secrets": SECRETS,
    }
    return simulate(model or network(), **settings | terms)


# ---------------------------------------------------------------------- what it leaves alone


@pytest.mark.parametrize("topology", CUTS)
@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_stays_as_it_was(topology: str, training: bool) -> None:
    model = network().train(training)
    model[0].bias.requires_grad_(False)
    before, keys = copy.deepcopy(model.state_dict()), {name: set(vars(m)) for name, m in model.named_modules()}
    result = run(topology, model)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == keys
    assert all(module.training == training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, False, *[True] * 6]
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)
    given = {parameter.data_ptr() for parameter in model.parameters()}
    assert not given & {parameter.data_ptr() for parameter in result.model_for("a").parameters()}


def test_the_data_stays_as_it_was() -> None:
    data, held_out = clients(), {"a": rows(6, 7), "b": rows(6, 8)}
    model = nn.Sequential(nn.ReLU(inplace=True), *network()).double()
    run(model=model, data=data, held_out=held_out, cut="4")
    for name, kept in clients().items():
        for given, wanted in zip(data[name].tensors, kept.tensors, strict=True):
            assert torch.equal(given, wanted)
    assert torch.equal(held_out["a"].tensors[0], rows(6, 7).tensors[0])


class Drawn(Dataset[tuple[Tensor, int]]):
    """Samples with noise of torch's, numpy's and Python's, as augmentation draws it."""

    def __len__(self) -> int:
        return 14

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.randn(4).double() + np.random.rand() + random.random(), row % 3  # noqa: S311


@pytest.mark.parametrize("data", [rows(12), Drawn()], ids=["tensors", "augmented"])
def test_torchs_random_numbers_go_on_as_if_nothing_had_happened(data: Dataset[Any]) -> None:
    model = network()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    run(model=model, data={"a": data})
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.initial_seed() == 3


def test_equal_arguments_give_equal_bits_whatever_was_drawn_before() -> None:
    one = run(model=(model := network()), data={"a": Drawn()}, secrets=None)
    torch.manual_seed(2)
    other = run(model=model, data={"a": Drawn()}, secrets=None)
    assert one.history == other.history
    for name, value in one.model_for("a").state_dict().items():
        assert torch.equal(value, other.model_for("a").state_dict()[name])
    assert run(data={"a": Drawn()}, secrets=None, seed=1).history != one.history


def test_secrets_may_be_given_for_some_parties_only() -> None:
    made, given = run(secrets=None), run(secrets={"b": b"b" * 32})
    assert given.history[0] == made.history[0]
    assert given.history[1] != made.history[1]


# ---------------------------------------------------------------------- what it gives back


@pytest.mark.parametrize("topology", CUTS)
@pytest.mark.parametrize("fraction", [0.25, None])
def test_model_for_a_party_reproduces_that_partys_metrics(topology: str, fraction: float | None) -> None:
    """On a dataset of held-out rows, or on those that the rule of the secret set aside."""
    separate = {"a": rows(13, 5), "b": rows(4, 6)}
    result = run(topology, held_out=separate if fraction is None else fraction)
    assert list(result.metrics) == ["a", "b"]
    for name, found in result.metrics.items():
        x, y = separate[name].tensors if fraction is None else _set_aside(result, name, fraction)
        model = result.model_for(name)
        assert not model.training
        with torch.no_grad():
            out = model(x)
        assert abs(found["loss"] - F.cross_entropy(out, y).item()) < 1e-12
        assert found["accuracy"] == (out.argmax(1) == y).double().mean().item()
        assert found["rows"] == len(y)


def _set_aside(result: Result, name: str, fraction: float) -> tuple[Tensor, Tensor]:
    agreement = result.agreement
    loader = Loader(
        clients()[name], inputs=agreement.inputs, labels=agreement.labels, secret=SECRETS[name], held_out=fraction
    )
    whole = Batch(0, 0, loader.rows.held_out, held_out=True)
    assert loader.rows.held_out == round(len(clients()[name]) * fraction)
    return loader.load("x", whole)[0], loader.load("y", whole)[0]


@pytest.mark.parametrize("topology", CUTS)
def test_a_merged_model_has_the_given_models_keys_types_and_shapes(topology: str) -> None:
    merged, given = run(topology).model_for("b"), network()
    assert type(merged) is type(given)
    assert list(merged.state_dict()) == list(given.state_dict())
    for name, value in given.state_dict().items():
        assert (merged.state_dict()[name].dtype, merged.state_dict()[name].shape) == (value.dtype, value.shape)


def test_a_merged_model_is_the_callers_own() -> None:
    result = run()
    one = result.model_for("a")
    nn.init.zeros_(one.get_parameter("0.weight"))
    assert bool(result.model_for("a").get_parameter("0.weight").any())


def test_model_for_a_party_without_rows_is_refused() -> None:
    with pytest.raises(PlanError, match="'server' brings no rows; models are of a, b"):
        run().model_for("server")


def test_the_history_has_every_turn_in_order() -> None:
    history = run(turn="epoch").history
    wanted = [
        (number, *turn)
        for number in range(3)
        for turn in [("train", "a"), ("train", "b"), ("eval", "a"), ("eval", "b")]
    ]
    assert [(entry["round"], entry["purpose"], entry["party"]) for entry in history] == wanted
    assert all(math.isfinite(entry["loss"]) for entry in history)
    assert all(("accuracy" in entry) == (entry["purpose"] == "eval") for entry in history)
    assert history[-1] == {"round": 2, "purpose": "eval", "party": "b"} | run(turn="epoch").metrics["b"]


def test_without_held_out_rows_there_are_no_metrics() -> None:
    result = run(held_out=0.0)
    assert result.metrics == {}
    assert {entry["purpose"] for entry in result.history} == {"train"}


def test_no_rounds_give_the_initial_model() -> None:
    result = run(rounds=0)
    assert result.history == []
    for name, value in network().state_dict().items():
        assert torch.equal(result.model_for("a").state_dict()[name], value)


def test_a_model_given_in_evaluation_mode_trains_as_any_other() -> None:
    assert run(model=network().eval()).history == run().history


def test_evaluation_moves_no_weight_and_no_statistic() -> None:
    often, never = run(held_out={"a": rows(13, 5), "b": rows(4, 6)}, turn="batch"), run(held_out=0.0, turn="batch")
    trained = [entry["loss"] for entry in often.history if entry["purpose"] == "train"]
    assert trained[:8] == [entry["loss"] for entry in never.history][:8]
    plain = network()
    for entry in plain.modules():
        if isinstance(entry, nn.Dropout):
            entry.p = 0.0
    evaluated, not_evaluated = (
        run(model=plain, held_out=held_out) for held_out in ({"a": rows(13, 5), "b": rows(4, 6)}, 0.0)
    )
    for name, value in not_evaluated.model_for("b").state_dict().items():
        assert torch.equal(evaluated.model_for("b").state_dict()[name], value)


# ---------------------------------------------------------------------- what crossed


def crossings(result: Result, party: str) -> list[Crossing]:
    return list(result.meters[party].crossings.values())


@pytest.mark.parametrize("topology", CUTS)
def test_no_row_crosses_and_labels_cross_only_in_vanilla(topology: str) -> None:
    result = run(topology, held_out={"a": rows(6, 5), "b": rows(4, 6)})
    labels = {"a": 3 * (22 + 6), "b": 3 * (14 + 4)} if topology == "vanilla" else {"a": 0, "b": 0}
    for name in ("a", "b"):
        assert result.meters[name].raw_rows_sent("rows") == 0
        assert result.meters[name].raw_rows_sent("labels") == labels[name]
    assert result.meters["server"].raw_rows_sent("labels") == 0
    assert {c.carries for c in crossings(result, "server")} == ({None, "labels"} if topology == "vanilla" else {None})


@pytest.mark.parametrize("topology", CUTS)
def test_bytes_are_those_of_the_crossings_and_little_else(topology: str) -> None:
    result = run(topology)
    for name, counted in result.bytes.items():
        for way, sent in (("sent", True), ("received", False)):
            mine = [c for c in crossings(result, name) if c.sent == sent]
            frames, payload = sum(c.frame_bytes for c in mine), sum(c.payload_bytes for c in mine)
            count = sum(c.frames for c in mine)
            assert payload < frames < payload + 300 * count
            assert frames < counted[way] < frames + 4_000
    clients_sent = sum(result.bytes[name]["sent"] for name in ("a", "b"))
    assert result.bytes["server"]["received"] == clients_sent
    assert result.bytes["server"]["sent"] == sum(result.bytes[name]["received"] for name in ("a", "b"))


def test_payloads_are_as_large_as_rows_times_the_width_of_the_cut() -> None:
    result = run("u_shaped", held_out=0.0)
    sent = {(c.edge, c.way): c.payload_bytes for c in crossings(result, "a") if c.sent}
    received = {(c.edge, c.way): c.payload_bytes for c in crossings(result, "a") if not c.sent}
    each = 3 * 22 * 6 * 8
    assert sent == {("bottom->middle", "forward"): each, ("middle->head", "backward"): each}
    assert received == {("middle->head", "forward"): each, ("bottom->middle", "backward"): each}


# ---------------------------------------------------------------------- what may be given


def test_names_of_methods_may_be_written_in_any_case_with_their_rate_beside_or_inside() -> None:
    inside = run(lr=None, optimizer={"name": "SGD", "lr": 0.1})
    assert run(optimizer="sgd").history == inside.history == run(optimizer={"name": "Sgd"}).history


def test_a_layer_may_be_named_by_its_number() -> None:
    assert run(cut=3).history == run(cut="3").history == run(cut=["3"]).history


def test_parts_need_no_cut() -> None:
    model = network()
    parts = Parts(bottom=model[:4], top=model[4:])
    found = run(model=parts, cut=None)
    assert found.history == run(cut="3").history
    assert next(iter(found.model_for("a").state_dict())) == "bottom.0.weight"


def test_rows_of_another_precision_are_brought_to_the_models() -> None:
    floats = {name: TensorDataset(d.tensors[0].float(), d.tensors[1]) for name, d in clients().items()}
    doubles = {name: TensorDataset(d.tensors[0].double(), d.tensors[1]) for name, d in floats.items()}
    assert run(data=floats).history == run(data=doubles).history


# ---------------------------------------------------------------------- what is refused


WRONG: list[tuple[dict[str, Any], type[CutlayerError], str]] = [
    ({"optimizer": "adan"}, PlanError, "training.optimizer = 'adan' is unknown: did you mean 'Adam'"),
    ({"optimizer": "LBFGS"}, PlanError, "'LBFGS' cannot be used across a cut"),
    ({"optimizer": {"name": "sgd", "momentun": 0.9}}, PlanError, "momentun"),
    ({"lr": -1.0}, PlanError, "Invalid learning rate"),
    ({"lr": "fast"}, PlanError, "training.optimizer: torch's SGD refuses its options"),
    ({"loss": "cross entropy"}, PlanError, "training.loss = 'cross entropy' is unknown: did you mean 'cross_entropy'"),
    ({"loss": {"name": "cross_entropy", "weights": [1.0]}}, PlanError, "did you mean 'weight'"),
    ({"loss": {"name": "cross_entropy", "weight": [1.0]}}, PlanError, "weight tensor should be defined either for all"),
    ({"lr_schedule": "StepLr2"}, PlanError, "training.lr_schedule = 'StepLr2' is unknown: did you mean 'StepLR'"),
    ({"lr_schedule": "ReduceLROnPlateau"}, PlanError, "it needs a metric that only one party sees"),
    ({"lr_schedule": {"name": "StepLR", "step_size": 1, "every": "epoch"}}, PlanError, "lr_schedule.every = 'epoch'"),
    ({"topology": "vanila"}, PlanError, "topology = 'vanila' is unknown: did you mean 'vanilla'"),
    ({"schedule": "alternate"}, PlanError, "schedule = 'alternate' is unknown: did you mean 'alternating'"),
    ({"micro_batches": 2}, PlanError, "micro_batches = 2, but 1 normalise"),
    ({"micro_batches": 0}, PlanError, "training.micro_batches = 0"),
    ({"batch_size": 0}, PlanError, "training.batch_size = 0"),
    ({"rounds": -1}, PlanError, "training.rounds = -1"),
    ({"held_out": 1.0}, PlanError, "training.held_out = 1.0"),
    ({"cut": ["0", "3"]}, PlanError, "model.cut names 2 layer"),
    ({"cut": "3", "topology": "u_shaped"}, PlanError, "model.cut names 1 layer"),
    ({"cut": None}, CutError, "0 cuts make 1 parts, but 2 are wanted"),
    ({"cut": []}, CutError, "0 cuts make 1 parts, but 2 are wanted"),
    ({"cut": "9"}, CutError, "no layer '9'"),
    ({"cut": "5"}, CutError, "no parameters"),
    ({"cut": ["3", "0"], "topology": "u_shaped"}, CutError, "order"),
    ({"data": {}}, DataError, "data is empty"),
    ({"data": {"server": rows(9)}}, DataError, "'server' is the name of a party that brings no rows"),
    ({"data": {"Hospital A": rows(9)}}, PlanError, "DNS label"),
    ({"held_out": {"c": rows(9)}}, DataError, "held_out has rows of c, but the clients are a, b"),
    ({"data": {"a": [1, 2, 3]}}, DataError, "the first sample of a is no pair"),
    ({"data": {"a": TensorDataset(torch.randn(9, 7).double(), torch.zeros(9).long())}}, CutError, "fails on float64"),
    (
        {"data": {"a": rows(9), "b": TensorDataset(torch.randn(9, 7), torch.zeros(9).long())}},
        DataError,
        r"float32\[B, 7",
    ),
    ({"data": {"a": TensorDataset(torch.randn(9, 4), torch.arange(9))}}, DataError, "labels of the dataset run from 0"),
    ({"data": {"a": TensorDataset(torch.randn(9, 4), -torch.ones(9).long())}}, DataError, "run from -1 to -1"),
    ({"data": {"a": TensorDataset(torch.randn(9, 4) / 0, torch.zeros(9).long())}}, DataError, "holds -?inf"),
]


@pytest.mark.parametrize(("terms", "error", "words"), WRONG, ids=[words[:40] for _, _, words in WRONG])
def test_what_cannot_be_run_is_refused_before_anything_runs(
    terms: dict[str, Any], error: type[CutlayerError], words: str
) -> None:
    told: list[object] = []
    with pytest.raises(error, match=words):
        run(**{"observers": [told.append]} | terms)
    assert not told


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        run(optimizer="adan", loss="mse", lr_schedule="Step", batch_size=0, micro_batches=2)
    assert len(caught.value.faults) == 5


def test_a_label_out_of_range_in_a_later_sample_ends_the_run_as_a_data_error() -> None:
    class Late(Drawn):
        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            return super().__getitem__(row)[0], 3 if row == 7 else 0

    with pytest.raises(DataError, match="row 7 of the dataset"):
        run(data={"a": Late()}, held_out=0.0)


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where() -> None:
    """Here only what follows the last cut learns too fast, so that what crosses is still finite."""
    too_fast = {"name": "sgd", "lr": 1e200}
    with pytest.raises(Diverged, match=r"loss of top is (nan|inf).* turn \d+, [ab], step \d+.*round \d") as caught:
        run(server_optimizer=too_fast, rounds=5)
    assert "lower the learning rate" in str(caught.value)


@pytest.mark.parametrize(("topology", "edge"), [("vanilla", "bottom->top"), ("u_shaped", "bottom->middle")])
def test_what_is_not_finite_before_there_is_a_loss_is_not_taken_over_a_cut(topology: str, edge: str) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"on {edge} for turn \d+, [ab], step \d+") as caught:
        run(topology, lr=1e200, rounds=5)
    assert caught.value.rule == "not-finite"
    assert "lower the learning rate" in str(caught.value)


def test_the_limits_of_a_plan_are_the_documented_ones() -> None:
    assert run(rounds=0).agreement.plan.terms.limits == Limits()
    assert run(rounds=0).agreement.labels == TensorSpec(dtype="int64", shape=("B",), differentiable=False)
