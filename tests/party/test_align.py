"""Alignment: what comes of it equals plain sets; who sees what; and every lie is refused by name, with no result."""

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cutlayer.data.align import hash_ids, mask
from cutlayer.data.ids import ids_of
from cutlayer.errors import (
    ChannelClosed,
    ChannelTimeout,
    CredentialError,
    CutlayerError,
    DataError,
    FrameRefused,
    PeerStopped,
    PlanError,
    RemoteProtocolError,
    RunError,
)
from cutlayer.keys import PublicKeys, load_sealer, make_demo_kit
from cutlayer.keys.pairs import read_public_keys
from cutlayer.observe.facts import Fact, Noticed
from cutlayer.party.agreement import draft
from cutlayer.party.align import Alignment, align, align_together, carry_all
from cutlayer.party.alignment import aligner
from cutlayer.party.alignment.star import Circle, Seat, circle
from cutlayer.party.run import Network
from cutlayer.party.sealed import Seals, Unsealed
from cutlayer.plan.limits import Limits
from cutlayer.plan.plan import Plan
from cutlayer.plan.tensors import TensorShape
from cutlayer.plan.terms import InputTerms, Method, ModelTerms, PartyTerms, Terms, Training
from cutlayer.protocol.aligning import (
    AlignTerms,
    Codes,
    Commit,
    Finished,
    Gathered,
    Join,
    Note,
    Order,
    Parcel,
    Points,
    message_decoder,
    pack,
    unpack,
)
from cutlayer.protocol.messages import Bye
from cutlayer.protocol.wire import Frame, decode_of, encode
from cutlayer.transport.channel import Channel
from cutlayer.transport.dialler import dial

Tables = dict[str, list[int | str]]
TABLES: Tables = {
    "a": [11, 12, 13, 14, 15, 16, 17],
    "b": [27, 16, 15, 14, 13, 22],
    "c": [14, 13, 36, 15, 37],
}
COMMON = {13, 14, 15}
PARTIES = ("a", "b", "c", "hub")
Said = tuple[str, Note, bytes | memoryview]


def around(tables: Sequence[str] = tuple(TABLES), *, comparer: str = "a", **terms: Any) -> Circle:
    return Circle(plan="p", conductor="hub", terms=AlignTerms(holders=tuple(tables), comparer=comparer, **terms))


def seated(here: Circle, seals: dict[str, Seals] | None = None, tables: Tables | None = None) -> dict[str, Seat]:
    brought = {name: ids_of((TABLES | (tables or {}))[name]) for name in here.terms.holders}
    return {name: Seat(name, here, brought.get(name), (seals or {}).get(name, Unsealed())) for name in here.parties}


def ids_in_order(tables: Tables, rows: dict[str, Any]) -> dict[str, list[int | str | None]]:
    return {name: [tables[name][row] if row >= 0 else None for row in rows[name]] for name in tables}


@pytest.fixture(scope="module")
def seals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seals]:
    folder: Path = make_demo_kit(tmp_path_factory.mktemp("keys"), PARTIES)
    keys: dict[str, PublicKeys] = {name: read_public_keys(folder / f"{name}.pub", name) for name in PARTIES}
    return {name: load_sealer(folder, name, keys) for name in PARTIES}


# ---------------------------------------------------------------------- what comes of it

SETS = st.sampled_from([2, 3, 5]).flatmap(
    lambda count: st.lists(
        st.lists(st.integers(-3, 9), min_size=1, max_size=8, unique=True), min_size=count, max_size=count
    )
)


@settings(max_examples=40, deadline=None)
@given(SETS, st.booleans(), st.integers(0, 4), st.booleans())
def test_alignment_equals_plain_sets_in_one_order_everywhere(
    lists: list[list[int]], hub: bool, comparer: int, texts: bool
) -> None:
    tables: Tables = {
        f"p{number}": [str(value) for value in values] if texts else list(values) for number, values in enumerate(lists)
    }
    rows = align_together(tables, conductor="hub" if hub else "", comparer=list(tables)[comparer % len(tables)])
    first, *others = ids_in_order(tables, rows).values()
    assert all(other == first for other in others)
    assert len(first) == len(set(first))
    assert set(first) == set.intersection(*(set(values) for values in tables.values()))


