"""A party's keys for sealed messages: made with its request or added later, shown in NAME.pub, handed over whole."""

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cutlayer.errors import CredentialError
from cutlayer.keys import hand_over, load_credentials, make_demo_kit, make_request, party_secret
from cutlayer.keys.certificates import complete_request
from cutlayer.keys.pairs import read_pairs, read_public_keys

posix = pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX's")


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_demo_kit(tmp_path / "kit", ["lab", "hospital-a"])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---------------------------------------------------------------------- made


def test_a_request_comes_with_the_keys_for_sealed_messages(tmp_path: Path) -> None:
    assert make_request(tmp_path, "lab") == tmp_path / "lab.csr"
    assert sorted(contents(tmp_path)) == ["lab.csr", "lab.key", "lab.pub", "lab.seal.key"]
    shown = read_public_keys(tmp_path / "lab.pub", "lab")
    assert shown == read_pairs(tmp_path / "lab.seal.key", "lab").public()
    assert shown.signing != shown.sealing


def test_every_party_draws_its_own(kit: Path) -> None:
    lab, hospital = (read_public_keys(kit / f"{name}.pub", name) for name in ("lab", "hospital-a"))
    assert len({lab.signing, lab.sealing, hospital.signing, hospital.sealing}) == 4


@posix
def test_private_keys_are_their_owners_alone_and_public_ones_are_not(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        make_request(tmp_path, "lab")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "lab.seal.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "lab.pub").stat().st_mode) & 0o444 == 0o444


def test_no_private_bit_is_in_the_public_file(tmp_path: Path) -> None:
    make_request(tmp_path, "lab")
    keys = read_pairs(tmp_path / "lab.seal.key", "lab")
    shown = (tmp_path / "lab.pub").read_text()
    assert keys.signing.private_bytes_raw().hex() not in shown
    assert keys.sealing.private_bytes_raw().hex() not in shown + repr(keys)


def test_who_has_keys_from_before_gets_the_new_ones_and_keeps_the_old(kit: Path) -> None:
    for name in ("lab.seal.key", "lab.pub"):
        (kit / name).unlink()
    before = contents(kit)
    assert complete_request(kit, "lab") == (kit / "lab.seal.key", kit / "lab.pub")
    assert {name: data for name, data in contents(kit).items() if name in before} == before
    load_credentials(kit, "lab")


@pytest.mark.parametrize("lost", ["lab.csr", "lab.pub"])
def test_what_was_derived_from_a_key_is_derived_again(kit: Path, lost: str) -> None:
    (kit / lost).unlink()
    private = [(kit / name).read_bytes() for name in ("lab.key", "lab.seal.key")]
    assert complete_request(kit, "lab") == (kit / lost,)
    assert private == [(kit / name).read_bytes() for name in ("lab.key", "lab.seal.key")]
    assert read_public_keys(kit / "lab.pub", "lab") == read_pairs(kit / "lab.seal.key", "lab").public()
    key = load_pem_private_key(private[0], password=None).public_key()
    assert x509.load_pem_x509_csr((kit / "lab.csr").read_bytes()).public_key() == key


def test_a_new_key_gets_a_new_request_and_new_pairs_get_a_new_public_file(kit: Path) -> None:
    before = contents(kit)
    for name in ("lab.key", "lab.seal.key"):
        (kit / name).unlink()
    make_request(kit, "lab")
    after = contents(kit)
    assert {name for name in before if before[name] != after[name]} == {"lab.key", "lab.csr", "lab.seal.key", "lab.pub"}


def test_where_nothing_is_missing_nothing_is_touched(kit: Path) -> None:
    before = contents(kit)
    with pytest.raises(CredentialError, match=r"lab\.key is there already and is never overwritten"):
        complete_request(kit, "lab")
    assert contents(kit) == before


# ---------------------------------------------------------------------- damaged, or another's


@pytest.mark.parametrize("damage", ["empty", "text", "half", "swapped", "other kind", "cut"])
def test_damaged_private_keys_are_named_with_the_mend_and_not_quoted(kit: Path, damage: str) -> None:
    path = kit / "lab.seal.key"
    whole = path.read_bytes()
    end = b"-----END PRIVATE KEY-----\n"
    signing, sealing = (block + end for block in whole.split(end)[:2])
    damaged = {
        "empty": b"",
        "text": b"hello",
        "half": signing,
        "swapped": sealing + signing,
        "other kind": signing + (kit / "lab.key").read_bytes(),
        "cut": whole.replace(whole[60:70], b""),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(CredentialError, match=r"lab\.seal\.key is damaged: .*restore it, or move it away") as refused:
        read_pairs(path, "lab")
    assert whole.split(b"\n")[1].decode() not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello", "not valid TOML"),
        ('party = "lab"', "no signing_key and sealing_key of 64 hexadecimal digits"),
        (f'party = "lab"\nsigning_key = "{"0" * 64}"\nsealing_key = 3', "no signing_key and sealing_key"),
        (f'party = "lab"\nsigning_key = "{"A" * 64}"\nsealing_key = "{"0" * 64}"', "no signing_key and sealing_key"),
        (f'party = "bank"\nsigning_key = "{"0" * 64}"\nsealing_key = "{"0" * 64}"', "keys of 'bank', not of lab"),
    ],
)
def test_a_public_file_that_does_not_serve_says_why_and_whom_to_ask(kit: Path, text: str, words: str) -> None:
    (kit / "lab.pub").write_text(text)
    with pytest.raises(CredentialError, match=rf"lab\.pub .*{words}.*; ask lab for the lab\.pub"):
        read_public_keys(kit / "lab.pub", "lab")


