"""Chains from names and options: what is built, and every fault in words."""

import pytest

from codec.codecs import CODECS, stage
from cutlayer.codec.registry import METHODS, build, faults, options_of
from cutlayer.errors import PlanError
from cutlayer.plan.terms import Method


def test_a_chain_is_named_as_a_plan_writes_it() -> None:
    chain = [stage("topk", share=0.01), stage("int8", scale="row"), stage("zstd", level=3)]
    assert build(chain).name == "topk(share=0.01)+int8(scale='row')+zstd"
    assert build([]).name == "raw"
    assert len({codec.name for codec in CODECS}) == len(CODECS)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ([stage("topkk", share=0.1)], "did you mean 'topk'?"),
        ([stage("topk", shar=0.1)], "shar is no option of it: did you mean 'share'?"),
        ([stage("topk")], "share is missing"),
        ([stage("topk", share=2.0)], "must be above 0 and at most 1"),
        ([stage("topk", share="much")], "must be a number"),
        ([stage("topk", share=True)], "must be a number"),
        ([stage("topk", share=0.1, masked=1)], "must be true or false"),
        ([stage("topk", share=0.1, across="column")], "known are row, tensor"),
        ([stage("pq", part=2.5, words=4)], "must be a whole number"),
        ([stage("pq", part=0, words=0)], "words = 0 must be at least 1"),
        ([stage("pq", part=1, words=2, strength=float("nan"))], "strength = nan must be at least 0"),
        ([stage("half", kind="fp32")], "known are fp16, bf16"),
        ([stage("fp8", kind="e3m4")], "known are e4m3, e5m2"),
        ([stage("int8", scale="column")], "known are tensor, row, channel"),
        ([stage("int4", rounding="up")], "known are nearest, random"),
        ([stage("random_topk", share=0.1, alpha=1.5)], "from 0 to 1"),
        ([stage("feature_dropout", share=0.0)], "above 0"),
        ([stage("adaptive", bits=9.0)], "from 0 to 8"),
        ([stage("zstd", level=0)], "from 1 to 19"),
        ([stage("lz4", level=13)], "from 0 to 12"),
        ([stage("raw", level=1)], "level is no option of it; known are none"),
        ([stage("zstd"), stage("int8")], "a chain is a reducer, a quantiser, a packer"),
        ([stage("int8"), stage("int4")], "at most one of each"),
        ([stage("int8", inner=1)], "inner is no option"),
    ],
    ids=lambda case: "+".join(each.name for each in case) if isinstance(case, list) else "",
)
def test_every_fault_is_said_in_words(chain: list[Method], said: str) -> None:
    assert said in "\n".join(faults(chain))
    with pytest.raises(PlanError):
        build(chain)


def test_all_faults_are_found_at_once() -> None:
    assert len(faults([stage("int9"), stage("topk", share=7.0), stage("zstd", speed=1)])) == 3


def test_every_method_tells_its_options() -> None:
    assert options_of("topk") == {"share": float, "across": str, "masked": bool}
    assert all(isinstance(options_of(name), dict) for name in METHODS)
