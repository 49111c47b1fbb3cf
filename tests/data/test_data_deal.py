"""Claims about dealing rows to parties: nothing is lost or doubled, seeds decide, and skew is what was asked for."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from cutlayer.data.deal import HOWS, WITH_ALPHA, Deal, Integers, deal, numbered, set_aside, total_variation
from cutlayer.errors import DataError

ROWS = 600
CLASSES = np.arange(ROWS) % 6
ANY_HOW = ("iid", "dirichlet", "quantity")
LABELS = some.lists(some.integers(0, 4), min_size=1, max_size=60).map(np.array)


GOLDEN = {
    "iid": [1, 2, 3, 0, 1, 3, 0, 3, 2, 2, 0, 1],
    "dirichlet": [0, 1, 1, 2, 2, 1, 2, 1, 1, 2, 2, 1],
    "quantity": [2, 2, 0, 0, 2, 2, 2, 2, 0, 2, 1, 0],
}


def dealt(how: str, classes: Integers = CLASSES, parties: int = 5, **options: Any) -> Deal:
    """A deal; by `column` the values are the classes, so that every way can be tried on the same rows."""
    return deal(how, classes, parties, values=classes if how == "column" else None, **options)


def sizes(result: Deal) -> list[int]:
    return list(map(int, np.bincount(result.owners, minlength=result.parties)))


@pytest.mark.parametrize("how", HOWS)
@given(classes=LABELS, parties=some.integers(1, 60), seed=some.integers(0, 2**40), alpha=some.floats(1e-3, 1e4))
@settings(deadline=None, max_examples=60)
def test_every_row_is_dealt_once_and_every_party_has_one_or_nobody_has_any(
    how: str, classes: Integers, parties: int, seed: int, alpha: float
) -> None:
    different, rarest = len(set(classes)), min(np.unique(classes, return_counts=True)[1])
    most = {"classes": different * rarest, "column": different}.get(how, len(classes))
    if parties > len(classes) or (how == "column" and parties > different):
        with pytest.raises(DataError, match=r"\.$"):
            dealt(how, classes, parties, seed=seed, alpha=alpha)
    if parties > most:
        return
    result = dealt(how, classes, parties, seed=seed, alpha=alpha)
    places = np.concatenate([result.rows_of(party) for party in range(parties)])
    assert sorted(places.tolist()) == list(range(len(classes)))
    assert all(len(result.rows_of(party)) for party in range(parties))
    counts = result.counts(classes, 5)
    assert counts.sum(axis=0).tolist() == np.bincount(classes, minlength=5).tolist()
    assert counts.sum(axis=1).tolist() == sizes(result)


@pytest.mark.parametrize("how", HOWS)
def test_the_same_seed_deals_the_same_rows_and_another_seed_others(how: str) -> None:
    parties = 6 if how == "column" else 14
    once, again, other = (dealt(how, parties=parties, seed=seed).owners.tolist() for seed in (3, 3, 4))
    assert once == again
    assert (once == other) == (how == "column")


def test_a_deal_depends_on_nothing_but_its_arguments() -> None:
    code = (
        "import numpy as np; from cutlayer.data.deal import deal, numbered; np.random.seed(9); "
        "classes = numbered(['2', '1', '01', '1.0', '1e0'] * 9, '')[1]; "
        "print(deal('dirichlet', classes, 4, seed=5).owners.tolist(), numbered(['3', 'nan', '1', '2'], ''))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3", "4")
    }
    assert len(runs) == 1


def test_a_known_deal_stays_as_it_is() -> None:
    """Other owners here mean that nobody can repeat a published deal: say so in the change log."""
    classes = np.arange(12) % 3
    assert dealt("iid", classes, 4).owners.tolist() == GOLDEN["iid"]
    assert dealt("dirichlet", classes, 3, alpha=0.5).owners.tolist() == GOLDEN["dirichlet"]
    assert dealt("quantity", classes, 3, alpha=0.5).owners.tolist() == GOLDEN["quantity"]


@pytest.mark.parametrize("how", HOWS)
def test_one_party_gets_all(how: str) -> None:
    assert dealt(how, parties=1).owners.tolist() == [0] * ROWS


@pytest.mark.parametrize("how", ANY_HOW)
def test_as_many_parties_as_rows_get_one_row_each(how: str) -> None:
    result = dealt(how, parties=ROWS)
    assert sizes(result) == [1] * ROWS
    assert (result.moved > 0) == (how in WITH_ALPHA)


@pytest.mark.parametrize("how", HOWS)
def test_more_parties_than_rows_are_refused(how: str) -> None:
    with pytest.raises(DataError, match="3 rows do not go round 4 parties: name fewer parties, or add rows"):
        dealt(how, np.array([0, 1, 2]), 4)


def test_iid_sizes_differ_by_one_at_most_and_mixes_hardly() -> None:
    result = dealt("iid", parties=7)
    assert max(sizes(result)) - min(sizes(result)) == 1
    assert total_variation(result.counts(CLASSES, 6)).max() < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_a_small_alpha_skews_the_labels_and_a_large_one_does_not(seed: int) -> None:
    skewed, even = (
        total_variation(dealt("dirichlet", alpha=alpha, seed=seed).counts(CLASSES, 6)).mean() for alpha in (0.1, 100.0)
    )
    assert even < 0.1
    assert skewed > 0.4


@pytest.mark.parametrize("seed", range(5))
def test_quantity_skews_sizes_and_not_labels(seed: int) -> None:
    classes = np.arange(6000) % 6
    result = dealt("quantity", classes, alpha=0.3, seed=seed)
    assert max(sizes(result)) > 2 * 6000 / 5
    large = [party for party, size in enumerate(sizes(result)) if size > 300]
    assert total_variation(result.counts(classes, 6))[large].max() < 0.15
    assert max(sizes(dealt("quantity", classes, alpha=1e4, seed=seed))) < 1.1 * 6000 / 5


def test_dirichlet_shares_follow_the_draw() -> None:
    """Mean and variance of the shares of a class are those of Dirichlet(alpha): 1/K and (1/K)(1-1/K)/(K alpha + 1)."""
    classes = np.repeat(np.arange(400), 500)
    counts = dealt("dirichlet", classes, 4, alpha=0.7).counts(classes, 400) / 500
    assert np.allclose(counts.mean(axis=1), 1 / 4, atol=0.05)
    assert np.allclose(counts.var(axis=1), (1 / 4) * (3 / 4) / (4 * 0.7 + 1), rtol=0.2)


def test_an_extreme_draw_is_mended_by_single_rows_of_the_largest_party_and_says_so() -> None:
    result = dealt("quantity", parties=10, alpha=1e-3)
    assert result.moved == 9
    assert sorted(sizes(result)) == [1] * 9 + [ROWS - 9]
    assert dealt("quantity", parties=3, alpha=100.0).moved == 0


def test_party_k_has_class_k_modulo_the_classes() -> None:
    counts = dealt("classes", parties=14).counts(CLASSES, 6)
    assert [np.flatnonzero(row).tolist() for row in counts] == [[party % 6] for party in range(14)]
    assert counts[:, 0].tolist() == [34, 0, 0, 0, 0, 0, 33, 0, 0, 0, 0, 0, 33, 0]


def test_with_fewer_parties_than_classes_every_class_still_has_one_party() -> None:
    counts = dealt("classes", parties=4).counts(CLASSES, 6)
    assert [np.flatnonzero(row).tolist() for row in counts] == [[0, 4], [1, 5], [2], [3]]


def test_a_class_too_small_for_its_parties_is_refused_not_mended() -> None:
    with pytest.raises(DataError, match="a class has 1 rows for 2 parties, if each has one class only: name fewer"):
        dealt("classes", np.array([0, 0, 0, 1]), 4)


def test_a_value_of_the_column_is_never_parted() -> None:
    values = np.array([5, 5, 5, 2, 2, 9, 7, 7, 7, 7])
    result = deal("column", np.zeros(10, dtype=np.int64), 4, values=values)
    assert result.owners.tolist() == [1, 1, 1, 0, 0, 3, 2, 2, 2, 2], "party by value, in their order"
    grouped = deal("column", np.zeros(10, dtype=np.int64), 2, values=values)
    assert sizes(grouped) == [5, 5]
    assert all(len(set(grouped.owners[values == value])) == 1 for value in (2, 5, 7, 9))


def test_a_column_with_too_few_values_or_none_is_refused() -> None:
    with pytest.raises(DataError, match="has 2 different values for 3 parties: deal to 2 parties, or by another"):
        deal("column", np.zeros(4, dtype=np.int64), 3, values=np.array([0, 8, 0, 8]))
    with pytest.raises(DataError, match="no column is named"):
        deal("column", np.zeros(4, dtype=np.int64), 3)


def test_what_makes_no_sense_is_refused_in_one_sentence() -> None:
    with pytest.raises(DataError, match=r"'dirichle': choose one of iid, .*, 'dirichlet' perhaps"):
        dealt("dirichle")
    for alpha in (0.0, -1.0, float("nan"), float("inf"), 1e300):
        with pytest.raises(DataError, match=r"alpha cannot be .*: give a number above 0"):
            dealt("dirichlet", alpha=alpha)
    with pytest.raises(DataError, match="give at least 1 party"):
        dealt("iid", parties=0)
    with pytest.raises(DataError, match="a seed from 0"):
        dealt("iid", seed=-1)


def test_total_variation_is_half_the_difference_of_mixes() -> None:
    assert total_variation(np.array([[5, 5], [5, 5]])).tolist() == [0, 0]
    assert total_variation(np.array([[10, 0], [0, 30]])).tolist() == [0.75, 0.25]


def test_rows_set_aside_are_a_random_share_and_the_others_are_the_rest() -> None:
    dealt_rows, test = set_aside(100, 0.2, 0)
    assert (len(dealt_rows), len(test)) == (80, 20)
    assert sorted([*dealt_rows, *test]) == list(range(100))
    assert test.tolist() not in (list(range(20)), list(range(80, 100)), set_aside(100, 0.2, 1)[1].tolist())
    assert [len(part) for part in set_aside(100, 0.0, 0)] == [100, 0]
    assert [len(part) for part in set_aside(2, 0.001, 0)] == [1, 1]
    for share in (1.0, -0.1):
        with pytest.raises(DataError, match="cannot be set aside"):
            set_aside(100, share, 0)
    with pytest.raises(DataError, match="one row cannot"):
        set_aside(1, 0.5, 0)


def test_classes_are_numbered_in_their_own_order() -> None:
    assert numbered(["10", "9", "10"], "")[0] == ["9", "10"]
    assert numbered([3, 1, 3], "")[1].tolist() == [1, 0, 1]
    assert numbered(["b", "10", "9"], "")[0] == ["10", "9", "b"]
    assert numbered(["nan", "10", "9"], "")[0] == ["10", "9", "nan"]
    assert numbered(["1.0", "2", "1"], "")[0] == ["1", "1.0", "2"]
    with pytest.raises(DataError, match="the labels hold NaN"):
        numbered([1.0, float("nan")], "the labels")
    with pytest.raises(DataError, match="the labels have 1,001 different values, so they are no classes"):
        numbered(list(range(1001)), "the labels", most=1000)
