"""An instance's directory: what lies in it, and under which names. They are those of Nova's libvirt driver."""

import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from underlay.compute.errors import InvalidInput
from underlay.errors import CacheMissing, UnderlayError
from underlay.files import make_directory, rename_no_replace, sync_directory, translated

_LOG = logging.getLogger(__name__)

RESCUED = ".rescue"
ROOT, SWAP, RESCUE = "disk", "disk.swap", f"disk{RESCUED}"
KEPT = "_resize"
"""What the name of a directory ends in that a resize keeps; Nova's image cache knows it by this name too."""

_MODE = 0o755
_DOOMED = "_del"
_REMOVALS = 3


@dataclass(frozen=True, slots=True)
class InstanceDirectory:
    """The directory of one instance, which may be there or not.

    Attributes:
        instances: the directory of all of them. uuid: of this one.
    """

    instances: Path
    uuid: str

    @property
    def path(self) -> Path:
        """It."""
        return self.instances / self.uuid

    @property
    def kept(self) -> Path:
        """The instance as it was before a resize, until that is confirmed or reverted."""
        return self.instances / f"{self.uuid}{KEPT}"

    @property
    def doomed(self) -> Path:
        """What is on its way out: nobody takes it for an instance."""
        return self.instances / f"{self.uuid}{_DOOMED}"

    @property
    def console_log(self) -> Path:
        """What the guest wrote since it was started."""
        return self.path / "console.log"

    @property
    def making(self) -> Path:
        """Is there, and locked, while the instance is made; unlocked it is what is left of who was killed."""
        return self.path / "making"

    @property
    def unrescue(self) -> Path:
        """The domain as it was before a rescue."""
        return self.path / "unrescue.xml"

    def config_drive(self, suffix: str = "") -> Path:
        """The config drive, or that of a rescue."""
        return self.path / f"disk.config{suffix}"

    def kernel(self, suffix: str = "") -> Path:
        """The kernel, or that of a rescue."""
        return self.path / f"kernel{suffix}"

    def ramdisk(self, suffix: str = "") -> Path:
        """The ramdisk, or that of a rescue."""
        return self.path / f"ramdisk{suffix}"

    def make(self) -> bool:
        """Make it, durably; whether it was not there.

        Raises:
            CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed
        """
        with translated(self.path):
            is_new = make_directory(self.path, _MODE)
            try:
                sync_directory(self.instances)
            except OSError:
                self.remove_if_empty()
                raise
        return is_new

    def remove_if_empty(self) -> None:
        """Remove it unless something is in it."""
        with suppress(OSError):
            self.path.rmdir()

    def is_claimed(self) -> bool:
        """Whether `making` is there, locked or not.

        Raises:
            CacheNotWritable, StorageFailed: it cannot be told.
        """
        with translated(self.making):
            try:
                os.lstat(self.making)
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def remove_extras(self) -> None:
        """Remove kernels, ramdisks, config drives, and what a rescue put there; not the disks.

        Raises:
            CacheNotWritable, StorageFailed
        """
        with translated(self.path):
            for suffix in ("", RESCUED):
                for left in (self.kernel(suffix), self.ramdisk(suffix), self.config_drive(suffix)):
                    left.unlink(missing_ok=True)
            self.unrescue.unlink(missing_ok=True)

    def remove(self) -> bool:
        """Remove it with all that is in it; whether nothing of it is left.

        It is renamed first, so that nobody takes half of it for an instance. Safe to repeat.
        """
        return self._remove(self.path)

    def remove_doomed(self) -> bool:
        """Remove what an interrupted removal has left; whether nothing of that is left."""
        shutil.rmtree(self.doomed, ignore_errors=True)
        return not os.path.lexists(self.doomed)

    def remove_kept(self) -> bool:
        """Remove what a resize keeps of the instance as it was; whether nothing of it is left. As `remove`."""
        return self._remove(self.kept)

    def remove_both(self) -> bool:
        """Remove it and what a resize keeps of it; whether nothing of either is left.

        A resize that goes on may meanwhile give the one the name of the other, so both are looked for again.
        """
        return any(self.remove() and self.remove_kept() and not os.path.lexists(self.path) for _ in range(_REMOVALS))

    def _remove(self, path: Path) -> bool:
        with suppress(OSError):
            rename_over_doomed(path, self.doomed)
        for left in (self.doomed, path):
            shutil.rmtree(left, ignore_errors=True)
        return not any(os.path.lexists(left) for left in (self.doomed, path))


def directory_of(instances: Path, uuid: str) -> InstanceDirectory:
    """The directory of an instance.

    Raises:
        InvalidInput: its UUID is none, and could lead anywhere.
    """
    try:
        plain = str(UUID(uuid))
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(reason=f"{uuid!r} is no UUID of an instance") from error
    if plain != uuid:
        raise InvalidInput(reason=f"{uuid!r} is not how the UUID {plain} is written")
    return InstanceDirectory(instances, uuid)


def interrupted(instances: Path) -> list[InstanceDirectory]:
    """The directories of instances that are being made, or were when their maker was killed.

    One that cannot be looked at is told in the log, and left as it is.

    Raises:
        CacheNotWritable, StorageFailed: of all of them.
    """
    try:
        with translated(instances):
            names = sorted(os.listdir(instances))
    except CacheMissing:
        return []
    return [directory for directory in _named(instances, names) if _is_claimed(directory)]


def _named(instances: Path, names: Iterable[str]) -> Iterator[InstanceDirectory]:
    for name in names:
        with suppress(InvalidInput):
            yield directory_of(instances, name)


def _is_claimed(directory: InstanceDirectory) -> bool:
    try:
        return directory.is_claimed()
    except UnderlayError as error:
        _LOG.warning("whether the instance %s was half made cannot be told: %s", directory.uuid, error)
        return False


def rename_durably(source: Path, target: Path) -> None:
    """Give an instance's directory another name; what is there already stays, and even an empty directory is somebody's.

    Raises:
        FileExistsError, OSError
    """
    sys.audit("os.rename", source, target, -1, -1)  # whoever hears of renames hears of this one
    rename_no_replace(source, target)  # crash: one of the two names, with all that is in it; who comes next goes by which
    sync_directory(target.parent)  # so that what is done under the new name is never found under the old one


def rename_over_doomed(source: Path, target: Path) -> None:
    """As `rename_durably`, to what is on its way out, in place of what an earlier removal left there.

    Raises:
        OSError
    """
    try:
        rename_durably(source, target)
    except FileExistsError:
        shutil.rmtree(target, ignore_errors=True)  # an earlier removal that got no further
        rename_durably(source, target)


def remove_doomed(instances: Path) -> None:
    """Remove what is left of directories whose removal was interrupted."""
    with suppress(OSError):
        for name in os.listdir(instances):
            with suppress(InvalidInput):
                directory_of(instances, name.removesuffix(_DOOMED))
                if name.endswith(_DOOMED):
                    shutil.rmtree(instances / name, ignore_errors=True)
