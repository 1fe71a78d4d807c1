"""An instance disk that is one file: made whole or not at all, recorded, described, grown, removed.

What the backends that keep disks as files share; each adds only how the file's content comes about. The caller holds the disk's
lock and, to create, its base's.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from underlay import diskinfo, later
from underlay.attributes import decode_disk_record, encode_record
from underlay.contracts import BackendTraits
from underlay.errors import DiskExists, DiskNotFound, DiskTooSmall, DiskUnrecorded, ShrinkRefused, UnsafeImage, Unsupported
from underlay.files import (
    ATTRIBUTE,
    allocated_bytes,
    copy_sparse,
    create,
    fill_holes,
    open_regular,
    read_attribute,
    remove_tree,
    rename_no_replace,
    sync_directory,
    translated,
    write_attribute,
)
from underlay.formats import qcow2
from underlay.model import LAYOUT, Attachment, BaseImage, DiskRecord, DiskSpec, InstanceDisk

if TYPE_CHECKING:
    from underlay import qemuimg
else:
    qemuimg = later.module("underlay.qemuimg")  # which only growing needs

_MODE = 0o640
_SECTOR = 512
# Which backend a disk has that only Nova recorded. Other formats are called as their backends.
_BACKENDS = {"raw": "flat", "parallels": "ploop"}
_DIRECTORIES = frozenset({"parallels"})  # the formats whose disks are directories of files
LONGEST_NAME = 255 - len("..underlay")
"""Bytes of a disk's file name: its temporary has a longer one."""


def size_for(base: BaseImage, want: DiskSpec, *, unit: int = _SECTOR) -> int:
    """Bytes that the guest is to see: whole sectors, as QEMU rounds them, or whole units of the backend's own.

    Who asks for no size gets the image's own, whatever its min_disk, as Nova has it for a flavor without a root disk's size.

    Raises:
        DiskTooSmall
    """
    min_disk = base.record.min_disk if base.record else 0
    return size_of(want, virtual_size=base.virtual_size, min_disk=min_disk, ref=base.ref, unit=unit)


def size_of(want: DiskSpec, *, virtual_size: int, min_disk: int, ref: str | None, unit: int = _SECTOR) -> int:
    """As `size_for`, of an image that is in no cache.

    Raises:
        DiskTooSmall
    """
    if want.size is None:
        return whole(virtual_size, unit)
    if want.size < max(virtual_size, min_disk):
        what, image = f"the disk {want.path}", ref if min_disk > virtual_size and ref else "the image"
        raise DiskTooSmall(what, size=want.size, virtual_size=virtual_size, min_disk=min_disk, image=image)
    return whole(want.size, unit)


def whole_sectors(size: int) -> int:
    """The size, rounded up."""
    return whole(size, _SECTOR)


