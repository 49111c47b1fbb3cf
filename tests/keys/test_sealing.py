"""A sealed message is read by its receiver alone, as its sender signed it, at its own moment of the run, or refused."""

import re
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import CredentialError
from cutlayer.keys import SEAL_BYTES, PublicKeys, Sealer, load_sealer, make_demo_kit
from cutlayer.keys.pairs import read_public_keys

A, B, LAB = "hospital-a", "hospital-b", "lab"
CONTEXT = b"plan digest, run 1, turn 7, weights"
WEIGHTS = b"weights of a bottom"
SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)


@dataclass(frozen=True)
class Keys:
    """A party's keys, which the tests use longhand."""

    signing: Ed25519PrivateKey
    sealing: X25519PrivateKey

    @property
    def public(self) -> PublicKeys:
        return PublicKeys(
            signing=self.signing.public_key().public_bytes_raw().hex(),
            sealing=self.sealing.public_key().public_bytes_raw().hex(),
        )


KEYS = {name: Keys(Ed25519PrivateKey.generate(), X25519PrivateKey.generate()) for name in (A, B, LAB)}
PINNED = {name: keys.public for name, keys in KEYS.items()}


def sealer(party: str, **others: PublicKeys) -> Sealer:
    keys = KEYS[party]
    peers = PINNED | {name.replace("_", "-"): public for name, public in others.items()}
    return Sealer(party, signing_key=keys.signing, sealing_key=keys.sealing, peers=peers)


def fields(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">Q", len(part)) + part for part in parts)


def signed(sender: str, receiver: str, context: bytes, ciphertext: bytes) -> bytes:
    """What `sender` would send had it sealed that ciphertext."""
    statement = fields(b"cutlayer sealed 1: signature", context, sender.encode(), receiver.encode(), ciphertext)
    return KEYS[sender].signing.sign(statement) + ciphertext


# ---------------------------------------------------------------------- what arrives


@pytest.mark.parametrize("data", [b"", b"\0", WEIGHTS, bytes(range(256)) * 65536], ids=["none", "one", "some", "16MiB"])
def test_what_is_sealed_is_opened_and_is_a_fixed_size_longer(data: bytes) -> None:
    sealed = sealer(A).seal(B, data, context=CONTEXT)
    assert len(sealed) == len(data) + SEAL_BYTES
    assert sealer(B).open(A, sealed, context=CONTEXT) == data


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_any_data_under_any_context_arrives(data: bytes, context: bytes) -> None:
    sealed = sealer(A).seal(B, memoryview(data), context=context)
    assert sealer(B).open(A, memoryview(sealed), context=context) == data


def test_a_view_of_numbers_is_sealed_as_its_bytes() -> None:
    numbers = memoryview(struct.pack("4I", 1, 2, 3, 4)).cast("I")
    sealed = sealer(A).seal(B, numbers, context=CONTEXT)
    assert sealer(B).open(A, sealed, context=CONTEXT) == numbers.tobytes()


def test_the_bytes_are_hpke_and_ed25519_as_the_module_says() -> None:
    sealed = sealer(A).seal(B, WEIGHTS, context=CONTEXT)
    signature, ciphertext = sealed[:64], sealed[64:]
    names = (A.encode(), B.encode())
    statement = fields(b"cutlayer sealed 1: signature", CONTEXT, *names, ciphertext)
    KEYS[A].signing.public_key().verify(signature, statement)
    info = fields(b"cutlayer sealed 1: encryption", CONTEXT, *names)
    assert SUITE.decrypt(ciphertext, KEYS[B].sealing, info) == WEIGHTS
    longhand = signed(A, B, CONTEXT, SUITE.encrypt(WEIGHTS, KEYS[B].sealing.public_key(), info))
    assert sealer(B).open(A, longhand, context=CONTEXT) == WEIGHTS


def test_sealing_the_same_twice_gives_other_bytes() -> None:
    one, two = (sealer(A).seal(B, WEIGHTS, context=CONTEXT) for _ in range(2))
    assert one[:96] != two[:96]
    assert one[96:] != two[96:]


def test_a_party_can_seal_to_itself() -> None:
    assert sealer(A).open(A, sealer(A).seal(A, WEIGHTS, context=CONTEXT), context=CONTEXT) == WEIGHTS


# ---------------------------------------------------------------------- what is refused


def test_a_bit_flipped_anywhere_is_noticed_by_the_signature() -> None:
    sealed = sealer(A).seal(B, WEIGHTS, context=CONTEXT)
    receiver = sealer(B)
    for place in range(len(sealed)):
        for bit in (0x01, 0x80):
            changed = bytearray(sealed)
            changed[place] ^= bit
            with pytest.raises(CredentialError, match="not what hospital-a signed for hospital-b"):
                receiver.open(A, bytes(changed), context=CONTEXT)


