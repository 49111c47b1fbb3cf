"""Masks between pairs: both ends agree, all masks cancel, each alone is uniform; against RFC 5869 and AES longhand."""

import hashlib
import hmac
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cutlayer.errors import CredentialError
from cutlayer.keys import PublicKeys, load_sealer, make_demo_kit
from cutlayer.keys.masking import KEY_BYTES, Agreements, mask
from cutlayer.keys.pairs import read_public_keys

NAMES = ("a", "b", "c", "d", "e")
BLOCK_WORDS = 1 << 17


def private(seed: int) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(hashlib.sha256(bytes([seed])).digest())


def crew(count: int = 3) -> dict[str, Agreements]:
    keys = {name: private(place) for place, name in enumerate(NAMES[:count])}
    public = {name: key.public_key() for name, key in keys.items()}
    return {name: Agreements(name, key, public) for name, key in keys.items()}


def masks(count: int, words: int, context: bytes = b"sum 1") -> dict[str, np.ndarray]:
    agreed = crew(count)
    return {
        name: mask(name, {peer: own.key(peer, context=context) for peer in agreed if peer != name}, words)
        for name, own in agreed.items()
    }


def longhand_key(secret: bytes, context: bytes, first: str, second: str) -> bytes:
    """RFC 5869 with a salt of zeros and one block of output."""
    fields = (b"cutlayer mask 1", context, first.encode(), second.encode())
    info = b"".join(len(field).to_bytes(8, "big") + field for field in fields)
    extracted = hmac.digest(bytes(32), secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def longhand_stream(key: bytes, words: int) -> np.ndarray:
    """AES of 0, 1, 2, …, each as 16 bytes with the highest first."""
    blocks = b"".join(number.to_bytes(16, "big") for number in range(words // 2 + 1))
    return np.frombuffer(Cipher(AES256(key), ECB()).encryptor().update(blocks), dtype="<u8")[:words]  # noqa: S305


def test_the_key_and_the_stream_are_those_of_the_standards() -> None:
    """The keys and the secret of RFC 7748, section 6.1."""
    alice, bob = (
        X25519PrivateKey.from_private_bytes(bytes.fromhex(key))
        for key in (
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
        )
    )
    secret = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    agreed = Agreements("a", alice, {"b": bob.public_key()}).key("b", context=b"here")
    assert agreed == longhand_key(secret, b"here", "a", "b")
    stream = longhand_stream(agreed, 999)
    np.testing.assert_array_equal(mask("a", {"b": agreed}, 999), stream)
    np.testing.assert_array_equal(mask("b", {"a": agreed}, 999), -stream)


def test_both_ends_have_the_same_key_and_no_two_pairs_or_contexts_do() -> None:
    agreed = crew(5)
    keys = []
    for first, second in combinations(agreed, 2):
        for context in (b"sum 1", b"sum 2"):
            keys.append(agreed[first].key(second, context=context))
            assert keys[-1] == agreed[second].key(first, context=context)
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {KEY_BYTES}


@settings(deadline=None, max_examples=40)
@given(count=st.integers(2, 5), words=st.integers(0, 300))
def test_the_masks_of_all_parties_cancel(count: int, words: int) -> None:
    assert not sum(masks(count, words).values(), start=np.zeros(words, dtype=np.uint64)).any()


def test_masks_longer_than_a_block_cancel_and_go_on_where_the_block_ended() -> None:
    long = masks(3, BLOCK_WORDS + 5)
    assert not sum(long.values(), start=np.zeros(BLOCK_WORDS + 5, dtype=np.uint64)).any()
    np.testing.assert_array_equal(long["b"][:7], masks(3, 7)["b"])
    assert long["b"][BLOCK_WORDS:].tolist() != long["b"][:5].tolist()


def test_without_one_party_the_others_masks_do_not_cancel() -> None:
    own = masks(4, 100)
    for missing in own:
        rest = sum((words for name, words in own.items() if name != missing), start=np.zeros(100, dtype=np.uint64))
        np.testing.assert_array_equal(rest, -own[missing])
        assert rest.all()


def test_parties_that_were_told_of_different_sums_have_masks_that_do_not_cancel() -> None:
    one, other = masks(2, 50), masks(2, 50, b"sum 2")
    assert (one["a"] + other["b"]).all()


def test_a_mask_is_uniform_byte_by_byte() -> None:
    """Chi-square on 256 values; its seed is fixed, so that this passes always or never."""
    for words in masks(3, 1 << 16).values():
        counts = np.bincount(words.view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_who_has_no_pinned_key_cannot_be_agreed_with() -> None:
    agreed = crew()
    for stranger in ("z", "a"):
        with pytest.raises(CredentialError, match=r"pins no sealing key by which a and .* agree.*cutlayer keys pin"):
            agreed["a"].key(stranger, context=b"")


def test_a_pinned_key_that_makes_every_secret_the_same_is_refused() -> None:
    zero = X25519PublicKey.from_public_bytes(bytes(32))
    with pytest.raises(CredentialError, match="pins for b is no usable X25519 key"):
        Agreements("a", private(1), {"b": zero}).key("b", context=b"")


def test_sealers_with_pinned_keys_agree(tmp_path: Path) -> None:
    folder = make_demo_kit(tmp_path, ("a", "b", "c"))
    keys: dict[str, PublicKeys] = {name: read_public_keys(folder / f"{name}.pub", name) for name in ("a", "b", "c")}
    a, b, c = (load_sealer(folder, name, keys) for name in keys)
    assert a.mask_key("b", context=b"x") == b.mask_key("a", context=b"x") != c.mask_key("a", context=b"x")
