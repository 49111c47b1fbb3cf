"""A model's answers as a table: CSV or Parquet, a row for each row that was asked about, in its order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet
from torch import Tensor

from cutlayer.errors import DataError

ENDINGS = (".csv", ".parquet")


def check_ending(path: Path) -> None:
    """Raises: DataError for a file of another kind; better known before the model is asked."""
    if path.suffix not in ENDINGS:
        raise DataError(f"{path} is neither {' nor '.join(ENDINGS)}: end its name so.")


def write_answers(
    path: Path,
    answers: Mapping[str, Mapping[str, Tensor]],
    *,
    classes: Mapping[str, int],
    ids: Sequence[Any] | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write what each segment answered: the answer itself where answers are classes, and all its outputs.

    Args:
        path: `.csv` or `.parquet`; written whole or not at all.
        answers: outputs `[rows, ...]` by segment and owner of the rows.
        classes: by segment, how many classes there are; 0 where answers are numbers.
        ids: of the rows, if the party has them and the rows are of one owner.
        names: the classes' names, if the party has one for each output.

    Raises:
        DataError: another ending, or a file that cannot be written.
    """
    check_ending(path)
    owners = list(dict.fromkeys(owner for each in answers.values() for owner in each))
    table = pa.concat_tables([_of(owner, answers, classes, ids, names, alone=len(owners) == 1) for owner in owners])
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            csv.write_csv(table, temporary)
        else:
            parquet.write_table(table, temporary)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): name another file.") from error
    return path


def _of(
    owner: str,
    answers: Mapping[str, Mapping[str, Tensor]],
    classes: Mapping[str, int],
    ids: Sequence[Any] | None,
    names: Sequence[str] | None,
    *,
    alone: bool,
) -> pa.Table:
    rows = len(next(iter(answers.values()))[owner])
    columns: dict[str, Any] = {} if alone else {"owner": [owner] * rows}
    columns["row"] = list(range(rows))
    if ids is not None and alone:
        columns["id"] = list(ids)
    for segment, each in answers.items():
        outputs = each[owner].reshape(rows, -1).double()
        prefix = "" if len(answers) == 1 else f"{segment}."
        if classes.get(segment) and each[owner].ndim == 2:
            best = outputs.argmax(1).tolist()
            named = names and not prefix and len(names) == outputs.shape[1]
            columns[f"{prefix}answer"] = [names[place] for place in best] if named and names else best
        for place in range(outputs.shape[1]):
            columns[f"{prefix}output_{place}"] = outputs[:, place].numpy()
    return pa.table(columns)
