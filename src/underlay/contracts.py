"""The seams of Underlay: what a source, a disk backend and an observer must do. The docstring is the contract.

Protocols only: an adapter does not inherit from anything here. ``underlay.testing`` ships a fake of each, and nothing else
is ever faked in tests.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import msgspec

from underlay.model import (
    Attachment,
    BaseImage,
    DiskSpec,
    Event,
    Extraction,
    ImageRef,
    ImageVersion,
    InstanceDisk,
    InstanceRecord,
    Progress,
)

if TYPE_CHECKING:
    from underlay.plan import Inventory, Observed


class ByteStream(Protocol):
    """The bytes of one image version, in order."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill some of ``buffer`` and return how many bytes; 0 only at the end.

        Raises:
            SourceUnavailable: the transfer broke or stalled; trying again may help.
            BodyTruncated: the end came before the announced size.
        """
        ...


@runtime_checkable
class ClonableStream(ByteStream, Protocol):
    """A stream of bytes that this host has already, in a file whose blocks another may share. A source need not have such."""

    def clone_into(self, target: int) -> bool:
        """Make an empty file, open for writing, share all the bytes of the version, instead of having them read and written.

        Returns:
            False when that cannot be: the file system knows no sharing, or is another one, or the stream does not begin at the
            first byte. Then the target is as it was, and the stream is read. After True it is not read any more: the target
            has the whole version, and none of the changes that come later.

        Raises:
            SourceChanged: the file is not the described version any more, and the target is of no use. OSError: of the target.
        """
        ...


@runtime_checkable
class UnconfirmedStream(ByteStream, Protocol):
    """A stream of which nothing says that it is of the version that was described, when that has a validator.

    A web server may name an ETag in answer to a HEAD and none with the bytes. These are taken, but nobody remembers the
    validator for them, and after a break they are not gone on with by it. A source need not have such.
    """

    @property
    def is_unconfirmed(self) -> bool:
        """True."""
        ...


class ImageSource(Protocol):
    """One kind of place from which images come. Safe to share between threads.

    Its errors name the ref, and what failed; a place that does not answer is named as well. None of them has a secret in it,
    nor in what it came from. `underlay.testing.source_suite` tries whether all of this holds.
    """

    schemes: ClassVar[frozenset[str]]
    """The ref schemes that it serves, in lower case."""

    @property
    def revalidate_after(self) -> float:
        """Seconds for which a description holds before the source must be asked again; 0 asks each time."""
        ...

    @property
    def stale_if_error(self) -> bool:
        """Whether a verified image is served when the source cannot be asked (RFC 5861 has the name)."""
        ...

    def fixed_id(self, ref: ImageRef) -> str | None:
        """The version id when the ref alone fixes it for ever (a Glance UUID, a manifest digest), else None. No I/O."""
        ...

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        """The version id of content whose sha256 as served is known (64 hexadecimal digits). No I/O."""
        ...

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        """What the ref is now, at the cost of one small request.

        Args:
            known: validators of one version that is here, newest last. When the ref still means that version, an answer with
                one of them as its validator is enough.

        Raises:
            ImageNotFound, NotAuthorized, SourceRefused, SourceUnavailable (transient)
        """
        ...

    def open(self, version: ImageVersion, *, offset: int = 0) -> AbstractContextManager[ByteStream]:
        """The bytes as served of exactly this version, from ``offset`` on.

        Nothing is decoded or decompressed on the way. A version that is no longer there is never replaced by another one, and
        one that is replaced while it is read never ends well with bytes of both. At the version's end there is nothing, which
        is no error; beyond it, nothing either, or SourceChanged. An error of who reads passes through as it is.

        Raises:
            as `describe`; SourceChanged when the source now has other bytes.
        """
        ...


class BackendTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What a disk backend is like, as data: what is decided about a backend is decided from these, never from its name.

    Attributes:
        needs_raw: it can only be fed raw images.
        overlays: its disks read from their base image, a file of a cache, for as long as they live, so that has to stay. Where
            this is false, a base image is needed until the disk is made and no longer.
        disk_format: the format of its disks, as QEMU's ``-f`` wants it said.
        on_host_filesystem: its disks are files, or directories of files, where the host wants them. Where this is false they
            lie in a place of the backend's own, which `DiskBackend.place` names.
        shared_storage: other hosts reach the same disks, so a disk may be made, grown or removed without our locks.
        resizable: a disk can be grown. rebases: it can be put on another base image.
        clones: a disk can be made from an image that its storage has already, without a base image of a cache; of disks that
            are no files.
        snapshots: a lasting image of a disk can be made within its storage.
        encrypts: a disk can be encrypted at rest, with the key of its `DiskSpec`.
        preallocations: of none, metadata, falloc and full, what its disks may be configured to have allocated in advance.
    """

    name: str
    needs_raw: bool
    overlays: bool
    disk_format: str
    on_host_filesystem: bool = True
    shared_storage: bool = False
    resizable: bool = True
    rebases: bool = False
    clones: bool = False
    snapshots: bool = False
    encrypts: bool = False
    preallocations: frozenset[str] = frozenset({"none"})


