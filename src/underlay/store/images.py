"""Base images in one cache: find, list, publish, hold, and record their use.

The name's lock (and Nova's, beside a Nova) is held exclusively to publish and shared to hold. Readiness is the rename in
`publish`: before it nobody sees the image, after it the image is whole, verified and durable with all its metadata.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from underlay import later, locks
from underlay.attributes import decode_image_record, encode_record
from underlay.errors import (
    FormatMismatch,
    ImageConflict,
    ImageDamaged,
    LockLost,
    NotAnImage,
    NotCached,
    UnderlayError,
    UnsafeImage,
)
from underlay.files import (
    adopt,
    allocated_bytes,
    create,
    drop_attribute,
    open_regular,
    read_attribute,
    rename_no_replace,
    storage_error,
    sync_directory,
    translated,
    write_attribute,
)
from underlay.formats import qcow2
from underlay.model import BaseImage, Damage, Digest, ImageFacts, ImageRecord, Problem
from underlay.naming import CacheKind, is_image_name, named_format
from underlay.store import locking
from underlay.store.layout import Store
from underlay.values import replace

if TYPE_CHECKING:
    from underlay import qemuimg, stream
    from underlay.formats import inspect, vmdk
    from underlay.formats.inspect import Inspector
    from underlay.store import quarantine
else:  # an image that is recorded needs no inspection, and hardly any is damaged
    quarantine = later.module("underlay.store.quarantine")
    qemuimg = later.module("underlay.qemuimg")
    stream = later.module("underlay.stream")
    inspect = later.module("underlay.formats.inspect")
    vmdk = later.module("underlay.formats.vmdk")

IMAGE_MODE = 0o644
_MARKER_MODE = 0o664
_PUBLISH_TRIES = 5


def find(store: Store, name: str) -> BaseImage | None:
    """The image of this name, or None.

    A recorded one is described by its record. An unrecorded one is inspected first, by the rules that hold for a fetch; its
    content is not read further than its format takes.

    Raises:
        ImageDamaged: a scrub has found that it is.
        NotAnImage: a symlink, directory or special file has the name.
        UnsafeImage, FormatMismatch, VirtualSizeRefused: an unrecorded image breaks a rule.
    """
    image = look(store, name)
    if image is not None and image.damage is not None:
        raise damaged_error(image, image.damage)
    return image


def damaged_error(image: BaseImage, damage: Damage) -> ImageDamaged:
    """Why a damaged image is not served."""
    return ImageDamaged(
        f"the image {image.path} is damaged, as a scrub found at {damage.found_at:%Y-%m-%d %H:%M} UTC: {damage.detail}",
        hint="fetch it again; 'underlay explain' says who needs it, and a scrub whether it still is so",
    )


def look(store: Store, name: str) -> BaseImage | None:
    """As `find`, but one that is damaged is returned as well: to be shown, and for nothing else.

    Raises:
        as `find`, but never ImageDamaged
    """
    path = store.paths.image(name)
    try:
        fd = open_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise NotAnImage(
                f"{path} is not a plain file", hint="Underlay follows no links in a cache: remove it or rename it"
            ) from error
        raise storage_error(error, path) from error
    with translated(path):
        try:
            return _describe(store, name, fd)
        finally:
            os.close(fd)


def find_unchanged(store: Store, name: str) -> BaseImage | None:
    """As `find`, but one that is damaged, or a master that somebody has changed, is none: the next fetch replaces it."""
    try:
        return find(store, name)
    except ImageDamaged:
        return None
    except UnsafeImage as error:
        if store.kind is CacheKind.MASTERS and error.rule == "changed":
            return None
        raise


def names(store: Store) -> list[str]:
    """The names in the cache that are an image's, sorted; whether images stand there is not looked at.

    Raises:
        CacheMissing, CacheNotWritable
    """
    with translated(store.root):
        return sorted(name for name in os.listdir(store.root) if is_image_name(name, kind=store.kind))


def images(store: Store) -> tuple[list[BaseImage], list[Problem]]:
    """All images of the cache by name, and what stands in an image's place but is none, or is damaged.

    Raises:
        CacheMissing, CacheNotWritable
    """
    return _listed(store, find)


def everything(store: Store) -> list[BaseImage]:
    """As `images`, damaged ones among them: to be shown, and for nothing else.

    Raises:
        CacheMissing, CacheNotWritable
    """
    return _listed(store, look)[0]


def _listed(store: Store, one: Callable[[Store, str], BaseImage | None]) -> tuple[list[BaseImage], list[Problem]]:
    found, problems = [], []
    for name in names(store):
        try:
            image = one(store, name)
        except UnderlayError as error:
            problems.append(Problem(error.code, store.root / name, error.message))
        else:
            if image is not None:
                found.append(image)
    return found, problems


class Hold(msgspec.Struct, frozen=True):
    """An image that is held, and the locks that hold it."""

    store: Store
    image: BaseImage
    locks: Sequence[locks.Lock]

    def confirm(self) -> None:
        """Make sure, once a use is durable, that nobody could take the image away meanwhile: Nova removes lock files.

        Raises:
            LockLost: somebody could have. NotCached: somebody has.
        """
        for lock in self.locks:
            lock.confirm()
        if not os.path.lexists(self.image.path):
            raise _not_cached(self.store, self.image.name)


@contextmanager
def held(store: Store, name: str) -> Iterator[Hold]:
    """The image with its locks held shared: while the context lasts, nobody who takes these locks evicts or replaces it.

    Raises:
        NotCached: it is not there (any more). LockTimeout. As `find`.
    """
    with locking.shared(store, name) as taken:
        image = find(store, name)
        if image is None:
            raise _not_cached(store, name)
        yield Hold(store, image, taken)


def _not_cached(store: Store, name: str) -> NotCached:
    return NotCached(f"{store.root} has no image {name}", hint="fetch it first")


def keep_open(path: Path, holding: ExitStack) -> None:
    """Have a file open until ``holding`` is closed: whoever evicts looks who has it open, also after a rename.

    Nothing is left of it when the process dies.

    Raises:
        CacheMissing, CacheNotWritable, StorageFailed
    """
    with translated(path):
        holding.callback(os.close, open_regular(path))


def mark_used(store: Store, name: str, *, at_ns: int | None = None) -> None:
    """Record that the image was used; in a base cache its mtime too, where we may, so that a Nova sees the same age.

    Args:
        at_ns: when, nanoseconds since the epoch; None for now.

    Raises:
        CacheNotWritable: the use cannot be recorded, so it must not happen.
    """
    marker = store.paths.used_marker(name)
    with translated(marker):
        try:
            _touch(marker, at_ns)
        except FileNotFoundError:
            with suppress(FileExistsError):
                os.close(create(marker, _MARKER_MODE))
            _touch(marker, at_ns)
        if store.kind is CacheKind.BASE:
            with suppress(PermissionError, FileNotFoundError):
                _touch(store.paths.image(name), at_ns)


def _touch(path: Path, at_ns: int | None) -> None:
    if at_ns is None:
        os.utime(path, follow_symlinks=False)
    else:
        os.utime(path, ns=(at_ns, at_ns), follow_symlinks=False)


def digest_of(store: Store, image: BaseImage, algorithm: str) -> Digest | None:
    """The image's digest as served: recorded, else computed by reading it; None when the stored bytes are not as served."""
    if image.record is not None:
        recorded = (Digest.parse(text) for text in image.record.digests)
        if found := next((digest for digest in recorded if digest.algorithm == algorithm), None):
            return found
        if not image.record.as_served or image.record.compression is not None:
            return None
    with translated(image.path):
        fd = open_regular(image.path)
        try:
            return stream.served_digest(fd, algorithm)
        finally:
            os.close(fd)


