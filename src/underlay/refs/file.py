"""Refs to files of this host: ``file:///absolute/path``."""

from urllib.parse import quote, unquote_to_bytes

from underlay.errors import InvalidRef
from underlay.model import ImageRef


def file_ref(text: str, rest: str) -> ImageRef:
    """Read what stands behind ``file:``.

    Raises:
        InvalidRef
    """
    # A path is bytes to the system, of any encoding.
    path = unquote_to_bytes(rest[2:]).decode(errors="surrogateescape")
    if not rest.startswith("///") or rest.startswith("////") or "\0" in path:
        raise InvalidRef(f"{text!r} is no file ref", hint="write file:///absolute/path")
    if path.endswith("/") or any(part in ("", ".", "..") for part in path.split("/")[1:]):
        raise InvalidRef(f"the file ref {text!r} is not a plain absolute path", hint="leave out '.', '..' and empty parts")
    return ImageRef(scheme="file", canonical="file://" + quote(path.encode(errors="surrogateescape")), location=path)
