"""An ingest's own directory in ``tmp/``: its bytes, its journal, its reservation, its progress.

It exists only under the ref's ingest lock. An ingest whose lock nobody holds is dead: its reservation no longer counts, and
its directory is taken over by the next ingest of the same ref or swept when room is short.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from underlay import locks
from underlay.contracts import Observer
from underlay.files import allocated_bytes, make_directory, remove_tree, translated, write_durably, write_in_place_of
from underlay.model import LAYOUT, ImageRef, Progress
from underlay.naming import ref_key
from underlay.store.layout import Store
from underlay.values import replace

_Value = TypeVar("_Value")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # proc_sys_kernel(5)
_POLL = 0.05  # seconds between a waiter's looks
_TELL = 0.2  # seconds between what a waiter's observer hears


class Journal(msgspec.Struct, frozen=True, kw_only=True):
    """A verified, durable download that only has to be converted or published.

    Attributes:
        validator, digests, version_id: what it was verified as. size: bytes on disk. The rest: what inspection found.
        stored: its stored digest.
        exempt, disk_format: the rules that it passed: whether none, and the source's label.
        compression: what the bytes as served were compressed with; those on disk are not.
        min_disk: the smallest disk in bytes that the source allows.
    """

    layout: int
    ref: str
    version_id: str
    validator: str | None
    size: int
    digests: tuple[str, ...]
    stored: str
    format: str
    label: str
    virtual_size: int
    exempt: bool = False
    disk_format: str | None = None
    compression: str | None = None
    min_disk: int = 0


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """A download that is not whole yet, of which the bytes that are there can be gone on from.

    Attributes:
        version_id, validator: of the version that is downloaded, as its source described it.
        expected: digests that all its bytes must have.
        boot: which start of the machine the bytes were written in. They are not durable: after another one some may be missing.
    """

    layout: int
    ref: str
    version_id: str | None
    validator: str | None
    expected: tuple[str, ...]
    boot: str


class Staging(msgspec.Struct, frozen=True):
    """The paths of one ingest."""

    directory: Path

    @property
    def download(self) -> Path:
        """The bytes as served."""
        return self.directory / "download"

    @property
    def converted(self) -> Path:
        """Their raw form."""
        return self.directory / "converted"

    @property
    def journal(self) -> Path:
        """Says that the download is whole and verified."""
        return self.directory / "journal.json"

    @property
    def partial(self) -> Path:
        """Says what the bytes are the beginning of."""
        return self.directory / "partial.json"

    @property
    def reservation(self) -> Path:
        """How many bytes the ingest may come to allocate."""
        return self.directory / "reservation.json"

    @property
    def progress(self) -> Path:
        """How far it has come, for those who wait."""
        return self.directory / "progress.json"


@contextmanager
def turn(store: Store, ref: ImageRef, observer: Observer) -> Iterator[Staging]:
    """Wait until nobody else ingests this ref, then hold its ingest lock; the other's progress is passed on meanwhile.

    There is no deadline: the kernel frees a dead ingest's lock, and a live one has time-outs of its own.

    Raises:
        CacheNotWritable
    """
    key = ref_key(ref.canonical)
    lock, staging = store.paths.ingest_lock(key), Staging(store.paths.ingest(key))
    told = float("-inf")
    while True:
        with ExitStack() as stack:
            with translated(lock):
                taken = stack.enter_context(locks.try_exclusive(lock))
            if taken is not None:
                yield staging
                return
        if time.monotonic() - told >= _TELL:
            told = time.monotonic()
            observer.progress(read_progress(staging) or Progress(ref=ref.canonical, stage="wait", done=0, total=None))
        time.sleep(_POLL)


@contextmanager
def left(store: Store, ref: ImageRef) -> Iterator[Staging | None]:
    """What a dead ingest of this ref left, with its lock held; None when there is nothing, or somebody works on it.

    Raises:
        CacheNotWritable
    """
    key = ref_key(ref.canonical)
    lock, staging = store.paths.ingest_lock(key), Staging(store.paths.ingest(key))
    if not os.path.lexists(staging.directory):  # nearly always; who may not look finds nothing either
        yield None
        return
    with ExitStack() as stack:
        with translated(lock):
            taken = stack.enter_context(locks.try_exclusive(lock))
        yield staging if taken is not None else None


def kept(staging: Staging) -> Journal | None:
    """The journal of a verified download that is there, whole; None without one.

    Raises:
        CacheNotWritable
    """
    with translated(staging.journal):
        journal = _read(staging.journal, Journal)
        whole = journal is not None and journal.layout == LAYOUT and _size(staging.download) == journal.size
    return journal if whole else None


def begin(staging: Staging) -> Journal | None:
    """Make the directory ready: the journal of a verified download that a former ingest left; None without one.

    What is left of a download that is not whole stays where it is: see `partial`.

    Raises:
        CacheNotWritable, InsufficientSpace
    """
    with translated(staging.directory):
        if not make_directory(staging.directory, 0o700):
            if (journal := kept(staging)) is not None:
                staging.converted.unlink(missing_ok=True)
                return journal
            staging.converted.unlink(missing_ok=True)
            drop_reservation(staging)
            if partial(staging) is None:
                remove_tree(staging.directory, nested=True)
                make_directory(staging.directory, 0o700)
    return None


def partial(staging: Staging) -> Partial | None:
    """What a former ingest left of a download that is not whole, if one can go on from it.

    Raises:
        CacheNotWritable
    """
    with translated(staging.partial):
        left = _read(staging.partial, Partial)
        has_bytes = bool(_size(staging.download))
    return left if left is not None and has_bytes and (left.layout, left.boot) == (LAYOUT, boot()) else None


def write_partial(staging: Staging, left: Partial) -> None:
    """Record what the bytes of a download that begins are the beginning of.

    Raises:
        CacheNotWritable, InsufficientSpace
    """
    with translated(staging.partial):
        write_in_place_of(staging.partial, msgspec.json.encode(left), mode=0o600)


def identify(staging: Staging, version_id: str) -> None:
    """Record which version a download is of, now that all its bytes have told; one that says nothing of itself is left so.

    Raises:
        CacheNotWritable, InsufficientSpace
    """
    if (left := partial(staging)) is not None:
        write_partial(staging, replace(left, version_id=version_id))


def boot() -> str:
    """Which start of the machine this is; one that cannot be told is like no other."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex


