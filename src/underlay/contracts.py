"""The seams of Underlay: what a source, a disk backend and an observer must do. The docstring is the contract.

Protocols only: an adapter does not inherit from anything here. ``underlay.testing`` ships a fake of each, and nothing else
is ever faked in tests.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import msgspec

from underlay.model import BaseImage, DiskSpec, Event, ImageRef, ImageVersion, InstanceDisk, InstanceRecord, Progress

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
    """What a disk backend is like, as data.

    Attributes:
        needs_raw: it can only be fed raw images.
        overlays: its disks read from their base image for as long as they live.
        disk_format: the format of its disks, as QEMU's ``-f`` wants it said.
    """

    name: str
    needs_raw: bool
    overlays: bool
    disk_format: str


class DiskBackend(Protocol):
    """How an instance disk is stored. Safe to share between threads."""

    traits: ClassVar[BackendTraits]

    def create(self, base: BaseImage, want: DiskSpec) -> InstanceDisk:
        """Make the disk, whole or not at all.

        Idempotent: an existing disk with this base, size and format is returned. The caller holds the base's lock shared and
        the disk's lock exclusively, and has recorded the use.

        Raises:
            DiskTooSmall: ``want.size`` is below the virtual size of the base, or its min_disk.
            DiskExists: a disk of this name with another base, size or format.
            FormatMismatch: a base that this backend cannot read.
        """
        ...

    def describe(self, want: DiskSpec) -> InstanceDisk:
        """The disk that is there.

        Raises:
            DiskNotFound
        """
        ...

    def resize(self, disk: InstanceDisk, size: int) -> InstanceDisk:
        """Grow the disk to ``size`` bytes; its own size is a success.

        The caller holds the disk's lock and knows that the disk is closed.

        Raises:
            ShrinkRefused
        """
        ...

    def remove(self, disk: InstanceDisk) -> None:
        """Remove the disk; one that is gone is a success. The caller holds the disk's lock and knows that it is closed."""
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
