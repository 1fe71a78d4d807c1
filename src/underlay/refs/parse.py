"""Which scheme a text is of, and what all refs have in common."""

import json
import re

from underlay.errors import InvalidRef
from underlay.model import ImageRef
from underlay.refs.file import file_ref
from underlay.refs.glance import UUID, glance_ref, uuid_ref
from underlay.refs.objects import BUCKETS, object_ref
from underlay.refs.oci import oci_ref
from underlay.refs.simplestreams import simplestreams_ref
from underlay.refs.text import shown, without_userinfo
from underlay.refs.web import DEFAULT_PORTS, web_ref

MAX_LENGTH = 1024
"""Bytes of a canonical ref as JSON writes them: two of them must fit an image's record (docs/design, metadata)."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.IGNORECASE | re.DOTALL)


def parse_ref(text: str) -> ImageRef:
    """Read a ref: a bare UUID or ``glance:…``, ``file:///path``, ``https://…``, ``oci://…``, ``s3://bucket/key``, or another's.

    Raises:
        InvalidRef: not a ref, or longer than `MAX_LENGTH` bytes in its canonical spelling.
    """
    ref = _parse(text.strip())
    if len(json.dumps(ref.canonical, ensure_ascii=False).encode()) - 2 > MAX_LENGTH:
        raise InvalidRef(f"the ref {ref.canonical[:40]}… is longer than {MAX_LENGTH} bytes")
    return ref


def is_ref(text: str) -> bool:
    """Whether a text has the form of a ref, as opposed to a file name or path."""
    return bool(UUID.fullmatch(text) or (_SCHEME.fullmatch(text) and not text.startswith("/")))


def _parse(text: str) -> ImageRef:
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise InvalidRef(f"the ref {shown(text)!r} has control characters")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRef(f"the ref {shown(text)!r} is not UTF-8", hint="write %XX for each byte")
    if UUID.fullmatch(text):
        return uuid_ref(text)
    match = _SCHEME.fullmatch(text)
    if not match:
        raise InvalidRef(
            f"{shown(text)!r} is no image ref", hint="write https://…, file:///absolute/path or a Glance image's UUID"
        )
    scheme, rest = match[1].lower(), match[2]
    if scheme in DEFAULT_PORTS:
        return web_ref(scheme, text)
    if scheme == "file":
        return file_ref(text, rest)
    if scheme in BUCKETS:
        return object_ref(scheme, rest)
    if scheme == "glance":
        return glance_ref(text, rest)
    if scheme == "oci":
        return oci_ref(text, rest)
    if scheme == "simplestreams":
        return simplestreams_ref(rest)
    if not rest:
        raise InvalidRef(f"the ref {text!r} names nothing after its scheme")
    return ImageRef(scheme=scheme, canonical=without_userinfo(f"{scheme}:{rest}"), location=f"{scheme}:{rest}")
