"""Claims about what a table learns of its training rows, held against plain numpy."""

import datetime as dt
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutlayer.data.encoding import CategoryFit, Encoding, FittedColumn, NumberFit
from cutlayer.data.roles import ColumnRole, Date, Embedded, Number, OneHot, TableRoles
from cutlayer.data.tables import open_table
from cutlayer.errors import DataError
from data.opening import both, fitted, refusal, write_csv, write_parquet, x_of

Numbers = list[float | None]
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def scaled(values: Numbers, train: list[int]) -> np.ndarray[Any, Any]:
    """The oracle: a float64 column less its training rows' mean, over their deviation, 0 where it is missing."""
    held = np.array([math.nan if value is None else value for value in values])
    known = held[train][~np.isnan(held[train])]
    less = (held - known.mean()) / (known.std() if np.ptp(known) else 1)
    return np.where(np.isnan(held), 0, less)


def test_numbers_are_standardised_by_the_training_rows_alone(tmp_path: Path) -> None:
    values: Numbers = [1.5, None, -2.0, 8.0, None, 3.25, 1e3]
    train = [0, 1, 2, 3]
    for path in both(tmp_path, {"a": values}):
        x = x_of(fitted(path, {"a": Number()}, train))
        np.testing.assert_allclose(x[:, 0], scaled(values, train), rtol=1e-6)
        assert x[1, 0] == x[4, 0] == 0


def test_without_scale_numbers_stand_as_they_are_and_missing_ones_are_the_mean(tmp_path: Path) -> None:
    for path in both(tmp_path, {"a": [1.0, None, 4.0, 70.0]}):
        assert x_of(fitted(path, {"a": Number(scale=False)}, [0, 1, 2])).flatten().tolist() == [1, 2.5, 4, 70]


def test_a_flag_says_what_was_missing_beside_its_number(tmp_path: Path) -> None:
    for path in both(tmp_path, {"a": [1.0, None, 3.0], "b": [5.0, 6.0, 7.0]}):
        x = x_of(fitted(path, {"a": Number(missing="flag"), "b": Number(scale=False)}))
        assert x[:, 1].tolist() == [0, 1, 0]
        assert x[:, 0].tolist() == [-1, 0, 1]
        assert x[:, 2].tolist() == [5, 6, 7]


def test_a_column_of_one_number_is_not_blown_up(tmp_path: Path) -> None:
    for path in both(tmp_path, {"a": [0.1] * 1000 + [0.3]}):
        table = fitted(path, {"a": Number()}, list(range(1000)))
        assert table.encoding.columns[0].fit == NumberFit(mean=0.1, std=1.0)
        assert x_of(table)[:1000].abs().max() == 0
        assert math.isclose(float(x_of(table)[1000, 0]), 0.2, rel_tol=1e-6)


def test_the_deviation_survives_a_large_mean(tmp_path: Path) -> None:
    values = (1e9 + np.random.default_rng(0).standard_normal(200_000)).tolist()
    fit = (
        fitted(write_parquet(tmp_path / "a.parquet", {"a": values}, group=7000), {"a": Number()})
        .encoding.columns[0]
        .fit
    )
    assert isinstance(fit, NumberFit)
    assert math.isclose(fit.mean, np.mean(values), rel_tol=1e-14)
    assert math.isclose(fit.std, np.std(values), rel_tol=1e-7)


def test_one_hot_takes_the_most_frequent_values_and_puts_the_others_last(tmp_path: Path) -> None:
    values = ["b", "a", "b", "c", "a", "d", None, " b ", "zz"]
    for path in both(tmp_path, {"a": values}):
        x = x_of(fitted(path, {"a": OneHot(size=4)}, list(range(8))))
        assert x.argmax(dim=1).tolist() == [0, 1, 0, 2, 1, 3, 3, 0, 3]
        assert x.sum(dim=1).tolist() == [1] * 9


def test_embedded_codes_start_with_0_for_all_others(tmp_path: Path) -> None:
    for path in both(tmp_path, {"a": ["b", "a", "b", None, "c"], "n": [7, 7, 8, 9, 9]}):
        table = fitted(path, {"a": Embedded(size=3), "n": Embedded(size=9)})
        (codes,), _ = table.batch(slice(None))
        assert codes.tolist() == [[1, 1], [2, 1], [1, 3], [0, 2], [0, 2]]
        assert codes.dtype is torch.int64


