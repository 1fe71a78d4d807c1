"""A cache directory as a whole: its rules, its private directory, and the record that says how it is laid out."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import msgspec

from underlay import locks
from underlay.errors import CacheMissing, LayoutDisagrees, UnknownLayout
from underlay.files import keep_directory, sync_directory, translated, write_durably
from underlay.model import DEFAULT_VIRTUAL_SIZE_LIMIT, LAYOUT
from underlay.naming import CacheKind, CachePaths
from underlay.store import ballast

# Group-writable with the group kept: a member of the directory's group may lock, mark a use and root a disk, though it may
# not touch an image.
_SHARED_MODE, _OPEN_MODE, _PRIVATE_MODE = 0o2775, 0o755, 0o700


class Store(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One cache directory and the rules for its images.

    Attributes:
        force_raw: anything but raw is converted, and an unrecorded image of another format is refused.
        validation: whether images are inspected; False for kernels, ramdisks and boot ISOs.
        nova_locks: the directory of Nova's lock files when the cache lies beside a Nova, else None.
        lock_timeout: seconds to wait for an image's lock.
        rival_lock: takes Nova's lock of a name at once or not at all, and yields whether it has it: for a process in which
            Nova's own code takes such locks, and would lose them all when a descriptor of ours is closed (fcntl(2)).
    """

    root: Path
    kind: CacheKind
    force_raw: bool = True
    validation: bool = True
    virtual_size_limit: int = DEFAULT_VIRTUAL_SIZE_LIMIT
    nova_locks: Path | None = None
    nova_lock_prefix: str = "nova-"
    lock_timeout: float = 120.0
    rival_lock: Callable[[str], AbstractContextManager[bool]] | None = None

    @cached_property
    def paths(self) -> CachePaths:
        """Where everything in it is."""
        return CachePaths(self.root)

    def check(self) -> bool:
        """Whether the directory is laid out already; nothing is changed.

        Raises:
            CacheMissing: no such directory.
            UnknownLayout, LayoutDisagrees: laid out by another version, or for another lock directory.
        """
        with translated(self.root):
            if not self.root.is_dir():
                raise CacheMissing(
                    f"the cache directory {self.root} is not there", hint="make it, or correct the configuration"
                )
            try:
                content = self.paths.format.read_bytes()
            except FileNotFoundError:
                return False
        self._check_format(content)
        return True

    def prepare(self) -> None:
        """Lay the directory out, unless it is.

        Raises:
            as `check`; CacheNotWritable, InsufficientSpace, LockTimeout
        """
        if self.check():
            return
        with translated(self.root):
            # A crash between these lines leaves directories that the next call completes.
            keep_directory(self.paths.private, _OPEN_MODE)
            for directory, mode in self._directories():
                keep_directory(directory, mode)
            sync_directory(self.root)
            with locks.exclusive(self.paths.layout_lock, timeout=self.lock_timeout):
                if not self.check():
                    ballast.keep(self.paths)
                    write_durably(self.paths.format, msgspec.json.encode(self._format()), mode=0o644)  # crash: laid out

    def _directories(self) -> Sequence[tuple[Path, int]]:
        paths = self.paths
        shared = (paths.locks, paths.used, paths.leases, paths.disks, paths.instances)
        return [
            *((path, _SHARED_MODE) for path in shared),
            (paths.refs, _OPEN_MODE),
            (paths.tmp, _PRIVATE_MODE),
            (paths.trash, _PRIVATE_MODE),
        ]

    def _format(self) -> dict[str, int | str | None]:
        return {"layout": LAYOUT, "nova_locks": str(self.nova_locks) if self.nova_locks else None}

    def _check_format(self, content: bytes) -> None:
        try:
            found = msgspec.json.decode(content, type=dict[str, int | str | None])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise UnknownLayout(
                f"{self.paths.format} cannot be read: {error}", hint="it was not written by Underlay"
            ) from error
        if found.get("layout") != LAYOUT:
            raise UnknownLayout(
                f"{self.root} has the layout {found.get('layout')}, this version of Underlay knows {LAYOUT}",
                hint="use the version that made it, or a newer one",
            )
        wanted = self._format()["nova_locks"]
        if found.get("nova_locks") != wanted:
            raise LayoutDisagrees(
                f"{self.root} is locked with {found.get('nova_locks')}, the configuration says {wanted}",
                hint="two processes with different locks do not exclude each other: correct the configuration",
            )
