"""The authority signs what holds, under the name that was asked for, and nothing else."""

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cutlayer.errors import CredentialError
from cutlayer.keys import load_credentials, make_authority, make_request, sign_request


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_authority(tmp_path / "authority", "our study").parent


def write_request(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str) -> Path:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    path.write_bytes(request.public_bytes(Encoding.PEM))
    return path


def test_a_signed_certificate_serves_both_ends_of_tls_under_one_name(authority: Path, tmp_path: Path) -> None:
    path = sign_request(make_request(tmp_path / "a", "hospital-a"), authority, days=30)
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    extensions = certificate.extensions
    assert path == tmp_path / "a" / "hospital-a.crt"
    assert certificate.issuer.rfc4514_string() == "CN=our study"
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("hospital-a")]
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    load_credentials(tmp_path / "a", "hospital-a")


def test_only_the_request_goes_to_the_authority_and_only_certificates_come_back(
    authority: Path, tmp_path: Path
) -> None:
    own, post = tmp_path / "own", tmp_path / "post"
    post.mkdir()
    request = make_request(own, "hospital-a").rename(post / "hospital-a.csr")
    sign_request(request, authority)
    assert sorted(path.name for path in post.iterdir()) == ["ca.crt", "hospital-a.crt", "hospital-a.csr"]
    for name in ("ca.crt", "hospital-a.crt"):
        (post / name).rename(own / name)
    assert load_credentials(own, "hospital-a").party == "hospital-a"


def test_what_the_request_asks_for_beyond_its_name_is_not_granted(authority: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital-a")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("lab")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "hospital-a.csr").write_bytes(request.public_bytes(Encoding.PEM))
    path = sign_request(tmp_path / "hospital-a.csr", authority)
    extensions = x509.load_pem_x509_certificate(path.read_bytes()).extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hospital-a"]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_request_under_another_name_than_its_file_is_refused(authority: Path, tmp_path: Path) -> None:
    request = make_request(tmp_path, "lab").rename(tmp_path / "hospital-a.csr")
    with pytest.raises(CredentialError, match=r"hospital-a\.csr asks for the name lab"):
        sign_request(request, authority)


def test_a_request_that_its_key_did_not_sign_is_refused(authority: Path, tmp_path: Path) -> None:
    request = make_request(tmp_path, "lab")
    der = bytearray(x509.load_pem_x509_csr(request.read_bytes()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    request.write_bytes(x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM))
    with pytest.raises(CredentialError, match="not signed by the key it carries"):
        sign_request(request, authority)


@pytest.mark.parametrize("name", ["Lab", "a.b", "../x", "ca", "*"])
def test_a_request_for_a_name_that_no_party_can_have_is_refused(authority: Path, tmp_path: Path, name: str) -> None:
    request = write_request(tmp_path / "x.csr", ec.generate_private_key(ec.SECP256R1()), name)
    with pytest.raises(CredentialError, match="party"):
        sign_request(request, authority)


def test_other_kinds_of_key_are_refused(authority: Path, tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    with pytest.raises(CredentialError, match="carries no P-256 key"):
        sign_request(write_request(tmp_path / "lab.csr", key, "lab"), authority)


def test_what_is_no_request_is_refused(authority: Path, tmp_path: Path) -> None:
    (tmp_path / "lab.csr").write_text("hello")
    with pytest.raises(CredentialError, match=r"lab\.csr is no certificate request in PEM; .*keys request lab`"):
        sign_request(tmp_path / "lab.csr", authority)
    with pytest.raises(CredentialError, match="cannot be read"):
        sign_request(tmp_path / "nobody.csr", authority)


def test_another_authoritys_certificate_is_not_replaced_silently(authority: Path, tmp_path: Path) -> None:
    request = make_request(tmp_path / "a", "lab")
    sign_request(request, authority)
    make_authority(tmp_path / "second")
    with pytest.raises(CredentialError, match="another authority's certificate; move it away first"):
        sign_request(request, tmp_path / "second")


def test_an_authority_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"ca\.key cannot be read .*make an authority"):
        sign_request(make_request(tmp_path, "lab"), tmp_path / "nowhere")
