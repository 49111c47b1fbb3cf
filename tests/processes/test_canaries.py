"""What leaves a party: canaries are planted in its ids, labels, features, categories and column names.

A tap on every channel searches each byte, before it is sealed or encrypted. The same tap finds what does cross.
"""

import threading
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256, sha512
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from cutlayer.data.align import as_rows, hash_ids
from cutlayer.data.ids import ids_of
from cutlayer.data.tables import Table
from cutlayer.errors import CutlayerError, DataError, Misaligned, SegmentFailed
from cutlayer.keys import PublicKeys, load_credentials, load_sealer, make_demo_kit
from cutlayer.keys.pairs import read_public_keys
from cutlayer.observe.facts import Fact, Noticed
from cutlayer.observe.tap import Seen
from cutlayer.party.agreement import Agreement, draft
from cutlayer.party.align import align_together
from cutlayer.party.alignment import aligner
from cutlayer.party.run import Network, run
from cutlayer.plan.terms import DefenceTerms, Method
from cutlayer.protocol.messages import Backward, Forward, Sealed
from cutlayer.protocol.wire import PRELUDE_BYTES, Frame, decode
from cutlayer.simulation import simulate_plan
from cutlayer.transport.link import Link
from cutlayer.transport.memory import MemoryChannel
from processes.planted import AWAY, HOME, ROWS, SCENES, WIDTH, Form, Tap, agreed, hexadecimal, plant

PATIENCE_S = 60


@pytest.fixture
def tap(monkeypatch: pytest.MonkeyPatch) -> Tap:
    tap = Tap()
    for channel in (MemoryChannel, Link):
        send = channel.send

        def tapped(self: Any, frame: Frame, send: Any = send, **how: bool) -> int:
            tap.heard(self.peer, frame)
            return send(self, frame, **how)  # type: ignore[no-any-return]

        monkeypatch.setattr(channel, "send", tapped)
    return tap


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
def test_of_a_defended_run_released_tensors_cross_and_nothing_else(tap: Tap, form: Form, tmp_path: Path) -> None:
    scene = replace(SCENES["u_shaped"], schedule="alternating")
    planted = plant(scene, form, tmp_path)
    same = nn.Linear(WIDTH[form], WIDTH[form]).requires_grad_(False)
    same.load_state_dict({"weight": torch.eye(WIDTH[form]), "bias": torch.zeros(WIDTH[form])})
    noise = (Method(name="gaussian", options={"clip": 1e6, "sigma": 1.0}),)
    plain = agreed(scene, form, same)
    defended = draft(replace(plain.plan.terms, defence=(DefenceTerms(forward=noise, backward=noise),)), plain.model)
    released: set[bytes] = set()

    def keep(seen: Seen) -> None:
        if seen.sent:
            released.add(seen.tensor.detach().contiguous().numpy().tobytes())

    simulate_plan(defended, planted.data, taps=(keep,))
    assert tap.find(planted.kinds) == set()
    crossed = [decode(received(data)) for _, data in tap.frames]
    payloads = [bytes(view) for message, views in crossed if isinstance(message, Forward | Backward) for view in views]
    assert len(payloads) > 10
    assert set(payloads) <= released


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
    body_at = PRELUDE_BYTES + header_bytes
    return Frame(data[PRELUDE_BYTES:body_at], (memoryview(data)[body_at:],))


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