def test_a_message_cut_short_or_grown_is_refused() -> None:
    sealed = sealer(A).seal(B, WEIGHTS, context=CONTEXT)
    receiver = sealer(B)
    for length in range(len(sealed)):
        with pytest.raises(CredentialError, match="hospital-a"):
            receiver.open(A, sealed[:length], context=CONTEXT)
    with pytest.raises(CredentialError, match="hospital-a"):
        receiver.open(A, sealed + b"\0", context=CONTEXT)
    with pytest.raises(CredentialError, match="has 111 bytes, fewer than a seal alone: it was cut short"):
        receiver.open(A, sealed[:111], context=CONTEXT)


@pytest.mark.parametrize("context", [b"", CONTEXT[:-1], CONTEXT + b"\0", CONTEXT.replace(b"turn 7", b"turn 8")])
def test_a_message_of_another_moment_is_refused(context: bytes) -> None:
    sealed = sealer(A).seal(B, WEIGHTS, context=CONTEXT)
    with pytest.raises(CredentialError, match="at this point of the run"):
        sealer(B).open(A, sealed, context=context)


def test_a_message_under_anothers_name_is_refused() -> None:
    sealed = sealer(LAB).seal(B, WEIGHTS, context=CONTEXT)
    with pytest.raises(CredentialError, match="not what hospital-a signed"):
        sealer(B).open(A, sealed, context=CONTEXT)


def test_a_message_for_another_receiver_is_refused() -> None:
    sealed = sealer(A).seal(B, WEIGHTS, context=CONTEXT)
    with pytest.raises(CredentialError, match="not what hospital-a signed for lab"):
        sealer(LAB).open(A, sealed, context=CONTEXT)


def test_a_message_is_not_reflected_to_its_sender() -> None:
    sealed = sealer(A).seal(B, WEIGHTS, context=CONTEXT)
    with pytest.raises(CredentialError, match="not what hospital-b signed for hospital-a"):
        sealer(A).open(B, sealed, context=CONTEXT)


def test_names_and_context_cannot_run_into_each_other() -> None:
    short = PINNED | {"a": PINNED[A], "ab": PINNED[A], "b": PINNED[B], "bb": PINNED[B]}
    one = Sealer("a", signing_key=KEYS[A].signing, sealing_key=KEYS[A].sealing, peers=short)
    two = Sealer("b", signing_key=KEYS[B].signing, sealing_key=KEYS[B].sealing, peers=short)
    sealed = one.seal("bb", WEIGHTS, context=CONTEXT)
    with pytest.raises(CredentialError, match="not what ab signed for b at"):
        two.open("ab", sealed, context=CONTEXT)


def test_nothing_is_opened_before_its_signature_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    class Untouched:
        def decrypt(self, *_: object) -> bytes:
            raise AssertionError("opened")

    sealed = sealer(LAB).seal(B, WEIGHTS, context=CONTEXT)
    monkeypatch.setattr("cutlayer.keys.sealing._SUITE", Untouched())
    with pytest.raises(CredentialError, match="not what hospital-a signed"):
        sealer(B).open(A, sealed, context=CONTEXT)


def test_who_forwards_a_message_cannot_pass_it_off_as_its_own() -> None:
    ciphertext = sealer(A).seal(B, WEIGHTS, context=CONTEXT)[64:]
    with pytest.raises(CredentialError, match="that lab signed was not sealed by it"):
        sealer(B).open(LAB, signed(LAB, B, CONTEXT, ciphertext), context=CONTEXT)


def test_the_encryption_itself_is_bound_to_context_and_receiver() -> None:
    ciphertext = sealer(A).seal(B, WEIGHTS, context=CONTEXT)[64:]
    with pytest.raises(CredentialError, match="that hospital-a signed was not sealed by it"):
        sealer(B).open(A, signed(A, B, b"another", ciphertext), context=b"another")
    twin = Sealer(LAB, signing_key=KEYS[B].signing, sealing_key=KEYS[B].sealing, peers=PINNED)
    with pytest.raises(CredentialError, match="that hospital-a signed was not sealed by it"):
        twin.open(A, signed(A, LAB, CONTEXT, ciphertext), context=CONTEXT)


def test_a_message_sealed_to_another_key_names_the_pin() -> None:
    sealed = sealer(A, hospital_b=PINNED[LAB]).seal(B, WEIGHTS, context=CONTEXT)
    with pytest.raises(
        CredentialError, match="to the key that the plan pins for hospital-b; compare the plan's digest"
    ):
        sealer(B).open(A, sealed, context=CONTEXT)


def test_who_forwards_a_message_does_not_find_it_in_there() -> None:
    assert WEIGHTS not in sealer(A).seal(B, WEIGHTS, context=CONTEXT)


# ---------------------------------------------------------------------- keys that do not serve