@runtime_checkable
class ImageReceiver(Protocol):
    """Where an image that was made here gets its data. A source need not be one."""

    def check_waits(self, ref: ImageRef, *, token: str | None = None) -> None:
        """Make sure that an image is there and waits for its data.

        Args:
            token: of who asks, in place of the configured user's.

        Raises:
            ImageNotFound; SourceRefused: it has its data. NotAuthorized, SourceUnavailable, ConfigError
        """
        ...

    def upload(self, ref: ImageRef, path: Path, *, disk_format: str, token: str | None = None) -> None:
        """Give an image its data: all of a file, or none of it.

        Args:
            disk_format: of the file, as ``qemu-img`` calls it. token: as for `check_waits`.

        Raises:
            ImageNotFound: also when it was deleted meanwhile. SourceUnavailable: it broke off, or an upload before goes on; it
            can be tried again. As `check_waits`
        """
        ...

    def has(self, ref: ImageRef, path: Path, *, token: str | None = None) -> bool:
        """Whether an image has all of a file as its data, as after an upload of whose end nobody heard.

        Raises:
            ImageNotFound, NotAuthorized, SourceUnavailable, ConfigError
        """
        ...


class StorageRoom(msgspec.Struct, frozen=True, kw_only=True):
    """How large a backend's storage is. Bytes of the storage, not of what can be given away of it more than once.

    Attributes:
        total: that disks and others may have. free: that nobody has.
    """

    total: int
    free: int


@runtime_checkable
class MeasuresRoom(Protocol):
    """What a backend may have beside its contract, if its disks are no files of the host: how large its storage is."""

    def room(self) -> StorageRoom:
        """How large it is now.

        Raises:
            BackendUnavailable
        """
        ...


@runtime_checkable
class KeepsInPlace(Protocol):
    """What a backend may have beside its contract: its disks can be put back to what they were, and nothing is copied for that.

    One state of a disk is kept at a time. A disk of which one is kept is not removed by `DiskBackend.remove` (`DiskInUse`).
    Whoever calls holds the disk's lock, but to `keeps`.
    """

    def keep(self, disk: InstanceDisk) -> None:
        """Keep what a disk is now, in place of what was kept of it before. The caller knows that it is closed.

        Raises:
            DiskNotFound, DiskUnrecorded, BackendUnavailable, InsufficientSpace
        """
        ...

    def keeps(self, disk: InstanceDisk) -> bool:
        """Whether anything is kept of a disk.

        Raises:
            DiskNotFound, DiskUnrecorded, BackendUnavailable
        """
        ...

    def put_back(self, disk: InstanceDisk) -> InstanceDisk:
        """Have a disk be what was kept of it, its size too. The caller knows that it is closed. Safe to repeat: it stays kept.

        Raises:
            DiskNotFound: also when nothing is kept. DiskUnrecorded, BackendUnavailable
        """
        ...

    def let_go(self, disk: InstanceDisk) -> None:
        """Keep nothing of a disk any more, which may be open; nothing that is kept is a success.

        Raises:
            DiskInUse: something was made from what is kept. DiskUnrecorded, BackendUnavailable
        """
        ...


