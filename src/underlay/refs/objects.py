"""Refs to objects in a store: ``s3://bucket/key``, ``gs://bucket/key``, ``az://container/key``, each perhaps of one version."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import quote, unquote, unquote_to_bytes

import msgspec

from underlay.errors import InvalidRef
from underlay.model import ImageRef

# What buckets may be called, by the rules of each service; Azure calls one a container.
BUCKETS: Mapping[str, str] = MappingProxyType(
    {
        "s3": r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
        "gs": r"(?!.*\.\.)[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]",
        "az": r"\$root|\$web|(?=.{3,63}$)[a-z0-9]+(-[a-z0-9]+)*",
    }
)
# The query parameter by which each service names one version of an object, and what it may be.
_VERSIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "s3": ("versionId", r"[!-~]{1,1024}"),
        "gs": ("generation", r"[0-9]{1,20}"),
        "az": ("versionid", r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,20}Z"),
    }
)
_KEY_LENGTH = 1024  # bytes of an object's name; the services have one limit
_IN_KEYS = "/!$&'()*+,;=:@"  # what stays as it is in a path (RFC 3986, 3.3)


class ObjectName(msgspec.Struct, frozen=True, kw_only=True):
    """What a ref to an object in a store names.

    Attributes:
        key: the object's name as the store has it, decoded.
        version: the one that the ref asks for, or None for what is there now.
    """

    bucket: str
    key: str
    version: str | None


def object_name(ref: ImageRef) -> ObjectName:
    """What a ref of the schemes s3, gs and az names."""
    path, _, query = ref.canonical.partition("?")
    bucket, _, key = path.removeprefix(f"{ref.scheme}://").partition("/")
    return ObjectName(bucket=bucket, key=unquote(key), version=unquote(query.partition("=")[2]) or None)


def object_ref(scheme: str, rest: str) -> ImageRef:
    """Read what stands behind one of the schemes of `BUCKETS`.

    Raises:
        InvalidRef
    """
    # Whatever is no such ref may hold keys or a signature anywhere, so no message repeats it.
    path, question, query = rest.partition("?")
    bucket, _, name = path.removeprefix("//").partition("/")
    if not rest.startswith("//") or not re.fullmatch(BUCKETS[scheme], bucket):
        hint = f"write {scheme}://BUCKET/KEY, without credentials, and the bucket's name as its service allows it"
        raise InvalidRef(f"the {scheme} ref names no bucket", hint=hint)
    key = _key(scheme, name)
    version = f"?{_version(scheme, query)}" if question else ""
    canonical = f"{scheme}://{bucket}/{quote(key, safe=_IN_KEYS)}{version}"
    return ImageRef(scheme=scheme, canonical=canonical, location=canonical)


def _key(scheme: str, name: str) -> str:
    try:
        key = unquote_to_bytes(name).decode()
    except UnicodeDecodeError as error:
        raise InvalidRef(f"the key of the {scheme} ref is not UTF-8") from error
    if "#" in name:
        raise InvalidRef(f"the key of the {scheme} ref ends at a '#'", hint="write %23 for one that belongs to the key")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in key):
        raise InvalidRef(f"the key of the {scheme} ref has control characters")
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise InvalidRef(f"the key of the {scheme} ref has '.', '..' or an empty part", hint="give the object a plain name")
    if len(key.encode()) > _KEY_LENGTH:
        raise InvalidRef(f"the key of the {scheme} ref is longer than {_KEY_LENGTH} bytes")
    return key


def _version(scheme: str, query: str) -> str:
    name, form = _VERSIONS[scheme]
    given, _, value = query.partition("=")
    version = unquote(value)
    if given.lower() != name.lower() or "&" in value or not re.fullmatch(form, version):
        raise InvalidRef(
            f"the query of the {scheme} ref names no version of an object",
            hint=f"write ?{name}=VERSION alone; a signed URL is an https ref",
        )
    return f"{name}={quote(version, safe='')}"
