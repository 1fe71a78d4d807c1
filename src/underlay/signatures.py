"""Signatures of images: is a digest signed by the key of a certificate? By the cryptography package, imported on use.

A certificate is trusted because whoever configured the host put it where it was found; no chain is followed. It has to be valid
now, and its key must be one for signatures. The ways to sign are OpenStack's (cursive 0.3, the library of Nova and Glance):
RSA-PSS with MGF1 of the same digest and the longest salt (RFC 8017, 8.1), ECDSA on the curve that the key type names, and DSA.
"""

from collections.abc import Mapping
from datetime import datetime
from importlib import import_module
from types import MappingProxyType
from typing import Any

from underlay.errors import ExtraMissing, SignatureRefused
from underlay.model import Digest, Signature

HASH_METHODS: Mapping[str, str] = MappingProxyType(
    {"SHA-224": "sha224", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}
)
"""The digest algorithms of signatures as OpenStack writes them, and as `underlay.model.DIGEST_LENGTHS` has them."""

_PEM = b"-----BEGIN"


def trusted_certificate(content: bytes, *, signer: str, key_type: str, now: datetime) -> bytes:
    """A certificate that may sign images now, with a key of this type, in DER.

    Args:
        content: PEM or DER. signer: how messages call it.

    Raises:
        SignatureRefused, ExtraMissing
    """
    certificate = _certificate(content, signer)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= now <= ends:
        raise SignatureRefused(
            f"{signer} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, and not now",
            hint="have the image signed anew, or correct the clock",
        )
    if not _may_sign(certificate):
        raise SignatureRefused(f"the key of {signer} is not for signatures, as its key usage says", hint="sign by another")
    if (found := _key_type(certificate.public_key())) != key_type:
        raise SignatureRefused(f"{signer} has a key for {found or 'nothing known'}, and the signature is said to be {key_type}")
    encoding = _library("hazmat.primitives.serialization").Encoding.DER
    return bytes(certificate.public_bytes(encoding))


def verify(what: str, signature: Signature, digest: Digest) -> None:
    """Make sure that what has this digest is what was signed.

    Args:
        digest: of the bytes as served, of the signature's algorithm.

    Raises:
        SignatureRefused, ExtraMissing
    """
    assert digest.algorithm == signature.algorithm
    key = _certificate(signature.certificate, signature.signer).public_key()
    try:
        _verify(key, signature, bytes.fromhex(digest.hex))
    except (_library("exceptions").InvalidSignature, ValueError) as error:  # ValueError: a key that is too short for it
        raise SignatureRefused(
            f"{what} does not have the content that was signed by {signature.signer}",
            hint="its content or its signature has been changed since it was signed",
            altered=True,
        ) from error


def _verify(key: Any, signature: Signature, digest: bytes) -> None:
    algorithm = getattr(_library("hazmat.primitives.hashes"), signature.algorithm.upper())()
    prehashed = _library("hazmat.primitives.asymmetric.utils").Prehashed(algorithm)
    if signature.key_type == "RSA-PSS":
        padding = _library("hazmat.primitives.asymmetric.padding")
        pss = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.MAX_LENGTH)
        key.verify(signature.value, digest, pss, prehashed)
    elif signature.key_type == "DSA":
        key.verify(signature.value, digest, prehashed)
    else:
        key.verify(signature.value, digest, _library("hazmat.primitives.asymmetric.ec").ECDSA(prehashed))


def _certificate(content: bytes, signer: str) -> Any:
    x509 = _library("x509")
    load = x509.load_pem_x509_certificate if content.lstrip().startswith(_PEM) else x509.load_der_x509_certificate
    try:
        return load(content)
    except ValueError as error:
        raise SignatureRefused(f"{signer} is no X.509 certificate", hint="put it there in PEM or DER") from error


def _may_sign(certificate: Any) -> bool:
    """Whether its key usage, if it has one, allows signatures of content (RFC 5280, 4.2.1.3)."""
    x509 = _library("x509")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except ValueError:  # an extension that cannot be read may forbid it
        return False
    return bool(usage.digital_signature or usage.content_commitment)


def _key_type(key: Any) -> str | None:
    """As OpenStack calls the way in which this key signs."""
    asymmetric = "hazmat.primitives.asymmetric"
    if isinstance(key, _library(f"{asymmetric}.rsa").RSAPublicKey):
        return "RSA-PSS"
    if isinstance(key, _library(f"{asymmetric}.dsa").DSAPublicKey):
        return "DSA"
    if isinstance(key, _library(f"{asymmetric}.ec").EllipticCurvePublicKey):
        return f"ECC_{key.curve.name.upper()}"
    return None


def _library(module: str) -> Any:
    try:
        return import_module(f"cryptography.{module}")
    except ImportError as error:
        raise ExtraMissing("the cryptography package is not installed", hint="pip install 'underlay[glance]'") from error
