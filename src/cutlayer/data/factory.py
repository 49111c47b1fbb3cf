"""A dataset from the party's own code or table, by the reference that the party wrote on its own command line.

The code named here is the user's own and runs as the user. No reference ever comes from a peer: no message carries one.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import Dataset

from cutlayer.data.tables import read_table
from cutlayer.errors import DataError

_TABLE_ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def open_rows(
    reference: str,
    *,
    features: Sequence[str] | None = None,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset[Any]:
    """The dataset that `reference` names: a table (`rows.csv`) or a factory (`package.module:factory`).

    `features`, `label` and `classes` choose a table's columns; `options` go to `read_table` or to the factory as
    keywords; `folder` is the party's project folder, from which a relative path and modules are found as well.

    Raises: DataError.
    """
    keywords = dict(options or {})
    if reference.lower().endswith(_TABLE_ENDINGS):
        if label is None:
            raise DataError(f"no label column is named for {reference}: name the column that holds the labels.")
        if reference.lower().endswith((".tsv", ".tsv.gz")):
            keywords.setdefault("delimiter", "\t")
        return read_table((folder or Path()) / reference, features, label, classes=classes, **keywords)
    if ":" not in reference:
        raise DataError(
            f"{reference!r} names neither a table ({', '.join(_TABLE_ENDINGS)}) nor a factory: "
            "write path/to/rows.csv or package.module:factory."
        )
    if (features, label, classes) != (None, None, None):
        raise DataError(
            f"features, label and classes choose columns of a table, but {reference!r} is a factory: "
            "leave them out, and choose in the factory's own code."
        )
    return load_factory(reference, folder, **keywords)


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
