"""A replica's state as data: its bytes, what is averaged of it, and tensors that go by several names."""

import pytest
import safetensors.torch
import torch
from torch import nn

from cutlayer.errors import RunError
from cutlayer.model.replica import Replica
from cutlayer.model.state import ReplicaState, averaged_names, from_bytes, payload_bytes, to_bytes, with_ties
from model.learner import TRAINING, Layers, assert_same, by_bytes, made


def test_what_is_averaged_are_trainable_parameters_and_float_buffers_that_are_not_personal() -> None:
    module = Layers()
    module.late.weight.requires_grad_(False)
    assert averaged_names(module, {"norm.weight", "norm.running_var"}) == [
        "first.weight",
        "first.bias",
        "norm.bias",
        "seen",
        "norm.running_mean",
    ]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight


def test_tied_weights_are_one_tensor_under_its_first_name() -> None:
    replica = Replica(Tied(), TRAINING, personal=frozenset({"out.weight"}))
    assert list(replica.state().tensors) == ["model.embed.weight"]
    assert replica.personal == with_ties(replica.module, {"embed.weight"}) == {"embed.weight", "out.weight"}
    assert averaged_names(replica.module, {"out.weight"}) == []
    replica.check(by_bytes(replica.state()))


def test_bytes_keep_every_kind_of_tensor_and_the_counts() -> None:
    w = torch.arange(6.0)
    state = ReplicaState(
        tensors={
            "model.w": w,
            "model.tied": w,
            "model.part": w[2:4],
            "model.turned": w.view(2, 3).t(),
            "model.number": torch.tensor(2.5, dtype=torch.float64),
            "model.empty": torch.empty(0, 3),
            "model.none": torch.empty(0),
            "model.half": torch.tensor([1.0, -0.0], dtype=torch.bfloat16),
            "model.count": torch.tensor(2**62),
            "model.flag": torch.tensor([True, False]),
        },
        counts={"round": 3, "moves": 2**40},
    )
    found = from_bytes(memoryview(to_bytes(state)))
    assert_same(found, state)
    assert all(found.tensors[key].dtype == tensor.dtype for key, tensor in state.tensors.items())
    assert payload_bytes(state) == 6 * 4 + 6 * 4 + 2 * 4 + 6 * 4 + 8 + 2 * 2 + 8 + 2


def test_equal_states_have_equal_bytes() -> None:
    state = made().state()
    turned = ReplicaState(
        tensors=dict(reversed(state.tensors.items())), counts=dict(reversed(state.counts.items()))
    )  # fmt: skip
    assert to_bytes(state) == to_bytes(turned) == to_bytes(state.copied())


def test_bytes_that_are_no_state_are_refused_in_one_sentence() -> None:
    sound = to_bytes(made().state())
    garbage = [
        b"",
        b"no state at all",
        sound[:-1],
        sound[: len(sound) // 2],
        sound + b"x",
        b"\xff" * 64,
        b"\x80\x04\x95" + bytes(64),
        safetensors.torch.save({"model.w": torch.ones(1)}),
        safetensors.torch.save({"model.w": torch.ones(1)}, {"round": "1"}),
        *(
            safetensors.torch.save({"model.w": torch.ones(1)}, {"counts": counts})
            for counts in ("", "1", '{"round": 1.5}', '{"round": "1"}', '{"round": true}', "[]")
        ),
    ]
    for data in garbage:
        with pytest.raises(RunError, match="cannot be read as one") as caught:
            from_bytes(data)
        assert "\n" not in str(caught.value)
