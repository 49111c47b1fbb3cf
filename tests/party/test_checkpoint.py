"""Saves that are whole or not there, whatever kills the process that writes them, and refused by name if damaged."""

import math
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cutlayer.errors import RunError
from cutlayer.party.checkpoint import Checkpoints
from cutlayer.party.place import Folder, Remote, place_of
from party import dying
from party.dying import PARTY, PLAN, Died, Dying, Powered, Truth, choices, content, go_through

posix = pytest.mark.skipif(os.name == "nt", reason="file modes and SIGKILL are POSIX's")


def opened(place: object, *, plan: str = PLAN, party: str = PARTY, keep: int = 2) -> Checkpoints:
    return Checkpoints(place, plan=plan, party=party, keep=keep)  # type: ignore[arg-type]


def filled(place: object, numbers: int = 3) -> Checkpoints:
    """A store with so many committed saves, the first of them pruned away if there are more than two."""
    store = opened(place)
    for number in range(numbers):
        store.write(number, content(number).body, content(number).objects)
        store.commit(number)
    return store


def objects_of(folder: Path) -> set[str]:
    return {path.name for path in (folder / "objects").iterdir()}


@pytest.fixture(params=["folder", "file://", "memory://"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    kinds = {"folder": "", "file://": "file://", "memory://": "memory:/"}
    return kinds[request.param] + str(tmp_path / "saves")


# ---------------------------------------------------------------------- written and read


def test_a_save_comes_back_as_it_was_written(place: str) -> None:
    body = {"loss": 0.1 + 0.2, "tiny": 5e-324, "none": None, "inf": -math.inf, "big": 2**80, "zero": -0.0, "é": [1, {}]}
    objects = {"bottom": bytes(range(256)), "empty": b"", "again": bytes(range(256))}
    opened(place).write(7, body, objects, milestone=True)
    store = opened(place)
    saved = store.read(7)
    assert (saved.number, saved.body, saved.objects, saved.milestone) == (7, body, objects, True)
    assert list(saved.body) == list(body)
    assert math.copysign(1, saved.body["zero"]) == -1
    assert (store.numbers, store.committed, store.refusals) == ((7,), (), ())


def test_a_commit_is_remembered(place: str) -> None:
    filled(place, 2)
    assert opened(place).committed == (0, 1)


def test_a_save_that_is_written_anew_is_not_committed_any_more_unless_it_says_the_same(place: str) -> None:
    store = filled(place, 2)
    store.write(1, content(1).body, content(1).objects)
    assert opened(place).committed == (0, 1)
    store.write(1, content(1, 1).body, content(1, 1).objects)
    assert (store.committed, opened(place).committed) == ((0,), (0,))
    assert opened(place).read(1).body == content(1, 1).body


def test_the_same_bytes_are_written_and_read_once(tmp_path: Path) -> None:
    folder = Dying(tmp_path / "saves")
    store = opened(folder)
    store.write(0, {}, {"a": b"same", "b": b"same", "c": b"other"})
    assert folder.calls.count("draft") == 3
    store.write(1, {}, {"d": b"same", "c": b"other"})
    assert folder.calls.count("draft") == 4
    again = Dying(tmp_path / "saves")
    reopened = opened(again)
    assert again.calls.count("read") == 2 + 2 + 2  # manifests, marks (there are none), objects
    reopened.write(2, {}, {"a": b"same"})
    assert again.calls.count("draft") == 1


def test_a_note_stays_beside_the_saves(place: str) -> None:
    store = filled(place)
    assert store.read_note("members") is None
    store.note("members", {"joined": ["a"], "rows": 0.1})
    store.note("members", {"joined": ["a", "b"], "rows": 0.1})
    assert opened(place).read_note("members") == {"joined": ["a", "b"], "rows": 0.1}


def test_what_is_finished_leaves_nothing(place: str) -> None:
    store = filled(place)
    store.note("members", {})
    store.clear()
    assert (store.numbers, opened(place).numbers, store.read_note("members")) == ((), (), None)
    assert place_of(place).names() == place_of(place).names("objects") == []


@posix
def test_saves_are_for_their_owner_alone(tmp_path: Path) -> None:
    store = filled(tmp_path / "deep" / "saves")
    store.note("members", {})
    for path in (tmp_path / "deep" / "saves").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize("body", [{1: "x"}, {"a": {2: 3}}, {"a": [{None: 0}]}, {"a": b"bytes"}, {"a": {1, 2}}])
def test_what_is_no_json_is_refused_before_anything_is_written(body: dict[str, object], tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(RunError, match="JSON"):
        store.write(0, body, {"a": b"x"})
    assert objects_of(tmp_path) == set()


def test_a_url_is_fsspecs_and_a_path_is_a_folder(tmp_path: Path) -> None:
    assert isinstance(place_of("memory://saves"), Remote)
    assert isinstance(place_of(f"file://{tmp_path}"), Folder)
    assert isinstance(place_of("saves/a"), Folder)


# ---------------------------------------------------------------------- kept and removed


def test_the_newest_two_and_the_newest_milestone_and_what_is_not_committed_yet_stay(place: str) -> None:
    store = opened(place)
    for number in range(8):
        store.write(number, {}, {"w": bytes([number]), "same": b"s"}, milestone=number in (1, 3))
        if number not in (2, 7):
            store.commit(number)
    for each in (store, opened(place)):
        assert (each.numbers, each.committed) == ((3, 5, 6, 7), (3, 5, 6))
    assert len(place_of(place).names("objects")) == 5
    assert len(place_of(place).names()) == 4 + 3


def test_what_killed_processes_left_is_removed_at_the_next_commit(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / ".save-00000003.json.0a1b2c3d.draft").write_bytes(b"half")
    (tmp_path / "objects" / f".{'0' * 64}.safetensors.0a1b2c3d.draft").write_bytes(b"half")
    (tmp_path / "objects" / f"{'0' * 64}.safetensors").write_bytes(b"nobody's")
    (tmp_path / "save-00000000.committed").write_bytes(b"nobody's")
    store = opened(tmp_path)
    store.write(3, {}, {})
    store.commit(3)
    assert {path.name for path in tmp_path.iterdir()} == {
        "objects", "save-00000002.json", "save-00000002.committed", "save-00000003.json", "save-00000003.committed",
    }  # fmt: skip
    assert len(objects_of(tmp_path)) == 3


def test_a_course_that_the_run_has_left_is_forgotten(place: str) -> None:
    store = filled(place)
    store.write(3, {}, {"w": b"x"})
    store.forget_after(1)
    assert (store.numbers, opened(place).numbers) == ((1,), (1,))


@pytest.mark.parametrize("keep", [0, -1])
def test_a_run_keeps_one_save_at_least(keep: int, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="keep 1"):
        opened(tmp_path, keep=keep)


# ---------------------------------------------------------------------- refused by name


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_manifest_is_refused_by_name_and_the_save_before_it_counts(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    filled(tmp_path)
    damage(tmp_path / "save-00000002.json")
    store = opened(tmp_path)
    assert (store.numbers, store.committed) == ((1,), (1,))
    assert store.refusals == ("save-00000002.json is cut short or changed: its digest is not its own",)
    with pytest.raises(RunError, match=r"save-00000002.json .* cut short or changed.*: go on from an earlier save"):
        store.read(2)


@pytest.mark.parametrize(("damage", "why"), [(cut, "cut short"), (flip, "changed"), (empty, "cut"), (lose, "missing")])
def test_a_damaged_object_is_refused_by_name_and_written_again_when_it_is_needed(
    damage: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    store = filled(tmp_path)
    lone = next(iter(objects_of(tmp_path) - _referred(tmp_path, 1)))
    damage(tmp_path / "objects" / lone)
    with pytest.raises(RunError, match=f"save-00000002.json .*{lone}.*{why}"):
        store.read(2)
    reopened = opened(tmp_path)
    assert reopened.numbers == (1,)
    assert reopened.refusals[0].startswith(f"save-00000002.json needs objects/{lone}, which is")
    for each in (store, reopened):
        each.write(3, content(2).body, content(2).objects)
        assert opened(tmp_path).read(3).objects == content(2).objects
    assert opened(tmp_path).numbers == (1, 2, 3)


def _referred(folder: Path, number: int) -> set[str]:
    text = (folder / f"save-{number:08d}.json").read_text()
    return {name for name in objects_of(folder) if name.partition(".")[0] in text}


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_mark_leaves_a_save_that_is_not_committed(damage: Callable[[Path], None], tmp_path: Path) -> None:
    filled(tmp_path)
    damage(tmp_path / "save-00000002.committed")
    store = opened(tmp_path)
    assert (store.numbers, store.committed) == ((1, 2), (1,))
    assert len(store.refusals) == 1
    assert store.refusals[0].startswith("save-00000002.committed is cut short")


def test_a_save_under_another_number_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "save-00000002.json").rename(tmp_path / "save-00000009.json")
    assert opened(tmp_path).refusals == ("save-00000009.json is save 2 under another name",)


def test_a_mark_or_a_note_is_no_save(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.note("members", {})
    (tmp_path / "save-00000008.json").write_bytes((tmp_path / "save-00000002.committed").read_bytes())
    (tmp_path / "note-others.json").write_bytes((tmp_path / "note-members.json").read_bytes())
    assert opened(tmp_path).refusals == ("save-00000008.json is a mark, not a manifest",)
    with pytest.raises(RunError, match=r"note-others.json .* is the note 'members' under another name"):
        store.read_note("others")


@pytest.mark.parametrize(
    ("plan", "party", "why"),
    [
        ("6" * 64, PARTY, "belongs to another plan (555555555555…): name this plan's own place"),
        (PLAN, "hospital-b", "belongs to hospital-a, not to hospital-b: name hospital-b's own place"),
    ],
)
def test_what_is_anothers_is_refused_and_never_touched(plan: str, party: str, why: str, tmp_path: Path) -> None:
    filled(tmp_path).note("members", {"joined": []})
    before = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    store = opened(tmp_path, plan=plan, party=party)
    assert store.numbers == ()
    assert store.refusals == (f"save-00000001.json {why}", f"save-00000002.json {why}")
    with pytest.raises(RunError, match="is of another plan or party"):
        store.write(1, {}, {})
    with pytest.raises(RunError, match="is of another plan or party"):
        store.note("members", {})
    with pytest.raises(RunError, match="belongs to"):
        store.read_note("members")
    for number in range(3, 7):
        store.write(number, {}, {"w": bytes([number])})
        store.commit(number)
    store.clear()
    assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    opened(tmp_path).note("members", {"joined": []})
    flip(tmp_path / "note-members.json")
    with pytest.raises(RunError, match=r"note-members.json at .* is cut short or changed"):
        opened(tmp_path).read_note("members")


def test_a_damaged_save_that_is_out_of_date_is_removed(tmp_path: Path) -> None:
    filled(tmp_path)
    cut(tmp_path / "save-00000001.json")
    store = opened(tmp_path)
    store.write(3, {}, {})
    store.commit(3)
    assert opened(tmp_path).refusals == ()


def test_a_save_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(RunError, match=r"save-00000005.json is not at .*: the good saves there are 1, 2"):
        store.read(5)
    with pytest.raises(RunError, match=r"save-00000005.json is no good save"):
        store.commit(5)
    with pytest.raises(RunError, match="count from 0"):
        store.write(-1, {}, {})


def test_a_place_that_cannot_be_used_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"saves at .* cannot be read"):
        opened(tmp_path / "file")


# ---------------------------------------------------------------------- killed at every call


def check(place: object, before: Truth, after: Truth, *, power: bool = False) -> None:
    """Each save is as it was before the step that was cut off, or as it would have been after; and all goes on."""
    store = opened(place)
    assert store.refusals == ()
    found = {number: (store.read(number), number in store.committed) for number in store.numbers}
    for number in {*before.saves, *after.saves, *found}:
        allowed = [truth.saves.get(number) for truth in (before, after)]
        if number not in found:
            assert None in allowed
            continue
        saved, committed = found[number]
        contents = [state for state in allowed if state is not None and state[0].body == saved.body]
        assert contents, f"{number} is wrong"
        assert saved.objects == contents[0][0].objects
        assert saved.milestone == contents[0][0].milestone
        removing = power and None in allowed
        assert removing or committed in [state[1] for state in contents]
    safe = {each for each, (_, done) in before.saves.items() if done and each in after.saves and after.saves[each][1]}
    assert safe <= set(store.committed)
    assert len(store.committed) >= min(sum(done for _, done in truth.saves.values()) for truth in (before, after))
    assert store.read_note("members") in (before.note, after.note)
    store.write(9, content(9).body, content(9).objects)
    store.commit(9)
    assert store.read(9).objects == content(9).objects
    names = [*store._place.names(), *store._place.names("objects")]
    assert not [name for name in names if name.endswith(".draft")]
    assert sum(name.endswith(".safetensors") for name in names) == len(
        {digest for known in store._saves.values() for digest in known.objects}
    )


def calls(tmp_path: Path) -> list[str]:
    counted = Dying(tmp_path / "counted")
    go_through(lambda: opened(counted), [])
    return counted.calls


def test_a_process_killed_at_any_call_leaves_whole_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # who is killed loses nothing that was written
    for at, what in enumerate(calls(tmp_path)):
        for torn in {False, what == "draft"}:
            truths: list[Truth] = []
            folder = tmp_path / f"{at}-{torn}"
            dies = Dying(folder, at=at, torn=torn)
            with pytest.raises(Died):
                go_through(lambda: opened(dies), truths)  # noqa: B023 (called at once)
            check(folder, *truths)


def test_a_course_that_is_half_forgotten_has_no_gap(tmp_path: Path) -> None:
    for at in range(3, 12):
        filled(tmp_path / str(at), 2)
        for number in range(2, 5):
            opened(tmp_path / str(at)).write(number, content(number).body, content(number).objects)
        dies = Dying(tmp_path / str(at))
        store = opened(dies)
        dies.at = len(dies.calls) + at - 3
        with suppress(Died):
            store.forget_after(1)
        found = opened(tmp_path / str(at)).numbers
        assert found == tuple(range(len(found)))
        assert len(found) >= 2


def test_a_power_cut_at_any_call_leaves_whole_saves() -> None:
    counted = Powered()
    go_through(lambda: opened(counted), [])
    for at in range(counted.calls):
        truths: list[Truth] = []
        disk = Powered(at=at)
        with pytest.raises(Died):
            go_through(lambda: opened(disk), truths)  # noqa: B023 (called at once)
        for choose in choices():
            check(Powered(disk.after_power_cut(choose)), *truths, power=True)


@posix
@pytest.mark.parametrize("nth", range(5))
def test_a_real_kill_leaves_whole_saves(nth: int, tmp_path: Path) -> None:
    at = len(calls(tmp_path)) * (2 * nth + 1) // 10
    truths: list[Truth] = []
    with pytest.raises(Died):
        go_through(lambda: opened(Dying(tmp_path / "same", at=at)), truths)
    script = [sys.executable, dying.__file__, str(tmp_path / "saves"), str(at)]
    assert subprocess.run(script, check=False).returncode == -9
    check(tmp_path / "saves", *truths)


def test_a_store_that_tears_what_it_writes_is_refused_and_mended(tmp_path: Path) -> None:
    """As some stores behind a URL do: a file of the right name with half its bytes."""
    place = "memory:/" + str(tmp_path)
    filled(place)
    files = place_of(place)
    lone = next(name for name in files.names("objects") if files.read(name).startswith(b"bottom 2"))
    files.write(lone, files.read(lone)[:9])
    files.write("save-00000003.json", files.read("save-00000002.json")[:99])
    store = opened(place)
    assert (store.numbers, len(store.refusals)) == ((1,), 2)
    store.write(2, content(2).body, content(2).objects)
    assert opened(place).read(2).objects == content(2).objects


# ---------------------------------------------------------------------- looked at while it is written


def test_others_may_look_while_one_writes(tmp_path: Path) -> None:
    store = filled(tmp_path)
    failures: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(3, 40):
                store.write(number, content(number).body, content(number).objects)
                store.commit(number)
        except BaseException as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while writer.is_alive():
        numbers, committed = store.numbers, store.committed
        assert numbers == tuple(sorted(numbers))
        assert 2 <= len(committed) <= 3
        assert max(numbers) >= seen
        seen = max(numbers)
        store.note("members", {"seen": seen})
        try:
            assert store.read(committed[-1]).body == content(committed[-1]).body
        except RunError:
            assert committed[-1] not in store.committed  # it was pruned meanwhile
    writer.join()
    assert failures == []
    assert opened(tmp_path).committed == (38, 39)
    assert store.read_note("members") == {"seen": seen}
