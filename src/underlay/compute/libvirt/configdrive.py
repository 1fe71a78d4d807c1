"""A config drive: a small ISO 9660 image with the label ``config-2``, in which a guest finds what it is told about itself."""

from collections.abc import Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from underlay.errors import ExtraMissing
from underlay.files import translated, write_durably

LABEL = "config-2"
"""By which guests find it; ``config-2`` is OpenStack's word for its second layout."""

_MODE = 0o600  # it may hold a password
_JOLIET = 3  # the level that has all of UCS-2
_ROCK_RIDGE = "1.09"


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a config drive with these files, by their relative paths; durably, in place of one that is there.

    Raises:
        ExtraMissing: pycdlib is not installed. CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed
    """
    content = image(files)
    with translated(path):
        write_durably(path, content, mode=_MODE)


def image(files: Mapping[str, bytes]) -> bytes:
    """The bytes of such an image.

    Raises:
        ExtraMissing
    """
    iso = _library().PyCdlib()
    iso.new(interchange_level=3, joliet=_JOLIET, rock_ridge=_ROCK_RIDGE, vol_ident=LABEL)
    try:
        _fill(iso, files)
        written = BytesIO()
        iso.write_fp(written)
    finally:
        iso.close()
    return written.getvalue()


def _fill(iso: Any, files: Mapping[str, bytes]) -> None:
    """Put the files in: by Rock Ridge and Joliet under their own names, by ISO 9660, which has few letters, under numbers."""
    numbers = {"": ""}
    for path in sorted(files):
        for directory in (*reversed([str(one) for one in PurePosixPath(path).parents if str(one) != "."]),):
            if directory not in numbers:
                parent, _, name = directory.rpartition("/")
                numbers[directory] = f"{numbers[parent]}/D{len(numbers)}"
                iso.add_directory(numbers[directory], rr_name=name, joliet_path=f"/{directory}")
    for number, (path, content) in enumerate(sorted(files.items())):
        parent, _, name = path.rpartition("/")
        iso.add_fp(BytesIO(content), len(content), f"{numbers[parent]}/F{number}.;1", rr_name=name, joliet_path=f"/{path}")


def _library() -> Any:
    try:
        return import_module("pycdlib")
    except ImportError as error:
        raise ExtraMissing("pycdlib is not installed", hint="pip install 'underlay[libvirt]'") from error
