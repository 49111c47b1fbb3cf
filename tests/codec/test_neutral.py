"""Codecs with a neutral setting: raw, bit for bit; and what each method does on a tensor small enough to see it."""

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from codec.codecs import same_bits, stage, tensors, through
from cutlayer.codec.registry import build
from cutlayer.codec.sections import shape_of
from cutlayer.plan.terms import Method

NEUTRAL: list[list[Method]] = [
    [],
    [stage("raw")],
    [stage("topk", share=1.0)],
    [stage("topk", share=1, across="tensor"), stage("zstd")],
    [stage("random_topk", share=1.0, alpha=0.5)],
    [stage("feature_dropout", share=1.0)],
    [stage("pq", part=1, words=10**6, strength=1.0)],
    [stage("zstd")],
    [stage("lz4")],
]


@pytest.mark.parametrize("chain", NEUTRAL, ids=lambda chain: build(chain).name)
@given(tensor=tensors())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_a_neutral_codec_is_raw_bit_for_bit(chain: list[Method], tensor: Tensor) -> None:
    codec = build(chain)
    encoded = codec.encode(tensor, 1)
    assert same_bits(codec.decode(encoded.payload, shape_of(tensor)), tensor)
    if not getattr(codec, "packs", False):
        assert torch.equal(encoded.payload[-tensor.nbytes :] if tensor.nbytes else encoded.payload, raw_bytes(tensor))
    gradient = torch.randn(tensor.shape)
    assert torch.equal(codec.correct(gradient, encoded.kept), gradient)
    assert codec.error_bound(tensor) == 0.0


def raw_bytes(tensor: Tensor) -> Tensor:
    return build([]).encode(tensor, 0).payload


def test_half_of_halves_is_raw() -> None:
    tensor = torch.randn(5, 7)
    for kind, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        assert same_bits(through(build([stage("half", kind=kind)]), tensor.to(dtype)), tensor.to(dtype))


def test_topk_keeps_the_largest_of_each_row_or_of_all() -> None:
    x = torch.tensor([[1.0, -5.0, 2.0, 0.0], [0.1, 0.2, 0.3, -0.4]])
    by_row = [[0.0, -5.0, 2.0, 0.0], [0.0, 0.0, 0.3, -0.4]]
    assert torch.equal(through(build([stage("topk", share=0.5)]), x), torch.tensor(by_row))
    across = [[1.0, -5.0, 2.0, 0.0], [0.0, 0.0, 0.0, -0.4]]
    assert torch.equal(through(build([stage("topk", share=0.5, across="tensor")]), x), torch.tensor(across))


def test_masked_topk_gives_no_gradient_to_what_was_not_sent() -> None:
    x = torch.tensor([[1.0, -5.0, 2.0, 0.0]])
    for masked, due in ((True, [[0.0, 7.0, 7.0, 0.0]]), (False, [[7.0, 7.0, 7.0, 7.0]])):
        codec = build([stage("topk", share=0.5, masked=masked)])
        kept = codec.encode(x, 0).kept
        assert codec.correct(torch.full((1, 4), 7.0), kept).tolist() == due