def test_fewer_values_than_places_leave_places_empty(tmp_path: Path) -> None:
    for path in both(tmp_path, {"a": ["x", "y"]}):
        assert x_of(fitted(path, {"a": OneHot(size=6)})).tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("day", [0, 31, 59 + 1, -1, None]), ("month", [0, 1, 2, -1, None]), ("year", [0, 0, 0, -1, None])],
)
def test_dates_are_whole_units_since_a_day(tmp_path: Path, unit: Any, expected: Numbers) -> None:
    days = [dt.date(2024, 1, 1), dt.date(2024, 2, 1), dt.date(2024, 3, 1), dt.date(2023, 12, 31), None]
    role = Date(unit=unit, since=dt.date(2024, 1, 1), scale=False, missing="flag")
    for path in both(tmp_path, {"a": days}):
        x = x_of(fitted(path, {"a": role}))
        assert x[:4, 0].tolist() == expected[:4]
        assert x[:, 1].tolist() == [0, 0, 0, 0, 1]


def test_moments_texts_and_days_are_the_same_dates(tmp_path: Path) -> None:
    role = {"a": Date(since=dt.date(1969, 12, 30), scale=False)}
    moments = [dt.datetime(1969, 12, 31, 23, 59, 59, 999999), dt.datetime(1970, 1, 1), dt.datetime(1970, 1, 1, 12)]
    forms: list[list[Any]] = [moments, [each.date() for each in moments], [each.isoformat() for each in moments]]
    for values in forms:
        for path in both(tmp_path, {"a": values}):
            assert x_of(fitted(path, role)).flatten().tolist() == [1, 2, 2]
    path = write_csv(tmp_path / "b.csv", {"a": ["31.12.1969", " 01.01.1970 ", "1.1.1970"]})
    own = {"a": Date(since=dt.date(1969, 12, 30), scale=False, format="%d.%m.%Y")}
    assert x_of(fitted(path, own)).flatten().tolist() == [1, 2, 2]


def test_dates_are_scaled_as_numbers_are(tmp_path: Path) -> None:
    days = [dt.date(2024, 1, 1) + dt.timedelta(days=7 * step * step) for step in range(20)]
    train = list(range(10))
    x = x_of(fitted(write_csv(tmp_path / "a.csv", {"a": days}), {"a": Date()}, train))
    np.testing.assert_allclose(x[:, 0], scaled([float(day.toordinal()) for day in days], train), rtol=1e-6)


@QUICK
@given(
    st.lists(
        st.tuples(st.none() | st.floats(-1e6, 1e6), st.none() | st.sampled_from("abcdef")), min_size=2, max_size=40
    ),
    st.data(),
)
def test_any_table_is_what_numpy_says_from_csv_as_from_parquet(
    tmp_path: Path, rows: list[tuple[float | None, str | None]], data: st.DataObject
) -> None:
    numbers: Numbers = [0.5, *(number for number, _ in rows)]
    words: list[str | None] = ["a", *(word for _, word in rows)]
    train = [0, *data.draw(st.sets(st.integers(1, len(rows))))]
    columns: dict[str, ColumnRole] = {"n": Number(missing="flag"), "w": OneHot(size=4), "e": Embedded(size=5)}
    one, other = (
        fitted(path, columns, train).batch(slice(None))[0]
        for path in both(tmp_path, {"e": words, "n": numbers, "w": words})
    )
    assert all(map(torch.equal, one, other))
    x, codes = one
    np.testing.assert_allclose(x[:, 0], scaled(numbers, train), rtol=1e-5, atol=1e-5)
    assert x[:, 1].tolist() == [number is None for number in numbers]
    counts = Counter(words[row] for row in train if words[row] is not None)
    ranked = sorted(counts, key=lambda word: (-counts[word], str(word)))
    assert x[:, 2:].argmax(dim=1).tolist() == [ranked[:3].index(w) if w in ranked[:3] else 3 for w in words]
    assert codes[:, 0].tolist() == [ranked[:4].index(w) + 1 if w in ranked[:4] else 0 for w in words]


def test_held_out_rows_change_nothing_that_is_learned(tmp_path: Path) -> None:
    columns: dict[str, ColumnRole] = {"n": Number(), "w": OneHot(size=3), "d": Date(), "e": Embedded(size=3)}
    train = [0, 2, 5]

    def table(odd: tuple[Any, ...]) -> dict[str, list[Any]]:
        rows = [(row + 0.25, "xyz"[row % 3], dt.date(2000 + row, 1, 1), "uv"[row % 2]) for row in range(6)]
        rows = [row if place in train else odd for place, row in enumerate(rows)]
        return dict(zip("nwde", map(list, zip(*rows, strict=True)), strict=True))

    for ending, write in ((".csv", write_csv), (".parquet", write_parquet)):
        first = fitted(write(tmp_path / f"a{ending}", table((1.0, "x", dt.date(2001, 1, 1), "u"))), columns, train)
        second = fitted(write(tmp_path / f"b{ending}", table((-1e9, "zz", dt.date(1900, 1, 1), "zz"))), columns, train)
        assert first.encoding == second.encoding
        for one, other in zip(first.batch(train)[0], second.batch(train)[0], strict=True):
            assert torch.equal(one, other)


