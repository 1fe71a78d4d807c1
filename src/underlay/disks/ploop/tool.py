"""The ``ploop`` tool, where the kernel has the driver that it is for: there it describes and checks what was made.

Elsewhere the tool takes no image of today's form for one, and nothing but files is made.

Nor may an image share blocks where the driver is: it asks the file system once where a file's blocks lie, and then writes to
them itself, so nobody gives the file blocks of its own first, and a guest would write into the base image and into all disks
that share with it. Whoever writes through the file system, as QEMU does, gets a block of its own at the first write. A host may
come to have the driver later, and nothing here can tell whether it will; disks of before are to be copied there, as the
documentation says.
"""

import os
import shutil
from pathlib import Path

from underlay.disks.ploop.descriptor import NAME
from underlay.files import adopt, translated
from underlay.run import SEARCH_PATH, Limits, run

_DRIVER = Path("/sys/module/ploop")
_LIMITS = Limits(seconds=600, dies_with_caller=True)
_LOCK = f"{NAME}.lck"  # which the tool leaves behind


def is_usable() -> bool:
    """Whether the kernel has the driver, and the host the tool."""
    return os.path.isdir(_DRIVER) and shutil.which("ploop", path=SEARCH_PATH) is not None


def describe(directory: Path, image: str, *, mode: int) -> None:
    """Have the tool describe an expanding image that it is shown, and check the two.

    Args:
        directory: absolute; of the image, with nothing else in it. mode: of the descriptor.

    Raises:
        ToolFailed: also when the tool finds something wrong. ToolTimedOut; CacheNotWritable, StorageFailed
    """
    run(["ploop", "restore-descriptor", "-f", "expanded", directory, directory / image], limits=_LIMITS)
    run(["ploop", "check", directory / NAME], limits=_LIMITS)
    with translated(directory):
        (directory / _LOCK).unlink(missing_ok=True)
        fd = os.open(directory / NAME, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            adopt(fd, directory, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
