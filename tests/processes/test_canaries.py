"""What leaves a party: canaries are planted in its ids, labels, features, categories and column names.

A tap on every channel searches each byte, before it is sealed or encrypted. The same tap finds what does cross.
"""

import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256, sha512
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cutlayer import Parts
from cutlayer.data.align import as_rows, hash_ids
from cutlayer.data.encoding import Encoding
from cutlayer.data.ids import ids_of
from cutlayer.data.roles import ColumnRole, Number, OneHot, TableRoles
from cutlayer.data.tables import Table, open_table
from cutlayer.errors import CutlayerError, DataError, Misaligned, SegmentFailed
from cutlayer.keys import PublicKeys, load_credentials, load_sealer, make_demo_kit
from cutlayer.keys.pairs import read_public_keys
from cutlayer.observe.facts import Fact, Noticed
from cutlayer.party import aligner
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.align import align_together
from cutlayer.party.run import Network, run
from cutlayer.plan.tensors import DType
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.protocol.messages import Forward, Sealed
from cutlayer.protocol.wire import Frame, decode
from cutlayer.simulation import simulate_plan
from cutlayer.transport.lanes import LanesChannel
from cutlayer.transport.memory import MemoryChannel

ROWS = 24
PATIENCE_S = 60
Kinds = Mapping[str, Sequence[int | float | str]]
"""What is planted, by what it is."""


# ---------------------------------------------------------------------- canaries and the tap


def looks(value: int | float | str) -> Iterator[bytes]:
    """How a value may look in bytes: raw in both endiannesses, as a float of 32 and 64 bits, as text."""
    if isinstance(value, str):
        yield from (value.encode(), value.encode("utf-16-le"))
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


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Tap:
    tap = Tap()
    for channel in (MemoryChannel, LanesChannel):
        send = channel.send

        def tapped(self: Any, frame: Frame, send: Any = send) -> int:
            tap.heard(self.peer, frame)
            return send(self, frame)  # type: ignore[no-any-return]

        monkeypatch.setattr(channel, "send", tapped)
    return tap


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


FORMS = pytest.mark.parametrize("form", ["csv", "numbers"])


# ---------------------------------------------------------------------- what crosses


@FORMS
@pytest.mark.parametrize("name", HOME)
def test_nothing_of_a_partys_rows_leaves_it(tap: Tap, name: str, form: Form, tmp_path: Path) -> None:
    scene = SCENES[name]
    planted = plant(scene, form, tmp_path)
    result = simulate_plan(agreed(scene, form), planted.data)
    assert tap.bytes == sum(each["sent"] for each in result.bytes.values())
    assert tap.find(planted.kinds) == set()


@FORMS
@pytest.mark.parametrize("name", AWAY)
def test_labels_that_a_plan_sends_away_are_found_by_the_same_tap_and_nothing_else(
    tap: Tap, name: str, form: Form, tmp_path: Path
) -> None:
    scene = SCENES[name]
    planted = plant(scene, form, tmp_path)
    simulate_plan(agreed(scene, form), planted.data)
    assert tap.find(planted.kinds) == {"labels"}
    to = {peer for peer, data in tap.frames if Tap([(peer, data)]).find({"labels": planted.kinds["labels"]})}
    assert to == {"lab"}


@FORMS
def test_a_bottom_that_does_nothing_gives_the_features_away(tap: Tap, form: Form, tmp_path: Path) -> None:
    scene = SCENES["u_shaped"]
    planted = plant(scene, form, tmp_path)
    same = nn.Linear(WIDTH[form], WIDTH[form]).requires_grad_(False)
    same.load_state_dict({"weight": torch.eye(WIDTH[form]), "bias": torch.zeros(WIDTH[form])})
    simulate_plan(agreed(replace(scene, schedule="alternating"), form, same), planted.data)
    assert tap.find(planted.kinds) == {"features"}


@FORMS
@pytest.mark.parametrize("name", SCENES)
def test_nothing_leaves_when_the_model_is_used(tap: Tap, name: str, form: Form, tmp_path: Path) -> None:
    scene = SCENES[name]
    known = plant(scene, form, tmp_path)
    result = simulate_plan(agreed(scene, form), known.data)
    tap.frames.clear()
    features = [name for name, what in scene.who.items() if "x" in what]
    encodings = {name: rows.encoding for name in features if isinstance(rows := known.data[name], Table)}
    fresh = plant(scene, form, tmp_path, 1, encodings)
    answers = result.predict({name: fresh.data[name] for name in features})
    assert all(len(each) == ROWS for told in answers.values() for each in told.values())
    assert sum(isinstance(decode(received(data))[0], Forward | Sealed) for _, data in tap.frames) >= 4
    assert tap.find(fresh.kinds | {f"known {kind}": values for kind, values in known.kinds.items()}) == set()


def received(data: bytes) -> Frame:
    header_bytes = int.from_bytes(data[4:8], "big")
    return Frame(data[16 : 16 + header_bytes], (memoryview(data)[16 + header_bytes :],))


# ---------------------------------------------------------------------- when something goes wrong


def test_rows_that_do_not_match_end_the_run_and_no_id_is_told(tap: Tap, tmp_path: Path) -> None:
    scene = SCENES["vertical_u_shaped"]
    one, other = (plant(scene, "csv", tmp_path, seed) for seed in range(2))
    with pytest.raises(Misaligned):
        simulate_plan(agreed(scene, "csv"), one.data | {"b": other.data["b"]})
    assert tap.frames
    assert tap.find({kind: [*values, *other.kinds[kind]] for kind, values in one.kinds.items()}) == set()


