"""A little room that each cache keeps for itself, to be thrown off when the file system is full to the last block.

To remove a file safely takes a lock file, a marker, a record: without a block for them nothing could ever be removed.
"""

import os
from contextlib import suppress

from underlay.files import create, open_regular
from underlay.naming import CachePaths

BALLAST_BYTES = 256 << 10


def keep(paths: CachePaths) -> None:
    """Take the ballast on again, if there is room and we may; it is no harm when there is none."""
    with suppress(OSError):
        with suppress(FileExistsError):
            os.close(create(paths.ballast, 0o600))  # crash: an empty ballast, which the next who keeps it fills
        fd = open_regular(paths.ballast, os.O_RDWR)
        try:
            os.posix_fallocate(fd, 0, BALLAST_BYTES)
        finally:
            os.close(fd)


def throw_off(paths: CachePaths) -> bool:
    """Make the ballast's room free; whether there was any."""
    try:
        os.unlink(paths.ballast)
    except OSError:
        return False
    return True