def learn_digest(store: Store, name: str, digest: Digest, *, version_id: str) -> None:
    """Add a digest as served to a recorded image of this version, so that it need not be found out again.

    The attribute is replaced as one value; the image's bytes are never written. A master that has become another version
    meanwhile is left alone.

    Raises:
        NotCached: it is not there (any more). CacheNotWritable, LockTimeout.
    """
    with locking.exclusive(store, name):
        with translated(store.paths.image(name)):
            try:
                fd = open_regular(store.paths.image(name))
            except FileNotFoundError as error:
                raise _not_cached(store, name) from error
            try:
                record = decode_image_record(read_attribute(fd))
                if record is not None and record.version_id == version_id and str(digest) not in record.digests:
                    write_attribute(fd, encode_record(replace(record, digests=(*record.digests, str(digest)))))
                    os.fsync(fd)
            finally:
                os.close(fd)


def publish(store: Store, staged: Path, name: str, record: ImageRecord, *, holding: ExitStack | None = None) -> BaseImage:
    """Make a staged file the image of this name, in one step that replaces nothing.

    The staged file lies on the cache's file system, is complete, and is ours alone. An equal image that is there already is
    returned; the staged file then stays where it is.

    Args:
        holding: keeps the image from eviction, until it is closed.

    Raises:
        ImageConflict: a different image has the name. NotAnImage. LockTimeout. InsufficientSpace, StorageFailed.
    """
    return _publish(store, staged, name, record, holding, replaces=False)


