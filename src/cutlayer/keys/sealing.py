"""Messages between two parties that a third one forwards and can neither read nor change: HPKE (RFC 9180), and signed.

    sealed    = signature (Ed25519, 64 bytes) || encapsulated key (X25519, 32) || ciphertext (AES-128-GCM, its tag 16)
    info      = fields("cutlayer sealed 1: encryption", context, sender, receiver)
    signature over fields("cutlayer sealed 1: signature", context, sender, receiver, encapsulated key || ciphertext)
    fields    = for each: its length (8 bytes, big-endian), then itself

The sender stands in `info` too: who strips a signature and puts its own there has signed what the receiver cannot open.
A message can be delivered twice; the context must name its moment in the run (plan, run, turn, kind), used once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from cutlayer.errors import CredentialError
from cutlayer.keys.fields import joined
from cutlayer.keys.files import check_party
from cutlayer.keys.masking import Agreements
from cutlayer.keys.pairs import PublicKeys, pairs_path, read_pairs

SIGNATURE_BYTES = 64
SEAL_BYTES = SIGNATURE_BYTES + 32 + 16
"""What sealing adds to a message, whatever its length: signature, encapsulated key, tag."""

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
_ENCRYPTION = b"cutlayer sealed 1: encryption"
_SIGNATURE = b"cutlayer sealed 1: signature"
_PIN = "put its keys there with `cutlayer keys pin`, and all accept the plan again"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Peer:
    signing: Ed25519PublicKey
    sealing: X25519PublicKey


class Sealer:
    """One party's hand at sealing. Keeps nothing of a message; may be used by several threads."""

    def __init__(
        self,
        party: str,
        *,
        signing_key: Ed25519PrivateKey,
        sealing_key: X25519PrivateKey,
        peers: Mapping[str, PublicKeys],
    ) -> None:
        """`peers` are the keys that the plan pins, the party's own among them; a party without keys (`""`) has none.

        Raises `CredentialError` for what is no public key.
        """
        self.party = party
        self._signing_key, self._sealing_key = signing_key, sealing_key
        self._peers = {name: _peer(name, keys) for name, keys in peers.items() if keys.signing or keys.sealing}
        self._agreements = Agreements(party, sealing_key, {name: peer.sealing for name, peer in self._peers.items()})

    def seal(self, receiver: str, data: bytes | memoryview, *, context: bytes) -> bytes:
        """`data` for `receiver` alone, `SEAL_BYTES` longer. Raises `CredentialError` if no key of it is pinned."""
        peer = self._pinned(receiver)
        info = joined(_ENCRYPTION, context, self.party.encode(), receiver.encode())
        try:
            ciphertext = _SUITE.encrypt(memoryview(data).cast("B"), peer.sealing, info)
        except ValueError as error:
            raise CredentialError(
                f"the sealing key that the plan pins for {receiver} is no usable X25519 key; {_PIN}"
            ) from error
        except OverflowError as error:
            raise CredentialError(
                f"{len(data):,} bytes for {receiver} are too many to be sealed at once: seal less than 2 GiB"
            ) from error
        statement = joined(_SIGNATURE, context, self.party.encode(), receiver.encode(), ciphertext)
        return self._signing_key.sign(statement) + ciphertext

    def open(self, sender: str, sealed: bytes | memoryview, *, context: bytes) -> bytes:
        """What `sender` has sealed for this party under this context; its signature is verified before it is opened.

        Raises `CredentialError` with one sentence that names the sender.
        """
        peer = self._pinned(sender)
        sealed = memoryview(sealed).cast("B")
        if len(sealed) < SEAL_BYTES:
            raise CredentialError(
                f"a sealed message from {sender} has {len(sealed)} bytes, fewer than a seal alone: it was cut short "
                "on its way, so ask who forwards it"
            )
        signature, ciphertext = sealed[:SIGNATURE_BYTES], sealed[SIGNATURE_BYTES:]
        names = (sender.encode(), self.party.encode())
        try:
            peer.signing.verify(signature, joined(_SIGNATURE, context, *names, ciphertext))
        except InvalidSignature as error:
            raise CredentialError(
                f"a sealed message is not what {sender} signed for {self.party} at this point of the run: it was "
                f"changed on its way, or {sender} holds another plan or other keys; compare the plan's digest with it"
            ) from error
        try:
            return _SUITE.decrypt(ciphertext, self._sealing_key, joined(_ENCRYPTION, context, *names))
        except (InvalidTag, ValueError) as error:
            raise CredentialError(
                f"a message that {sender} signed was not sealed by it to the key that the plan pins for {self.party}; "
                "compare the plan's digest with it"
            ) from error

    def mask_key(self, peer: str, *, context: bytes) -> bytes:
        """A key that only this party and `peer` have, for this context. Raises `CredentialError`."""
        return self._agreements.key(peer, context=context)

    def _pinned(self, party: str) -> _Peer:
        if party not in self._peers:
            raise CredentialError(f"the plan pins no signing and sealing key for {party}: {_PIN}")
        return self._peers[party]


def load_sealer(folder: Path, party: str, peers: Mapping[str, PublicKeys]) -> Sealer:
    """The party's sealer, with its own private keys out of its folder of keys.

    Raises `CredentialError` if they are not there, or are not the ones that the plan pins for it in `peers[party]`.
    """
    check_party(party)
    path = pairs_path(folder, party)
    keys = read_pairs(path, party)
    pinned = peers.get(party)
    if pinned is None or not (pinned.signing or pinned.sealing):
        raise CredentialError(f"the plan pins no signing and sealing key for {party}: {_PIN}")
    if keys.public() != pinned:
        raise CredentialError(
            f"{path} holds other keys than the plan pins for {party}: restore the file that belongs to the plan, or "
            f"have the present {party}.pub pinned with `cutlayer keys pin --replace`, and all accept the plan again"
        )
    return Sealer(party, signing_key=keys.signing, sealing_key=keys.sealing, peers=peers)


def _peer(party: str, keys: PublicKeys) -> _Peer:
    try:
        return _Peer(
            signing=Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys.signing)),
            sealing=X25519PublicKey.from_public_bytes(bytes.fromhex(keys.sealing)),
        )
    except ValueError as error:
        raise CredentialError(
            f"the signing and the sealing key that the plan pins for {party} need 64 hexadecimal digits each; {_PIN}"
        ) from error