def test_random_topk_picks_outside_the_top_k_as_often_as_alpha_says() -> None:
    x = torch.cat((torch.full((400, 10), 9.0), torch.full((400, 40), 1.0)), 1)
    back = through(build([stage("random_topk", share=0.2, alpha=0.3)]), x)
    assert (back != 0).sum(1).tolist() == [10] * 400
    outside = float((back == 1).sum() / 4000)
    assert abs(outside - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    sent = (back == 1).sum(0)[10:].double()
    assert float(sent.min()) > 0.5 * float(sent.mean())
    plain = build([stage("topk", share=0.2)])
    assert torch.equal(through(build([stage("random_topk", share=0.2, alpha=0.0)]), x), through(plain, x))


@pytest.mark.parametrize(
    "chain",
    [
        [stage("int8", rounding="random", scale="tensor")],
        [stage("int4", rounding="random", scale="tensor")],
        [stage("feature_dropout", share=0.5)],
    ],
    ids=lambda chain: build(chain).name,
)
def test_random_codecs_are_right_on_average(chain: list[Method]) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    codec = build(chain)
    backs = torch.stack([through(codec, x, seed) for seed in range(400)])
    error = (backs.mean(0) - x).abs() / (backs.std(0) / 400**0.5 + 1e-6)
    assert float(error.max()) < 4.5


def test_sign_sends_the_mean_size_of_each_group() -> None:
    x = torch.tensor([[1.0, -3.0], [0.0, -0.5]])
    assert through(build([stage("sign", scale="row")]), x).tolist() == [[2.0, -2.0], [0.25, -0.25]]
    assert through(build([stage("sign", scale="channel")]), x).tolist() == [[0.5, -1.75], [0.5, -1.75]]


def test_int8_and_int4_have_known_bytes() -> None:
    x = torch.tensor([[127.0, -127.0, 2.4, 0.0]])
    assert build([stage("int8", scale="row")]).encode(x, 0).payload.view(torch.int8).tolist()[4:] == [127, -127, 2, 0]
    x = torch.tensor([[0.0, 15.0, 2.4, 7.0]])
    assert build([stage("int4", scale="row")]).encode(x, 0).payload.tolist()[8:] == [0xF0, 0x72]


def test_pq_finds_the_words_that_parts_are_made_of_and_corrects_the_gradient() -> None:
    words = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [-4.0, 0.0, 4.0]])
    x = words[torch.randint(3, (64, 5), generator=torch.Generator().manual_seed(0))].view(64, 15)
    codec = build([stage("pq", part=3, words=8, strength=0.5)])
    assert torch.allclose(through(codec, x), x, atol=1e-5)
    rough = build([stage("pq", part=3, words=1, strength=0.5)])
    encoded = rough.encode(x, 0)
    gradient = torch.ones_like(x)
    lost = x - rough.decode(encoded.payload, shape_of(x))
    assert torch.allclose(rough.correct(gradient, encoded.kept), gradient + 0.5 * lost)


def test_pq_says_which_parts_a_row_can_be_cut_into() -> None:
    fault = build([stage("pq", part=4, words=2)]).fault(shape_of(torch.ones(2, 6)))
    assert fault is not None
    assert "do not divide by 4" in fault


def test_feature_dropout_sends_whole_columns_and_its_factors_come_back_with_the_gradient() -> None:
    x = torch.randn(9, 4, 5, generator=torch.Generator().manual_seed(1)) + 3
    codec = build([stage("feature_dropout", share=0.25)])
    encoded = codec.encode(x, 2)
    back = codec.decode(encoded.payload, shape_of(x))
    factor = back / x
    assert torch.allclose(factor, factor[0].expand_as(factor))
    assert int((factor[0] != 0).sum()) == 5
    assert torch.allclose(codec.correct(torch.ones_like(x), encoded.kept), factor)
    for packed in ([], [stage("zstd")]):
        chain = build([stage("feature_dropout", share=0.25), *packed])
        crossed = chain.crossed(chain.encode(x, 2).payload, shape_of(x))
        assert crossed is not None
        assert crossed.tolist() == factor[0].flatten().nonzero()[:, 0].tolist()
    assert build([stage("topk", share=0.25)]).crossed(encoded.payload, shape_of(x)) is None


def test_adaptive_gives_more_bits_to_features_that_vary_more() -> None:
    x = torch.rand(64, 8, generator=torch.Generator().manual_seed(1)) * torch.tensor([8.0, 8, 1, 1, 1, 1, 0.01, 0.01])
    error = (through(build([stage("adaptive", bits=3)]), x) - x).abs().amax(0)
    even = 8 / 7 / 2
    assert float(error[:2].max()) < even / 2
    assert float(error.max()) < 0.35