def publish_over(store: Store, staged: Path, name: str, record: ImageRecord, *, holding: ExitStack | None = None) -> BaseImage:
    """As `publish`, but a master of another version is replaced; hard links to it keep the old bytes.

    Raises:
        as `publish`, but never ImageConflict
    """
    return _publish(store, staged, name, record, holding, replaces=True)


def _publish(
    store: Store, staged: Path, name: str, record: ImageRecord, holding: ExitStack | None, *, replaces: bool
) -> BaseImage:
    with translated(staged):
        _make_durable(store, staged, _with_mtime(record, staged) if store.kind is CacheKind.MASTERS else record)

    def put(held_locks: Sequence[locks.Lock]) -> BaseImage:
        return _publish_locked(store, staged, name, record, held_locks, replaces=replaces)

    return _exclusively(store, name, put, holding)


def _exclusively(
    store: Store, name: str, put: Callable[[Sequence[locks.Lock]], BaseImage], holding: ExitStack | None
) -> BaseImage:
    """The image that is put there under the name's locks; again when Nova has removed one meanwhile."""
    for attempt in range(1, _PUBLISH_TRIES + 1):
        try:
            with locking.exclusive(store, name) as held_locks:
                image = put(held_locks)
                if holding is not None:
                    keep_open(image.path, holding)
                return image
        except LockLost:
            # Nova removed its lock file while we held it: somebody may hold a new one, so take that and look again.
            if attempt == _PUBLISH_TRIES:
                raise
    raise AssertionError("unreachable")


def inspect_staged(store: Store, staged: Path, name: str) -> BaseImage:
    """A staged file of which nothing is known, as the image of this name that it is to become: inspected, and durable.

    It passes the rules for a file that is found in the cache. What it says of itself is taken off it, as nobody vouches for it.

    Returns:
        The staged file, its own name for its name and the staging directory for its cache.

    Raises:
        UnsafeImage, FormatMismatch, VirtualSizeRefused; NotAnImage: it is no plain file, or has a name elsewhere as well.
        StorageFailed, InsufficientSpace
    """
    with translated(staged):
        try:
            fd = open_regular(staged, os.O_RDWR)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR):
                raise NotAnImage(f"what was made for the image {name} is not a plain file", hint="make one") from error
            raise
        try:
            return _inspect_staged(store, staged, name, fd)
        finally:
            os.close(fd)


def _inspect_staged(store: Store, staged: Path, name: str, fd: int) -> BaseImage:
    status = os.fstat(fd)
    if status.st_nlink != 1:
        what = f"what was made for the image {name} has another name elsewhere, by which it can be changed"
        raise NotAnImage(what, hint="copy it")
    drop_attribute(fd)
    facts = _inspect(store, name, fd, status.st_size, path=staged)
    assert facts.virtual_size is not None
    adopt(fd, store.root, IMAGE_MODE)
    os.fsync(fd)
    return BaseImage(
        name=staged.name,
        cache=staged.parent,
        format=facts.format,
        size=status.st_size,
        virtual_size=facts.virtual_size,
        allocated=allocated_bytes(os.fstat(fd)),
        last_used=_moment(status.st_mtime),
        record=None,
    )


def publish_unrecorded(store: Store, staged: Path, name: str, *, holding: ExitStack | None = None) -> BaseImage:
    """Make a staged file that has passed `inspect_staged` the image of this name, without a record, as Nova makes them.

    An image that is there already is returned, whatever it holds, and the staged file stays where it is.

    Raises:
        as `find`; NotAnImage, LockTimeout, InsufficientSpace, StorageFailed
        ImageConflict: one was put there by somebody who takes no lock, and is gone again.
    """

    def put(held_locks: Sequence[locks.Lock]) -> BaseImage:
        try:
            return find(store, name) or _put(store, staged, name, held_locks, _put_new)
        except ImageConflict:
            if (image := find(store, name)) is None:
                raise
            return image

    return _exclusively(store, name, put, holding)


def _with_mtime(record: ImageRecord, staged: Path) -> ImageRecord:
    return replace(record, mtime_ns=os.stat(staged, follow_symlinks=False).st_mtime_ns)


def _make_durable(store: Store, staged: Path, record: ImageRecord) -> None:
    fd = open_regular(staged, os.O_RDWR)
    try:
        write_attribute(fd, encode_record(record))  # crash: a staged file with its record, swept or used again
        adopt(fd, store.root, IMAGE_MODE)  # a tool that converted it knows nothing of the directory's owner
        os.fsync(fd)  # crash: the same, durable; a failed fsync raises, and the caller discards the file
    finally:
        os.close(fd)