def whole(size: int, unit: int) -> int:
    """The size, rounded up to whole units of so many bytes."""
    return -(-size // unit) * unit


def existing(base: BaseImage, want: DiskSpec, traits: BackendTraits) -> InstanceDisk | None:
    """The wanted disk when it is there already, None when nothing is.

    Raises:
        DiskExists: something else is there, or a disk of which it cannot be told what it was made from.
        DiskTooSmall; Unsupported: it is to be encrypted, and files are not.
    """
    refuse_unsupported(want, traits)
    size_for(base, want)
    try:
        found = describe(want)
        record = recorded(want.path)
    except DiskNotFound:
        return None
    except PermissionError as error:
        raise name_taken(f"{want.path} exists and may not be read") from error
    check_wanted(found, record, base, want, traits)
    with suppress(OSError):  # where a rename is a link and an unlink, a crash between them leaves the disk two names
        clear_away(temporary_of(want.path))
    return found


def refuse_unsupported(want: DiskSpec, traits: BackendTraits) -> None:
    """Refuse what no disk of files has.

    Raises:
        Unsupported
    """
    if want.key is not None:
        raise Unsupported(traits.name, "encrypt a disk")
    if want.grow_filesystem and traits.disk_format != "raw":
        raise Unsupported(traits.name, "grow a file system: only a raw disk's is reached", hint="leave it to the guest")


def check_wanted(
    found: InstanceDisk,
    record: DiskRecord | None,
    base: BaseImage,
    want: DiskSpec,
    traits: BackendTraits,
    *,
    unit: int = _SECTOR,
) -> None:
    """Make sure that a disk which is there is the one that is wanted.

    Args:
        found: the disk. record: what it says of itself. unit: as for `size_for`.

    Raises:
        DiskExists: it is another. DiskTooSmall: none such can be wanted.
    """
    size = size_for(base, want, unit=unit)
    refuse_another_maker(want, record)
    if (found.format, found.size) == (traits.disk_format, size) and _is_made_from(base, found, record):
        return
    made_from = found.base_path or "a base that is not recorded"
    raise name_taken(
        f"the disk {want.path} exists: {_spoken(found)} from {made_from}, "
        f"wanted {traits.disk_format} of {size} bytes from {base.path}"
    )


def refuse_another_maker(want: DiskSpec, record: DiskRecord | None) -> None:
    """Refuse a disk that is there and is not who wants it has made: it may be in use on another host.

    Raises:
        DiskExists
    """
    if want.maker is not None and (record is None or record.maker != want.maker):
        raise name_taken(f"the disk {want.path} exists, made by somebody else")


def _is_made_from(base: BaseImage, found: InstanceDisk, record: DiskRecord | None) -> bool:
    if record is not None and record.base is None:  # it was cloned, so the version is all that tells
        return base.record is not None and record.version_id == base.record.version_id
    if found.base_path is None or os.path.realpath(found.base_path) != os.path.realpath(base.path):
        return False
    # A master keeps its name when its content changes, so the name alone does not say which content the disk has.
    return record is None or base.record is None or record.version_id == base.record.version_id


def _spoken(disk: InstanceDisk) -> str:
    size = "an unknown size" if disk.size is None else f"{disk.size} bytes"
    return f"{disk.format or 'unrecorded'} of {size}"


def name_taken(message: str) -> DiskExists:
    """The error that something else in the disk's place is."""
    return DiskExists(message, hint="remove it, or choose another name")


@contextmanager
def publishing(base: BaseImage, want: DiskSpec, traits: BackendTraits) -> Iterator[int]:
    """Make a disk: the context fills the empty file whose descriptor it is given, and on success that file becomes the disk.

    Nothing opens the file by its name, under which who owns the directory may put another.

    Raises:
        DiskExists: somebody without our lock made one meanwhile.
        CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed
    """
    temporary, record = temporary_of(want.path), record_of(base, want, traits)
    with translated(want.path.parent):
        clear_away(temporary)  # what a crash left; the lock is ours
        fd = create(temporary, _MODE)  # crash: a temporary, removed by the next attempt
        try:
            yield fd  # crash: the same
            write_attribute(fd, encode_record(record))
            os.fsync(fd)  # crash: the same
            put(temporary, want.path, fd)
        finally:
            os.close(fd)
            with suppress(OSError):
                clear_away(temporary)


def record_of(base: BaseImage, want: DiskSpec, traits: BackendTraits) -> DiskRecord:
    """What a disk that is made from a base image says of itself."""
    return DiskRecord(
        layout=LAYOUT,
        instance=want.instance,
        name=want.name,
        backend=traits.name,
        format=traits.disk_format,
        base=base.name if want.origin_stays else None,
        cache=os.fspath(base.cache) if want.origin_stays else None,
        version_id=base.record.version_id if base.record else None,
        maker=want.maker,
    )


def temporary_of(path: Path) -> Path:
    """Where a disk is made, before it gets its name."""
    return path.with_name(f".{path.name}.underlay")


def clear_away(path: Path) -> None:
    """Remove a file, or a directory of files, of whichever backend; one that is gone is a success.

    Raises:
        OSError
    """
    with suppress(FileNotFoundError):
        try:
            path.unlink()
        except IsADirectoryError:
            remove_tree(path)


def put(temporary: Path, path: Path, fd: int) -> None:
    """Give what was made its name, durably: a file, or a directory of files.

    Args:
        fd: of it.

    Raises:
        DiskExists: somebody without our lock made one meanwhile. OSError
    """
    try:
        rename_no_replace(temporary, path)  # crash: the whole disk
    except FileExistsError as error:
        raise name_taken(f"the disk {path} appeared while it was made") from error
    if not os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(fd)):
        raise name_taken(f"the disk {path} was replaced while it was made")
    try:
        sync_directory(path.parent)  # crash: there for good
    except OSError:
        with suppress(OSError):  # a name that may not last is not handed out; nobody uses it yet
            os.rename(path, temporary)  # crash: what the next attempt removes; under its own name a disk is never half there
            clear_away(temporary)
        raise


def describe(want: DiskSpec) -> InstanceDisk:
    """The disk at ``want.path``; its format is what is recorded, never what its header claims.

    Of a disk that this user may not read, only what its directory says is known.

    Raises:
        DiskNotFound: nothing is there. DiskExists: something that is not a plain file is. CacheNotWritable: we may not look.
    """
    with translated(want.path):
        try:
            with _opened(want.path) as fd:
                return _described(want, fd)
        except PermissionError:
            status = os.stat(want.path, follow_symlinks=False)
            return _disk(want, status, record=None, disk_format=noted_format(want.path), size=None, backing=None)


