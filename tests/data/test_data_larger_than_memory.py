"""The claim that a Parquet file may be larger than memory, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

ROWS = 2_000_000
LIMIT_MB = 64
MEASURE = """
import sys, tracemalloc
import pyarrow as pa, torch
from cutlayer.data.roles import Date, Embedded, Number, OneHot, TableRoles
from cutlayer.data.tables import open_table

columns = {f"n{place}": Number() for place in range(8)} | {"w": OneHot(size=4), "e": Embedded(size=9), "d": Date()}
tracemalloc.start()
table = open_table(sys.argv[1], TableRoles(columns=columns, label="y"))
table.fit(torch.arange(0, len(table), 2))
order = torch.randperm(len(table))[:20_000]
for rows in order.split(500):
    (x, codes), y = table.batch(rows)
    assert torch.equal(y, rows % 5), "rows by number, in any order"
    known = rows % 6 // 2 + 1
    assert torch.equal(codes[:, 0], torch.where(rows % 2 == 0, known, 0)), "odd rows have words that even ones lack"
print(pa.default_memory_pool().max_memory() + tracemalloc.get_traced_memory()[1], len(table), x.shape[1])
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose columns take 180 MB in memory, written a part at a time."""
    path = tmp_path_factory.mktemp("wide") / "wide.parquet"
    numbers = np.random.default_rng(0).standard_normal(ROWS // 10).astype(np.float64)
    with parquet.ParquetWriter(path, _part(numbers, 0).schema) as writer:
        for part in range(10):
            writer.write_table(_part(numbers, part * len(numbers)))
    return path


def _part(numbers: np.ndarray[tuple[int], np.dtype[np.float64]], start: int) -> pa.Table:
    rows = np.arange(start, start + len(numbers))
    columns = {f"n{place}": numbers * (place + 1) for place in range(8)}
    words = pa.array([f"word {word}" for word in range(7)])
    return pa.table(
        columns
        | {"w": words.take(pa.array(rows % 7)), "e": words.take(pa.array(rows % 6)), "y": rows % 5}
        | {"d": pa.array((rows % 9000).astype("int32"), pa.date32())}
    )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(wide: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, wide], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, rows, width = map(int, done.stdout.split())
    assert (rows, width) == (ROWS, 13)
    assert peak < LIMIT_MB * 2**20, "whatever was allocated at any time, by pyarrow and numpy"
    assert ROWS * (width * 4 + 2 * 8) > 2 * LIMIT_MB * 2**20, "the encoded rows alone take twice as much"
