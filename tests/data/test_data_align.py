"""Ids are the same bytes at all parties or are refused by count; masking commutes; comparing equals sets."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from cutlayer.data.align import (
    as_rows,
    check_points,
    common_places,
    draw_codes,
    hash_ids,
    mask,
    new_key,
    rows_of_codes,
    shuffled,
)
from cutlayer.data.ids import Ids, Wanted, ids_of, read_ids, write_rows
from cutlayer.errors import DataError

IDENTITY, NO_POINT = bytes(32), b"\xff" * 32


def canonical(ids: Ids) -> list[bytes]:
    return ids.canonical(np.arange(len(ids)))


def csv_ids(folder: Path, text: str, column: str = "id", kind: Wanted = "auto") -> list[bytes]:
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return canonical(read_ids(path, column, kind))


def points(*ids: bytes) -> bytes:
    return hash_ids(ids, "run")


# ---------------------------------------------------------------------- ids


def test_a_whole_number_is_one_id_in_every_type_and_file(tmp_path: Path) -> None:
    wanted = [b"int:7", b"int:12"]
    assert canonical(ids_of([7, 12])) == csv_ids(tmp_path, "x,id\n1,7\n2, 12 \n") == wanted
    for kind in (pa.int8(), pa.uint8(), pa.int32(), pa.int64(), pa.uint64(), pa.dictionary(pa.int8(), pa.int64())):
        path = tmp_path / "rows.parquet"
        parquet.write_table(pa.table({"id": pa.array([7, 12], kind)}), path)
        assert canonical(read_ids(path, "id")) == wanted


def test_a_text_is_never_a_number() -> None:
    assert canonical(ids_of(["7"])) == [b"text:7"] != canonical(ids_of([7]))


def test_white_space_and_composed_letters_make_no_other_id(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": pa.array([" Zo\u0065\u0301 "])}), tmp_path / "rows.parquet")
    assert (
        canonical(read_ids(tmp_path / "rows.parquet", "id")) == canonical(ids_of(["Zo\u00e9"])) == [b"text:Zo\xc3\xa9"]
    )
    assert canonical(ids_of(["a"])) != canonical(ids_of(["A"]))


@pytest.mark.parametrize(
    ("cells", "kind", "wanted"),
    [
        (("007", "012"), "auto", [b"text:007", b"text:012"]),  # one width: a code, no number
        (("A7", "7"), "auto", [b"text:A7", b"text:7"]),
        (("-3", "0"), "auto", [b"int:-3", b"int:0"]),
        (("007", "8"), "text", [b"text:007", b"text:8"]),
        (("007", "8"), "int", [b"int:7", b"int:8"]),
        (("18446744073709551615", "1"), "auto", [b"int:18446744073709551615", b"int:1"]),
    ],
)
def test_a_csv_column_is_numbers_only_if_every_cell_is_one(
    tmp_path: Path, cells: tuple[str, ...], kind: Wanted, wanted: list[bytes]
) -> None:
    assert csv_ids(tmp_path, "\n".join(("id", *cells)), kind=kind) == wanted


def test_only_the_column_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("id\tname\n1\ta,b\n2\tc\n")
    assert canonical(read_ids(tmp_path / "rows.tsv", "id")) == [b"int:1", b"int:2"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id\n1\n1\n2\n3\n3\n3\n", "2 ids in more than one row, 5 rows in all: keep one row for each id"),
        ("x,id\n1,\n2,NA\n3,5\n", "2 rows without an id: fill it in, or leave the row out"),
        ("id\n007\n7\n12\n", '1 row with leading zeros in the id and 2 without: say --id-type text (then "007"'),
        ("id\n" + "9" * 30 + "\n1\n", "more than 64 bits: say --id-type text"),
        ("x,id\n1,7\n2,\n3,7\n", "1 row without an id: fill it in, or leave the row out; 1 id in more than one row"),
        ("name\n7\n", "has no column 'id': correct the name, 'name' perhaps"),
        ("id,id\n7,8\n", "has 2 columns 'id': rename all but one"),
        ("id\n", "no rows"),
    ],
)
def test_what_is_wrong_with_a_column_is_told_by_count_with_the_mend(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError) as error:
        csv_ids(tmp_path, text)
    assert told in str(error.value)
    assert error.value.told == "its rows cannot be used"


def test_after_the_mend_numbers_that_were_written_differently_are_double(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 id in more than one row, 2 rows in all"):
        csv_ids(tmp_path, "id\n007\n7\n12\n", kind="int")
    with pytest.raises(DataError, match="1 row with an id that is no whole number: say --id-type text"):
        csv_ids(tmp_path, "id\nA7\n7\n", kind="int")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1, 2, "007"], "2 are whole numbers and 1 are texts, and 7 is not '7'"),
        (["a", "a", None], "1 row without an id"),
        ([True, 1], "1 row hold neither a whole number nor a text"),
        ([], "no rows"),
    ],
)
def test_given_ids_are_checked_alike(values: list[Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        ids_of(values)


def test_a_file_that_is_no_table_of_ids_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"id": [1.0]}), tmp_path / "floats.parquet")
    (tmp_path / "broken.parquet").write_text("no")
    for name, told in (
        ("floats.parquet", "of type double"),
        ("broken.parquet", "no Parquet file"),
        ("none.parquet", "no file"),
        ("none.csv", "no file"),
        ("rows.xlsx", "no table"),
    ):
        with pytest.raises(DataError, match=told):
            read_ids(tmp_path / name, "id")


def test_the_written_file_is_its_owners_alone_and_whole_or_not_there(tmp_path: Path) -> None:
    rows = np.array([2, -1, 0])
    write_rows(tmp_path / "out.parquet", ids_of([5, 6, 7]), rows, {"cutlayer.align.run": "r"})
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.to_pydict() == {"id": [7, None, 5], "row": [2, -1, 0]}
    assert table.schema.metadata == {b"cutlayer.align.run": b"r"}
    assert (tmp_path / "out.parquet").stat().st_mode & 0o777 == 0o600
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_rows(tmp_path / "folder", ids_of([5, 6, 7]), rows, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out.parquet"]


# ---------------------------------------------------------------------- the group


def test_the_hash_is_sha512_with_domain_and_run_to_the_group() -> None:
    import rbcl  # type: ignore[import-untyped]

    domain = b"cutlayer align 1: id to ristretto255"
    digest = hashlib.sha512(bytes([len(domain)]) + domain + bytes([3]) + b"run" + b"int:7").digest()
    assert points(b"int:7") == rbcl.crypto_core_ristretto255_from_hash(digest)
    assert hash_ids([b"int:7"], "another") != points(b"int:7")


def test_masks_commute_and_hide() -> None:
    one, other, plain = new_key(), new_key(), points(b"int:7", b"int:8")
    there = mask(mask(plain, one).tobytes(), other, threads=2)
    back = mask(mask(plain, other).tobytes(), one)
    assert np.array_equal(there, back)
    assert not np.array_equal(there, mask(plain, one))
    assert one != new_key()


def test_masking_keeps_the_order_over_pieces_and_threads() -> None:
    plain, key = points(*(b"int:%d" % number for number in range(1100))), new_key()
    whole = mask(plain, key, threads=3)
    assert np.array_equal(whole, mask(plain, key))
    for place in (0, 511, 512, 1099):
        assert np.array_equal(whole[[place]], mask(plain[32 * place : 32 * (place + 1)], key))


@pytest.mark.parametrize("bad", [IDENTITY, NO_POINT])
@pytest.mark.parametrize("place", [0, 1, 600])
def test_what_is_no_point_or_the_identity_is_refused(bad: bytes, place: int) -> None:
    good = points(*(b"int:%d" % number for number in range(601)))
    check_points(good)
    spoilt = good[: 32 * place] + bad + good[32 * (place + 1) :]
    with pytest.raises(DataError, match="no element of the group"):
        mask(spoilt, new_key())
    with pytest.raises(DataError, match="no element of the group"):
        check_points(spoilt, threads=2)


def test_a_shuffle_is_an_order_and_each_is_another() -> None:
    assert sorted(shuffled(100).tolist()) == list(range(100))
    assert shuffled(100).tolist() != shuffled(100).tolist()


# ---------------------------------------------------------------------- comparing

VALUES = st.sets(st.binary(min_size=2, max_size=2), min_size=1, max_size=20)


def wide(values: list[bytes]) -> Any:
    """Each value as 32 bytes; those that end in zeros tell nothing apart for numpy."""
    return as_rows(b"".join(value + bytes(30) for value in values), 32)


@given(st.lists(VALUES, min_size=2, max_size=5))
def test_common_places_equal_the_intersection_of_sets(sets: list[set[bytes]]) -> None:
    lists = {f"p{number}": list(values) for number, values in enumerate(sets)}
    places = common_places({name: wide(values) for name, values in lists.items()})
    for name, where in places.items():
        assert [lists[name][place] for place in where] == sorted(set.intersection(*sets))


@given(st.lists(VALUES, min_size=3, max_size=5), st.integers(1, 2))
def test_common_places_of_at_least_so_many_equal_counting(sets: list[set[bytes]], at_least: int) -> None:
    lists = {f"p{number}": list(values) for number, values in enumerate(sets)}
    wide_lists = {name: wide(values) for name, values in lists.items()}
    places = common_places(wide_lists, labels="p1", at_least=at_least)
    wanted = sorted(
        value for value in sets[1] if sum(value in each for number, each in enumerate(sets) if number != 1) >= at_least
    )
    for name, where in places.items():
        assert [lists[name].index(value) if value in lists[name] else -1 for value in wanted] == where.tolist()


def test_a_list_that_repeats_a_point_is_refused_by_its_owner() -> None:
    with pytest.raises(DataError, match="the list of b repeats a point"):
        common_places({"a": wide([b"aa"]), "b": wide([b"aa", b"bb", b"aa"])})


def test_codes_lead_back_to_rows() -> None:
    codes = draw_codes(5)
    order = np.concatenate((codes[[3, 0]], np.zeros((1, 16), np.uint8)))
    assert rows_of_codes(order, codes).tolist() == [3, 0, -1]
    for wrong in (draw_codes(1), codes[[1, 1]]):
        with pytest.raises(DataError, match="no row's, or comes twice"):
            rows_of_codes(wrong, codes)
