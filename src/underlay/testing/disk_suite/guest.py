"""A guest's eyes and hands on a disk that is a file, for stages: through the disk's whole chain, with its recorded format."""

import os
import tempfile
from pathlib import Path

from underlay import fileview, qemuimg
from underlay.files import write_at
from underlay.model import InstanceDisk
from underlay.run import Limits, run

_QEMU_IO = Limits(seconds=60)


def guest_bytes(disk: InstanceDisk) -> bytes:
    """Everything that a disk's guest sees.

    Raises:
        DiskUnrecorded, ToolMissing, ToolFailed
    """
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "raw"
        qemuimg.convert(fileview.chain(disk), target, format="raw")
        return target.read_bytes()


def guest_writes(disk: InstanceDisk, offset: int, content: bytes) -> None:
    """Write as a disk's guest does; at most so much that it fits a command of qemu-io, in whole sectors if it is no raw disk.

    Raises:
        ToolMissing, ToolFailed
    """
    if disk.format == "raw":
        fd = os.open(disk.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_at(fd, content, offset)
        finally:
            os.close(fd)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = f"write -s {file.name} {offset} {len(content)}"
        run(["qemu-io", "-f", disk.format or "raw", "-c", command, disk.path], limits=_QEMU_IO)
