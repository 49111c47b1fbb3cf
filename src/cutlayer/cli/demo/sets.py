"""The demo's data sets: which rows there are, who has how many, and in what the project differs by them.

Sources: Wolberg, Mangasarian, Street, Street 1993, "Breast Cancer Wisconsin (Diagnostic)"; Alpaydin, Kaynak 1998,
"Optical Recognition of Handwritten Digits"; both UCI Machine Learning Repository, as scikit-learn has them.
"""

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cutlayer.cli.demo.hospitals import HOSPITALS
from cutlayer.data import arrays
from cutlayer.data.arrays import Arrays
from cutlayer.errors import DataError, PlanError

DIAGNOSES = ("malignant", "benign")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Rows to deal, and the lines of the project's files that go with them."""

    load: Callable[[], Arrays]
    write: Callable[[Path, Arrays], None]
    """Into a file whose name lacks its ending."""
    shares: Mapping[str, Sequence[int]]
    """Rows of each class, by hospital."""
    counted: tuple[str, Collection[int]]
    """The classes whose part at each hospital is shown, and what they are called."""
    terms: Mapping[str, str]
    """Of the plan."""
    cuts: Mapping[str, Sequence[str]]
    """After which layers of its model, by topology."""


def chosen(name: str) -> DataSet:
    """The data set of this name. Raises `PlanError`."""
    if name not in SETS:
        raise PlanError(f"the demo has the data sets {' and '.join(SETS)}, not {name!r}")
    return SETS[name]


def load_wisconsin() -> Arrays:
    """569 samples of breast tissue, 30 measurements each; 0 malignant, 1 benign. Raises `DataError`."""
    samples = _wisconsin()
    return Arrays(x=samples.data, y=samples.target)


def write_table(path: Path, rows: Arrays) -> None:
    """A `.csv` with named columns, the diagnosis in words."""
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*_wisconsin().feature_names, "diagnosis"])
        table.writerows([*x, DIAGNOSES[y]] for x, y in zip(rows.x.tolist(), rows.y.tolist(), strict=True))


def load_digits() -> Arrays:
    """1,797 grey images of handwritten digits, 8 times 8 pixels from 0 to 1. Raises `DataError`."""
    return Arrays(**arrays.digits())


def write_arrays(path: Path, rows: Arrays) -> None:
    """A `.npz` with x and y."""
    rows.write(path.with_suffix(".npz"))


@cache
def _wisconsin() -> Any:
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as error:
        raise DataError("the demo's rows come with scikit-learn: pip install 'cutlayer[demo]'") from error
    return load_breast_cancer()


SETS: dict[str, DataSet] = {
    "wisconsin": DataSet(
        load=load_wisconsin,
        write=write_table,
        shares=dict(zip(HOSPITALS, [(120, 222), (40, 118), (52, 17)], strict=True)),
        counted=("malignant", (DIAGNOSES.index("malignant"),)),
        terms={"shape": "[30]", "batch_size": "16", "lr": "0.001"},
        cuts={"u_shaped": ["bottom_relu", "middle_2_relu"], "vanilla": ["bottom_relu"]},
    ),
    "digits": DataSet(
        load=load_digits,
        write=write_arrays,
        shares=dict(
            zip(
                HOSPITALS,
                [[100] * 5 + [110] * 5, [30] * 5 + [60] * 5, [48, 52, 47, 53, 51, 12, 11, 9, 4, 10]],
                strict=True,
            )
        ),
        counted=("0 to 4", range(5)),
        terms={"shape": "[1, 8, 8]", "batch_size": "32", "lr": "0.005"},
        cuts={"u_shaped": ["bottom_pool", "middle_2_relu"], "vanilla": ["bottom_pool"]},
    ),
}
