"""An image's signature, as its properties in Glance have it, and the certificate that it names.

The properties are OpenStack's (docs.openstack.org/glance, *Image Signature Verification*). There the certificate comes from a
key manager; here it is a file of a configured directory, ``UUID.pem`` or ``UUID.crt``.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from underlay.errors import ConfigError, SignatureRefused
from underlay.model import Signature
from underlay.signatures import HASH_METHODS, trusted_certificate

_SIGNATURE = "img_signature"
_HASH_METHOD = "img_signature_hash_method"
_KEY_TYPE = "img_signature_key_type"
_CERTIFICATE = "img_signature_certificate_uuid"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LONGEST = 40  # characters of a property that a message repeats


def signature_of(what: str, properties: Mapping[str, str], *, certificates: Path, now: datetime) -> Signature:
    """The signature that the image's bytes must have.

    Args:
        certificates: the directory of those that are trusted.

    Raises:
        SignatureRefused: it is not signed, or not by what is trusted now. ConfigError: the directory. ExtraMissing
    """
    if missing := [name for name in (_SIGNATURE, _HASH_METHOD, _KEY_TYPE, _CERTIFICATE) if not properties.get(name)]:
        raise SignatureRefused(
            f"{what} is not signed: it has no {', '.join(missing)}", hint="sign it, or set verify_signatures = false"
        )
    method, key_type = properties[_HASH_METHOD], properties[_KEY_TYPE]
    if method not in HASH_METHODS:
        known = ", ".join(HASH_METHODS)
        raise SignatureRefused(
            f"{what} is signed by an unknown digest: {_HASH_METHOD} is {method[:_LONGEST]!r}", hint=f"known: {known}"
        )
    uuid = properties[_CERTIFICATE].lower()
    signer = f"the certificate {uuid[:_LONGEST]}"
    return Signature(
        value=_decoded(what, properties[_SIGNATURE]),
        algorithm=HASH_METHODS[method],
        key_type=key_type,
        certificate=trusted_certificate(_content(what, certificates, uuid), signer=signer, key_type=key_type, now=now),
        signer=signer,
    )


def _decoded(what: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise SignatureRefused(f"{what} is not signed: its {_SIGNATURE} is no base64") from error


def _content(what: str, certificates: Path, uuid: str) -> bytes:
    if not _UUID.fullmatch(uuid):  # it becomes a part of a path
        raise SignatureRefused(f"{what} is signed by nobody: {_CERTIFICATE} is no UUID")
    for path in (certificates / f"{uuid}.pem", certificates / f"{uuid}.crt"):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}", hint="correct certificates") from error
    raise SignatureRefused(
        f"{what} is signed by the certificate {uuid}, which is not trusted here",
        hint=f"if it is to be trusted, put it there: {certificates / uuid}.pem",
    )
