"""What a survey finds of a small model: the places, what crosses, what is kept; measured times are only times."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer.errors import CutError, DataError, PlanError
from cutlayer.plan.methods import method_from
from cutlayer.plan.terms import InputTerms, Method, Training
from cutlayer.studies import codecs, costs
from cutlayer.studies.costs import Batch, Pair
from cutlayer.studies.cuts import inputs_of, layers, only_known, possible, vanilla
from cutlayer.studies.survey import survey

ROWS = TensorDataset(torch.randn(20, 6), torch.arange(20) % 3)
SGD = Method(name="SGD", options={"lr": 0.0})


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "ENOUGH_S", 0.0)


def training(optimizer: Method = SGD) -> Training:
    loss = Method(name="cross_entropy")
    return Training(loss=loss, optimizer=optimizer, batch_size=8, rounds=1, shuffle=False, held_out=0.0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.b(self.a(x).relu())
        return out


def model() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True))
    return nn.Sequential(block, Residual(), nn.Dropout(), nn.Linear(5, 3))


def test_every_place_is_found_once_in_running_order() -> None:
    found = layers(model().train(), (torch.zeros(2, 6),))
    assert found == ["0.0", "0", "1.a", "1.b", "1", "2", "3"]  # a block stands for its last layer


def test_cuts_that_cannot_be_made_are_left_out_and_a_named_one_is_explained() -> None:
    net, inputs = model(), (InputTerms(shape=(6,)),)
    sample = (torch.zeros(2, 6),)
    assert list(possible(net, vanilla(training(), inputs), sample)) == ["0.0", "0", "1.a", "1.b", "1", "2"]
    with pytest.raises(CutError, match="no parameters"):
        possible(net, vanilla(training(), inputs), sample, ["3"])
    with pytest.raises(CutError, match="cut nowhere"):
        possible(nn.Sequential(nn.Linear(6, 3)), vanilla(training(), inputs), sample)
    with pytest.raises(PlanError, match="no layer 'top'"):
        only_known(net, ["0", "top"])


def test_looking_for_places_changes_nothing() -> None:
    net = model().train()
    net[2].eval()
    layers(net, (torch.zeros(2, 6),))
    assert [module.training for module in net] == [True, True, False, True]
    assert not any(module._forward_hooks for module in net.modules())


def test_a_model_that_fails_on_such_rows_says_so() -> None:
    with pytest.raises(CutError, match="fails on rows like those of the data: mat1"):
        layers(model(), (torch.zeros(2, 7),))


def test_a_survey_says_what_crosses_and_what_each_side_computes() -> None:
    net = model()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    found = survey(net, ROWS, training(), named={"raw": None}, micros=(1, 2, 64))
    assert [place.layer for place in found.places] == ["0.0", "0", "1.a", "1.b", "1", "2"]
    by_layer = {place.layer: place for place in found.places}
    assert (by_layer["0"].bytes_forward, by_layer["0"].bytes_back) == (20, 20)
    assert by_layer["1.a"].bytes_forward == 40  # what is added later crosses as well
    assert by_layer["1.a"].crosses.count("float32[B, 5]") == 2
    for place in found.places:
        assert place.client_flops is not None
        assert place.server_flops is not None
        assert place.client_flops.forward + place.server_flops.forward == 2 * (6 * 5 + 5 * 5 + 5 * 5 + 5 * 3)
        assert [trial.micro_batches for trial in place.trials] == [1, 2]
        assert place.trials[1].up.nbytes == 4 * place.bytes_forward
    assert (found.rows, found.data_rows, found.label_bytes, set(found.load_s)) == (8, 20, 8, {1, 2})
    assert found.whole_bytes == sum(tensor.nbytes for tensor in before.values())
    assert "more micro-batches than the 8 rows" in found.refused[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_weights_gradients_optimizer_and_what_forward_keeps() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    adam = Method(name="Adam", options={"lr": 0.0})
    plan = possible(net, vanilla(training(adam), inputs_of(net, ROWS)), (torch.zeros(2, 6),), ["1"])["1"]
    x, y = ROWS[:8]
    client, server = Pair(plan, Batch(x=(x.clone(),), y=y.clone())).memory()
    weights = 4 * (6 * 5 + 5)
    assert (client.parameters, client.gradients) == (weights, weights)
    assert client.optimizer == 2 * weights + 2 * 4  # two moments of each, and a count of steps a tensor
    assert client.activations == 4 * 8 * (6 + 5)  # the rows, for the weights' gradient, and ReLU's result
    kept = 4 * 8 * 5 + 4 * 8 * 3 + 8 * 8  # what came, the scores' logarithms, the labels; not the weights
    assert kept <= server.activations <= kept + 4 * 3
    assert client.total == 4 * weights + 8 + 352


def test_batches_over_which_a_model_normalises_are_not_split() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    found = survey(net, ROWS, training(), named={"raw": None}, micros=(1, 2))
    assert {trial.micro_batches for place in found.places for trial in place.trials} == {1}
    assert "normalise" in found.refused[0]


def test_a_codec_is_tried_on_what_crosses_and_one_that_cannot_carry_it_is_left_out() -> None:
    net = nn.Sequential(nn.Embedding(4, 6), nn.Flatten(), nn.Linear(18, 5), nn.Linear(5, 3))
    rows = TensorDataset(torch.randint(0, 4, (16, 3)), torch.arange(16) % 3)
    found = survey(net, rows, training(), named=codecs.named("raw,half"), only=["0", "2"])
    sizes = {(place.layer, trial.codec): trial.up.nbytes for place in found.places for trial in place.trials}
    assert sizes["0", "raw"] == 8 * 18 * 4
    assert sizes["2", "raw"] == 8 * 5 * 4
    for layer in ("0", "2"):
        assert sizes[layer, "raw"] / 2 <= sizes[layer, "half"] <= sizes[layer, "raw"] / 2 + 64


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match="two or more"):
        survey(model(), TensorDataset(torch.randn(1, 6), torch.zeros(1).long()), training(), named={"raw": None})


def test_codecs_are_read_as_they_are_written() -> None:
    assert method_from("topk(share=0.01)").options == {"share": 0.01}
    assert method_from("int8(scale='row')").options == {"scale": "row"}
    assert list(codecs.named("raw, half,topk(share=0.1)+int8")) == ["raw", "half", "topk(share=0.1)+int8"]
    for wrong in ("topk(share", "topk(0.1)", "what"):
        with pytest.raises(PlanError):
            codecs.named(wrong)
