"""What crosses is encoded: neutral codecs change no bit, others the same bits everywhere; and a save remembers."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cutlayer import Result, simulate
from cutlayer.codec.registry import build
from cutlayer.errors import PlanError, RemoteProtocolError
from cutlayer.plan.terms import CodecTerms, Method
from cutlayer.simulation import simulate_plan
from equivalence.longhand import SECRETS
from equivalence.longhand_topologies import assert_same_bits
from equivalence.test_schedules import sweep
from party.test_party import looped

ROWS, BATCH = 20, 8
DATA = {
    name: TensorDataset(torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows)), torch.arange(rows) % 3)
    for name, rows in (("a", 20), ("b", 13))
}
TERMS: dict[str, Any] = {"batch_size": BATCH, "rounds": 3, "lr": 0.1, "held_out": 0.2, "secrets": SECRETS}
CUTS: dict[str, Any] = {"vanilla": "1", "u_shaped": ("1", "3")}


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))


def run(*codec: CodecTerms, topology: str = "vanilla", **terms: Any) -> Result:
    return simulate(network(), cut=CUTS[topology], topology=topology, data=DATA, codec=codec, **TERMS | terms)


def both(*stages: Method | str, **terms: Any) -> CodecTerms:
    methods = tuple(Method(name=each) if isinstance(each, str) else each for each in stages)
    return CodecTerms(forward=methods, backward=methods, **terms)


def topk(share: float) -> Method:
    return Method(name="topk", options={"share": share})


LOSSY = {
    "half": both("half"),
    "int8": both("int8"),
    "topk, int8, zstd": both(topk(0.25), "int8", "zstd"),
    "random_topk": both(Method(name="random_topk", options={"share": 0.25})),
    "feature_dropout, int8": both(Method(name="feature_dropout", options={"share": 0.5}), "int8"),
    "feedback by channel": both(topk(0.25), forward_feedback="channel", backward_feedback="channel"),
    "feedback by sample": both(topk(0.25), forward_feedback="sample"),
}


@pytest.mark.parametrize("topology", CUTS)
@pytest.mark.parametrize("neutral", ["raw", "zstd", "lz4", topk(1.0)], ids=str)
def test_a_neutral_codec_changes_no_bit(neutral: Method | str, topology: str) -> None:
    coded, plain = run(both(neutral), topology=topology), run(topology=topology)
    assert coded.history == plain.history
    for name in plain.parties:
        assert all(torch.equal(coded.weights_of(name)[key], value) for key, value in plain.weights_of(name).items())


@sweep("name, schedule", LOSSY, ["alternating", "parallel", "splitfed_v1"], share=2)
def test_a_lossy_codec_gives_the_same_bits_in_every_order_of_delivery(name: str, schedule: str) -> None:
    topology, sums = "u_shaped" if "channel" in name else "vanilla", schedule != "alternating"
    result = run(LOSSY[name], schedule=schedule, topology=topology, aggregator_sees_weights=sums)
    plain = run(schedule=schedule, topology=topology, aggregator_sees_weights=sums)
    assert result.history != plain.history
    for seed in range(2):
        delivery = random.Random(seed)  # noqa: S311
        assert_same_bits(simulate_plan(result.agreement, DATA, secrets=SECRETS, delivery=delivery), result)


@pytest.mark.parametrize("name", ["int8", "feedback by sample"])
def test_over_a_network_a_codec_gives_the_bits_of_the_simulation(name: str) -> None:
    base = run(LOSSY[name], schedule="splitfed_v2", aggregator_sees_weights=True)
    parties, meters = looped(base, DATA, base.agreement.plan.terms.limits)
    for party in parties:
        assert all(torch.equal(parties[party].weights()[key], value) for key, value in base.weights_of(party).items())
    crossing = meters["a"].crossings["server", "bottom->top", "forward", True, "train"]
    assert crossing.codec == build(LOSSY[name].forward).name
    assert crossing.payload_bytes < 0.6 * crossing.rows * 24 * 4
    assert meters["a"].crossings["server", "y->top", "forward", True, "train"].codec == "raw"


def test_int8_is_what_the_top_gets_and_the_bottom_gets_back() -> None:
    """One step by hand: the top sees the decoded activation, the bottom the decoded gradient."""
    coder = build([Method(name="int8")])
    rows = TensorDataset(*(tensor[:8] for tensor in DATA["a"].tensors))
    found = simulate(
        network(),
        cut="1",
        data={"a": rows},
        codec=both("int8"),
        **TERMS | {"rounds": 1, "held_out": 0.0, "shuffle": False},
    ).model_for("a")
    model = network()
    bottom, top = model[:2], model[2:]
    activation = bottom(rows.tensors[0])
    arrived = through(coder, activation).requires_grad_()
    nn.functional.cross_entropy(top(arrived), rows.tensors[1], reduction="sum").backward()  # type: ignore[no-untyped-call]
    assert arrived.grad is not None
    activation.backward(through(coder, arrived.grad))
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad / 8)
    for one, other in zip(found.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


DROPPED = (Method(name="feature_dropout", options={"share": 0.25}),)


def sent_back(*backward: str, micro_batches: int = 1, schedule: str = "alternating", **terms: Any) -> Any:
    """A run after feature dropout; and how many bytes of gradients a row got."""
    codec = CodecTerms(forward=DROPPED, backward=tuple(Method(name=each) for each in backward), **terms)
    result = run(codec, micro_batches=micro_batches, schedule=schedule, aggregator_sees_weights=schedule == "parallel")
    crossing = result.meters["a"].crossings["server", "bottom->top", "backward", False, "train"]
    return result, crossing.payload_bytes / crossing.rows


@pytest.mark.parametrize("schedule", ["alternating", "parallel"])
@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("backward", [("raw",), ("zstd",)])
def test_gradients_without_the_features_that_did_not_cross_change_no_bit(
    backward: tuple[str, ...], micro_batches: int, schedule: str
) -> None:
    whole, whole_bytes = sent_back(micro_batches=micro_batches, schedule=schedule)
    part, part_bytes = sent_back(*backward, micro_batches=micro_batches, schedule=schedule)
    assert whole_bytes == 24 * 4
    assert part_bytes <= 6 * 4 + 1
    for name in whole.parties:
        assert all(torch.equal(part.weights_of(name)[key], value) for key, value in whole.weights_of(name).items())


def test_with_feedback_on_the_way_back_all_features_are_there() -> None:
    _, nbytes = sent_back("int8", backward_feedback="channel")
    assert nbytes >= 24


def through(codec: Any, tensor: Tensor) -> Tensor:
    from cutlayer.codec.sections import shape_of

    return codec.decode(codec.encode(tensor.detach(), 0).payload, shape_of(tensor))  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[tuple[CodecTerms, ...], str]] = {
    "an unknown codec": ((both("int7"),), "did you mean 'int4'|did you mean 'int8'"),
    "an unknown option": ((both(Method(name="topk", options={"shares": 0.1})),), "share"),
    "labels by a lossy one": ((CodecTerms(edge="y->top", forward=(Method(name="int8"),)),), "y->top"),
    "an edge that is none": ((CodecTerms(edge="x->bottom", forward=(Method(name="int8"),)),), "nothing crosses there"),
    "two for one": ((both("int8"), both("half")), "2 entries for all cuts"),
    "feedback of nothing": ((CodecTerms(forward_feedback="channel"),), "nothing is encoded that way"),
    "whose rows": ((both(topk(0.1), backward_feedback="sample"),), "does not know whose rows"),
    "no memory": ((both(topk(0.1), forward_feedback="channel", feedback_mib=0),), "feedback_mib"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_codec_that_cannot_be_is_refused_with_the_mend(name: str) -> None:
    codec, sentence = REFUSED[name]
    with pytest.raises(PlanError, match=sentence):
        run(*codec)


def test_what_a_codec_would_not_have_made_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A party whose codec lies: the receiver names the peer, the edge and the ticket."""
    from cutlayer.codec.int8 import Int8

    honest = Int8.encode

    def lying(self: Int8, tensor: Tensor, seed: int) -> Any:
        encoded = honest(self, tensor, seed)
        encoded.payload[:] = 255
        return encoded

    monkeypatch.setattr(Int8, "encode", lying)
    with pytest.raises(RemoteProtocolError, match=r"(wrong-payload|not-finite).*bottom->top"):
        run(both("int8"))