def test_a_party_without_pinned_keys_is_named_with_the_command_that_pins() -> None:
    bare = sealer(A, hospital_b=PublicKeys(signing="", sealing=""))
    with pytest.raises(CredentialError, match=r"no signing and sealing key for hospital-b: .*keys pin`"):
        bare.seal(B, b"", context=CONTEXT)
    with pytest.raises(CredentialError, match=r"no signing and sealing key for stranger: .*keys pin`"):
        bare.open("stranger", bytes(200), context=CONTEXT)


@pytest.mark.parametrize("wrong", ["", "00", "zz" * 32, "00" * 33])
def test_what_is_no_public_key_is_refused_at_once(wrong: str) -> None:
    for keys in (
        PublicKeys(signing=wrong, sealing=PINNED[B].sealing),
        PublicKeys(signing=PINNED[B].signing, sealing=wrong),
    ):
        with pytest.raises(CredentialError, match="hospital-b need 64 hexadecimal digits each"):
            sealer(A, hospital_b=keys)


def test_a_sealing_key_that_seals_nothing_is_refused() -> None:
    weak = sealer(A, hospital_b=PublicKeys(signing=PINNED[B].signing, sealing="00" * 32))
    with pytest.raises(CredentialError, match="hospital-b is no usable X25519 key"):
        weak.seal(B, WEIGHTS, context=CONTEXT)


def test_what_is_too_large_to_be_sealed_at_once_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def encrypt(self, *_: object) -> bytes:
            raise OverflowError

    monkeypatch.setattr("cutlayer.keys.sealing._SUITE", Full())
    with pytest.raises(CredentialError, match=r"19 bytes for hospital-b are too many .* less than 2 GiB"):
        sealer(A).seal(B, WEIGHTS, context=CONTEXT)


def test_no_error_and_no_text_form_shows_what_is_secret() -> None:
    secrets = [key.private_bytes_raw() for key in (KEYS[B].signing, KEYS[B].sealing)]
    receiver, sealed = sealer(B), sealer(A).seal(B, WEIGHTS, context=CONTEXT)
    told = [repr(receiver)]
    for changed in (sealed[:-1] + b"\0", sealed[:50], signed(A, B, CONTEXT, bytes(100))):
        with pytest.raises(CredentialError) as refused:
            receiver.open(A, changed, context=CONTEXT)
        told.append(str(refused.value))
    assert not any(secret.hex() in text or repr(secret) in text for text in told for secret in [*secrets, WEIGHTS])
    assert all(re.fullmatch(r"[^\n]+", text) for text in told)


def test_the_longhand_notices_what_it_should() -> None:
    sealed = sealer(A).seal(B, WEIGHTS, context=CONTEXT)
    with pytest.raises(InvalidSignature):
        KEYS[A].signing.public_key().verify(sealed[:64], sealed[64:])


# ---------------------------------------------------------------------- from a folder of keys


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return make_demo_kit(tmp_path / "keys", [LAB, A, B])


def pinned(kit: Path) -> dict[str, PublicKeys]:
    return {name: read_public_keys(kit / f"{name}.pub", name) for name in (LAB, A, B)}


def test_two_parties_with_their_own_folders_seal_to_each_other(kit: Path) -> None:
    sealed = load_sealer(kit, A, pinned(kit)).seal(B, WEIGHTS, context=CONTEXT)
    assert load_sealer(kit, B, pinned(kit)).open(A, sealed, context=CONTEXT) == WEIGHTS


def test_a_party_from_before_sealing_is_told_how_to_add_its_keys(kit: Path) -> None:
    peers = pinned(kit)
    (kit / "hospital-a.seal.key").unlink()
    with pytest.raises(
        CredentialError, match=r"hospital-a\.seal\.key cannot be read .*`cutlayer keys request hospital-a`"
    ):
        load_sealer(kit, A, peers)


@pytest.mark.parametrize("none", [{}, {A: PublicKeys(signing="", sealing="")}])
def test_a_plan_without_the_partys_own_keys_is_told(kit: Path, none: dict[str, PublicKeys]) -> None:
    with pytest.raises(CredentialError, match=r"pins no signing and sealing key for hospital-a: .*keys pin`"):
        load_sealer(kit, A, none)


@pytest.mark.parametrize("which", ["signing", "sealing"])
def test_other_keys_than_the_plan_pins_for_oneself_are_refused(kit: Path, which: str) -> None:
    peers = pinned(kit)
    ours, others = peers[A], peers[B]
    mixed = {"signing": ours.signing, "sealing": ours.sealing} | {which: getattr(others, which)}
    with pytest.raises(CredentialError, match=r"hospital-a\.seal\.key holds other keys than the plan pins .*--replace"):
        load_sealer(kit, A, peers | {A: PublicKeys(**mixed)})
