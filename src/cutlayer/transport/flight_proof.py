"""Who is at the other end of a Flight stream, by the key and not only by a name.

Flight's server sees of a client's certificate no more than its first name; Flight's client sees nothing of the
server's. So the dialler first looks at the listener's certificate over a TLS connection of its own, and has Flight
trust that certificate alone. The listener sends a fresh challenge over the stream; the dialler signs it, together with
the listener's public key, with the key of its own certificate. A signature made for another listener, or in another
stream, is none for this one; and nobody stands between, since the dialler's TLS ends where that public key is. What
TLS itself signs with that key begins otherwise (RFC 8446, section 4.4.3), so neither signature serves for the other.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from msgspec import Meta, Struct

from cutlayer.errors import CredentialError
from cutlayer.transport.opening import Opening
from cutlayer.transport.tls import KeyFiles, misfit, public_key_digest

NONCE_BYTES = 32
CERTIFICATE_BYTES = 16_384
SIGNATURE_BYTES = 256
PURPOSE = b"cutlayer flight opening 1\n"


class Challenge(Struct, frozen=True, tag="challenge"):
    """From the listener: sign this."""

    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Proof(Struct, frozen=True, tag="proof"):
    """From the dialler: its certificate (DER), and its signature of `_statement`."""

    certificate: Annotated[bytes, Meta(max_length=CERTIFICATE_BYTES)]
    signature: Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)]


def challenge() -> Challenge:
    """A new one."""
    return Challenge(secrets.token_bytes(NONCE_BYTES))


def prove(files: KeyFiles, listener: str, listener_key: str, challenge: Challenge, opening: Opening) -> Proof:
    """The dialler's answer. `listener_key` is the digest (hex) of the public key where its TLS ends.

    Raises `CredentialError`.
    """
    try:
        certificate = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
        key = load_pem_private_key(Path(files.key).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise CredentialError(f"{files.key} and {files.certificate} cannot be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(f"{files.key} is no elliptic-curve key: make one with `cutlayer keys request`")
    statement = _statement(listener, listener_key, challenge, opening)
    return Proof(certificate.public_bytes(Encoding.DER), key.sign(statement, ec.ECDSA(hashes.SHA256())))


def fault_of(
    proof: Proof,
    *,
    listener: str,
    listener_key: str,
    challenge: Challenge,
    opening: Opening,
    pins: Mapping[str, str],
) -> str:
    """Why this does not prove that the caller is `opening.party`, or "".

    That its name is certified, TLS has checked. `listener_key` is the digest (hex) of the listener's own public key.
    """
    if fault := misfit(proof.certificate, opening.party, pins):
        return fault
    statement = _statement(listener, listener_key, challenge, opening)
    try:
        key = x509.load_der_x509_certificate(proof.certificate).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return "its certificate holds no elliptic-curve key"
        key.verify(proof.signature, statement, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return "it did not prove that it has the key of its certificate"
    return ""


def own_key(files: KeyFiles) -> str:
    """The digest (hex) of the public key in a party's own certificate."""
    certificate = x509.load_pem_x509_certificate(Path(files.certificate).read_bytes())
    return public_key_digest(certificate.public_bytes(Encoding.DER))


def _statement(listener: str, listener_key: str, challenge: Challenge, opening: Opening) -> bytes:
    return PURPOSE + msgspec.msgpack.encode((listener, listener_key, challenge.nonce, opening))
