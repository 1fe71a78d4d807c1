"""What a third party sets up for the suite: its backend, the storage behind it, a guest's eyes and hands, and troubles."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from underlay.contracts import DiskBackend
from underlay.model import ImageVersion, InstanceDisk


@dataclass(frozen=True, slots=True)
class Full:
    """The storage has no room for anything more. It has again when the block ends."""


@dataclass(frozen=True, slots=True)
class Away:
    """The storage does not answer, or is not there. It is back, with all that was in it, when the block ends."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A disk can be held open, as a running guest holds it, and the backend tells whether one is."""


@dataclass(frozen=True, slots=True)
class Killed:
    """Another process can make a disk in the storage, and be killed while it does."""


@dataclass(frozen=True, slots=True)
class Cloned:
    """The storage can have an image of its own, for disks to be cloned from."""


Trouble = Full | Away

ABILITIES: tuple[type, ...] = (Full, Away, Opened, Killed, Cloned)
"""Everything that a case may need of a storage."""


class Stage(Protocol):
    """A backend to be tried, with a real storage behind it.

    Cases may share a stage: each makes disks of its own, and removes them. None of them runs beside another.
    """

    cannot: ClassVar[Mapping[type, str]]
    """Which of `ABILITIES` this kind of storage cannot have, each with the reason: a directory does not stop answering."""

    @property
    def backend(self) -> DiskBackend:
        """The backend, with short time-outs."""
        ...

    @property
    def directory(self) -> Path:
        """A directory of this host for the suite: for a cache, and for disks that are files. Empty for the first case."""
        ...

    @property
    def granularity(self) -> int:
        """Bytes of which the storage makes each disk's size a multiple: 512, or what its extents have."""
        ...

    @property
    def patience(self) -> float:
        """Seconds within which the backend gives up on a storage that says nothing."""
        ...

    def read(self, disk: InstanceDisk) -> bytes:
        """Everything that the disk's guest sees, read without the backend. `guest_bytes` does it for files."""
        ...

    def write(self, disk: InstanceDisk, offset: int, content: bytes) -> None:
        """Write as the disk's guest does. `guest_writes` does it for files."""
        ...

    def left(self) -> frozenset[str]:
        """The name of everything that is in the storage now: disks, and what the making of disks may leave."""
        ...

    def opened(self, disk: InstanceDisk) -> AbstractContextManager[None]:
        """Hold the disk open while the block lasts."""
        ...

    def trouble(self, trouble: Trouble) -> AbstractContextManager[None]:
        """While the block lasts, this is the matter with the storage. One of which ``cannot`` speaks is never asked for."""
        ...

    def cloneable(self, content: bytes) -> ImageVersion:
        """An image of these bytes in the storage itself: a version whose ``id`` is unique and whose ``locations`` have it."""
        ...