@settings(max_examples=40, deadline=None)
@given(SETS, st.integers(1, 4), st.integers(0, 4), st.integers(0, 5))
def test_alignment_of_at_least_so_many_equals_counting(
    lists: list[list[int]], at_least: int, labels: int, comparer: int
) -> None:
    tables: Tables = {f"p{number}": list(values) for number, values in enumerate(lists)}
    names, at_least = list(tables), min(at_least, len(tables) - 1)
    owner = names[labels % len(names)]
    rows = align_together(
        tables,
        conductor="hub",
        comparer=[*names, "hub"][comparer % (len(names) + 1)],
        labels=owner,
        at_least=at_least,
    )
    told = ids_in_order(tables, rows)
    others = [set(tables[name]) for name in names if name != owner]
    wanted = {value for value in tables[owner] if sum(value in each for each in others) >= at_least}
    assert set(told[owner]) == wanted
    for name in names:
        assert told[name] == [value if value in tables[name] else None for value in told[owner]]


def test_lists_of_several_parts_align(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aligner, "PART_ROWS", 7)
    tables: Tables = {"a": list(range(50)), "b": list(range(80, 30, -1)), "c": list(range(40, 70))}
    told = ids_in_order(tables, align_together(tables, conductor="hub"))
    assert told["a"] == told["b"] == told["c"]
    assert set(told["a"]) == set(range(40, 50))


def test_the_order_is_another_in_each_run() -> None:
    tables: Tables = {"a": list(range(30)), "b": list(range(30))}
    assert align_together(tables)["a"].tolist() != align_together(tables)["a"].tolist()


def test_sealed_notes_give_a_result_too_and_the_files_sentences(seals: dict[str, Seals]) -> None:
    seats = seated(around(), seals)
    carry_all(seats)
    assert all(seat.over for seat in seats.values())
    one = seats["b"].aligner
    assert one is not None
    assert one.rows is not None
    assert {TABLES["b"][row] for row in one.rows} == COMMON
    assert one.sizes == {"a": 7, "b": 6, "c": 5}
    assert seats["hub"].aligner is None  # it learns no size, and masks nothing


# ---------------------------------------------------------------------- who sees what


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """What goes into each masking, and what comes out."""
    seen: list[tuple[bytes, bytes]] = []

    def noted(points: bytes | memoryview, key: bytes, threads: int = 1) -> Any:
        masked = mask(points, key, threads)
        seen.append((bytes(points), masked.tobytes()))
        return masked

    monkeypatch.setattr(aligner, "mask", noted)
    return seen


def each(points: bytes) -> set[bytes]:
    return {points[at : at + 32] for at in range(0, len(points), 32)}