def _described(want: DiskSpec, fd: int) -> InstanceDisk:
    record = decode_disk_record(read_attribute(fd))
    disk_format = record.format if record else noted_format(want.path)
    size, backing = _size_and_backing(fd, want.path, disk_format)
    return _disk(want, os.fstat(fd), record=record, disk_format=disk_format, size=size, backing=backing)


def _disk(
    want: DiskSpec,
    status: os.stat_result,
    *,
    record: DiskRecord | None,
    disk_format: str | None,
    size: int | None,
    backing: Path | None,
) -> InstanceDisk:
    base_path = backing or base_path_of(record)
    return InstanceDisk(
        instance=want.instance,
        name=want.name,
        path=want.path,
        backend=record.backend if record else _BACKENDS.get(disk_format or "", disk_format or "unknown"),
        format=disk_format,
        size=size,
        allocated=allocated_bytes(status),
        base=base_path.name if base_path else None,
        base_path=base_path,
        maker=record.maker if record else None,
    )


def base_path_of(record: DiskRecord | None) -> Path | None:
    """The file of the base image that a disk says it was made from."""
    if record is None or record.base is None or record.cache is None:
        return None
    return Path(record.cache) / record.base


def noted_format(path: Path) -> str | None:
    """What ``disk.info`` says; one that cannot be read says nothing, and `grow` tells why."""
    try:
        return diskinfo.recorded_format(path)
    except (DiskUnrecorded, OSError):
        return None


def recorded(path: Path) -> DiskRecord | None:
    """What the disk's attribute says.

    Raises:
        DiskNotFound, DiskExists, OSError
    """
    with _opened(path) as fd:
        return decode_disk_record(read_attribute(fd))


def recorded_directory(path: Path) -> DiskRecord | None:
    """What the attribute of a directory says, which is a disk then: some formats have several files.

    Raises:
        OSError
    """
    return decode_disk_record(read_attribute(path))


def backend_of_directory(path: Path) -> str | None:
    """Which backend a directory has as a disk, by its attribute or by Nova's record; None: nothing says that it is one.

    Raises:
        OSError
    """
    with suppress(PermissionError):
        if record := recorded_directory(path):
            return record.backend
    noted = noted_format(path)
    return _BACKENDS[noted] if noted in _DIRECTORIES else None


def grow(disk: InstanceDisk, size: int) -> None:
    """Make the disk larger, to whole sectors; its own size is a success. The caller knows that nobody has it open.

    Raises:
        ShrinkRefused, DiskUnrecorded, ToolFailed, InsufficientSpace, StorageFailed
    """
    size = whole_sectors(size)
    disk_format, old_size = known(disk)
    if size < old_size:
        raise shrink_refused(disk, size)
    if size > old_size:
        with translated(disk.path):
            qemuimg.resize(disk.path, format=disk_format, size=size)
            fd = open_regular(disk.path)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def shrink_refused(disk: InstanceDisk, size: int) -> ShrinkRefused:
    """The error that a smaller size is."""
    return ShrinkRefused(
        f"{disk.path} has {disk.size} bytes and is not made smaller, to {size} bytes",
        hint=f"ask for {disk.size} bytes or more",
    )


def known(disk: InstanceDisk) -> tuple[str, int]:
    """The disk's format and size, without which no tool may open it.

    Raises:
        DiskNotFound, DiskExists: no plain file is there (any more). DiskUnrecorded
    """
    with translated(disk.path), _opened(disk.path):
        """A tool would only say that it failed."""
    if disk.format is None:
        with translated(disk.path):
            diskinfo.recorded_format(disk.path)  # raises when it is there and cannot be read
        raise DiskUnrecorded(
            f"nothing says what format {disk.path} has, so no tool may open it",
            hint="only a disk that Underlay or Nova recorded can be resized",
        )
    if disk.size is None:
        raise DiskUnrecorded(
            f"{disk.path} is recorded as {disk.format}, and its content does not bear that out",
            hint="look at it with a tool that is given its format",
        )
    return disk.format, disk.size


