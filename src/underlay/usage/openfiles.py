"""Who has a file open: a lease that the kernel refuses, QEMU's lock bytes, and where those prove nothing the processes.

The one probe that costs something for each file, so it is asked last, of the files that are about to go.
"""

import itertools
import os
import random
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from underlay import locks
from underlay.errors import UnderlayError
from underlay.files import translated
from underlay.filesystems import file_system
from underlay.plan import Inventory, Observed, Use

_PAUSES = (0.001, 0.002, 0.004, 0.008, 0.016)  # seconds; another pass holds a file open for some microseconds
_FIRST_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO: the machine's own processes, as opposed to a container's

_Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class OpenFilesProbe:
    """Asks of some files whether anybody has them open.

    Attributes:
        paths: where each file is now, by cache directory and name.
    """

    paths: Mapping[tuple[Path, str], Path]

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """The files that are open, or of which that cannot be told."""
        told = opened(self.paths.values())
        uses = []
        for (root, name), path in self.paths.items():
            answer = told[path]
            if answer:
                uses.append(Use(root, name, "open", "a program reads it now"))
            elif answer is None:
                uses.append(Use(root, name, "open-unknown", "it cannot be told whether it is open", sure=False))
        return Observed(uses=uses)


def is_open(path: Path) -> bool | None:
    """Whether anybody has the file open; None: not known.

    Raises:
        CacheMissing, CacheNotWritable, StorageFailed: it cannot be looked at.
    """
    with translated(path):
        os.lstat(path)
    return opened([path])[path]


def opened(paths: Iterable[Path]) -> Mapping[Path, bool | None]:
    """As `is_open` of several files; one that is gone is not open, one that cannot be looked at is not known.

    Who asks has the file open while it asks. So what seems to be open is asked of again a little later, else two passes that
    meet would take each other for users.
    """
    told = {path: _by_kernel(path) for path in paths}
    for pause in _PAUSES:
        if not (held := [path for path, answer in told.items() if answer]):
            break
        time.sleep(pause * random.uniform(0.5, 1.5))
        told |= {path: _by_kernel(path) for path in held}
    if left := [path for path, answer in told.items() if answer is None]:
        told |= _by_processes(left)
    return told


def _by_kernel(path: Path) -> bool | None:
    try:
        with translated(path):
            return locks.opened_elsewhere(path)
    except UnderlayError:
        return None if os.path.lexists(path) else False


def _by_processes(paths: Sequence[Path]) -> dict[Path, bool | None]:
    """What the processes of this machine say, where a lease says nothing.

    That no process has a file open proves it closed only for who sees every process, on a file system that no other host
    mounts, or on one where other hosts' QEMU shows its locks.
    """
    wanted: dict[_Identity, list[Path]] = {}
    told: dict[Path, bool | None] = dict.fromkeys(paths)
    for path in paths:
        with suppress(OSError):
            status = os.stat(path, follow_symlinks=False)
            wanted.setdefault((status.st_dev, status.st_ino), []).append(path)
    held = set(_held_files())
    sees_all = _sees_every_process()
    for identity, those in wanted.items():
        for path in those:
            told[path] = True if identity in held else (False if sees_all and _is_told_by_processes(path) else None)
    return told


def _is_told_by_processes(path: Path) -> bool:
    try:
        found = file_system(path.parent)
    except OSError:
        return False
    if found.is_shared:
        return found.locks_reach_other_hosts
    return bool(found.kind) and not found.kind.startswith("fuse")


def _sees_every_process() -> bool:
    with suppress(OSError):
        return os.geteuid() == 0 and os.stat("/proc/self/ns/pid").st_ino == _FIRST_NAMESPACE
    return False


def _held_files() -> Iterator[_Identity]:
    """Device and inode of every file that a process we may look into has open or in its memory, or that a loop device has."""
    for directory in itertools.chain.from_iterable(Path("/proc").glob(f"[0-9]*/{kind}") for kind in ("fd", "map_files")):
        with suppress(OSError), os.scandir(directory) as entries:
            for entry in entries:
                with suppress(OSError):  # closed meanwhile
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        yield status.st_dev, status.st_ino
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            status = os.stat(backing.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n"))
            yield status.st_dev, status.st_ino
