"""What is local to a party and nobody else's business: its data, keys, addresses, device. It changes nothing agreed."""

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cutlayer.data.roles import TableRoles, plain_numbers, read_roles
from cutlayer.errors import PlanError
from cutlayer.party.agreement import files_digest
from cutlayer.party.network import Transport
from cutlayer.plan.document import read_document
from cutlayer.plan.terms import Option

ACCEPTED = Path(".cutlayer") / "accepted.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartyFile:
    """`party.toml`. Paths are relative to the file's own folder.

    `data` and `held_out` name a CSV or Parquet file, an array file (`.npz`)
    or `package.module:factory`; `features`, `label` and `classes` choose a
    table's columns, or `columns` (`[columns]`) gives each its role; `id`
    names the rows, `aligned` is what `cutlayer align` wrote of them; with
    `unlabelled` labels may be missing; `options` go to the factory. `out`
    is where results go, and, unless `saves` names another place for them,
    the run's saves; with `audit` a log of all that crossed, too. With
    `monitor` what this party's tensors tell is measured while it runs.
    `transport`, `lanes` or `flight`, is how frames travel: the same at both
    ends of a link (docs/flight.md). `deny`: parties that are not let in any
    more, also while a run goes on.
    """

    data: str = ""
    held_out: str = ""
    features: list[str] | None = None
    label: str | None = None
    classes: list[str] | None = None
    columns: dict[str, Any] | None = None
    id: str = ""
    aligned: str = ""
    unlabelled: bool = False
    options: dict[str, Option] = field(default_factory=dict)
    keys: str = "keys"
    listen: str = ""
    connect: str = ""
    transport: Transport = "lanes"
    device: str = "cpu"
    threads: int = 0
    out: str = ""
    saves: str = ""
    audit: bool = True
    monitor: bool = False
    deny: list[str] = field(default_factory=list)

    @property
    def roles(self) -> TableRoles | None:
        """What the table's columns are for, None if they are plain numbers. Raises `PlanError` with all faults.

        `features` beside an id are plain numbers too; a label with neither them nor `[columns]` is all there is.
        """
        if self.columns is None and not (self.id or self.aligned or self.unlabelled):
            return None
        faults: list[str] = []
        columns = plain_numbers(self.features or []) if self.columns is None else read_roles(self.columns, faults)
        if self.columns is not None and self.features is not None:
            faults.append("features and [columns] both choose what the model sees: leave features out")
        if self.unlabelled and self.columns is None and self.features is None and not self.id:
            faults.append("unlabelled is for a table whose features are named: give a table [columns], or features")
        roles = TableRoles(
            columns=columns,
            id=self.id or None,
            label=self.label or None,
            classes=None if self.classes is None else tuple(self.classes),
            aligned=Path(self.aligned) if self.aligned else None,
            unlabelled=self.unlabelled,
        )
        if faults := faults or roles.faults():
            raise PlanError(faults)
        return roles


def read_party_file(path: Path) -> PartyFile:
    """The file's lines, its paths made relative to where we are. Raises `PlanError` with all faults of the file."""
    try:
        text = path.read_text()
    except OSError as error:
        raise PlanError(f"{path} cannot be read ({error.strerror}): give the party's own file, or options") from error
    here = read_document(text, PartyFile, "party's file")

    def beside(value: str) -> str:
        return str(path.parent / value) if value and ":" not in value else value

    here = replace(
        here,
        data=beside(here.data),
        held_out=beside(here.held_out),
        aligned=beside(here.aligned),
        keys=beside(here.keys),
        out=beside(here.out),
        saves=beside(here.saves),
    )
    _ = here.roles  # all its faults are told at once, and now
    return here


class DenyList:
    """The parties that a party's own file says are revoked: read again when the file has changed."""

    def __init__(self, path: Path, known: list[str]) -> None:
        self._path, self._denied = path, tuple(known)
        self._seen = self._stamp()

    def __call__(self) -> tuple[str, ...]:
        """Who is revoked; as long as the file cannot be read, who was before."""
        if (stamp := self._stamp()) != self._seen:
            self._seen = stamp
            with suppress(PlanError):
                self._denied = tuple(read_party_file(self._path).deny)
        return self._denied

    def _stamp(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_size


def accept(plan: Path, digest: str) -> None:
    """Record, beside the plan, that a person has accepted it: the plan's digest and the digest of its files."""
    record = plan.resolve().parent / ACCEPTED
    accepted = _accepted(record)
    accepted[files_digest(plan)] = {"plan": digest, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    record.parent.mkdir(exist_ok=True)
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(accepted, indent=2) + "\n")
    temporary.replace(record)


def check_accepted(plan: Path) -> str:
    """The digest that was accepted for exactly these files. Runs none of them. Raises `PlanError`."""
    entry = _accepted(plan.resolve().parent / ACCEPTED).get(files_digest(plan))
    if entry is None:
        raise PlanError(
            f"{plan} has not been accepted as it stands (it, its model or its weights are new or have changed): "
            f"read them, then `cutlayer accept {plan}`"
        )
    return entry["plan"]


def _accepted(record: Path) -> dict[str, dict[str, str]]:
    try:
        entries = json.loads(record.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PlanError(f"{record} cannot be read ({error}): remove it and accept the plan again") from error
    return entries if isinstance(entries, dict) else {}