@posix
def test_a_sealing_key_that_others_can_read_warns(kit: Path) -> None:
    (kit / "lab.seal.key").chmod(0o644)
    (warning,) = load_credentials(kit, "lab").warnings
    assert warning == f"lab.seal.key can be read by others (mode 0644): chmod 600 {kit / 'lab.seal.key'}"


# ---------------------------------------------------------------------- handed over


def test_a_party_is_handed_all_of_its_files_and_nobody_keeps_a_copy(kit: Path, tmp_path: Path) -> None:
    party_secret(kit, "lab")
    before = contents(kit)
    hand_over(kit, tmp_path / "lab" / "keys", "lab")
    theirs = contents(tmp_path / "lab" / "keys")
    assert sorted(theirs) == ["ca.crt", "lab.crt", "lab.csr", "lab.key", "lab.pub", "lab.seal.key", "lab.secret"]
    assert theirs == {name: before[name] for name in theirs}
    assert not any(name.startswith("lab.") for name in contents(kit))
    assert load_credentials(tmp_path / "lab" / "keys", "lab").warnings == ()


def test_other_parties_keep_theirs_until_their_turn(tmp_path: Path) -> None:
    kit = make_demo_kit(tmp_path / "kit", ["bank", "bank-2"])
    hand_over(kit, tmp_path / "one", "bank")
    hand_over(kit, tmp_path / "two", "bank-2")
    assert sorted(contents(tmp_path / "one")) == [
        "bank.crt",
        "bank.csr",
        "bank.key",
        "bank.pub",
        "bank.seal.key",
        "ca.crt",
    ]
    load_credentials(tmp_path / "two", "bank-2")
    assert sorted(contents(kit)) == ["ca.crt"]


def test_nothing_is_handed_over_onto_other_files(kit: Path, tmp_path: Path) -> None:
    other = make_request(tmp_path / "own", "lab").parent
    before = contents(kit), contents(other)
    with pytest.raises(CredentialError, match=r"lab\.csr is there already and is never overwritten"):
        hand_over(kit, other, "lab")
    assert before == (contents(kit), contents(other))


@pytest.mark.parametrize(("party", "words"), [("bank", "has no files of bank"), ("*", "party"), ("ca", "party")])
def test_a_party_that_the_kit_does_not_have_is_told(kit: Path, tmp_path: Path, party: str, words: str) -> None:
    with pytest.raises(CredentialError, match=words):
        hand_over(kit, tmp_path / "own", party)
    assert not (tmp_path / "own").exists()
