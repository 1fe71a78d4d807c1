"""Keys' certificates and signatures, as whoever publishes an image makes them."""

from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

_USES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def certificate(key: Any, *, begins: datetime, ends: datetime, use: str | None = None) -> bytes:
    """A certificate of the key by itself, in PEM; for one use only, or for all."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a publisher of images")])
    made = x509.CertificateBuilder(issuer_name=name, subject_name=name, public_key=key.public_key())
    made = made.serial_number(1).not_valid_before(min(begins, ends)).not_valid_after(max(begins, ends))
    if use is not None:
        usage = x509.KeyUsage(**{one: one == use for one in _USES})
        made = made.add_extension(usage, critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return made.sign(key, algorithm).public_bytes(Encoding.PEM)


def sign(key: Any, content: bytes, *, algorithm: str = "sha256") -> bytes:
    """A signature as OpenStack has it, by the kind of key."""
    how = getattr(hashes, algorithm.upper())()
    if isinstance(key, rsa.RSAPrivateKey):
        pss = padding.PSS(mgf=padding.MGF1(how), salt_length=padding.PSS.MAX_LENGTH)
        value: bytes = key.sign(content, pss, how)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        value = key.sign(content, ec.ECDSA(how))
    else:
        value = key.sign(content, how)
    return value
