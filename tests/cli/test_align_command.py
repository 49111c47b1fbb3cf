"""`cutlayer align` as its users type it: real processes over mTLS on loopback, and every refusal before them."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from cli.typed import CommandLine

Edit = Callable[[str, str, str], None]
PATIENCE_S = 120

pytestmark = pytest.mark.timeout(300)


class Process:
    """A command in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        self.told: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cutlayer", "align", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._port = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def port(self) -> int:
        assert self._port.wait(PATIENCE_S), self.told
        return int(next(line for line in self.told if "listens on port" in line).split()[-1])

    def end(self) -> tuple[int, str]:
        """Its exit code, and all it said."""
        code = self._process.wait(PATIENCE_S)
        self._reader.join()
        return code, "".join(self.told)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.told.append(line)
            if "listens on port" in line:
                self._port.set()
        self._port.set()


@contextmanager
def processes(conductor: tuple[object, ...], *others: tuple[object, ...]) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        first = Process("--as", *conductor, "--listen", "127.0.0.1:0")
        stack.callback(first.stop)
        running = [first]
        for other in others:
            running.append(Process("--as", *other, "--connect", f"127.0.0.1:{first.port()}"))
            stack.callback(running[-1].stop)
        yield running


@pytest.fixture
def tables(project: Path) -> Path:
    Path("lab.csv").write_text("customer_id,income\n" + "".join(f"{number},1\n" for number in range(100, 140)))
    ids = pa.array(range(130, 170), pa.int32())
    parquet.write_table(pa.table({"age": [1] * 40, "nr": ids}), "hospital-a.parquet")
    Path("hospital-b.csv").write_text("nr\n" + "".join(f"{number}\n" for number in range(150, 120, -2)))
    Path("hospital-c.csv").write_text("nr\n" + "".join(f"{number}\n" for number in range(132, 180)))
    return project


@pytest.fixture
def two(cutlayer: CommandLine, tables: Path, edit: Edit) -> Path:
    """A lab and one hospital, both with a table: nobody forwards anything, so nothing need be pinned."""
    edit("plan.toml", '[parties.hospital-b]\nrole = "client"\n', "")
    edit("plan.toml", '[parties.hospital-c]\nrole = "client"\n', "")
    assert cutlayer("keys", "demo").code == 0
    assert cutlayer("accept").code == 0
    return tables


def test_two_parties_find_their_common_rows_over_mtls(two: Path) -> None:
    lab = ("lab", "--with", "lab", "--data", "lab.csv", "--id", "customer_id", "--out", "lab-rows.parquet")
    hospital = ("hospital-a", "--with", "lab", "--data", "hospital-a.parquet", "--id", "nr")
    before = set(Path().iterdir())
    with processes(lab, hospital) as running:
        ends = [process.end() for process in running]
    assert [code for code, _ in ends] == [0, 0], ends
    assert "lab: 40 rows of its own; others' rows: hospital-a 40" in ends[0][1]
    assert "hospital-a: 10 common rows, that all hold" in ends[1][1]
    ours, theirs = (parquet.read_table(name) for name in ("lab-rows.parquet", "aligned-hospital-a.parquet"))
    assert ours["id"].to_pylist() == theirs["id"].to_pylist()
    assert sorted(ours["id"].to_pylist()) == list(range(130, 140))
    assert [100 + row for row in ours["row"].to_pylist()] == ours["id"].to_pylist()
    assert [130 + row for row in theirs["row"].to_pylist()] == theirs["id"].to_pylist()
    told = {name.decode(): text.decode() for name, text in theirs.schema.metadata.items()}
    assert told["cutlayer.align.parties"] == "lab,hospital-a"
    assert told["cutlayer.align.run"] == ours.schema.metadata[b"cutlayer.align.run"].decode()
    assert re.fullmatch("[0-9a-f]{64}", told["cutlayer.align.plan"])
    assert {path.name for path in set(Path().iterdir()) - before} == {"lab-rows.parquet", "aligned-hospital-a.parquet"}
    assert Path("lab-rows.parquet").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_three_parties_align_by_a_lab_without_a_table_and_a_threshold(cutlayer: CommandLine, tables: Path) -> None:
    assert cutlayer("keys", "demo").code == 0
    assert cutlayer("keys", "pin").code == 0
    assert cutlayer("accept").code == 0
    mode = ("--labels", "hospital-a", "--at-least", 1, "--comparer", "lab")
    hospitals = ("hospital-a.parquet", "hospital-b.csv", "hospital-c.csv")
    others = [(name.split(".")[0], *mode, "--data", name, "--id", "nr") for name in hospitals]
    with processes(("lab", *mode), *others) as running:
        ends = [process.end() for process in running]
    assert [code for code, _ in ends] == [0, 0, 0, 0], ends
    a, b, c = (parquet.read_table(f"aligned-hospital-{name}.parquet").to_pydict() for name in "abc")
    held_b, held_c = set(range(150, 120, -2)), set(range(132, 180))
    assert set(a["id"]) == {number for number in range(130, 170) if number in held_b | held_c}
    assert b["id"] == [number if number in held_b else None for number in a["id"]]
    assert c["id"] == [number if number in held_c else None for number in a["id"]]
    assert [row == -1 for row in b["row"]] == [number is None for number in b["id"]]
    assert "that hospital-a and at least 1 others hold" in ends[1][1]
    assert "of them it lacks: row -1; training needs rows that all hold" in ends[2][1]
    assert "lab: the alignment is done" in ends[0][1]


