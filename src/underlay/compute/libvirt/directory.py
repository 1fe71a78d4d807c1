"""An instance's directory: what lies in it, and under which names. They are those of Nova's libvirt driver."""

import errno
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from underlay.compute.errors import InvalidInput
from underlay.files import make_directory, sync_directory, translated

RESCUED = ".rescue"
ROOT, SWAP, RESCUE = "disk", "disk.swap", f"disk{RESCUED}"
KEPT = "_resize"
"""What the name of a directory ends in that a resize keeps; Nova's image cache knows it by this name too."""

_MODE = 0o755
_DOOMED = "_del"


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
            is_new = not self.path.is_dir()
            if is_new:
                make_directory(self.path, _MODE)
                sync_directory(self.instances)
        return is_new

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

    def remove_kept(self) -> bool:
        """Remove what a resize keeps of the instance as it was; whether nothing of it is left. As `remove`."""
        return self._remove(self.kept)

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
    """The directories of instances that are being made, or were when their maker was killed."""
    try:
        names = sorted(os.listdir(instances))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        with suppress(InvalidInput):
            directory = directory_of(instances, name)
            if directory.making.exists():
                found.append(directory)
    return found


def rename_over_doomed(source: Path, target: Path) -> None:
    """Rename a directory to what is on its way out, in place of what an earlier removal left there.

    Raises:
        OSError
    """
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(target, ignore_errors=True)  # an earlier removal that got no further
        os.rename(source, target)


def remove_doomed(instances: Path) -> None:
    """Remove what is left of directories whose removal was interrupted."""
    with suppress(OSError):
        for name in os.listdir(instances):
            with suppress(InvalidInput):
                directory_of(instances, name.removesuffix(_DOOMED))
                if name.endswith(_DOOMED):
                    shutil.rmtree(instances / name, ignore_errors=True)