def _publish_locked(
    store: Store, staged: Path, name: str, record: ImageRecord, held_locks: Sequence[locks.Lock], *, replaces: bool
) -> BaseImage:
    target = store.paths.image(name)
    existing = find_unchanged(store, name)
    if existing is not None and _is_equal(existing, record):
        return _with_findings(store, existing, record)
    if existing is not None and not replaces:
        raise _conflict(target)
    put = _put_over if replaces or _restores(store, name, record) else _put_new
    return _put(store, staged, name, held_locks, put)


def _put(
    store: Store, staged: Path, name: str, held_locks: Sequence[locks.Lock], put: Callable[[Path, Path], None]
) -> BaseImage:
    """Give a staged file the name of an image. The caller holds the name's locks."""
    target = store.paths.image(name)
    mark_used(store, name)  # crash: a marker without an image, which protects nothing
    for lock in held_locks:
        lock.confirm()
    is_noted = os.path.lexists(store.paths.quarantined(name))
    if is_noted and not os.path.lexists(target):
        quarantine.lift(store, name)  # the note of a file that is gone, whose inode's number the new one may have
    with translated(target):
        put(staged, target)
        sync_directory(staged.parent)
    if is_noted:
        quarantine.lift(store, name)  # crash before this: a note of a file that has not the name any more
    image = find(store, name)
    if image is None:
        raise NotCached(f"{target} vanished as it was published", hint="something else removes files there")
    return image


def _restores(store: Store, name: str, record: ImageRecord) -> bool:
    """Whether an image takes the place of a damaged one that had the same bytes.

    A base's path is the backing file of overlays, so nothing but the very same content may come to it; whoever has the damaged
    file open goes on reading that one.
    """
    damaged = look(store, name) if os.path.lexists(store.paths.quarantined(name)) else None
    if damaged is None or damaged.damage is None or damaged.record is None:
        return False
    return (damaged.record.version_id, damaged.record.stored) == (record.version_id, record.stored)


def _put_new(staged: Path, target: Path) -> None:
    try:
        rename_no_replace(staged, target)  # crash: the whole image, by its old name or by its new one
    except FileExistsError as error:  # by somebody who takes no lock
        raise _conflict(target) from error
    try:
        sync_directory(target.parent)  # crash: published for good
    except OSError:
        # A name that may not last must not be built upon. Nobody does yet: the locks are ours alone.
        with suppress(OSError):
            os.unlink(target)
        raise


def _put_over(staged: Path, target: Path) -> None:
    os.rename(staged, target)  # crash: the old master or the new one, each whole
    sync_directory(target.parent)  # crash: published for good


def _conflict(target: Path) -> ImageConflict:
    return ImageConflict(
        f"{target} exists and is a different image", hint="look at it with 'underlay show'; nothing was replaced"
    )


def _with_findings(store: Store, existing: BaseImage, record: ImageRecord) -> BaseImage:
    """An equal image without a record, or never inspected, gets what is known by now; its bytes are the same."""
    if existing.record is None and store.kind is CacheKind.BASE:  # whose name tells its version
        return existing
    if existing.record is not None and (existing.record.served_format is not None or record.served_format is None):
        return existing
    with translated(existing.path):
        fd = open_regular(existing.path)
        try:
            is_master = store.kind is CacheKind.MASTERS
            write_attribute(fd, encode_record(_with_mtime(record, existing.path) if is_master else record))
            os.fsync(fd)
        finally:
            os.close(fd)
    return find(store, existing.name) or existing


def _is_equal(existing: BaseImage, record: ImageRecord) -> bool:
    if existing.record is not None:
        return existing.record.version_id == record.version_id and existing.record.stored == record.stored
    if existing.size != record.size:
        return False
    with translated(existing.path):
        fd = open_regular(existing.path)
        try:
            return stream.stored_digest(fd) == record.stored
        finally:
            os.close(fd)


def _describe(store: Store, name: str, fd: int) -> BaseImage:
    status = os.fstat(fd)
    record = decode_image_record(read_attribute(fd))
    damage = _damage(store, name, status)
    if damage is not None:
        return _damaged(store, name, status, record, damage)
    if record is None:
        facts = _inspect(store, name, fd, status.st_size)
        assert facts.virtual_size is not None
        stored_format, virtual_size = facts.format, facts.virtual_size
        served_format = facts.label if _is_as_served(store, name) else None
    else:
        if record.size != status.st_size:
            raise UnsafeImage(
                f"the image {name}", rule="changed", why=f"it has {status.st_size} bytes, its record says {record.size}"
            )
        if record.mtime_ns not in (None, status.st_mtime_ns):
            raise UnsafeImage(f"the image {name}", rule="changed", why="it was written after its publication")
        stored_format, virtual_size, served_format = record.format, record.virtual_size, record.served_format
    return BaseImage(
        name=name,
        cache=store.root,
        format=stored_format,
        size=status.st_size,
        virtual_size=virtual_size,
        allocated=allocated_bytes(status),
        last_used=_last_used(store, name, status),
        record=record,
        served_format=served_format,
    )


