"""TLS as we use it: both ends show a certificate of one authority, and a certificate's name is the party's."""

import hashlib
import ipaddress
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cutlayer.errors import CredentialError

_NOT_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
_ALERTS = {
    "UNKNOWN_CA": "it was signed by an authority that the peer does not trust",
    "CERTIFICATE_EXPIRED": "it has expired",
    "CERTIFICATE_REQUIRED": "none was sent",
    "BAD_CERTIFICATE": "it is not valid",
    "UNSUPPORTED_CERTIFICATE": "it is not meant for this use",
    "CERTIFICATE_REVOKED": "it was revoked",
    "CERTIFICATE_UNKNOWN": "it is not acceptable",
    "ACCESS_DENIED": "it may not enter",
}
_VERIFY_NOT_YET_VALID, _VERIFY_EXPIRED, _VERIFY_WRONG_NAME = 9, 10, 62
_VERIFY_NO_ISSUER = {18, 19, 20, 21}


class KeyFiles(Protocol):
    """What a party shows and trusts: PEM files. A record of paths fits, `keys.Credentials` among them."""

    @property
    def key(self) -> Path:
        """The party's private key."""

    @property
    def certificate(self) -> Path:
        """The party's certificate; its DNS name is the party's name."""

    @property
    def authority(self) -> Path:
        """The certificate of the authority that signed every party's."""


def listening_context(files: KeyFiles) -> ssl.SSLContext:
    """For the end that listens: whoever calls must show a certificate. Raises `CredentialError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # unread tickets turn a close into a reset, which can swallow the last frame
    return _prepare(context, files)


def dialling_context(files: KeyFiles) -> ssl.SSLContext:
    """For the end that dials: the listener's certificate must bear the expected name. Raises `CredentialError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    context.hostname_checks_common_name = False
    return _prepare(context, files)


def _prepare(context: ssl.SSLContext, files: KeyFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    try:
        context.load_cert_chain(files.certificate, files.key, password="")  # never ask at the terminal
        context.load_verify_locations(files.authority)
    except (OSError, ValueError) as error:
        raise CredentialError(
            f"{files.key}, {files.certificate} and {files.authority} cannot be used together: {error}; "
            "check that all three are there and that the key is the certificate's"
        ) from error
    return context


def certified_names(certificate: bytes) -> tuple[str, ...]:
    """The DNS names in a DER certificate."""
    try:
        names = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound):
        return ()
    return tuple(names.value.get_values_for_type(x509.DNSName))


def misfit(certificate: bytes, party: str, pins: Mapping[str, str]) -> str:
    """Why this verified DER certificate is not `party`'s, or "". `pins` are SHA-256 digests (hex) of public keys."""
    names = certified_names(certificate)
    if party not in names:
        return f"its certificate names {', '.join(names) or 'nobody'}, not {party}"
    if party in pins and public_key_digest(certificate) != pins[party].lower():
        return f"its certificate holds another public key than the one pinned for {party}"
    return ""


def public_key_digest(certificate: bytes) -> str:
    """SHA-256, in hex, of the public key (SubjectPublicKeyInfo) in a DER certificate; "" if it cannot be read."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        return ""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def what_failed(error: ssl.SSLError) -> str:
    """Half a sentence on the other end's failed handshake, for the end that listens: it …"""
    if isinstance(error, ssl.SSLCertVerificationError):
        mend = ": that party needs a new one" if error.verify_code == _VERIFY_EXPIRED else ""
        return f"its certificate {_verdict(error)}{mend}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "it hung up"
    reason = error.reason or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it showed no certificate"
    if reason in _NOT_TLS:
        return "it does not speak TLS"
    if alert := _alert(reason):
        mend = "; put a new one in its place, no restart is needed" if reason.endswith("EXPIRED") else ""
        return f"it refused our certificate: {alert}{mend}"
    return f"the TLS handshake failed ({reason or error})"


def why_refused(error: ssl.SSLError, peer: str) -> str:
    """A sentence with the mend on our own failed handshake, for the end that dials; "" if it was no refusal."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"whoever answers is not {peer}: the certificate shown {_verdict(error)}; {_mend(error, peer)}"
    reason = error.reason or ""
    if reason in _NOT_TLS:
        return f"whoever answers in {peer}'s place does not speak TLS; check the address and the port"
    if alert := _alert(reason):
        return f"{peer} refused our certificate: {alert}; ask the authority that {peer} trusts for a new one"
    return "" if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) else f"TLS with {peer} failed: {error}"


def _verdict(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _VERIFY_EXPIRED:
        return "has expired"
    if error.verify_code == _VERIFY_NOT_YET_VALID:
        return "is not valid yet"
    if error.verify_code in _VERIFY_NO_ISSUER:
        return "was not signed by our authority"
    if error.verify_code == _VERIFY_WRONG_NAME:
        return "bears another name"
    return f"does not hold: {error.verify_message}"


def _mend(error: ssl.SSLCertVerificationError, peer: str) -> str:
    if error.verify_code == _VERIFY_EXPIRED:
        return f"{peer} needs a new one"
    if error.verify_code == _VERIFY_NOT_YET_VALID:
        return "compare the clocks at both ends"
    if error.verify_code in _VERIFY_NO_ISSUER:
        return f"both parties need the same ca.crt, and {peer} a certificate signed with it"
    return "check the address, and the party's name in the plan"


def _alert(reason: str) -> str:
    return next((words for alert, words in _ALERTS.items() if reason.endswith(f"ALERT_{alert}")), "")


def context_for(
    build: Callable[[KeyFiles], ssl.SSLContext], files: KeyFiles | None, host: str, *, plaintext: bool
) -> ssl.SSLContext | None:
    """The context that `build` makes; None for plain text, which is let through on loopback only.

    Raises `CredentialError`.
    """
    if plaintext:
        if not _is_loopback(host):
            raise CredentialError(f"plain text is for loopback addresses only, and {host} is none; use keys instead")
        return None
    if files is None:
        raise CredentialError("a link to another party needs a key and certificates; see `cutlayer keys --help`")
    return build(files)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
