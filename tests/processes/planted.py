"""Canaries in a party's rows, the runs that they are planted in, and the tap that looks for them."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cutlayer import Parts
from cutlayer.data.encoding import Encoding
from cutlayer.data.roles import ColumnRole, Number, OneHot, TableRoles
from cutlayer.data.tables import Table, open_table
from cutlayer.party.agreement import Agreement, draft
from cutlayer.plan.tensors import DType
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.protocol.wire import Frame

ROWS = 24
PIECE = 8
"""So many successive characters of a text give it away."""
Kinds = Mapping[str, Sequence[int | float | str]]
"""What is planted, by what it is."""


# ---------------------------------------------------------------------- canaries and the tap


def looks(value: int | float | str) -> Iterator[bytes]:
    """How a value may look in bytes: raw in both endiannesses, as floats of 32 and 64 bits, as text or a part of it."""
    if isinstance(value, str):
        yield from (value[at : at + PIECE].encode() for at in range(len(value) - PIECE + 1))
        yield value.encode("utf-16-le")
        yield from [bytes.fromhex(value)] if set(value) <= set("0123456789abcdef") else []
        return
    if isinstance(value, int):
        yield from (struct.pack(order + "q", value) for order in "<>")
        yield f"{value:x}".encode()
    yield from (struct.pack(order + kind, value) for order in "<>" for kind in "fd")
    yield from (repr(value).encode(), repr(float(value)).encode(), str(np.float32(value)).encode())
    yield float(value).hex().encode()


@dataclass
class Tap:
    """Every frame that any channel has sent: to whom, and its bytes."""

    frames: list[tuple[str, bytes]] = field(default_factory=list)

    def heard(self, peer: str, frame: Frame) -> None:
        self.frames.append((peer, b"".join((frame.prelude(), frame.header, *frame.parts))))

    @property
    def bytes(self) -> int:
        return sum(len(data) for _, data in self.frames)

    def find(self, planted: Kinds) -> set[str]:
        """What has crossed, of what was planted."""
        crossed = b"\0".join(data for _, data in self.frames)
        return {
            what for what, values in planted.items() for each in values if any(look in crossed for look in looks(each))
        }


def hexadecimal(random: Random) -> str:
    return f"{random.getrandbits(64) | 1 << 63:016x}"


def fraction(random: Random) -> float:
    """Around 1e-9, where no activation, gradient or weight is; all its 52 bits are random."""
    return random.choice([-1, 1]) * (1 + random.getrandbits(52) / 2**52) * 2.0**-30


# ---------------------------------------------------------------------- parties and their rows


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A topology with its parties. `who`: what each party has, of x and y. `segments`: those above the bottoms."""

    topology: str
    schedule: str = "joint"
    roles: Mapping[str, str]
    who: Mapping[str, str]
    labels: str = ""
    segments: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    labels_leave: bool = False

    @property
    def together(self) -> bool:
        return self.schedule == "joint"


TWO = {"a": "client", "b": "client"}
XX = {"a": "x", "b": "x"}
SCENES = {
    "vertical": Scene(
        topology="vertical", roles=TWO | {"lab": "server"}, who=XX | {"lab": "y"}, labels="lab", segments=("top",)
    ),
    "vertical_u_shaped": Scene(
        topology="vertical_u_shaped", roles=TWO | {"lab": "server"}, who=XX | {"b": "xy"}, labels="b",
        segments=("middle", "head"),
    ),
    "extended_vanilla": Scene(
        topology="extended_vanilla", roles=TWO | {"mid": "middle", "lab": "server"}, who=XX | {"lab": "y"},
        labels="lab", segments=("middle", "top"),
    ),
    "u_shaped": Scene(
        topology="u_shaped", schedule="relay", roles=TWO | {"lab": "server"}, who={"a": "xy", "b": "xy"}, cut=("0", "2")
    ),
    "vanilla": Scene(
        topology="vanilla", schedule="alternating", roles=TWO | {"lab": "server"}, who={"a": "xy", "b": "xy"},
        cut=("0",), labels_leave=True,
    ),
    "multi_hop": Scene(
        topology="multi_hop", schedule="alternating", roles={"a": "client", "hop": "hop", "lab": "server"},
        who={"a": "xy"}, cut=("0", "2"), labels_leave=True,
    ),
    "vertical, the labels leave": Scene(
        topology="vertical", roles=TWO | {"lab": "server"}, who=XX | {"b": "xy"}, labels="b", segments=("top",),
        labels_leave=True,
    ),
}  # fmt: skip
HOME = [name for name, scene in SCENES.items() if not scene.labels_leave]
AWAY = [name for name, scene in SCENES.items() if scene.labels_leave]
WIDTH = {"csv": 5, "numbers": 3}
Form = str