def test_an_encoding_goes_through_json_and_encodes_alike(tmp_path: Path) -> None:
    columns: dict[str, ColumnRole] = {"n": Number(), "w": OneHot(size=3), "d": Date(since=dt.date(1999, 1, 1))}
    rows = {"n": [0.1, 1 / 3, None], "w": ["ä", "b", "b"], "d": [dt.date(2000, 1, 1), dt.date(2001, 2, 2), None]}
    path = write_parquet(tmp_path / "rows.parquet", rows)
    table = fitted(path, columns, label=None)
    data = table.encoding.to_json()
    encoding = Encoding.from_json(data)
    assert encoding == table.encoding
    assert encoding.to_json() == data
    again = open_table(path, TableRoles(columns=columns), encoding=encoding)
    assert torch.equal(x_of(again), x_of(table))
    again.fit(torch.tensor([0]))
    assert torch.equal(x_of(again), x_of(table)), "a table with an encoding learns nothing"


def test_at_prediction_unseen_values_are_others_and_the_label_may_lack(tmp_path: Path) -> None:
    columns: dict[str, ColumnRole] = {"n": Number(scale=False), "w": OneHot(size=3), "e": Embedded(size=4)}
    path = write_csv(tmp_path / "a.csv", {"n": [1, 3], "w": ["a", "b"], "e": ["u", "v"], "y": [0, 1]})
    trained = fitted(path, columns, label="y")
    later = write_csv(tmp_path / "b.csv", {"n": [None, 9], "w": ["c", "b"], "e": ["v", "w"]})
    table = open_table(later, TableRoles(columns=columns, label="y"), encoding=trained.encoding)
    (x, codes), y = table.batch(slice(None))
    assert x.tolist() == [[2, 0, 0, 1], [9, 0, 1, 0]]
    assert codes.tolist() == [[2], [0]]
    assert (y, table.has_label, trained.has_label) == (None, False, True)
    with pytest.raises(DataError, match="has no column 'y'"):
        open_table(later, TableRoles(columns=columns, label="y"))


def test_an_encoding_of_other_columns_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", {"a": [1, 2], "b": [3, 4]})
    encoding = fitted(path, {"a": Number(), "b": Number()}).encoding
    others: list[tuple[dict[str, ColumnRole], str]] = [
        ({"a": Number(), "b": Number(scale=False)}, "column 'b' had another role"),
        ({"a": Number()}, "column 'b' had another role"),
        ({"b": Number(), "a": Number()}, "the columns had another order"),
    ]
    for columns, sentence in others:
        with pytest.raises(DataError, match=sentence):
            open_table(path, TableRoles(columns=columns), encoding=encoding)


def test_what_is_no_encoding_is_refused() -> None:
    good = Encoding(columns=(FittedColumn(name="a", role=OneHot(size=3), fit=CategoryFit(values=("x",))),))
    assert Encoding.from_json(good.to_json()) == good
    bad = [
        b"", b"[]", b"{}",
        good.to_json().replace(b'"version": 1', b'"version": 2'),
        good.to_json().replace(b'"name"', b'"nom"'),
    ]  # fmt: skip
    for data in bad:
        with pytest.raises(DataError, match="this is no encoding that this cutlayer reads"):
            Encoding.from_json(data)
    fits: list[Any] = [
        (Number(), CategoryFit(values=("x",))),
        (OneHot(size=3), NumberFit(mean=0.0, std=1.0)),
        (OneHot(size=3), CategoryFit(values=("x", "y", "z"))),
        (OneHot(size=3), CategoryFit(values=("x", "x"))),
        (Number(), NumberFit(mean=0.0, std=0.0)),
    ]
    for role, fit in fits:
        data = Encoding(columns=(FittedColumn(name="a", role=role, fit=fit),)).to_json()
        with pytest.raises(DataError, match="column 'a' does not belong to its role"):
            Encoding.from_json(data)


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    for path in both(tmp_path, {"a": [None, 1.0], "b": ["x", ""]}):
        for columns in ({"a": Number()}, {"b": OneHot(size=3)}):
            with pytest.raises(DataError, match="has no value in the training rows: leave the column out"):
                fitted(path, columns, [0] if "a" in columns else [1])
    for path in both(tmp_path, {"a": [1e308, -1e308, 1e308]}):
        assert "numbers too large to take their mean" in refusal(path, {"a": Number()})
    for path in both(tmp_path, {"a": [1e200, 1e200]}):
        assert "is not a number that a float32 can hold" in refusal(path, {"a": Number(scale=False, missing="refuse")})