def keep(staging: Staging, journal: Journal) -> None:
    """Record that the download is whole and verified; its bytes are durable already.

    Raises:
        CacheNotWritable, InsufficientSpace
    """
    with translated(staging.journal):
        write_durably(staging.journal, msgspec.json.encode(journal), mode=0o600)
        staging.partial.unlink(missing_ok=True)


def discard(staging: Staging) -> None:
    """Remove the ingest's directory; one that is gone is a success."""
    with translated(staging.directory):
        remove_tree(staging.directory, nested=True)


def restart(staging: Staging) -> None:
    """Empty the directory of a download that is of no use."""
    discard(staging)
    with translated(staging.directory):
        make_directory(staging.directory, 0o700)


def write_progress(staging: Staging, progress: Progress) -> None:
    """Tell those who wait how far we have come."""
    with translated(staging.progress):
        write_in_place_of(staging.progress, msgspec.json.encode(progress), mode=0o600)


def read_progress(staging: Staging) -> Progress | None:
    """How far the ingest has come; None when it does not say, or we may not look."""
    try:
        return _read(staging.progress, Progress)
    except PermissionError:
        return None


def write_reservation(staging: Staging, size: int) -> None:
    """Claim ``size`` bytes for this ingest in all. The caller holds the file system's space lock."""
    with translated(staging.reservation):
        write_in_place_of(staging.reservation, msgspec.json.encode(size), mode=0o600)


def drop_reservation(staging: Staging) -> None:
    """Claim nothing any more.

    Raises:
        CacheNotWritable
    """
    with translated(staging.reservation):
        staging.reservation.unlink(missing_ok=True)


def outstanding(staging: Staging) -> int:
    """Bytes that the ingest has claimed and not allocated yet."""
    claimed = _read(staging.reservation, int) or 0
    return max(0, claimed - allocated(staging))


def allocated(staging: Staging) -> int:
    """Bytes that the ingest's image files occupy, which is what its claim is for.

    Its records are not counted, and not what it shares with a master from which it makes the raw form.
    """
    return sum(_allocated(path) for path in (staging.download, staging.converted))


def _allocated(path: Path) -> int:
    try:
        status = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return 0
    return allocated_bytes(status) if status.st_nlink == 1 else 0


def ingests(store: Store) -> list[tuple[Staging, bool]]:
    """Every ingest in the cache, and whether it is alive (its lock is held)."""
    try:
        keys = sorted(os.listdir(store.paths.tmp))
    except FileNotFoundError:
        return []
    return [(Staging(store.paths.ingest(key)), locks.is_held(store.paths.ingest_lock(key))) for key in keys]


def sweep_dead(store: Store) -> int:
    """Remove the ingests that nobody works on; the bytes that they occupied."""
    freed = 0
    for staging, alive in ingests(store):
        if alive:
            continue
        with locks.try_exclusive(store.paths.ingest_lock(staging.directory.name)) as lock:
            if lock is not None:
                freed += allocated(staging)
                discard(staging)
    return freed


def _size(path: Path) -> int | None:
    try:
        return path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return None


def _read(path: Path, kind: type[_Value]) -> _Value | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
        return None