@pytest.mark.slow
def test_another_wish_ends_it_for_all_and_nothing_is_written(two: Path) -> None:
    lab = ("lab", "--with", "lab", "--data", "lab.csv", "--id", "customer_id")
    hospital = ("hospital-a", "--with", "lab", "--data", "hospital-a.parquet", "--id", "nr", "--comparer", "hospital-a")
    before = set(Path().iterdir())
    with processes(lab, hospital) as running:
        ends = [process.end() for process in running]
    assert [code for code, _ in ends] == [2, 2]
    assert all("hospital-a asked for rows" in said and "all give the same --with" in said for _, said in ends), ends
    assert set(Path().iterdir()) == before


# ---------------------------------------------------------------------- before anybody is dialled


def test_a_plan_that_was_not_accepted_aligns_nothing(cutlayer: CommandLine, tables: Path) -> None:
    told = cutlayer("align", "--as", "hospital-a", "--data", "hospital-a.parquet", "--id", "nr")
    assert "has not been accepted" in told.sentence


def test_without_pinned_keys_three_are_refused(cutlayer: CommandLine, tables: Path) -> None:
    assert cutlayer("keys", "demo").code == 0
    assert cutlayer("accept").code == 0
    told = cutlayer("align", "--as", "hospital-a", "--data", "hospital-a.parquet", "--id", "nr")
    assert "travels sealed by lab" in told.sentence
    assert "for hospital-a, hospital-b, hospital-c: `cutlayer keys pin`" in told.sentence


def test_what_is_missing_or_wrong_is_told_at_once(cutlayer: CommandLine, two: Path) -> None:
    def sentence(*options: object) -> str:
        return cutlayer("align", *options).sentence

    hospital = ("--as", "hospital-a", "--with", "lab")
    data = ("--data", "hospital-a.parquet", "--id", "nr")
    assert "'hospital-z' is no party of" in sentence("--as", "hospital-z")
    assert "between two parties or more" in sentence("--as", "hospital-a", *data)
    assert "name its table with --data" in sentence(*hospital)
    assert "has no column 'id'" in sentence(*hospital, "--data", "hospital-a.parquet")
    assert "there is no file none.csv" in sentence(*hospital, "--data", "none.csv")
    assert "--at-least needs --labels" in sentence(*hospital, *data, "--at-least", 1)
    Path("aligned-hospital-a.parquet").write_text("kept")
    assert "is there already" in sentence(*hospital, *data)
    assert Path("aligned-hospital-a.parquet").read_text() == "kept"
    assert "there is no folder" in sentence(*hospital, *data, "--out", "none/rows.parquet")
    Path("double.csv").write_text("nr\n7\n7\n")
    assert "1 id in more than one row" in sentence(*hospital, "--data", "double.csv", "--id", "nr", "--out", "x")