def test_a_cell_that_cannot_be_used_is_quoted_at_home_and_nowhere_else(tap: Tap, tmp_path: Path) -> None:
    scene = SCENES["vertical"]
    planted = plant(scene, "csv", tmp_path)
    path, cell = tmp_path / "b-0.csv", f"x{hexadecimal(Random(5))}"  # noqa: S311
    path.write_text(path.read_text().replace(repr(planted.kinds["features"][-1]), cell))
    with pytest.raises(DataError, match=cell):
        simulate_plan(agreed(scene, "csv"), planted.data)
    assert any(b"its rows cannot be used" in data for _, data in tap.frames)
    assert tap.find(planted.kinds | {"cell": [cell]}) == set()


class Telling(nn.Module):
    """Raises an exception that quotes what it was called with, if that is more than a try."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.any():
            raise ValueError(str(x.flatten().tolist()))
        return self.fc(x)  # type: ignore[no-any-return]


def test_what_a_model_says_of_its_rows_as_it_fails_stays_at_home(tap: Tap, tmp_path: Path) -> None:
    scene = replace(SCENES["u_shaped"], schedule="alternating")
    planted = plant(scene, "numbers", tmp_path)
    with pytest.raises(SegmentFailed, match="ValueError") as caught:
        simulate_plan(agreed(scene, "numbers", Telling()), planted.data)
    assert any(repr(value) in str(caught.value) for value in planted.kinds["features"])
    assert any(b"bottom of a failed" in data for _, data in tap.frames)
    assert tap.find(planted.kinds) == set()


# ---------------------------------------------------------------------- over lanes, before TLS


@pytest.mark.parametrize("name", ["extended_vanilla", "vertical, the labels leave"])
def test_over_lanes_the_tap_finds_the_same(tap: Tap, name: str, tmp_path: Path) -> None:
    scene = SCENES[name]
    planted = plant(scene, "csv", tmp_path)
    agreement, networks = over_lanes(agreed(scene, "csv"), tmp_path / "keys")
    together(agreement, networks, planted.data)
    assert len(tap.frames) > 50
    assert tap.find(planted.kinds) == ({"labels"} if scene.labels_leave else set())


def over_lanes(agreement: Agreement, folder: Path) -> tuple[Agreement, dict[str, Network]]:
    """The plan with keys pinned, and each party's place in the network."""
    terms = agreement.plan.terms
    make_demo_kit(folder, tuple(terms.parties))
    keys = {name: read_public_keys(folder / f"{name}.pub", name) for name in terms.parties}
    parties = {
        name: replace(party, signing_key=keys[name].signing, sealing_key=keys[name].sealing)
        for name, party in terms.parties.items()
    }
    known = {name: PublicKeys(signing=each.signing, sealing=each.sealing) for name, each in keys.items()}
    networks = {
        name: Network(
            credentials=load_credentials(folder, name),
            seals=load_sealer(folder, name, known),
            listen=("127.0.0.1", 0),
        )
        for name in parties
    }
    return draft(replace(terms, parties=parties), agreement.model), networks


def together(agreement: Agreement, networks: Mapping[str, Network], data: Mapping[str, Dataset[Any]]) -> None:
    """All parties, a thread each."""
    port, errors = [0], list[Exception]()
    listens = threading.Event()

    def hears(fact: Fact) -> None:
        if isinstance(fact, Noticed) and "listens on port" in fact.sentence:
            port[0] = int(fact.sentence.split()[-1])
            listens.set()

    def work(name: str) -> None:
        network = replace(networks[name], connect=("127.0.0.1", port[0]))
        try:
            run(agreement, name, network, secret=name.encode() * 8, data=data.get(name), observers=(hears,))
        except CutlayerError as error:
            errors.append(error)
            listens.set()

    conductor = agreement.plan.conductor
    threads = {name: threading.Thread(target=work, args=(name,)) for name in networks}
    threads[conductor].start()
    assert listens.wait(PATIENCE_S)
    for name, thread in threads.items():
        if name != conductor:
            thread.start()
    for thread in threads.values():
        thread.join(PATIENCE_S)
    assert not errors
    assert not any(thread.is_alive() for thread in threads.values())


# ---------------------------------------------------------------------- alignment


@pytest.mark.parametrize("kind", ["texts", "whole numbers"])
@pytest.mark.parametrize("masks", [True, False], ids=["masked", "a party that does not mask"])
def test_aligning_shows_no_id_and_no_hash_of_one(kind: str, masks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(7)  # noqa: S311
    ids: list[Any] = [hexadecimal(random) if kind == "texts" else random.getrandbits(63) for _ in range(30)]
    tables = {"a": ids[:20], "b": ids[10:], "c": ids[5:25]}
    tap, runs = Tap(), set[str]()

    def heard(sender: str, receiver: str, frame: Frame) -> None:
        tap.heard(receiver, frame)

    def hashed(given: list[bytes], run: str) -> bytes:
        runs.add(run)
        return hash_ids(given, run)

    with monkeypatch.context() as patched:
        if not masks:
            patched.setattr(aligner, "mask", lambda points, key, threads: as_rows(bytes(points), 32))
        patched.setattr(aligner, "hash_ids", hashed)
        align_together(tables, conductor="hub", comparer="c", tap=heard)
    assert tap.bytes > 60 * 32
    assert tap.find({"ids": ids}) == set()
    (name,) = runs
    canonical = ids_of(ids).canonical(np.arange(len(ids)))
    texts = [*canonical, *(str(each).encode() for each in ids)]
    hashes = [digest(text).digest() for digest in (sha512, sha256) for text in texts]
    points = hash_ids(canonical, name)
    known = [*hashes, *(points[at : at + 32] for at in range(0, len(points), 32))]
    crossed = b"\0".join(data for _, data in tap.frames)
    assert any(each[:16] in crossed for each in known) == (not masks)
