"""A dataset from the party's own code or file, by the reference that the party wrote on its own command line.

The code named here is the user's own and runs as the user. No reference ever comes from a peer: no message carries one.
"""

import csv
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.machinery import PathFinder
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cutlayer.data import arrays
from cutlayer.data.cells import CsvFile, fault_in, nearest
from cutlayer.data.encoding import Encoding
from cutlayer.data.roles import LABEL_DTYPES, TableRoles
from cutlayer.data.tables import open_table, read_table
from cutlayer.errors import DataError

_TEXT_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_TABLE_ENDINGS = (*_TEXT_ENDINGS, ".parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Rows that can be dealt: what is dealt by, and how some of them are written to a file, just as they stand.

    `labels` `[rows]` and `values` `[rows]`, of the column to deal by, are numbers or texts; `columns` are a table's.
    """

    labels: Sequence[Any]
    values: Sequence[Any] | None
    ending: str
    write: Callable[[Path, NDArray[np.int64]], None]
    write_test: Callable[[Path], None] | None = None
    columns: Sequence[str] = ()


def open_rows(  # noqa: PLR0913 (each is a line of the party's own file)
    reference: str,
    *,
    features: Sequence[str] | None = None,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    roles: TableRoles | None = None,
    encoding: Encoding | None = None,
    labelled: bool = True,
) -> Dataset[Any]:
    """The dataset of `rows.csv` or `rows.parquet` (tables), `rows.npz` (an array file) or `package.module:factory`.

    `roles` say what a table's columns are for, and `encoding` what was learned of them; without roles, `features`,
    `label` and `classes` choose columns of plain numbers. `options` go to what reads the table, to `open_arrays` or
    to the factory as keywords; `folder` is the party's project folder, from which relative paths and modules are found.
    Of a table no label is read unless it is `labelled`, be it there or not.

    Raises: DataError.
    """
    path, ending = (folder or Path()) / reference, reference.lower()
    keywords = ({"delimiter": "\t"} if ending.endswith((".tsv", ".tsv.gz")) else {}) | dict(options or {})
    if ending.endswith(_TABLE_ENDINGS):
        if roles is not None:
            own = roles if labelled else replace(roles, label=None, classes=None, unlabelled=False)
            return _table(path, own, encoding, keywords)
        if label is None and labelled:
            raise DataError(f"no label column is named for {reference}: name the column that holds the labels.")
        return read_table(path, features, label, classes=classes, labelled=labelled, **keywords)
    kind = "an array file" if ending.endswith(arrays.ENDINGS) else "a factory"
    if ":" not in reference and kind == "a factory":
        raise DataError(
            f"{reference!r} names neither a table ({', '.join(_TABLE_ENDINGS)}), nor an array file "
            f"({', '.join(arrays.ENDINGS)}), nor a factory: write path/to/rows.csv or package.module:factory."
        )
    if (features, label, classes, roles) != (None, None, None, None):
        raise DataError(
            f"features, label, classes and [columns] choose columns of a table, but {reference!r} is {kind}: "
            "leave them out, and choose in the factory's own code, or as you save x and y."
        )
    return load_factory(reference, folder, **keywords) if kind == "a factory" else _arrays(path, keywords)


def _table(path: Path, roles: TableRoles, encoding: Encoding | None, options: Mapping[str, Any]) -> Dataset[Any]:
    known = ("delimiter", "label_dtype")
    if unknown := [name for name in options if name not in known]:
        raise DataError(f"{unknown[0]!r} is no option for {path}: a table has only {' and '.join(known)}.")
    dtype = options.get("label_dtype", roles.label_dtype)
    if dtype not in LABEL_DTYPES:
        raise DataError(f"labels cannot be {dtype!r}: choose one of {', '.join(LABEL_DTYPES)}.")
    roles = replace(roles, label_dtype=dtype)
    return open_table(path, roles, encoding=encoding, delimiter=options.get("delimiter", ","))


def _arrays(path: Path, options: Mapping[str, Any]) -> Dataset[Any]:
    if unknown := [name for name in options if name != "channels"]:
        raise DataError(f"{unknown[0]!r} is no option for {path}: an array file has only 'channels'.")
    return arrays.open_arrays(path, **options)


def open_pool(reference: str, *, label: str = "", column: str = "") -> Pool:
    """The rows of a table, of an array file, of `digits` (an example from scikit-learn) or of a factory.

    `label` is a table's column of labels; `column` is one to deal by, of a table, or a further array of a file.

    Raises: DataError.
    """
    if reference.lower().endswith(_TEXT_ENDINGS):
        return _table_pool(reference, label, column)
    if label:
        raise DataError(f"a label is a column of a table, but the labels of {reference} are its y: leave it out.")
    if reference == "digits":
        held = arrays.digits()
    elif reference.lower().endswith(arrays.ENDINGS):
        held = arrays.read_arrays(reference)
    elif ":" in reference:
        held = arrays.gathered(load_factory(reference, Path.cwd()), reference)
    else:
        known = ", ".join((*_TEXT_ENDINGS, *arrays.ENDINGS))
        raise DataError(f"{reference!r} cannot be dealt: name a file ({known}), digits, or package.module:factory.")
    return _array_pool(held, reference, column)


def _array_pool(held: Mapping[str, NDArray[Any]], reference: str, column: str) -> Pool:
    rows, test = arrays.split_arrays(held, reference)
    values = held.get(column, held.get(f"{column}_train")) if column else None
    if column and (values is None or values.shape != (len(rows),)):
        raise DataError(
            f"{reference} has no array {column!r} with one value for each of its {len(rows)} rows but "
            f"{', '.join(held)}: name another, or add it."
        )
    return Pool(
        labels=rows.classes(reference).tolist(),
        values=None if values is None else values.tolist(),
        ending=".npz",
        write=lambda path, places: rows.take(places).write(path),
        write_test=None if test is None else test.write,
    )


def _table_pool(reference: str, label: str, column: str) -> Pool:
    tabs = reference.lower().endswith((".tsv", ".tsv.gz"))
    file = CsvFile(Path(reference), "\t" if tabs else ",")
    columns = file.header()
    _check_names(file, columns, [label, column] if column else [label])
    (header, _), *records = _records(file, len(columns))
    cells = {name: [row[columns.index(name)].strip() for _, row in records] for name in (label, column) if name}
    if not records:
        raise file.rowless()
    for name, texts in cells.items():
        if "" in texts:
            raise fault_in(file, texts.index(""), name, "", "a value to deal by")

    def write(path: Path, places: NDArray[np.int64]) -> None:
        with path.open("w", newline="", encoding="utf-8") as out:
            out.writelines([header, *(records[place][0] for place in places)])

    ending = ".tsv" if tabs else ".csv"
    return Pool(labels=cells[label], values=cells.get(column), ending=ending, write=write, columns=columns)


def _check_names(file: CsvFile, columns: Sequence[str], names: Sequence[str]) -> None:
    for name in names:
        if not name:
            raise DataError(f"no label column is named for {file}: name one of {', '.join(columns)}.")
        if name not in columns:
            near = nearest(name, list(columns))
            raise DataError(f"{file} has no column {name!r}: correct the name, {near!r} perhaps.")
        if columns.count(name) > 1:
            raise DataError(f"{file} has {columns.count(name)} columns {name!r}: rename all but one.")


def _records(file: CsvFile, columns: int) -> Iterator[tuple[str, list[str]]]:
    """Each row that is not blank, header first: as it stands in the file, and its cells. Raises: DataError."""
    taken: list[str] = []

    def noted(lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    try:
        with (
            pa.input_stream(str(file.path), compression="detect") as stream,
            TextIOWrapper(stream, encoding="utf-8-sig", newline="") as lines,
        ):
            for cells in csv.reader(noted(lines), delimiter=file.delimiter):
                text = "".join(taken)
                taken.clear()
                if cells and len(cells) != columns:
                    raise file.fault(pa.ArrowInvalid("cells are missing"))
                if cells:
                    yield text if text.endswith(("\n", "\r")) else text + "\n", cells
    except (UnicodeDecodeError, csv.Error) as error:
        what = "UTF8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise file.fault(pa.ArrowInvalid(what)) from error
    except OSError as error:
        raise file.unreadable(error) from error


def load_factory(reference: str, folder: Path | None = None, **options: Any) -> Dataset[Any]:
    """The dataset returned by `package.module:factory`, called with `options` as keywords.

    This runs the user's own code, named by the user on their own command line, never by a peer. Modules in `folder`
    are found first, while they are imported and the factory runs; `sys.path` is then as before.

    Raises: DataError if there is no such module or factory, or it raises, or returns something else.
    """
    module_name, colon, name = reference.partition(":")
    if not (colon and module_name and name):
        raise DataError(f"{reference!r} names no factory: write package.module:factory, with a colon between them.")
    with _importable(folder):
        module = _module(reference, module_name, folder)
        factory = _attribute(reference, module, name)
        try:
            rows = factory(**options)
        except Exception as error:
            raise DataError(f"{reference} raised {_told(error)}: mend the factory or its options.") from error
    if not isinstance(rows, Dataset):
        raise DataError(
            f"{reference} returned {type(rows).__name__}, not a torch Dataset: return a torch.utils.data.Dataset "
            "of (x, y) samples, such as TensorDataset(x, y)."
        )
    return rows


def _module(reference: str, name: str, folder: Path | None) -> ModuleType:
    _refuse_namesake(reference, name, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise DataError(f"{reference} could not be imported, {_told(error)}: install that module.") from error
        where = "the installed packages" if folder is None else f"{folder} or the installed packages"
        hint = ""
        if name.endswith(".py") or "/" in name:
            hint = f", without .py and with dots, such as {Path(name).stem}:{reference.partition(':')[2]}"
        elif folder is not None and (near := get_close_matches(name, [path.stem for path in folder.glob("*.py")], n=1)):
            hint = f", {near[0]!r} perhaps"
        raise DataError(
            f"{reference}: there is no module {error.name!r} in {where}: correct its name{hint}."
        ) from error
    except Exception as error:
        raise DataError(f"{reference} could not be imported, it raised {_told(error)}: mend the module.") from error


def _attribute(reference: str, module: ModuleType, name: str) -> Any:
    public = [known for known in vars(module) if not known.startswith("_")]
    if not hasattr(module, name):
        near = get_close_matches(name, public, n=3)
        hint = f" ({' or '.join(map(repr, near))} perhaps)" if near else ""
        raise DataError(f"{reference}: {module.__name__} has no {name!r}: correct the name{hint}.")
    factory = getattr(module, name)
    if not callable(factory):
        raise DataError(
            f"{reference} is no function but of type {type(factory).__name__}: name one that returns a Dataset."
        )
    return factory


def _refuse_namesake(reference: str, name: str, folder: Path | None) -> None:
    """A module of the same name, imported earlier from elsewhere, would silently be used instead of the folder's."""
    top = name.partition(".")[0]
    if folder is None or top not in sys.modules:
        return
    spec = PathFinder.find_spec(top, [str(folder.resolve())])
    loaded = getattr(sys.modules[top], "__file__", None)
    if spec is not None and spec.origin is not None and (loaded is None or Path(loaded).resolve() != Path(spec.origin)):
        raise DataError(
            f"{reference}: the name {top!r} is already taken by {loaded or 'a built-in module'}: rename {spec.origin}."
        )


@contextmanager
def _importable(folder: Path | None) -> Iterator[None]:
    if folder is None:
        yield
        return
    entry = str(folder.resolve())
    importlib.invalidate_caches()
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