class DiskBackend(Protocol):
    """How an instance disk is stored. Safe to share between threads, and made without any I/O.

    A method that its traits say a backend lacks raises `Unsupported`, and nothing has happened then. After any other error
    there is what was there before: a disk whole, or nothing of it. What it keeps its disks in may not be there or not answer,
    which is `BackendUnavailable`, within a bounded time; when that has no room left it is `InsufficientSpace`, and
    `StorageFailed` when it has failed. Errors of a tool or a library are translated where it is called.

    Whoever calls holds the disk's lock exclusively, but to `place`, `exists`, `describe` and `attachment`; the lock excludes
    callers on this host only. Where the storage is shared, the backend keeps its promises whatever other hosts do meanwhile.
    A process may be killed at any time: what it leaves is the whole disk or something that the next `create` or `remove` of
    the same disk takes away, and that nobody takes for a disk. `underlay.testing.disk_suite` tries whether this holds.
    """

    @property
    def traits(self) -> BackendTraits:
        """What the backend is like, as it is configured."""
        ...

    def place(self, instance: str, name: str) -> Path | None:
        """Where the backend keeps a disk of this name, in a place of its own: an absolute path, another for each disk.

        None when its disks are files, which go where the host wants them. No I/O.

        Args:
            instance: its UUID or name. name: ``disk`` or ``disk.SUFFIX``. Both are plain: letters, digits and ``._+-``.

        Raises:
            InvalidName: no disk can be called so in that place.
        """
        ...

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Make the disk, whole or not at all.

        Idempotent: an existing disk with this base, size and format is returned; with ``want.maker`` only one that it made. The
        caller holds the base's lock shared as well, and has recorded the use. The disk carries a `DiskRecord` that no guest can
        write. With ``want.key`` the disk is encrypted, and one that is there is made ready for use with it, as it has to be
        after a restart of the host.

        Raises:
            DiskTooSmall: ``want.size`` is below the virtual size of the base, or its min_disk.
            DiskExists: a disk of this name with another base, size, format or maker.
            FormatMismatch: a base that this backend cannot read.
            Unsupported: it is to be encrypted, or its file system is to be grown, and that cannot be. What can be grown
            safely `underlay.extfs` tells, which grows it as well; the disk appears when that is done.
        """
        ...

    def clone(self, version: ImageVersion, want: DiskSpec) -> InstanceDisk:
        """Make the disk from one of the version's ``locations``, in the storage itself: as `create`, with no base image.

        Raises:
            Unsupported: as well when none of the locations will do; the message says why, and the caller makes the disk from
                a base image instead. DiskTooSmall, DiskExists.
        """
        ...

    def exists(self, want: DiskSpec) -> bool:
        """Whether anything has the disk's place."""
        ...

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The disk that is there.

        Raises:
            DiskNotFound: nothing is there. DiskExists: something that is no disk is.
        """
        ...

    def is_open(self, disk: InstanceDisk) -> bool | None:
        """Whether somebody has the disk open; None: that cannot be told.

        Asked of disks that are no files: of files the host finds it out itself, and the answer may be None.
        """
        ...

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Grow the disk to ``size`` bytes; its own size is a success. The caller knows that the disk is closed.

        Raises:
            ShrinkRefused, DiskUnrecorded, Unsupported
        """
        ...

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the disk, and what its making has left; one that is gone is a success. The caller knows that it is closed.

        Where hosts share the storage and ``disk.maker`` is not None, a disk that another has made since stays.

        Raises:
            DiskInUse: others need it: disks or snapshots that were made from it.
        """
        ...

    def extract(self, disk: InstanceDisk, target: Path, want: Extraction) -> None:
        """Write what the guest sees into a new file, which needs nothing of the disk or its base. Durability is the caller's.

        The caller knows that the disk is closed, has the target's directory to itself, and removes the file after an error.

        Raises:
            DiskUnrecorded
        """
        ...

    def flatten(self, disk: InstanceDisk) -> InstanceDisk:
        """Have the disk stand alone, needing no base image and no parent; one that does already is a success.

        The caller knows that the disk is closed. After an error the disk reads as before, from the same base.

        Raises:
            DiskUnrecorded
        """
        ...

    def rebase(self, disk: InstanceDisk, base: BaseImage) -> InstanceDisk:
        """Have the disk read from another base image, whatever that holds: what the guest sees does not change.

        The caller holds the lock of the new base shared, has recorded its use, and knows that the disk is closed. After an
        error the disk reads as before, from the same base. One that reads from this base already is a success.

        Raises:
            DiskUnrecorded, FormatMismatch, BackingPathTooLong, Unsupported
        """
        ...

    def snapshot(self, disk: InstanceDisk, name: str) -> str:
        """Make a lasting image of the disk within its storage, which stands alone; its location, for an `ImageVersion`.

        The disk may be open: then the image is what a power cut would leave.

        Args:
            name: of the new image: plain, as for `place`.

        Raises:
            DiskExists: there is such an image. Unsupported
        """
        ...

    def discard_snapshot(self, location: str) -> None:
        """Remove an image that `snapshot` made; one that is gone is a success.

        Raises:
            DiskInUse: disks were made from it. Unsupported
        """
        ...

    def attachment(self, disk: InstanceDisk) -> Attachment:
        """How a hypervisor is to open the disk.

        Raises:
            DiskUnrecorded: nothing trustworthy says what format it has.
        """
        ...


class InstanceInventory(Protocol):
    """Where the records of instances come from."""

    def instances(self) -> Sequence[InstanceRecord]:
        """Every instance that may need an image of this host: complete, or an error; never a part.

        Instances whose removal can still be undone (soft-deleted ones) are among them.

        Raises:
            InventoryUnavailable: it does not answer, or not completely.
            InvalidInventory: a record is malformed, or there twice.
        """
        ...


class UsageProbe(Protocol):
    """One way to tell who needs a file of a cache. Looks, and changes nothing."""

    def observe(self, inventories: "Sequence[Inventory]") -> "Observed":
        """The uses of the listed files, and what could not be told.

        Never raises for what it cannot look at: that is part of the answer, because it keeps files.
        """
        ...


class Observer(Protocol):
    """Hears what happens. Called from the thread that does the work, possibly from several at once; must not block for long."""

    def event(self, event: Event) -> None:
        """One thing happened."""
        ...

    def progress(self, progress: Progress) -> None:
        """Long work has come this far; several times a second at most."""
        ...
