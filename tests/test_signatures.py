"""Signatures of images: each way to sign, and everything that makes a signature worthless."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from image_signing import certificate, sign
from underlay.errors import SignatureRefused
from underlay.model import Digest, Signature
from underlay.signatures import HASH_METHODS, trusted_certificate, verify
from underlay.values import replace

CONTENT = b"the bytes of an image"
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
SIGNER = "the certificate of somebody"


@pytest.fixture(scope="module")
def keys() -> dict[str, Any]:
    return {
        "RSA-PSS": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "DSA": dsa.generate_private_key(key_size=2048),
        "ECC_SECP384R1": ec.generate_private_key(ec.SECP384R1()),
        "ECC_SECP521R1": ec.generate_private_key(ec.SECP521R1()),
    }


def trusted(key: Any, key_type: str, **limits: Any) -> bytes:
    found = certificate(key, **{"begins": NOW - timedelta(days=1), "ends": NOW + timedelta(days=1), **limits})
    return trusted_certificate(found, signer=SIGNER, key_type=key_type, now=NOW)


def signed(key: Any, key_type: str, *, algorithm: str = "sha256", content: bytes = CONTENT) -> Signature:
    value = sign(key, content, algorithm=algorithm)
    return Signature(value=value, algorithm=algorithm, key_type=key_type, certificate=trusted(key, key_type), signer=SIGNER)


def digest(content: bytes = CONTENT, algorithm: str = "sha256") -> Digest:
    return Digest(algorithm, hashlib.new(algorithm, content).hexdigest())


@pytest.mark.parametrize("algorithm", HASH_METHODS.values())
@pytest.mark.parametrize("key_type", ["RSA-PSS", "DSA", "ECC_SECP384R1", "ECC_SECP521R1"])
def test_what_was_signed_is_verified_and_nothing_else_is(keys: dict[str, Any], key_type: str, algorithm: str) -> None:
    signature = signed(keys[key_type], key_type, algorithm=algorithm)

    verify("an image", signature, digest(algorithm=algorithm))
    with pytest.raises(SignatureRefused, match="an image does not have the content that was signed by") as refused:
        verify("an image", signature, digest(b"other bytes", algorithm))
    assert refused.value.altered


def test_a_signature_by_another_key_or_of_other_bytes_or_none_at_all_is_refused(keys: dict[str, Any]) -> None:
    good, other = signed(keys["RSA-PSS"], "RSA-PSS"), rsa.generate_private_key(public_exponent=65537, key_size=2048)
    for value in (sign(other, CONTENT), good.value[:-1], good.value + b"\0", b"", b"\0" * 256, bytes(10_000)):
        with pytest.raises(SignatureRefused):
            verify("an image", replace(good, value=value), digest())


def test_an_rsa_signature_of_another_padding_is_refused(keys: dict[str, Any]) -> None:
    good, longest = signed(keys["RSA-PSS"], "RSA-PSS"), padding.PSS.MAX_LENGTH
    for how in (padding.PKCS1v15(), padding.PSS(mgf=padding.MGF1(hashes.SHA1()), salt_length=longest)):
        value = keys["RSA-PSS"].sign(CONTENT, how, hashes.SHA256())
        with pytest.raises(SignatureRefused):
            verify("an image", replace(good, value=value), digest())


@pytest.mark.parametrize("value", [b"", b"\x30", b"\x30\x06\x02\x01\x00\x02\x01\x00", b"\xff" * 200])
@pytest.mark.parametrize("key_type", ["DSA", "ECC_SECP384R1"])
def test_what_is_no_signature_is_refused(keys: dict[str, Any], key_type: str, value: bytes) -> None:
    with pytest.raises(SignatureRefused):
        verify("an image", replace(signed(keys[key_type], key_type), value=value), digest())


def test_a_key_too_short_for_the_digest_is_refused() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    signature = replace(signed(key, "RSA-PSS"), algorithm="sha512")
    with pytest.raises(SignatureRefused):
        verify("an image", signature, digest(algorithm="sha512"))


@pytest.mark.parametrize(
    ("limits", "moment"),
    [
        ({"ends": NOW - timedelta(seconds=1)}, "2026-11-30 11:59"),
        ({"begins": NOW + timedelta(minutes=1)}, "2026-11-30 12:01"),
    ],
)
def test_a_certificate_is_trusted_only_in_its_time(keys: dict[str, Any], limits: dict[str, datetime], moment: str) -> None:
    with pytest.raises(SignatureRefused, match="and not now") as refused:
        trusted(keys["DSA"], "DSA", **limits)
    assert moment in refused.value.message


def test_a_certificate_for_other_uses_is_not_trusted(keys: dict[str, Any]) -> None:
    with pytest.raises(SignatureRefused, match="is not for signatures"):
        trusted(keys["RSA-PSS"], "RSA-PSS", use="key_encipherment")
    for use in ("digital_signature", "content_commitment"):
        assert trusted(keys["RSA-PSS"], "RSA-PSS", use=use)


@pytest.mark.parametrize(
    ("key_type", "said"), [("RSA-PSS", "DSA"), ("DSA", "RSA-PSS"), ("ECC_SECP384R1", "ECC_SECP521R1"), ("DSA", "")]
)
def test_a_key_of_another_type_than_is_said_is_refused(keys: dict[str, Any], key_type: str, said: str) -> None:
    with pytest.raises(SignatureRefused, match=f"has a key for {key_type}"):
        trusted(keys[key_type], said)


def test_a_key_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(SignatureRefused, match="nothing known"):
        trusted(ed25519.Ed25519PrivateKey.generate(), "RSA-PSS")


def as_der(content: bytes) -> bytes:
    return x509.load_pem_x509_certificate(content).public_bytes(Encoding.DER)


def test_a_certificate_may_be_pem_or_der_and_comes_out_as_der(keys: dict[str, Any]) -> None:
    pem = certificate(keys["DSA"], begins=NOW, ends=NOW + timedelta(days=1))
    for content in (pem, b"\n" + pem, as_der(pem)):
        found = trusted_certificate(content, signer=SIGNER, key_type="DSA", now=NOW)
        assert as_der(pem) == found


@pytest.mark.parametrize("spoil", [lambda pem: b"", lambda pem: pem[: len(pem) // 2], lambda pem: b"\x30\x82" + pem])
def test_what_is_no_certificate_is_refused(keys: dict[str, Any], spoil: Callable[[bytes], bytes]) -> None:
    content = spoil(certificate(keys["DSA"], begins=NOW, ends=NOW + timedelta(days=1)))
    with pytest.raises(SignatureRefused, match=r"is no X\.509 certificate"):
        trusted_certificate(content, signer=SIGNER, key_type="DSA", now=NOW)
