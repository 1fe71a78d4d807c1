"""What waits for a disk's storage to see that nobody has the disk open any more.

A storage that hosts share sees who died with a disk open for a while longer: Ceph for 30 s (``osd_client_watch_timeout``).
"""

import time
from collections.abc import Callable
from typing import TypeVar

from underlay import errors, instances
from underlay.host import Host

_Answer = TypeVar("_Answer")
_LONGEST, _POLL = 45.0, 0.5  # seconds


def retried(host: Host, uuid: str, name: str, attempt: Callable[[], _Answer]) -> _Answer:
    """What an attempt returns, which is made again while only a client that may be dead keeps the disk from it.

    Raises:
        DiskInUse: still so after all that time; or something else needs the disk. What ``attempt`` raises.
    """
    deadline = time.monotonic() + _LONGEST
    while True:
        try:
            return attempt()
        except errors.DiskInUse:
            if time.monotonic() >= deadline or not _is_seen_open(host, uuid, name):
                raise
        time.sleep(_POLL)


def _is_seen_open(host: Host, uuid: str, name: str) -> bool:
    spec, backend = instances.find(host.config, uuid, name)
    return backend.traits.shared_storage and backend.is_open(backend.describe(spec)) is True
