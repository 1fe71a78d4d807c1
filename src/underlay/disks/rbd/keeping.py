"""What a disk was is kept as a snapshot of its image, by which it is put back; nothing is copied before that.

The snapshot has the name that Nova's libvirt driver gives its own for a resize.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from underlay.disks.rbd import worklist
from underlay.disks.rbd.looking import look_at_ours
from underlay.disks.rbd.named import ImageName
from underlay.disks.rbd.snapshots import make_snapshot, remove_snapshot
from underlay.errors import DiskNotFound
from underlay.model import DiskSpec
from underlay.waiting import Pulse

_KEPT = "nova-resize"
_BEAT = 1.0  # seconds between two looks whether a Ceph that puts an image back still answers


def keep(image: ImageName, want: DiskSpec) -> None:
    """Keep what a disk is now, in place of what was kept of it before. The caller holds its lock.

    Raises:
        DiskNotFound, DiskUnrecorded, DiskInUse, BackendUnavailable, InsufficientSpace
    """
    look_at_ours(image, want)
    with worklist.changing(image):
        remove_snapshot(image, _KEPT)  # crash: nothing is kept, as before
        make_snapshot(image, _KEPT)


def keeps(image: ImageName, want: DiskSpec) -> bool:
    """Whether anything is kept of a disk."""
    return _KEPT in look_at_ours(image, want).snapshots


def put_back(image: ImageName, want: DiskSpec) -> None:
    """Have a disk be what was kept of it, its size too; that stays kept. The caller holds its lock and knows it is closed.

    A crash leaves a disk that is neither, of which what it was is still kept: this can be repeated.

    Raises:
        DiskNotFound: also when nothing is kept of it. DiskUnrecorded, BackendUnavailable
    """
    if not keeps(image, want):
        raise DiskNotFound(f"nothing is kept of what {image} was")
    pulse = Pulse()
    with worklist.changing(image), image.opened(read_only=False) as opened:

        def roll_back() -> None:
            with _beating(image, pulse):
                opened.rollback_to_snap(_KEPT)

        image.ask(roll_back, pulse=pulse)


def let_go(image: ImageName, want: DiskSpec) -> None:
    """Keep nothing of a disk any more; nothing that is kept, or no disk, is a success. The guest may run on it.

    Raises:
        DiskInUse: something was made from what is kept. DiskUnrecorded, BackendUnavailable
    """
    try:
        is_kept = keeps(image, want)
    except DiskNotFound:
        return
    if is_kept:
        with worklist.changing(image):
            remove_snapshot(image, _KEPT)


@contextmanager
def _beating(image: ImageName, pulse: Pulse) -> Iterator[None]:
    """Work goes on for as long as the Ceph answers anything: how far it is, librbd's bindings do not tell."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_BEAT):
            try:
                image.pool.stat(f"rbd_id.{image.name}")
            except image.cluster.library.rados.Error:
                return
            pulse.beat()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