def _damage(store: Store, name: str, status: os.stat_result) -> Damage | None:
    with translated(store.paths.quarantine):
        try:
            os.lstat(store.paths.quarantined(name))
        except FileNotFoundError:  # nearly always
            return None
    return quarantine.damage_of(store, name, inode=status.st_ino)


def _damaged(store: Store, name: str, status: os.stat_result, record: ImageRecord | None, damage: Damage) -> BaseImage:
    """A damaged image as far as its record and its name tell; its content is not looked at."""
    return BaseImage(
        name=name,
        cache=store.root,
        format=record.format if record else named_format(name, kind=store.kind) or "raw",
        size=status.st_size,
        virtual_size=record.virtual_size if record else status.st_size,
        allocated=allocated_bytes(status),
        last_used=_last_used(store, name, status),
        record=record,
        served_format=record.served_format if record else None,
        damage=damage,
    )


def _is_as_served(store: Store, name: str) -> bool:
    """Whether an unrecorded image was inspected, and has a name under which Nova and Ironic convert nothing."""
    is_plain = named_format(name, kind=store.kind) is None
    return store.validation and is_plain and store.kind is CacheKind.MASTERS


def _inspect(store: Store, name: str, fd: int, size: int, *, path: Path | None = None) -> ImageFacts:
    if not store.validation:
        return ImageFacts(format="raw", label="raw", virtual_size=size)
    inspector = inspect.Inspector(what=f"the image {name}", virtual_size_limit=store.virtual_size_limit)
    facts = _inspect_beginning(inspector, fd)
    claimed = named_format(name, kind=store.kind)
    if claimed not in (None, facts.format):
        raise FormatMismatch(
            f"the image {name} is {facts.format} by its content, {claimed} by its name",
            hint="it was not published by Underlay: remove it if nothing uses it",
        )
    if store.force_raw and facts.format != "raw":
        raise FormatMismatch(
            f"the image {name} is {facts.format}, but this cache keeps raw images only",
            hint="it was not published by Underlay: remove it if nothing uses it",
        )
    if facts.format == "raw":
        facts = replace(facts, virtual_size=size)
    return prove_whole(store, path or store.paths.image(name), fd, facts, what=f"the image {name}")


def prove_whole(store: Store, path: Path, fd: int, facts: ImageFacts, *, what: str) -> ImageFacts:
    """The facts of an inspected image with its virtual size, once its tables are known to lie inside the file.

    What only the tool can tell of vmdk, vdi, vpc and vhdx images, qemu-img does, with the format forced.

    Raises:
        UnsafeImage, VirtualSizeRefused, ToolMissing, ToolFailed, ToolTimedOut
    """
    if facts.format == "qcow2":
        header = qcow2.parse_header(os.pread(fd, qcow2.HEADER_BYTES, 0), what=what)
        qcow2.mapped_bytes(fd, header, what=what)
    elif facts.format == "vmdk":
        vmdk.check_tables(fd, what=what)
    if facts.format not in ("raw", "qcow2"):
        found = qemuimg.refuse_references(path, format=facts.format, what=what)
        facts = replace(facts, virtual_size=found.virtual_size)
    assert facts.virtual_size is not None
    inspect.check_virtual_size(what, facts.virtual_size, limit=store.virtual_size_limit)
    return facts


def _inspect_beginning(inspector: "Inspector", fd: int) -> ImageFacts:
    buffer = memoryview(bytearray(stream.BUFFER_BYTES))
    position = 0
    while inspector.early is None and (length := os.preadv(fd, [buffer], position)):
        inspector.feed(buffer[:length])
        position += length
    return inspector.early or inspector.finish()


def _last_used(store: Store, name: str, status: os.stat_result) -> datetime:
    try:
        marker = os.stat(store.paths.used_marker(name), follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return _moment(status.st_mtime)
    return _moment(marker if store.kind is CacheKind.MASTERS else max(marker, status.st_mtime))


def _moment(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):  # a time that no calendar has, which some file systems keep
        return datetime.max.replace(tzinfo=UTC) if seconds > 0 else datetime.min.replace(tzinfo=UTC)
