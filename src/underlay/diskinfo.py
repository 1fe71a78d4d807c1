"""Nova's ``disk.info``: one JSON object in each instance directory, path of a disk to its format.

It keeps a guest from turning its raw disk into a qcow2: what is written here is believed before what is found on the disk. The
caller holds the directory's lock.
"""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from underlay.errors import DiskUnrecorded
from underlay.files import create, sync_directory, write_all

NAME = "disk.info"
_NOVAS = {"parallels": "ploop"}  # what Nova, and libvirt, call formats that QEMU calls otherwise
_QEMUS = {theirs: ours for ours, theirs in _NOVAS.items()}
_MODE = 0o644
_USUAL_BYTES = 16 << 10


def recorded_format(disk: Path) -> str | None:
    """The format that the directory records for a disk, in QEMU's word, or None.

    Raises:
        DiskUnrecorded: the record cannot be read, so nothing may be concluded from it.
    """
    noted = _read(disk.parent).get(os.fspath(disk))
    return None if noted is None else _QEMUS.get(noted, noted)


def mentions(directory: str, disk_format: str) -> bool:
    """Whether the directory's record may say of a disk that it has this format: a cheap look, for who has many directories.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(f"{directory}/{NAME}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        noted = f'"{_NOVAS.get(disk_format, disk_format)}"'.encode()
        return noted in os.read(fd, _USUAL_BYTES + 1) or os.fstat(fd).st_size > _USUAL_BYTES
    finally:
        os.close(fd)


def record(disk: Path, disk_format: str) -> None:
    """Record a disk's format, durably.

    Raises:
        DiskUnrecorded, OSError
    """
    formats, noted = _read(disk.parent), _NOVAS.get(disk_format, disk_format)
    if formats.get(os.fspath(disk)) != noted:
        _write(disk.parent, formats | {os.fspath(disk): noted})


def forget(disk: Path) -> None:
    """Drop a disk's record; the file goes with the last one.

    Raises:
        DiskUnrecorded, OSError
    """
    formats = _read(disk.parent)
    if formats.pop(os.fspath(disk), None) is None:
        return
    if formats:
        _write(disk.parent, formats)
    else:
        (disk.parent / NAME).unlink()


def _read(directory: Path) -> dict[str, str]:
    try:
        content = (directory / NAME).read_bytes()
    except FileNotFoundError:
        return {}
    if not content.strip():  # Nova opens the file into being before it writes the first record
        return {}
    try:
        return msgspec.json.decode(content, type=dict[str, str])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DiskUnrecorded(f"{directory / NAME} cannot be read: {error}", hint="restore it, or remove it") from error


def _write(directory: Path, formats: dict[str, str]) -> None:
    # Nova's own two steps and names, so that a crash of either leaves what the other expects.
    temporary = directory / f"{NAME}.tmp"
    with suppress(FileNotFoundError):
        temporary.unlink()
    fd = create(temporary, _MODE)  # crash: a temporary that the next writer replaces
    try:
        try:
            write_all(fd, msgspec.json.encode(formats))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, directory / NAME)  # crash: the old record or the new one
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_directory(directory)
