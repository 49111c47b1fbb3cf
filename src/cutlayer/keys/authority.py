"""The certificate authority of a run. It signs requests, and never sees a party's private key (but in a demo).

Its folder holds `ca.key` and `ca.crt`; the parties get `ca.crt`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cutlayer.errors import CredentialError
from cutlayer.keys.certificates import (
    common_name,
    load_certificate,
    load_private_key,
    make_request,
    new_private_key,
    private_pem,
)
from cutlayer.keys.files import check_party, read, write_private, write_public

AUTHORITY_DAYS = 3650
PARTY_DAYS = 365
CLOCK_SKEW = timedelta(minutes=10)
_MAKE_ONE = "make an authority with `cutlayer keys authority`"


def make_authority(folder: Path, name: str = "cutlayer authority", *, days: int = AUTHORITY_DAYS) -> Path:
    """A new authority in `folder`; returns the path of its certificate, `ca.crt`, which every party needs.

    Raises `CredentialError` if there is one already.
    """
    if not 1 <= len(name) <= 64:
        raise CredentialError("an authority's name has 1 to 64 characters; choose another one")
    key = new_private_key()
    certificate = (
        _certificate(common_name(name), common_name(name), key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(folder / "ca.key", private_pem(key), mend="every party's certificate depends on it")
    path = folder / "ca.crt"
    write_public(path, certificate.public_bytes(Encoding.PEM))
    return path


def sign_request(request: Path, authority: Path, days: int = PARTY_DAYS) -> Path:
    """Signs `NAME.csr` with the authority in the folder `authority`; returns the path of `NAME.crt`.

    The certificate, valid for `days`, and `ca.crt` are written beside the request: both go back to the party. Whether
    the request is really that party's is for a person to know. Raises `CredentialError`.
    """
    party, public_key = _read_request(request)
    signing_key = load_private_key(authority / "ca.key", mend=_MAKE_ONE)
    signer = load_certificate(authority / "ca.crt", mend=_MAKE_ONE)
    certificate = (
        _certificate(common_name(party), signer.subject, public_key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(party)]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        .sign(signing_key, hashes.SHA256())
    )
    _hand_over_authority(authority / "ca.crt", request.parent / "ca.crt")
    path = request.with_name(f"{party}.crt")
    write_public(path, certificate.public_bytes(Encoding.PEM))
    return path


def make_demo_kit(folder: Path, parties: Iterable[str]) -> Path:
    """All parties' keys and certificates in one folder, and the authority in `folder/authority`; returns `folder`.

    For trying things out on one machine: who makes this kit holds every private key, until `hand_over` gives each party
    its own. Raises `CredentialError`.
    """
    names = tuple(parties)
    for party in names:
        check_party(party)
    make_authority(folder / "authority", "cutlayer demo")
    for party in names:
        sign_request(make_request(folder, party), folder / "authority")
    return folder


def _read_request(path: Path) -> tuple[str, ec.EllipticCurvePublicKey]:
    mend = f"ask the party to make one with `cutlayer keys request {path.stem}`"
    try:
        request = x509.load_pem_x509_csr(read(path, mend=mend))
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise CredentialError(f"{path} is no certificate request in PEM; {mend}") from error
    key = request.public_key()
    if not request.is_signature_valid:
        raise CredentialError(f"{path} is not signed by the key it carries; {mend}")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialError(f"{path} carries no P-256 key; {mend}")
    party = str(names[0].value) if len(names) == 1 else ""
    check_party(party)
    if path.name != f"{party}.csr":
        raise CredentialError(f"{path.name} asks for the name {party}; if that is meant, rename it to {party}.csr")
    return party, key


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hand_over_authority(certificate: Path, target: Path) -> None:
    data = read(certificate, mend=_MAKE_ONE)
    if target.exists() and target.read_bytes() != data:
        raise CredentialError(f"{target} is another authority's certificate; move it away first")
    write_public(target, data)