class Numbers(Dataset[Any]):
    """Rows with ids, in float64."""

    def __init__(self, ids: list[int], x: Tensor | None, y: Tensor | None) -> None:
        self.ids, self.x, self.y = ids, x, y

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Any:
        sample = tuple(values[row] for values in (self.x, self.y) if values is not None)
        return sample if len(sample) > 1 else sample[0]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Rows by party, and the canaries in them."""

    data: dict[str, Dataset[Any]]
    kinds: dict[str, list[int | float | str]]

    def without(self, *kinds: str) -> dict[str, list[int | float | str]]:
        return {kind: values for kind, values in self.kinds.items() if kind not in kinds}


def plant(
    scene: Scene, form: Form, folder: Path, seed: int = 0, encodings: Mapping[str, Encoding] | None = None
) -> Planted:
    """Rows for each party that has some: a table, its ids texts; or numbers in float64, its ids whole ones.

    With `encodings`, of tables that a model was trained on, they are rows to be answered.
    """
    random = Random(seed)  # noqa: S311 (a canary is no secret)
    kinds: dict[str, list[int | float | str]] = {}
    ids: list[Any] = [hexadecimal(random) if form == "csv" else random.getrandbits(63) for _ in range(ROWS)]
    data: dict[str, Dataset[Any]] = {}
    for party, what in scene.who.items():
        own = (
            ids if scene.together else ids[::-1] if party == "a" else [i[::-1] if form == "csv" else i + 7 for i in ids]
        )
        held = {"ids": own}
        if "x" in what:
            held["features"] = [fraction(random) for _ in range(2 * ROWS)]
        if "y" in what:
            held["labels"] = [fraction(random) for _ in range(ROWS)]
        if form == "csv":
            encoding = (encodings or {}).get(party)
            names = Random(f"{scene.topology} {party}")  # noqa: S311 (the same for known and for fresh rows)
            data[party] = as_csv(held, names, folder / f"{party}-{seed}.csv", kinds, encoding)
        else:
            data[party] = as_numbers(held, random)
        for kind, values in held.items():
            kinds.setdefault(kind, []).extend(values)
    return Planted(data=data, kinds=kinds)


def as_numbers(held: Mapping[str, list[Any]], random: Random) -> Dataset[Any]:
    x = None
    if "features" in held:
        ordinary = torch.tensor([[random.gauss(0, 1)] for _ in range(ROWS)], dtype=torch.float64)
        canaries = torch.tensor(held["features"], dtype=torch.float64).reshape(ROWS, 2)
        x = torch.cat([canaries, ordinary], 1)
    y = torch.tensor(held["labels"], dtype=torch.float64) if "labels" in held else None
    return Numbers(held["ids"], x, y)


def as_csv(
    held: Mapping[str, list[Any]], random: Random, path: Path, kinds: dict[str, Any], encoding: Encoding | None
) -> Table:
    """Numbers as they stand, numbers scaled, and a category of three places; names of columns are canaries, too."""
    names = [hexadecimal(random) for _ in range(5)]
    categories = [hexadecimal(random) for _ in range(4)]
    columns: dict[str, list[Any]] = {names[0]: held["ids"]}
    if "features" in held:
        columns |= {names[1]: held["features"][::2], names[2]: held["features"][1::2]}
        columns[names[3]] = [random.choice(categories) for _ in range(ROWS)]
    if "labels" in held:
        columns[names[4]] = held["labels"]
    kinds.setdefault("names of columns", []).extend(columns)
    kinds.setdefault("categories", []).extend(set(columns.get(names[3], [])))
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    roles: dict[str, ColumnRole] = {names[1]: Number(scale=False), names[2]: Number(), names[3]: OneHot(size=3)}
    return open_table(
        path,
        TableRoles(
            columns=roles if "features" in held else {},
            id=names[0],
            label=names[4] if "labels" in held else None,
            label_dtype="float32",
        ),
        encoding=encoding,
    )


def agreed(scene: Scene, form: Form, bottom: nn.Module | None = None) -> Agreement:
    width, dtype = WIDTH[form], torch.float32 if form == "csv" else torch.float64
    kind: DType = "float32" if form == "csv" else "float64"
    shape = InputTerms(shape=(width,), dtype=kind)
    parties = {
        name: PartyTerms(role=role, input=(shape,) if scene.together and role == "client" else ())
        for name, role in scene.roles.items()
    }
    terms = Terms(
        topology=scene.topology,
        schedule=scene.schedule,
        labels=scene.labels,
        labels_leave=scene.labels_leave and scene.together,
        input=() if scene.together else shape,
        model=ModelTerms(cut=scene.cut),
        training=Training(
            loss=Method(name="mse_loss"), optimizer=Method(name="Adam", options={"lr": 0.05}), batch_size=7, rounds=2
        ),
        parties=parties,
    )
    return draft(terms, network(scene, width, bottom).to(dtype))


def network(scene: Scene, width: int, bottom: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(3)
    if not scene.together:
        return nn.Sequential(
            bottom or nn.Linear(width, 4), nn.Linear(width if bottom else 4, 4), nn.Tanh(), nn.Linear(4, 1)
        )
    bottoms = [(f"bottom_{name}", nn.Linear(width, 4)) for name in TWO]
    widths = [8, *(4 for _ in scene.segments[1:]), 1]
    above = [(name, nn.Linear(widths[at], widths[at + 1])) for at, name in enumerate(scene.segments)]
    return Parts([*bottoms, *above])
