"""A party's own files: its private key, the request for a certificate, the certificate, and a secret of its own.

A keys folder holds `ca.crt`, and for a party `NAME.key`, `NAME.csr`, `NAME.crt`, `NAME.secret`, and for sealed messages
`NAME.seal.key` and `NAME.pub`. The keys and the secret never leave it.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from cutlayer.errors import CredentialError
from cutlayer.keys.files import check_party, exposure, read, write_private, write_private_once, write_public
from cutlayer.keys.pairs import make_pairs, pairs_path

SECRET_BYTES = 32
EXPIRES_SOON = timedelta(days=14)
_REPLACE = "to replace the key, move it away first"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """A party's key files, found complete and in date. `warnings` are sentences for the person who runs the party."""

    party: str
    key: Path
    certificate: Path
    authority: Path
    warnings: tuple[str, ...] = ()


def make_request(folder: Path, party: str) -> Path:
    """A party's private keys, and what it shows of them; returns the path of `NAME.csr`, to be sent to the authority.

    Makes `NAME.key` with its request `NAME.csr`, and `NAME.seal.key` with its `NAME.pub`; of these it adds what is
    missing and keeps what is there. Raises `CredentialError` for a name that cannot be a party's, and if nothing is
    missing.
    """
    complete_request(folder, party)
    return folder / f"{party}.csr"


def complete_request(folder: Path, party: str) -> tuple[Path, ...]:
    """`make_request`, but returns all files that it made: one or more of the four. Raises `CredentialError`."""
    check_party(party)
    key, request = folder / f"{party}.key", folder / f"{party}.csr"
    made: tuple[Path, ...] = ()
    if not key.exists():
        private = new_private_key()
        write_private(key, private_pem(private), mend=_REPLACE)
        write_public(request, _request_pem(private, party))
        made = (key, request)
    elif not request.exists():
        private = load_private_key(key, mend="restore it, or move it away and make another")
        write_public(request, _request_pem(private, party))
        made = (request,)
    made += make_pairs(folder, party)
    if not made:
        raise CredentialError(f"{key} is there already and is never overwritten; {_REPLACE}")
    return made


def load_credentials(folder: Path, party: str) -> Credentials:
    """The party's files, checked against each other. Raises `CredentialError` for what is missing, wrong or expired."""
    check_party(party)
    key, certificate, authority = folder / f"{party}.key", folder / f"{party}.crt", folder / "ca.crt"
    private = load_private_key(key, mend=f"make one with `cutlayer keys request {party}`")
    own = load_certificate(
        certificate, mend=f"send {party}.csr to the authority, which answers `cutlayer keys sign {party}.csr`"
    )
    signer = load_certificate(authority, mend="ask the authority for its ca.crt; every party needs the same one")
    check_names(own, party, certificate)
    if own.public_key() != private.public_key():
        raise CredentialError(
            f"{certificate} was signed for another key than {key}; send the present {party}.csr to the authority"
        )
    try:
        own.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CredentialError(
            f"{certificate} was not signed by {authority}; ask the authority for both files again"
        ) from error
    others = (folder / f"{party}.secret", pairs_path(folder, party))
    warnings = [
        exposure(key),
        *(exposure(private) for private in others if private.exists()),
        _check_dates(own, certificate, f"let the authority sign {party}.csr again"),
        _check_dates(signer, authority, "every party needs a new certificate, of a new authority"),
    ]
    return Credentials(
        party=party, key=key, certificate=certificate, authority=authority, warnings=tuple(filter(None, warnings))
    )


def party_secret(folder: Path, party: str) -> bytes:
    """The 32 random bytes from which this party's noise comes: drawn at the first call, the same ever after.

    They are known to this party only; who knows them can subtract its noise. Raises `CredentialError`.
    """
    check_party(party)
    path = folder / f"{party}.secret"
    if not path.exists():
        write_private_once(path, secrets.token_bytes(SECRET_BYTES))
    secret = read(path, mend="give it back to its owner")
    if len(secret) != SECRET_BYTES:
        raise CredentialError(f"{path} is damaged: it has {len(secret)} bytes, not {SECRET_BYTES}; restore it")
    return secret


def public_pin(certificate: Path) -> str:
    """SHA-256, in hex, of the certificate's public key: what a plan can pin for a party. Raises `CredentialError`."""
    key = load_certificate(certificate, mend="check the path").public_key()
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """P-256: every TLS 1.2 and 1.3 speaks it."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def load_private_key(path: Path, *, mend: str) -> ec.EllipticCurvePrivateKey:
    """Raises `CredentialError` if it is not there or no P-256 key in plain PEM."""
    data = read(path, mend=mend)
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise CredentialError(f"{path} is no private key in plain PEM; {mend}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(f"{path} is no P-256 key; {mend}")
    return key


def load_certificate(path: Path, *, mend: str) -> x509.Certificate:
    """Raises `CredentialError` if it is not there or no certificate in PEM."""
    data = read(path, mend=mend)
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise CredentialError(f"{path} is no certificate in PEM; {mend}") from error


def check_names(certificate: x509.Certificate, party: str, path: Path) -> None:
    """Raises `CredentialError` unless the certificate names the party."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        certified = names.value.get_values_for_type(x509.DNSName)
    except (ValueError, x509.ExtensionNotFound):
        certified = []
    if party not in certified:
        raise CredentialError(
            f"{path} names {', '.join(certified) or 'nobody'}, not {party}; let the authority sign {party}.csr"
        )


def _request_pem(key: ec.EllipticCurvePrivateKey, party: str) -> bytes:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(common_name(party))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(party)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(Encoding.PEM)


def _check_dates(certificate: x509.Certificate, path: Path, mend: str) -> str:
    """A warning if the certificate ends soon. Raises `CredentialError` if it is not in date."""
    now, end = datetime.now(UTC), certificate.not_valid_after_utc
    if now > end:
        raise CredentialError(f"{path} expired on {end:%Y-%m-%d}; {mend}")
    if now < certificate.not_valid_before_utc:
        raise CredentialError(
            f"{path} is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; check this clock"
        )
    return f"{path.name} expires on {end:%Y-%m-%d}; {mend}" if end - now < EXPIRES_SOON else ""