@contextmanager
def rewriting(disk: InstanceDisk, record: DiskRecord | None) -> Iterator[Path]:
    """Change a disk's file as a whole: the context changes a copy, which takes the disk's place when it ends well.

    A tool that is killed while it changes a qcow2 in its place may leave a header that says more than the tables do. Where the
    file system can, the copy shares the disk's blocks.

    Args:
        record: what the disk is to say of itself from then on; None: what it said before.

    Raises:
        DiskNotFound, DiskExists; CacheNotWritable, InsufficientSpace, StorageFailed
    """
    temporary = temporary_of(disk.path)
    with translated(disk.path), _opened(disk.path) as old:
        clear_away(temporary)  # what a crash left; the lock is ours
        status = os.fstat(old)
        fd = create(temporary, stat.S_IMODE(status.st_mode))  # crash: a temporary, removed by the next change
        try:
            copy_sparse(old, fd, status.st_size)
            _take_on(fd, old, status)
            write_attribute(fd, encode_record(record)) if record else _copy_record(fd, old)
            yield Path(f"/proc/{os.getpid()}/fd/{fd}")  # crash: the same
            os.fsync(fd)
            if not os.path.samestat(os.stat(temporary, follow_symlinks=False), os.fstat(fd)):
                raise name_taken(f"the disk {disk.path} was replaced while it was changed")
            os.rename(temporary, disk.path)  # crash: the disk as it was, or as it is to be
            sync_directory(disk.path.parent)
        finally:
            os.close(fd)
            with suppress(OSError):
                clear_away(temporary)


def copy(disk: InstanceDisk, target: Path) -> None:
    """Put a copy of the disk's file, with its record, at another path: whole and durable, or not at all.

    An overlay's copy reads from the same base. Where the file system can, the two share their blocks. The caller knows that
    the disk is closed, and has the target's place to itself.

    Raises:
        DiskNotFound, DiskExists; CacheMissing, CacheNotWritable, InsufficientSpace, StorageFailed
    """
    temporary = temporary_of(target)
    with translated(target), _opened(disk.path) as source:
        clear_away(temporary)
        status = os.fstat(source)
        fd = create(temporary, stat.S_IMODE(status.st_mode))  # crash: a temporary, which goes with its directory
        try:
            copy_sparse(source, fd, status.st_size)  # crash: the same
            _take_on(fd, source, status)
            _copy_record(fd, source)
            os.fsync(fd)
            put(temporary, target, fd)
        finally:
            os.close(fd)
            with suppress(OSError):
                clear_away(temporary)


def _take_on(fd: int, old: int, status: os.stat_result) -> None:
    """Give a copy the owner and the attributes of the disk, as far as we may: a hypervisor may have taken both over."""
    with suppress(PermissionError):
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    with suppress(OSError):
        for name in os.listxattr(old):
            if name != ATTRIBUTE:
                with suppress(OSError):
                    os.setxattr(fd, name, os.getxattr(old, name))


def _copy_record(fd: int, old: int) -> None:
    if (said := read_attribute(old)) is not None:
        write_attribute(fd, said)


def preallocate(fd: int, size: int, preallocation: str) -> None:
    """Have a raw file occupy all of its bytes: reserved (falloc) or written with zeros where it has holes (full).

    Raises:
        OSError: also when there is no room.
    """
    if preallocation == "none":
        return
    if preallocation == "full":
        fill_holes(fd, size)
    os.posix_fallocate(fd, 0, size)


def attachment(disk: InstanceDisk, preallocation: str, *, cache: str | None, discard: str | None) -> Attachment:
    """How a hypervisor is to open a file.

    Where all of it is allocated the kernel's own asynchronous I/O never waits for blocks; it needs a cache mode that goes
    around the page cache.

    Raises:
        DiskUnrecorded
    """
    disk_format, _ = known(disk)
    is_native = preallocation in ("falloc", "full") and cache in ("none", "directsync")
    return Attachment(
        type="file",
        source=os.fspath(disk.path),
        format=disk_format,
        cache=cache,
        io="native" if is_native else None,
        discard=discard,
    )


def remove(disk: InstanceDisk) -> None:
    """Remove the disk's file, durably; one that is gone is a success."""
    with translated(disk.path), suppress(FileNotFoundError):
        clear_away(temporary_of(disk.path))  # a crash may have left it the second name of the disk
        disk.path.unlink()
        sync_directory(disk.path.parent)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = open_regular(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DiskNotFound(f"there is no disk {path}", hint="'underlay disk list' shows those that are there") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO):
            raise name_taken(f"{path} is not a plain file") from error
        raise
    try:
        yield fd
    finally:
        os.close(fd)


def _size_and_backing(fd: int, path: Path, disk_format: str | None) -> tuple[int | None, Path | None]:
    if disk_format == "raw":
        return os.fstat(fd).st_size, None
    if disk_format != "qcow2":
        return None, None
    beginning = os.pread(fd, qcow2.HEADER_BYTES, 0)
    try:
        header = qcow2.parse_header(beginning)
        name = qcow2.backing_name(beginning, header)
    except UnsafeImage:
        return None, None
    return header.size, _backing_path(path, name)


def _backing_path(path: Path, name: str | None) -> Path | None:
    """The local file that a backing name means, relative to the disk's directory; None for a protocol's or a JSON name."""
    if not name or ":" in name.partition("/")[0]:
        return None
    return path.parent / name
