"""What a disk that is a file shows its guest, read through its whole chain: written out, taken in, put on another base.

qemu-img does the work, and is told the format of each file of the chain, which it never guesses: the disk's is the recorded
one, a backing file's is the one that the overlay records. A chain in which one is missing is refused.
"""

import os
from pathlib import Path

from underlay import filedisk, qemuimg
from underlay.errors import DiskUnrecorded, StorageFailed, UnsafeImage
from underlay.files import open_regular, translated
from underlay.formats import qcow2
from underlay.model import BaseImage, DiskRecord, Extraction, InstanceDisk
from underlay.qemuimg import Node

_LONGEST = 64  # files in a chain


def extract(disk: InstanceDisk, target: Path, want: Extraction) -> None:
    """Write what the guest sees into a new file.

    Raises:
        DiskUnrecorded, ToolMissing, ToolFailed, ToolTimedOut, InsufficientSpace
    """
    write_out(chain(disk), target, want)


def write_out(node: Node, target: Path, want: Extraction) -> None:
    """As `extract`, of a file or a chain whose formats are known.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut, InsufficientSpace, StorageFailed
    """
    with translated(target):
        qemuimg.convert(node, target, format=want.format, compressed=want.compressed)
        if want.format != "raw":
            prove(node, qemuimg.node(target, format=want.format) | {"backing": None}, target)


def flatten(disk: InstanceDisk) -> None:
    """Have an overlay hold all that its guest sees; one that has no backing file is left as it is.

    Raises:
        as `extract`; CacheNotWritable, StorageFailed
    """
    node = chain(disk)
    if node.get("backing") is not None:
        with filedisk.rewriting(disk, None) as copy:
            qemuimg.rebase(_at(copy, node), None)
            prove(node, _at(copy, node) | {"backing": None}, disk.path)


def rebase(disk: InstanceDisk, base: BaseImage, record: DiskRecord) -> None:
    """Put an overlay on another base image: what the guest sees stays, so what that base has otherwise is taken in first.

    Args:
        record: what the disk says of itself then.

    Raises:
        as `flatten`
    """
    node = chain(disk)
    with filedisk.rewriting(disk, record) as copy:
        qemuimg.rebase(_at(copy, node), (base.path.absolute(), base.format))
        prove(node, _at(copy, node) | {"backing": qemuimg.node(base.path.absolute(), format=base.format)}, disk.path)


def prove(before: Node, after: Node, path: Path) -> None:
    """Compare what was read with what was written: qemu-img ends well though its last tables could not be written.

    Raises:
        StorageFailed
    """
    if not qemuimg.shows_the_same(before, after):
        what = f"what was written for {path} is not what the disk holds"
        raise StorageFailed(what, hint="look into the kernel's log for errors of that file system")


def _at(copy: Path, node: Node) -> Node:
    """A chain with another file at its top."""
    return node | {"file": qemuimg.node(copy, format="raw")["file"]}


def chain(disk: InstanceDisk) -> Node:
    """The disk with its whole backing chain, as QEMU's ``json:`` names have it.

    Raises:
        DiskUnrecorded: the format of a file in it is not recorded, or it is longer than any that is made.
    """
    disk_format, _ = filedisk.known(disk)
    with translated(disk.path):
        return _node(disk.path.absolute(), disk_format, 0, disk)


def _node(path: Path, file_format: str, depth: int, disk: InstanceDisk) -> Node:
    node = qemuimg.node(path, format=file_format)
    if file_format != "qcow2":
        return node
    if depth > _LONGEST:
        raise DiskUnrecorded(f"the backing chain of {disk.path} has no end", hint="look at it with qemu-img info")
    backing, backing_format = backing_of(path)
    if backing is None:
        return node | {"backing": None}
    if backing_format is None:
        what = f"{path}, of {disk.path}, does not record the format of its backing file"
        raise DiskUnrecorded(what, hint="record it: qemu-img rebase -u -F FORMAT")
    return node | {"backing": _node(backing, backing_format, depth + 1, disk)}


def backing_of(path: Path) -> tuple[Path | None, str | None]:
    """What a qcow2 file reads from, and the format of that, as its header says; None: it says none.

    Raises:
        DiskUnrecorded: it is no sound qcow2 file, or reads from more, or from something else, than one file. OSError
    """
    fd = open_regular(path)
    try:
        beginning = os.pread(fd, qcow2.HEADER_BYTES, 0)
    finally:
        os.close(fd)
    try:
        header = qcow2.parse_header(beginning, what=os.fspath(path))
        name = qcow2.backing_name(beginning, header, what=os.fspath(path))
    except UnsafeImage as error:
        raise DiskUnrecorded(f"{path} is recorded as qcow2, and is none: {error}") from error
    if header.incompatible & qcow2.INCOMPATIBLE_DATA_FILE:
        raise DiskUnrecorded(f"{path} keeps its data in another file, which no disk of ours does")
    if name is not None and ":" in name.partition("/")[0]:
        raise DiskUnrecorded(f"the backing file of {path} is no file of this host: {name}")
    return None if name is None else path.parent / name, qcow2.backing_format(beginning, header)


def sync(path: Path) -> None:
    """Make what a tool wrote to a file or a device durable.

    Raises:
        OSError
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
