"""A party's own files: private from their first byte on, never overwritten, and checked before they are used."""

import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from cutlayer.errors import CredentialError
from cutlayer.keys import (
    load_credentials,
    make_authority,
    make_demo_kit,
    make_request,
    party_secret,
    public_pin,
    sign_request,
)

posix = pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX's")


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_demo_kit(tmp_path / "keys", ["lab", "hospital-a"])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix
def test_private_files_are_their_owners_alone_and_public_ones_are_not(kit: Path) -> None:
    old = os.umask(0)
    try:
        make_request(kit, "late")
        party_secret(kit, "late")
    finally:
        os.umask(old)
    private = [kit / "late.key", kit / "late.secret", kit / "lab.key", kit / "authority" / "ca.key"]
    assert [mode(path) for path in private] == [0o600] * 4
    assert mode(kit / "late.csr") & 0o444 == 0o444


def test_a_demo_kit_has_all_that_its_parties_need_and_nothing_more(kit: Path) -> None:
    assert sorted(path.relative_to(kit).as_posix() for path in kit.rglob("*") if path.is_file()) == [
        "authority/ca.crt",
        "authority/ca.key",
        "ca.crt",
        "hospital-a.crt",
        "hospital-a.csr",
        "hospital-a.key",
        "hospital-a.pub",
        "hospital-a.seal.key",
        "lab.crt",
        "lab.csr",
        "lab.key",
        "lab.pub",
        "lab.seal.key",
    ]
    credentials = load_credentials(kit, "lab")
    assert (credentials.party, credentials.key, credentials.warnings) == ("lab", kit / "lab.key", ())


def test_a_key_is_never_overwritten(kit: Path) -> None:
    before = (kit / "lab.key").read_bytes(), (kit / "lab.csr").read_bytes()
    with pytest.raises(CredentialError, match=r"lab\.key is there already and is never overwritten; .*move it away"):
        make_request(kit, "lab")
    with pytest.raises(CredentialError, match=r"ca\.key is there already"):
        make_authority(kit / "authority")
    assert before == ((kit / "lab.key").read_bytes(), (kit / "lab.csr").read_bytes())


@pytest.mark.parametrize("name", ["", "Lab", "a.b", "-a", "a-", "a" * 64, "a b", "../lab", "lab\n", "ca", "löwe"])
def test_names_that_are_no_dns_labels_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CredentialError, match="party"):
        make_request(tmp_path, name)
    with pytest.raises(CredentialError, match="party"):
        load_credentials(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_named_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="make one with `cutlayer keys request hospital-a`"):
        load_credentials(tmp_path, "hospital-a")
    make_request(tmp_path, "hospital-a")
    with pytest.raises(CredentialError, match=r"hospital-a\.crt cannot be read .*`cutlayer keys sign hospital-a\.csr`"):
        load_credentials(tmp_path, "hospital-a")
    make_authority(tmp_path / "authority")
    sign_request(tmp_path / "hospital-a.csr", tmp_path / "authority")
    load_credentials(tmp_path, "hospital-a")
    (tmp_path / "ca.crt").unlink()
    with pytest.raises(CredentialError, match=r"ca\.crt cannot be read .*ask the authority"):
        load_credentials(tmp_path, "hospital-a")


def test_files_of_different_parties_or_keys_are_told_apart(kit: Path, tmp_path: Path) -> None:
    lab = (kit / "lab.crt").read_bytes()
    (kit / "hospital-a.crt").write_bytes(lab)
    with pytest.raises(CredentialError, match=r"hospital-a\.crt names lab, not hospital-a"):
        load_credentials(kit, "hospital-a")
    (kit / "lab.key").unlink()
    make_request(kit, "lab")
    with pytest.raises(CredentialError, match=r"lab\.crt was signed for another key than"):
        load_credentials(kit, "lab")


def test_a_certificate_of_another_authority_is_told(kit: Path, tmp_path: Path) -> None:
    other = make_authority(tmp_path / "other")
    (kit / "ca.crt").write_bytes(other.read_bytes())
    with pytest.raises(CredentialError, match=r"lab\.crt was not signed by .*ca\.crt; ask the authority"):
        load_credentials(kit, "lab")


def test_an_expired_certificate_says_when_it_expired(kit: Path) -> None:
    sign_request(kit / "lab.csr", kit / "authority", days=0)
    with pytest.raises(CredentialError, match=rf"expired on {datetime.now(UTC):%Y-%m}.*sign lab\.csr again"):
        load_credentials(kit, "lab")


def test_a_certificate_that_ends_soon_warns(kit: Path) -> None:
    sign_request(kit / "lab.csr", kit / "authority", days=5)
    (warning,) = load_credentials(kit, "lab").warnings
    assert warning.startswith("lab.crt expires on")


@posix
def test_permissive_modes_warn_with_the_mend(kit: Path) -> None:
    party_secret(kit, "lab")
    (kit / "lab.key").chmod(0o644)
    (kit / "lab.secret").chmod(0o640)
    assert load_credentials(kit, "lab").warnings == (
        f"lab.key can be read by others (mode 0644): chmod 600 {kit / 'lab.key'}",
        f"lab.secret can be read by others (mode 0640): chmod 600 {kit / 'lab.secret'}",
    )


@pytest.mark.parametrize("name", ["lab.key", "lab.crt", "ca.crt"])
def test_a_damaged_file_is_named(kit: Path, name: str) -> None:
    (kit / name).write_text("not PEM")
    with pytest.raises(CredentialError, match=rf"{name} is no (private key|certificate)"):
        load_credentials(kit, "lab")


def test_a_secret_is_drawn_once_and_kept(kit: Path) -> None:
    secret = party_secret(kit, "lab")
    assert len(secret) == 32
    assert party_secret(kit, "lab") == secret
    assert party_secret(kit, "hospital-a") != secret


def test_two_who_ask_first_get_the_same_secret(kit: Path) -> None:
    secrets: list[bytes] = []
    threads = [threading.Thread(target=lambda: secrets.append(party_secret(kit, "lab"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(secrets) == 8
    assert len(set(secrets)) == 1
    assert [path.name for path in kit.iterdir() if "secret" in path.name] == ["lab.secret"]


def test_a_damaged_secret_is_not_used(kit: Path) -> None:
    (kit / "lab.secret").write_bytes(b"short")
    with pytest.raises(CredentialError, match="is damaged: it has 5 bytes, not 32"):
        party_secret(kit, "lab")


def test_a_pin_names_the_key_not_the_certificate(kit: Path) -> None:
    pin = public_pin(kit / "lab.crt")
    first = (kit / "lab.crt").read_bytes()
    sign_request(kit / "lab.csr", kit / "authority")
    assert (kit / "lab.crt").read_bytes() != first
    assert public_pin(kit / "lab.crt") == pin
    assert public_pin(kit / "hospital-a.crt") != pin
    assert x509.load_pem_x509_certificate(first).subject.rfc4514_string() == "CN=lab"
