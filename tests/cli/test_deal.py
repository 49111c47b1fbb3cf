"""`cutlayer deal`: files that `run` and `simulate` take as they are, a record, a picture; nothing is overwritten."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.typed import CommandLine

HEADER = "age,ward,note,ill\r\n"
ROWS = [
    f'{age},{ward},"said ""no"", then\nleft, ""{age}""",{ill}\r\n'
    for age, ward, ill in zip(range(20, 80), "abc" * 20, ["yes", "no", "no"] * 20, strict=True)
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test runs in a folder with a table of cells that are easily spoilt, and an array file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text(HEADER + "".join(ROWS), newline="")
    images = np.arange(40 * 6, dtype=np.uint8).reshape(40, 3, 2)
    labels = np.arange(40, dtype=np.uint8) % 4
    site = np.arange(40) // 10
    np.savez("scans.npz", x_train=images, y_train=labels, site=site, x_test=images[:5], y_test=labels[:5])
    return tmp_path


def record(folder: str = "dealt") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "dealt.json").read_text())
    return found


def test_a_table_is_dealt_with_its_header_and_its_cells_as_they_stand(cutlayer: CommandLine) -> None:
    done = cutlayer("deal", "rows.csv", "--parties", 4, "--label", "ill", "--how", "dirichlet", "--alpha", 0.5)
    assert done.code == 0, done.err
    texts = [Path(f"dealt/client-{party}.csv").read_bytes().decode() for party in range(1, 5)]
    assert all(text.startswith(HEADER) for text in texts)
    body = "".join(text.removeprefix(HEADER) for text in texts)
    assert len(body) == sum(map(len, ROWS))
    assert all(body.count(row) == 1 for row in ROWS)
    assert Path("dealt/labels.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_may_end_without_a_new_line_and_be_packed_or_parted_by_tabs(cutlayer: CommandLine) -> None:
    with gzip.open("rows.tsv.gz", "wt", encoding="utf-8-sig") as file:
        file.write("a\tb\n\n1\t x\n2\ty")
    assert cutlayer("deal", "rows.tsv.gz", "--parties", 2, "--label", "b", "--how", "classes").code == 0
    texts = [Path(f"dealt/client-{party}.tsv").read_text() for party in (1, 2)]
    assert texts == ["a\tb\n1\t x\n", "a\tb\n2\ty\n"]


def test_the_record_says_how_and_what_each_party_has(cutlayer: CommandLine) -> None:
    cutlayer("deal", "rows.csv", "--names", "north, south", "--label", "ill", "--how", "quantity", "--alpha", 2)
    found = record()
    assert {key: found[key] for key in ("how", "alpha", "seed", "source", "label", "moved", "rows")} == {
        "how": "quantity", "alpha": 2, "seed": 0, "source": "rows.csv", "label": "ill", "moved": 0, "rows": 60,
    }  # fmt: skip
    assert found["classes"] == {"no": 40, "yes": 20}
    assert found["files"] == {"north": "north.csv", "south": "south.csv"}
    assert sum(party["rows"] for party in found["parties"].values()) == 60
    for name, party in found["parties"].items():
        text = Path(f"dealt/{name}.csv").read_text()
        assert party["classes"] == {"no": text.count(",no\n"), "yes": text.count(",yes\n")}
        share = party["classes"]["yes"] / party["rows"]
        assert party["total_variation"] == pytest.approx(abs(share - 1 / 3), abs=1e-6)


def test_the_same_command_gives_the_same_tables(cutlayer: CommandLine) -> None:
    for folder in ("one", "two"):
        cutlayer("deal", "rows.csv", "--parties", 3, "--label", "ill", "--how", "dirichlet", "--out", folder)
    for file in sorted(Path("one").iterdir()):
        assert file.read_bytes() == Path("two", file.name).read_bytes(), file.name


def test_by_column_each_value_gets_a_party_and_is_no_feature(cutlayer: CommandLine) -> None:
    done = cutlayer("deal", "rows.csv", "--label", "ill", "--how", "column", "--column", "ward")
    assert {name: party["values"] for name, party in record()["parties"].items()} == {
        "client-1": ["a"], "client-2": ["b"], "client-3": ["c"],
    }  # fmt: skip
    assert "by column ward" in done.out
    party_file = Path("dealt/client-2.toml").read_text()
    assert 'features = ["age", "note"]' in party_file
    assert 'classes = ["no", "yes"]' in party_file


def test_arrays_keep_their_dtype_and_the_test_part_goes_to_one_file(cutlayer: CommandLine) -> None:
    done = cutlayer("deal", "scans.npz", "--parties", 3)
    assert done.code == 0, done.err
    held = [dict(np.load(f"dealt/client-{party}.npz")) for party in range(1, 4)]
    assert {part["x"].dtype.str for part in held} == {"|u1"}
    pool = np.load("scans.npz")
    firsts = np.concatenate([part["x"][:, 0, 0] for part in held])
    assert sorted(firsts.tolist()) == sorted(pool["x_train"][:, 0, 0].tolist())
    assert all((part["y"] == part["x"][:, 0, 0] // 6 % 4).all() for part in held)
    assert (np.load("dealt/test.npz")["x"] == pool["x_test"]).all()
    assert 'held_out = "test.npz"' in Path("dealt/client-1.toml").read_text()
    assert cutlayer("deal", "scans.npz", "--how", "column", "--column", "site", "--out", "sites").code == 0
    assert [party["rows"] for party in record("sites")["parties"].values()] == [10] * 4
    np.savez("more.npz", **{**pool, "ward_train": pool["site"] // 2})
    assert cutlayer("deal", "more.npz", "--how", "column", "--column", "ward", "--out", "wards").code == 0
    assert [party["rows"] for party in record("wards")["parties"].values()] == [20, 20]


def test_a_share_is_set_aside_for_a_common_test(cutlayer: CommandLine) -> None:
    cutlayer("deal", "rows.csv", "--parties", 2, "--label", "ill", "--test-share", 0.25)
    test = Path("dealt/test.csv").read_bytes().decode().removeprefix(HEADER)
    dealt = [Path(f"dealt/client-{party}.csv").read_bytes().decode() for party in (1, 2)]
    assert sum(row in test for row in ROWS) == 15
    assert not any(row in test and any(row in text for text in dealt) for row in ROWS)
    assert record()["rows"] == 45
    assert "leave out --test-share" in cutlayer("deal", "scans.npz", "--parties", 2, "--test-share", 0.5).sentence


def test_simulate_takes_what_was_dealt(cutlayer: CommandLine, project: Path) -> None:
    pool = Path("hospital-a.csv").read_text()
    for name in ("hospital-a", "hospital-b", "hospital-c"):
        Path(f"{name}.csv").unlink()
        Path(f"{name}.toml").unlink()
    Path("pool.csv").write_text(pool)
    names = "hospital-a,hospital-b,hospital-c"
    done = cutlayer("deal", "pool.csv", "--names", names, "--label", "disease", "--test-share", 0.2, "--out", ".")
    assert done.code == 0, done.err
    assert "classes" not in Path("hospital-a.toml").read_text(), "0 and 1 are numbers already"
    result = cutlayer("simulate")
    assert result.code == 0, result.err
    assert result.out.count("accuracy") >= 3


def test_nothing_is_overwritten_unless_asked_and_party_files_never(cutlayer: CommandLine) -> None:
    command = ("deal", "rows.csv", "--parties", 3, "--label", "ill")
    assert cutlayer(*command).code == 0
    before = Path("dealt/client-2.csv").read_bytes()
    Path("dealt/client-2.toml").write_text("# mine\n")
    assert "client-1.csv is there already: add --replace" in cutlayer(*command, "--seed", 1).sentence
    assert Path("dealt/client-2.csv").read_bytes() == before
    assert cutlayer(*command, "--seed", 1, "--replace").code == 0
    assert Path("dealt/client-2.csv").read_bytes() != before
    assert Path("dealt/client-2.toml").read_text() == "# mine\n"


def test_replacing_leaves_no_file_of_the_earlier_deal_among_the_new(cutlayer: CommandLine) -> None:
    command = ("deal", "rows.csv", "--label", "ill", "--replace", "--parties")
    assert cutlayer(*command, 3).code == 0
    assert "client-3.csv is of an earlier deal" in cutlayer(*command, 2).sentence
    assert len(record()["parties"]) == 3
    Path("dealt/client-3.csv").unlink()
    assert cutlayer(*command, 2).code == 0


def test_many_parties_make_a_short_table(cutlayer: CommandLine) -> None:
    done = cutlayer("deal", "digits", "--parties", 100, "--prefix", "a-hospital-with-a-long-name-of-its-own-number")
    assert "… 84 more" in done.out
    lines = done.out.splitlines()
    assert len(lines) < 25
    assert max(map(len, lines)) <= 110, "with such long names; 80 with shorter ones"


def test_moved_rows_are_told(cutlayer: CommandLine) -> None:
    done = cutlayer("deal", "digits", "--parties", 9, "--how", "quantity", "--alpha", 0.001)
    assert f"moved: {record()['moved']} rows" in done.out
    assert record()["moved"] > 0


def test_without_matplotlib_the_files_are_written_and_the_mend_is_said(
    cutlayer: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = cutlayer("deal", "rows.csv", "--parties", 2, "--label", "ill")
    assert done.code == 0
    assert "pip install 'cutlayer[plots]'" in done.out
    assert not Path("dealt/labels.png").exists()
    assert len(record()["parties"]) == 2


@pytest.mark.parametrize(("classes", "parties"), [(1, 1), (2, 3), (10, 1), (30, 2), (100, 100)])
def test_a_picture_is_drawn_of_few_and_of_many(cutlayer: CommandLine, classes: int, parties: int) -> None:
    names = [r"$\oops$", "_b", "a\nb", "[c]", "x" * 60, *map(str, range(95))]
    np.savez("many.npz", x=np.zeros((300, 1)), y=np.arange(300) % classes)
    lines = "".join(f'0,"{names[row % classes]}"\n' for row in range(300))
    Path("many.csv").write_text("a,label\n" + lines)
    for source, more in (("many.npz", ()), ("many.csv", ("--label", "label"))):
        done = cutlayer("deal", source, "--parties", parties, "--out", source.replace(".", "-"), *more)
        assert done.code == 0, done.err
        assert done.err == ""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("rows.csv", "--label", "ill"), "give --parties 10, or --names"),
        (("rows.csv", "--parties", 3), "no label column is named for rows.csv: name one of age, ward, note, ill"),
        (("rows.csv", "--parties", 3, "--label", "il"), "has no column 'il': correct the name, 'ill' perhaps"),
        (("rows.csv", "--parties", 99, "--label", "ill"), "60 rows do not go round 99 parties"),
        (("rows.csv", "--parties", 3, "--label", "ill", "--how", "dirichlt"), "did you mean 'dirichlet'?"),
        (("rows.csv", "--parties", 3, "--label", "ill", "--how", "column"), "give both, or neither"),
        (("rows.csv", "--parties", 3, "--label", "ill", "--column", "ward"), "give both, or neither"),
        (("rows.csv", "--names", "a,b,a", "--label", "ill"), "the name 'a' is taken"),
        (("rows.csv", "--names", "a,test", "--label", "ill"), "the name 'test' is taken"),
        (("rows.csv", "--names", "a,../b", "--label", "ill"), "'../b' cannot name a party"),
        (("rows.csv", "--names", "a,b", "--parties", 3, "--label", "ill"), "names 2 parties where there are 3"),
        (("none.csv", "--parties", 3, "--label", "ill"), "there is no file none.csv"),
        (("scans.npz", "--parties", 3, "--label", "y"), "the labels of scans.npz are its y: leave it out"),
        (("scans.npz", "--how", "column", "--column", "sight"), "has no array 'sight'"),
        (("scans.xyz", "--parties", 3), "cannot be dealt: name a file"),
        (("scans.npz", "--parties", 3, "--out", "rows.csv"), "cannot be written to"),
        (("ragged.csv", "--parties", 1, "--label", "b"), "ragged.csv, row 3, has 1 cell where the header has 2"),
        (("blank.csv", "--parties", 1, "--label", "b"), "blank.csv, row 3, column 'b': the cell is blank"),
        (("latin.csv", "--parties", 1, "--label", "b"), "latin.csv is not UTF-8 text"),
        (("empty.csv", "--parties", 1, "--label", "b"), "empty.csv has a header but no rows"),
        (("twice.csv", "--parties", 1, "--label", "b"), "twice.csv has 2 columns 'b': rename all but one"),
    ],
)
def test_what_cannot_be_dealt_is_one_sentence(cutlayer: CommandLine, words: tuple[Any, ...], sentence: str) -> None:
    Path("ragged.csv").write_text("a,b\n1,2\n3\n")
    Path("blank.csv").write_text("a,b\n1,2\n3, \n")
    Path("latin.csv").write_bytes("a,b\n1,é\n".encode("latin-1"))
    Path("empty.csv").write_text("a,b\n")
    Path("twice.csv").write_text("b,b\n1,2\n")
    told = cutlayer("deal", *words).sentence
    assert sentence in told
    assert told.count("\n") == 1
    assert not Path("dealt").exists()