def test_nothing_that_crosses_is_an_id_or_its_hash_and_the_conductor_sees_no_point_at_all(
    seals: dict[str, Seals], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: Tables = {name: [f"customer-{value}" for value in TABLES[name]] for name in TABLES}
    for hands in (None, seals):
        maskings, crossed = recorded(monkeypatch), bytearray()
        seats = seated(around(comparer="b"), hands, tables)
        carry_all(seats, lambda _from, _to, frame, kept=crossed: kept.extend(frame.header + frame.parts[0]))  # type: ignore[misc]
        texts = [str(value) for values in tables.values() for value in values]
        hashes = {point for text in texts for point in each(hash_ids([f"text:{text}".encode()], seats["hub"].run))}
        assert hashes <= set().union(*(each(before) for before, _ in maskings))
        for never in (*hashes, *(text.encode() for text in texts)):
            assert never not in crossed
        points = set().union(*(each(after) for _, after in maskings))
        assert len(points) == 3 * (7 + 6 + 5) - 2 * len(COMMON) - 1  # once masked by all, equal ids are equal
        assert any(point in crossed for point in points) == (hands is None)


def notes_at(seats: dict[str, Seat], party: str, monkeypatch: pytest.MonkeyPatch) -> list[Said]:
    """What a party is told by the others, as it is told it."""
    told: list[Said] = []
    feed = aligner.Aligner.feed

    def heard(self: aligner.Aligner, sender: str, note: Note, body: memoryview) -> None:
        if self is seats[party].aligner and sender != party:
            told.append((sender, note, bytes(body)))
        feed(self, sender, note, body)

    monkeypatch.setattr(aligner.Aligner, "feed", heard)
    return told


def test_every_holder_shuffles_every_list(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: Tables = {name: list(range(start, start + 30)) for start, name in enumerate(TABLES)}
    maskings, passed = recorded(monkeypatch), []
    pass_on = aligner.Aligner._pass_on

    def noted(self: aligner.Aligner, owner: str, data: Any) -> None:
        passed.append((owner == self._party, data.tobytes()))
        pass_on(self, owner, data)

    monkeypatch.setattr(aligner.Aligner, "_pass_on", noted)
    seats = seated(around(), tables=tables)
    carry_all(seats)
    in_the_tables_order = [hash_ids(ids_of(ids).canonical(np.arange(30)), seats["a"].run) for ids in tables.values()]
    assert [own for own, _ in passed].count(True) == 3
    assert [own for own, _ in passed].count(False) == 6
    for own, data in passed:
        before, after = next(pair for pair in maskings if each(pair[1]) == each(data))
        assert (before not in in_the_tables_order) if own else (data != after)


@pytest.mark.parametrize("party", ["b", "c"])
def test_only_the_comparer_sees_what_is_masked_by_all(party: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seats = seated(around())
    told = notes_at(seats, party, monkeypatch)
    carry_all(seats)
    assert {note.masks for _, note, _ in told if isinstance(note, Points)} == {1, 2}
    assert sorted(note.owner for _, note, _ in told if isinstance(note, Points)) == sorted(set(TABLES) - {party})


@pytest.mark.parametrize("party", ["b", "c"])
def test_what_others_are_told_has_the_same_size_whoever_of_them_overlaps(
    party: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables whose pairs overlap in other ways, with the same common rows: nothing but the comparer's part changes."""

    def told(tables: Tables) -> list[tuple[str, Note, int]]:
        seats = seated(around(), tables=tables)
        heard = notes_at(seats, party, monkeypatch)
        carry_all(seats)
        return [(who, note, len(body)) for who, note, body in heard if not isinstance(note, Commit)]

    apart: Tables = {"a": [13, 14, 15, 1, 2, 3, 4], "b": [13, 14, 15, 5, 6, 7], "c": [13, 14, 15, 8, 9]}
    assert told(TABLES) == told(apart)


@pytest.mark.parametrize(("party", "at_least"), [("a", 0), ("b", 0), ("c", 0), ("a", 2)])
def test_no_code_comes_back_by_which_a_comparer_could_know_a_row_that_is_not_common(
    party: str, at_least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparer drew the codes: it has a table itself, or learns from a party what came back to it."""
    seats = seated(around(labels="b" if at_least else "", at_least=at_least))
    told = notes_at(seats, party, monkeypatch)
    carry_all(seats)
    codes = b"".join(bytes(body) for _, note, body in told if note == Codes(party))
    assert len(codes) == 16 * len(TABLES[party])
    zeros = sum(codes[at : at + 16] == bytes(16) for at in range(0, len(codes), 16))
    assert zeros == len(TABLES[party]) - len(COMMON)


def test_codes_for_others_tell_those_on_the_way_not_even_which_are_common(monkeypatch: pytest.MonkeyPatch) -> None:
    seats = seated(around(comparer="hub", labels="a", at_least=1))
    told = notes_at(seats, "b", monkeypatch)
    carry_all(seats)
    for owner in TABLES:
        codes = b"".join(bytes(body) for _, note, body in told if note == Codes(owner))
        pieces = [codes[at : at + 16] for at in range(0, len(codes), 16)]
        assert len(set(pieces)) == len(TABLES[owner])
        assert bytes(16) not in pieces


# ---------------------------------------------------------------------- lies

Lie = Callable[[str, Note, bytes], list[tuple[Note, bytes]]]
GOOD = hash_ids([b"int:%d" % number for number in range(99)], "elsewhere")


def lying(seats: dict[str, Seat], liar: str, lie: Lie) -> None:
    """What the liar says instead of each of its notes, to whom the note was for."""
    seat = seats[liar]
    send = seat._send

    def said(target: str, note: Note, body: bytes | memoryview) -> None:
        for other, instead in lie(target, note, bytes(body)):
            send(target, other, instead)

    seat._send = said  # type: ignore[method-assign]


def when(wanted: Callable[[Note], bool], instead: Callable[[Note, bytes], list[tuple[Note, bytes]]]) -> Lie:
    return lambda target, note, body: instead(note, body) if wanted(note) else [(note, body)]


def is_points(owner: str, masks: int) -> Callable[[Note], bool]:
    return lambda note: note == Points(owner, masks)


def is_a(kind: type) -> Callable[[Note], bool]:
    return lambda note: isinstance(note, kind)


LIES: dict[str, tuple[str, Lie, str]] = {
    "a set larger than committed to": (
        "b",
        when(is_points("b", 1), lambda note, body: [(note, body), (note, GOOD[:32])]),
        "b broke the rule 'sizes': the list of b is longer than the 6",
    ),
    "a larger part": (
        "b",
        when(is_points("b", 1), lambda note, body: [(note, body + GOOD[:32])]),
        "b broke the rule 'sizes': the list of b is longer than the 6",
    ),
    "another set than committed to": (
        "b",
        when(is_points("b", 1), lambda note, body: [(note, GOOD[:32] + body[32:])]),
        "b broke the rule 'commit': its list is not the one that it committed to",
    ),
    "no point": (
        "b",
        when(is_points("a", 2), lambda note, body: [(note, b"\xff" * 32 + body[32:])]),
        "b broke the rule 'points': in the list of a a point is no element",
    ),
    "the identity": (
        "b",
        when(is_points("a", 2), lambda note, body: [(note, bytes(32) + body[32:])]),
        "b broke the rule 'points'",
    ),
    "no point to the comparer": (
        "c",
        when(is_points("a", 3), lambda note, body: [(note, b"\xff" * 32 + body[32:])]),
        "c broke the rule 'points'",
    ),
    "a point twice": (
        "c",
        when(is_points("a", 3), lambda note, body: [(note, body[:32] * 2 + body[64:])]),
        "the list of a repeats a point",
    ),
    "half a point": (
        "b",
        when(is_points("b", 1), lambda note, body: [(note, body[:-1])]),
        "b broke the rule 'parts': 191 bytes are no part of the list of b",
    ),
    "an empty part": (
        "b",
        when(is_points("b", 1), lambda note, body: [(note, b"")]),
        "b broke the rule 'parts'",
    ),
    "another's list": (
        "b",
        when(is_points("b", 1), lambda note, body: [(Points("c", 2), body)]),
        "b broke the rule 'turns': it sent a list of c that is not its to send now",
    ),
    "a list that skips a mask": (
        "b",
        when(is_points("b", 1), lambda note, body: [(Points("b", 3), body)]),
        "b broke the rule 'turns'",
    ),
    "a list as masked by fewer": (
        "b",
        when(is_points("a", 2), lambda note, body: [(Points("a", 1), body)]),
        "b broke the rule 'turns': it sent a list of a",
    ),
    "a list as masked by more": (
        "b",
        when(is_points("b", 1), lambda note, body: [(Points("b", 2), body)]),
        "b broke the rule 'turns': it sent a list of b",
    ),
    "a list against the ring": (
        "c",
        when(is_a(Codes), lambda note, body: [(Points("a", 1), GOOD[:32])]),
        "c broke the rule 'turns': it sent a list of a",
    ),
    "nobody's list": (
        "b",
        when(is_points("b", 1), lambda note, body: [(Points("x", 1), body)]),
        "b broke the rule 'turns'",
    ),
    "a list before all have committed": (
        "b",
        when(is_a(Commit), lambda note, body: [(Points("b", 1), GOOD[:32])]),
        "b broke the rule 'turns'",
    ),
    "two commitments": (
        "b",
        when(is_a(Commit), lambda note, body: [(note, body), (note, body)]),
        "b broke the rule 'commit': only a holder says how many ids it has, once, for this run",
    ),
    "a commitment of another run": (
        "b",
        when(is_a(Commit), lambda note, body: [(Commit("0" * 64, 6, "int", "0" * 64), body)]),
        "b broke the rule 'commit': only a holder says how many ids it has, once, for this run",
    ),
    "codes from nowhere": (
        "c",
        when(is_a(Commit), lambda note, body: [(note, body), (Codes("a"), bytes(16 * 7))]),
        "c broke the rule 'turns': it sent codes for a",
    ),
    "an order before its time": (
        "a",
        when(is_a(Commit), lambda note, body: [(Order(1), bytes(16)), (note, body)]),
        "a broke the rule 'turns': it sent a common order",
    ),
    "an order by another": (
        "b",
        when(is_points("a", 2), lambda note, body: [(note, body), (Order(1), bytes(16))]),
        "b broke the rule 'turns': it sent a common order",
    ),
    "too many common rows": (
        "a",
        when(is_a(Order), lambda note, body: [(Order(6), body + bytes(48))]),
        "a broke the rule 'sizes': 6 common rows",
    ),
    "a common row that nobody has": (
        "a",
        when(is_a(Order), lambda note, body: [(note, GOOD[:16] + body[16:])]),
        "a broke the rule 'codes': in the common order a code is no row's",
    ),
    "a common row twice": (
        "a",
        when(is_a(Order), lambda note, body: [(note, body[:16] + body[:-16])]),
        "a broke the rule 'codes'",
    ),
    "a common row that is lacking": (
        "a",
        when(is_a(Order), lambda note, body: [(note, bytes(16) + body[16:])]),
        "a broke the rule 'codes': its common order has rows",
    ),
    "two orders": (
        "a",
        when(is_a(Order), lambda note, body: [(note, body), (note, body)]),
        "a broke the rule 'sizes'",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_by_name_and_gives_nobody_a_result(name: str, seals: dict[str, Seals]) -> None:
    liar, lie, sentence = LIES[name]
    seats = seated(around(), seals)
    lying(seats, liar, lie)
    with pytest.raises(RunError if "repeats" in sentence else RemoteProtocolError, match=re.escape(sentence)) as error:
        carry_all(seats)
    assert "\n" not in str(error.value)
    assert not any(seat.over for seat in seats.values())


def test_a_list_that_ends_too_soon_is_waited_for_by_name() -> None:
    seats = seated(around())
    lying(seats, "b", when(is_points("b", 1), lambda note, body: []))
    carry_all(seats)
    assert not any(seat.over for seat in seats.values())
    assert seats["c"].awaited() == "b"
    assert seats["hub"].awaited() == "a, b, c"


def test_before_the_first_commit_whoever_is_late_is_named() -> None:
    seats = seated(around())
    lying(seats, "b", lambda target, note, body: [])
    carry_all(seats)
    assert seats["a"].awaited() == seats["c"].awaited() == "b"


@pytest.mark.parametrize("texts", ["b", "c"])
def test_ids_of_other_types_are_refused_for_both(texts: str) -> None:
    with pytest.raises(RunError, match=r"are whole numbers and those of .* are texts|are texts and those of") as error:
        carry_all(seated(around(), tables={texts: ["007", "008"]}))
    assert "--id-type text" in str(error.value)


def test_ids_of_another_type_are_refused_before_own_ones_are_masked() -> None:
    one = started(seated(around()))["a"].aligner
    assert one is not None
    with pytest.raises(RunError, match="the ids of a are whole numbers and those of b are texts"):
        one.feed("b", Commit(one._run, 6, "text", "0" * 64), memoryview(b""))
    assert one.masked == 0


# ---------------------------------------------------------------------- the star


def test_all_must_ask_for_the_same() -> None:
    seats = seated(around())
    other = Circle(plan="p", conductor="hub", terms=AlignTerms(holders=("a", "b", "c"), comparer="c"))
    seats["b"] = Seat("b", other, ids_of([1]), Unsealed())
    with pytest.raises(RunError, match="b asked for rows that all of a, b, c hold, compared by c, hub for rows"):
        carry_all(seats)
    seats = seated(around())
    seats["b"] = Seat("b", Circle(plan="q", conductor="hub", terms=around().terms), ids_of([1]), Unsealed())
    with pytest.raises(RunError, match="b holds another plan than hub"):
        carry_all(seats)


def started(seats: dict[str, Seat]) -> dict[str, Seat]:
    """All are gathered; nobody has masked anything."""
    while any(seat.letters for seat in seats.values()):
        for name, seat in seats.items():
            while seat.letters:
                peer, frame = seat.letters.popleft()
                seats[peer].feed(name, Frame(frame.header, (memoryview(b"".join(frame.parts)),)))
    assert all(seat.run for seat in seats.values())
    return seats


def parcel(source: str, target: str, number: int = 0, note: Note | None = None) -> Frame:
    seat = seated(around())["a"]
    seat.party, seat.run = source, "r"
    seat.letters.clear()
    seat._counts.sent[target] = number
    seat._send(target, note or Codes("a"), b"")
    (_, frame), *_ = seat.letters
    return Frame(frame.header, (memoryview(b"".join(frame.parts)),))


@pytest.mark.parametrize(
    ("to", "peer", "frame"),
    [
        ("hub", "a", parcel("b", "c")),  # in another's name
        ("hub", "a", parcel("a", "a")),
        ("hub", "a", parcel("a", "x")),
        ("hub", "a", parcel("a", "hub")),  # which aligns nothing itself
        ("c", "hub", parcel("a", "b")),
        ("c", "hub", parcel("a", "c", 1)),  # one was lost
    ],
)
def test_a_parcel_that_is_not_its_senders_to_send_is_refused(to: str, peer: str, frame: Frame) -> None:
    with pytest.raises(RemoteProtocolError, match="broke the rule 'parcels'"):
        started(seated(around()))[to].feed(peer, frame)


@pytest.mark.parametrize(
    ("to", "peer", "message"),
    [
        ("hub", "a", Join(1, "p", around().terms, "0" * 64)),
        ("hub", "a", Gathered({})),
        ("hub", "a", Bye()),
        ("a", "hub", Bye()),
        ("a", "hub", Gathered({})),
        ("a", "hub", Finished()),
    ],
)
def test_a_message_out_of_turn_is_refused(to: str, peer: str, message: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="broke the rule 'turns'"):
        started(seated(around()))[to].feed(peer, encode(message))


def test_another_version_and_another_gathering_are_refused() -> None:
    with pytest.raises(RunError, match="a aligns by version 2, hub by 1"):
        seated(around())["hub"].feed("a", encode(Join(2, "p", around().terms, "0" * 64)))
    for nonces in ({}, dict.fromkeys(PARTIES, "0" * 64)):
        with pytest.raises(RemoteProtocolError, match="broke the rule 'gathered'"):
            seated(around())["a"].feed("hub", encode(Gathered(nonces)))


def test_what_a_peer_ended_with_is_told() -> None:
    with pytest.raises(PeerStopped, match="hub ended the alignment: because"):
        seated(around())["a"].feed("hub", encode(Bye("because")))


@pytest.mark.parametrize("data", [b"", b"\0\0\0\1", b"\0\0\0\1\xff", b"\0\0\0\x05hello"])
def test_what_is_no_note_is_refused(data: bytes) -> None:
    with pytest.raises(FrameRefused):
        unpack(data)
    note, body = unpack(pack(Codes("a"), b"12"))
    assert (note, bytes(body)) == (Codes("a"), b"12")


def test_the_set_of_messages_is_closed() -> None:
    for header in (b"\x81\xa4type\xa4ping", b"\x81\xa4type\xa5hello", b"", b"\xc1"):
        with pytest.raises(FrameRefused):
            decode_of(Frame(header), message_decoder)


Tamper = Callable[[Parcel, bytes], bytes]


def tampered(seals: dict[str, Seals], tamper: Tamper) -> None:
    """All align by a conductor that carries something else than it was given."""
    seats = seated(around(), seals)
    post = seats["hub"]._post

    def posted(peer: str, message: Any, body: memoryview | None = None) -> None:
        if isinstance(message, Parcel) and body is not None:
            body = memoryview(tamper(message, bytes(body)))
            shape = TensorShape("uint8", (body.nbytes,))
            message = Parcel(message.source, message.target, message.number, (shape,))
        post(peer, message, body)

    seats["hub"]._post = posted  # type: ignore[method-assign]
    carry_all(seats)


def test_the_conductor_can_neither_change_nor_replay_nor_redirect_a_note(seals: dict[str, Seals]) -> None:
    before: dict[tuple[str, str], bytes] = {}
    now: dict[tuple[str, str], bytes] = {}
    tampers: dict[str, Tamper] = {
        "change": lambda message, body: body[:-1] + bytes([body[-1] ^ 1]),
        "from another run": lambda message, body: before[message.source, message.target],
        "the first again": lambda message, body: now.setdefault((message.source, message.target), body),
        "another's": lambda message, body: now.setdefault((message.source, "anybody"), body),
    }
    tampered(seals, lambda message, body: before.setdefault((message.source, message.target), body) and body)
    for tamper in tampers.values():
        now.clear()
        with pytest.raises(CredentialError, match=r"is not what . signed for . at this point of the run"):
            tampered(seals, tamper)


# ---------------------------------------------------------------------- who may take part


def plan_of(**limits: Any) -> Plan:
    terms = Terms(
        topology="vanilla",
        schedule="alternating",
        model=ModelTerms(cut=("1",)),
        input=InputTerms(shape=(4,)),
        training=Training(
            loss=Method(name="cross_entropy"), optimizer=Method(name="SGD", options={"lr": 0.1}), batch_size=4, rounds=1
        ),
        parties={
            "hub": PartyTerms(role="server", address="127.0.0.1:7443"),
            "a": PartyTerms(role="client"),
            "b": PartyTerms(role="client"),
        },
        limits=Limits(**limits),
    )
    torch.manual_seed(0)
    return draft(terms, nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))).plan


@pytest.mark.parametrize(
    ("holders", "terms", "told"),
    [
        (("a", "x"), {}, "'x' is no party of the plan; its parties are hub, a, b"),
        (("a",), {}, "between two parties or more"),
        (("a", "b"), {"at_least": 1, "comparer": "hub"}, "--at-least needs --labels"),
        (("a", "b"), {"at_least": 1, "labels": "a"}, "--at-least needs --comparer"),
        (("a", "b"), {"at_least": 2, "labels": "a", "comparer": "hub"}, "only 1 others have a table"),
        (("a", "b"), {"labels": "a"}, "--labels goes with --at-least"),
    ],
)
def test_terms_that_do_not_hold_together_are_refused(holders: tuple[str, ...], terms: Any, told: str) -> None:
    with pytest.raises(PlanError, match=re.escape(told)):
        circle(plan_of(), holders, **terms)


def test_who_has_no_part_or_no_table_or_no_keys_is_told() -> None:
    here, ids = around(), ids_of([1])
    for party, brought, hands, told in (
        ("x", ids, Unsealed(), "x has no part in this alignment"),
        ("a", None, Unsealed(), "name its table with --data"),
        ("hub", ids, Unsealed(), "all add --with hub"),
        ("a", ids, None, "travels sealed by hub: give a its keys"),
    ):
        with pytest.raises(PlanError, match=re.escape(told)):
            Seat(party, here, brought, hands)
    Seat("hub", here, None, None)
    two = Circle(plan="p", conductor="a", terms=AlignTerms(holders=("a", "b"), comparer="a"))
    Seat("b", two, ids, None)  # nobody forwards anything


def test_duplicates_are_refused_before_anybody_is_dialled() -> None:
    with pytest.raises(DataError, match="b has 1 id in more than one row"):
        align_together({"a": [1, 2], "b": [2, 2]})


# ---------------------------------------------------------------------- over a network


class Meeting:
    """Parties in threads of their own, over sockets in plaintext; what each came to is in `ends`."""

    def __init__(self, plan: Plan, tables: Tables) -> None:
        self.ends: dict[str, Any] = {}
        self._plan, self._tables, self._circle = plan, tables, circle(plan, ("a", "b"))
        self._address = ("127.0.0.1", 0)
        self._listening = threading.Event()

    def hold(self, **works: Callable[[str], Any]) -> dict[str, Any]:
        threads = [threading.Thread(target=self._end, args=(party, work), daemon=True) for party, work in works.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("cutlayer")]
        return self.ends

    def aligning(self, party: str) -> Alignment:
        if party != "hub":
            assert self._listening.wait(10)
        network = Network(
            credentials=None,
            seals=Unsealed(),
            listen=("127.0.0.1", 0),
            connect=self._address,
            insecure_plaintext_on_loopback=True,
        )
        ids = ids_of(self._tables[party]) if party in self._tables else None
        return align(self._plan, party, self._circle, ids, network, observer=self._notice)

    def silent(self, party: str) -> str:
        """Joins, and says nothing more until it is told that it is over."""
        link = self.joined(party)
        try:
            while not isinstance(message := decode_of(link.receive(2**20), message_decoder)[0], Bye):
                pass
            return message.reason
        finally:
            link.close()

    def joined(self, party: str) -> Channel:
        """A link on which the party has said that it is here."""
        assert self._listening.wait(10)
        limits = self._plan.terms.limits
        link = dial(self._address, None, party=party, peer="hub", limits=limits, insecure_plaintext_on_loopback=True)
        link.send(encode(Join(1, self._circle.plan, self._circle.terms, "0" * 64)))
        return link

    def _end(self, party: str, work: Callable[[str], Any]) -> None:
        try:
            self.ends[party] = work(party)
        except CutlayerError as error:
            self.ends[party] = error

    def _notice(self, fact: Fact) -> None:
        if isinstance(fact, Noticed) and "listens on port" in fact.sentence:
            self._address = ("127.0.0.1", int(fact.sentence.split()[-1]))
            self._listening.set()


def test_over_sockets_all_get_the_same_rows() -> None:
    tables = {name: TABLES[name] for name in ("a", "b")}
    meeting = Meeting(plan_of(), tables)
    ends = meeting.hold(hub=meeting.aligning, a=meeting.aligning, b=meeting.aligning)
    told = ids_in_order(tables, {name: ends[name].rows for name in tables})
    assert told["a"] == told["b"]
    assert set(told["a"]) == set(TABLES["a"]) & set(TABLES["b"])
    assert ends["hub"].rows is None
    assert ends["hub"].sizes == {}


def test_who_says_nothing_more_is_waited_for_so_long_and_named_to_all() -> None:
    meeting = Meeting(plan_of(progress_timeout_s=1.0), {"a": TABLES["a"]})
    ends = meeting.hold(hub=meeting.aligning, a=meeting.aligning, b=meeting.silent)
    assert isinstance(ends["a"], ChannelTimeout | PeerStopped)
    assert isinstance(ends["hub"], ChannelTimeout | PeerStopped)
    assert all("waited 1 s for " in str(end) and "b: see what became of it" in str(end) for end in ends.values())


def test_who_dies_is_named_to_all() -> None:
    meeting = Meeting(plan_of(), {"a": TABLES["a"]})

    def dying(party: str) -> None:
        link = meeting.joined(party)
        link.receive(2**20)  # all are gathered
        link.close()

    ends = meeting.hold(hub=meeting.aligning, a=meeting.aligning, b=dying)
    assert isinstance(ends["hub"], ChannelClosed)
    assert "b is gone" in str(ends["hub"])
    assert "hub ended the alignment: b is gone" in str(ends["a"])


def test_who_left_before_all_were_there_may_come_again() -> None:
    tables = {name: TABLES[name] for name in ("a", "b")}
    meeting, left = Meeting(plan_of(), tables), threading.Event()

    def leaving(party: str) -> Alignment:
        for farewell in (Bye("stopped by hand"), None):
            link = meeting.joined(party)
            if farewell is not None:
                link.send(encode(farewell))
            link.close()
        left.set()
        return meeting.aligning(party)

    def later(party: str) -> Alignment:
        assert left.wait(10)
        return meeting.aligning(party)

    ends = meeting.hold(hub=meeting.aligning, a=later, b=leaving)
    assert len(ends["a"].rows) == len(ends["b"].rows) == 4


def test_who_never_comes_is_waited_for_so_long_and_named() -> None:
    plan = plan_of(join_timeout_s=0.5)
    network = Network(credentials=None, listen=("127.0.0.1", 0), insecure_plaintext_on_loopback=True)
    with pytest.raises(ChannelTimeout, match=r"hub waited 0\.5 s for a, b"):
        align(plan, "hub", circle(plan, ("a", "b")), None, network)


def test_why_one_cannot_go_on_is_told_to_the_others() -> None:
    meeting = Meeting(plan_of(), {"a": [1, 2], "b": ["1", "2"]})
    ends = meeting.hold(hub=meeting.aligning, a=meeting.aligning, b=meeting.aligning)
    assert any(isinstance(end, RunError) and "--id-type text" in str(end) for end in ends.values())
    assert all(isinstance(end, CutlayerError) and "--id-type text" in str(end) for end in ends.values())
