"""A merged model is the uncut one with the parts' states, or an error that names what does not fit."""

import pytest
import torch
from torch import nn

from cutlayer.errors import CutError
from cutlayer.model.cut import cut
from cutlayer.model.merge import merge


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model[2].register_buffer("unsaved", torch.zeros(2), persistent=False)
    return model


def trained(model: nn.Module) -> dict[str, nn.Module]:
    parts = cut(model, 1, ("bottom", "top"))
    with torch.no_grad():
        for part in parts.values():
            for tensor in (*part.parameters(), *part.buffers()):
                tensor.add_(1)
    return parts


def test_merging_gives_a_copy_with_the_parts_states_and_leaves_the_model_alone() -> None:
    torch.manual_seed(0)
    other, model = network(), network()
    parts = trained(other)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    merged = merge(model, parts.values())
    x = torch.randn(5, 4)
    assert torch.equal(merged.eval()(x), other.eval()(x))
    assert not {id(p) for p in merged.parameters()} & {id(p) for p in (*model.parameters(), *other.parameters())}
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_unsaved_buffers_come_from_modules_and_stay_the_models_own_with_states() -> None:
    parts = trained(network())
    assert merge(network(), parts.values()).get_buffer("2.unsaved").tolist() == [1, 1]
    states = [part.state_dict() for part in parts.values()]
    assert merge(network(), states).get_buffer("2.unsaved").tolist() == [0, 0]
    assert merge(network(), [parts["bottom"], states[1]]).state_dict().keys() == network().state_dict().keys()


def test_missing_surplus_and_doubled_names_are_refused_by_name() -> None:
    bottom, top = (part.state_dict() for part in trained(network()).values())
    with pytest.raises(CutError, match=r"missing: 2.bias, 2.weight\)"):
        merge(network(), [bottom])
    with pytest.raises(CutError, match=r"in two parts: 2.bias, 2.weight"):
        merge(network(), [bottom, top, top])
    with pytest.raises(CutError, match=r"not in the model: 3.weight"):
        merge(network(), [bottom, top, {"3.weight": torch.ones(1)}])


def test_a_tensor_of_another_shape_is_refused() -> None:
    bottom, top = (part.state_dict() for part in trained(network()).values())
    with pytest.raises(CutError, match=r"not of this model \(.*2.bias.*\): merge into the model"):
        merge(network(), [bottom, {**top, "2.bias": torch.ones(7)}])
