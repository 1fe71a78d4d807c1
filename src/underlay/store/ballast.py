"""A little room that each cache keeps for itself, to be thrown off when the file system is full to the last block.

To remove a file safely takes a lock file, a marker, a record: without a block for them nothing could ever be removed.
"""

import os
from contextlib import suppress

from underlay.files import create
from underlay.naming import CachePaths

BALLAST_BYTES = 256 << 10


def keep(paths: CachePaths) -> None:
    """Take the ballast on again, if there is room and we may; it is no harm when there is none."""
    path = paths.ballast
    with suppress(OSError):
        fd = create(path, 0o600)  # crash: an empty or partial ballast, thrown off like a whole one
        try:
            os.posix_fallocate(fd, 0, BALLAST_BYTES)
        except OSError:
            os.unlink(path)
        finally:
            os.close(fd)


def throw_off(paths: CachePaths) -> bool:
    """Make the ballast's room free; whether there was any."""
    try:
        os.unlink(paths.ballast)
    except OSError:
        return False
    return True
