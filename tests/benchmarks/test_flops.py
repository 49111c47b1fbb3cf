"""VGG-16 after its first convolution costs a client 177 times less forward, 265 with backward, and falls as 1/K."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import flops


def test_a_first_convolution_counts_two_operations_a_multiply_add() -> None:
    forward = next(count for count in flops.counts([100]) if count.counted == "forward")
    assert forward.split == 500 * 2 * 64 * 3 * 9 * 32 * 32


def test_the_ratios_are_those_of_this_count_for_any_number_of_clients() -> None:
    ratios = {(count.counted, count.clients): count.ratio for count in flops.counts([100, 500])}
    for clients in (100, 500):
        assert ratios["forward", clients] == pytest.approx(177.3, abs=0.05)
        assert ratios["with backward", clients] == pytest.approx(265.4, abs=0.05)


def test_what_a_client_computes_falls_as_one_over_the_clients_exactly() -> None:
    for hundred, five_hundred in zip(*(flops.counts([number]) for number in (100, 500)), strict=True):
        assert hundred.uncut == 5 * five_hundred.uncut
        assert hundred.split == 5 * five_hundred.split


def test_the_table_stands_beside_the_paper_and_a_wrong_count_is_said() -> None:
    result = flops.summary([100, 500])
    told = flops.table(result)
    assert not list(flops.broken(result))
    assert "177.3" in told
    assert "189.9" in told
    result["counts"][0]["split"] += 1
    result["counts"][2]["ratio"] = 200.0
    assert list(flops.broken(result)) == [
        "split, forward: operations of a client do not fall as 1/K",
        "with backward: 200.0 times less, but it should be 265",
    ]
