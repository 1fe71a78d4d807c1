"""From a described version to a published image: reserve, stream (hash, inspect, write), verify, convert, publish.

One pass over the bytes as they arrive; nothing opens them before inspection has passed them. The caller holds the ref's ingest
lock, so there is one ingest of a ref at a time. Each step is told to the observer, and a test kills the process at each.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from underlay import qemuimg
from underlay.contracts import ImageSource, Observer
from underlay.errors import (
    BodyTooLong,
    BodyTruncated,
    DigestMismatch,
    ImageRefused,
    InsufficientSpace,
    NotCached,
    StorageFailed,
    UnderlayError,
)
from underlay.files import allocated_bytes, create, link, open_regular, translated
from underlay.formats import qcow2
from underlay.formats.inspect import Inspector
from underlay.model import (
    LAYOUT,
    BaseImage,
    Digest,
    Event,
    Form,
    ImageFacts,
    ImageRecord,
    ImageVersion,
    Level,
    Progress,
    Reason,
)
from underlay.naming import CacheKind, master_name, original_name
from underlay.policy.form import EXEMPT_FORMATS, Want, choose_form
from underlay.store import Store, images, refs, space, staging as stagings
from underlay.store.staging import Journal, Staging
from underlay.stream import Digests, SparseWriter, filled, served_digest, stored_digest
from underlay.version import __version__

_PROGRESS_INTERVAL = 0.2  # seconds
_UNKNOWN_STEP = 64 << 20  # bytes reserved at a time when the source does not announce a size
_GROWTH = 2  # of what has come of an image of unknown size, so much may yet come
_SMALL_FILES = 256 << 10  # bytes claimed beside an image's own, for our records and the file system's


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an ingest is to bring, and whereto.

    Attributes:
        want: what is asked of the image, beside what the source promises.
        neighbours: the host's other caches, whose reservations count on the same file system.
        holding: keeps what is published from eviction, until it is closed; None: nobody needs it yet.
    """

    store: Store
    source: ImageSource
    version: ImageVersion
    want: Want = field(default_factory=Want)
    neighbours: Sequence[Store] = ()
    holding: ExitStack | None = None

    @property
    def what(self) -> str:
        """How messages call the image."""
        return self.version.ref.canonical

    @property
    def expected(self) -> tuple[Digest, ...]:
        """Every digest that the bytes as served must have."""
        asked = () if self.want.checksum is None else (self.want.checksum,)
        return (*self.version.digests, *asked)

    @property
    def label(self) -> str | None:
        """What the bytes are said to be: by who asks, else by the source."""
        return self.want.disk_format or self.version.disk_format

    @property
    def exempt(self) -> bool:
        """Whether no format rule applies: a kernel, a ramdisk, or a cache without validation.

        What is to be converted is inspected all the same.
        """
        return self.label in EXEMPT_FORMATS or not (self.store.validation or self.want.raw)

    @property
    def raw_only(self) -> bool:
        """Whether nothing but a raw image will do."""
        return self.want.raw_only(force_raw=self.store.force_raw)


def ingest(order: Order, staging: Staging, observer: Observer) -> BaseImage:
    """Bring the image into the cache. The caller holds the ref's ingest lock.

    A verified download stays in staging when a later step fails, so that the next ingest does not download it again; after any
    other failure nothing is left.

    Raises:
        SourceError, ImageRefused, InsufficientSpace, CacheError, ToolError
    """
    left = stagings.begin(staging)
    _tell(observer, order, "staged")
    if left is not None and _still_serves(left, order, staging):
        journal = left
        _tell(observer, order, "download-kept", detail="a verified download of a former attempt is used")
    else:
        journal = _download(order, staging, observer)
    try:
        image = _store(order, staging, journal, observer)
    except BaseException as error:
        _settle(staging, journal, error)
        raise
    stagings.discard(staging)  # crash before this: a dead ingest, swept later; the image is published
    _tell(observer, order, "cleared")
    return image


def convert_kept(order: Order, staging: Staging, image: BaseImage, observer: Observer) -> BaseImage | None:
    """Bring the raw form of an image that the cache has as it was served; nothing is transferred.

    The caller holds the ref's ingest lock. None when the image is gone, is another by now, or cannot be linked here: then it
    has to be fetched. After a failure nothing is left.

    Raises:
        InsufficientSpace, CacheError, ToolError
    """
    stagings.restart(staging)
    _tell(observer, order, "staged")
    try:
        journal = _linked(order, staging, image)
        converted = None
        if journal is not None:
            staged, record = _kept_form(order, staging, journal, observer)
            converted = _publish(order, staging, staged, record, observer)
    except BaseException:
        with suppress(UnderlayError, OSError):
            stagings.discard(staging)
        raise
    stagings.discard(staging)  # crash before this: a dead ingest, swept later; the image is published
    _tell(observer, order, "cleared")
    return converted


def _linked(order: Order, staging: Staging, image: BaseImage) -> Journal | None:
    """The image as a verified download: a second link to it, so that nobody takes it away meanwhile."""
    try:
        with images.held(order.store, image.name) as hold, translated(staging.download):
            record = hold.image.record
            if record is None or record != image.record or not link(hold.image.path, staging.download):
                return None
    except NotCached:
        return None
    return Journal(
        layout=LAYOUT,
        ref=record.ref,
        version_id=record.version_id,
        validator=None,
        size=record.size,
        digests=record.digests,
        stored=record.stored,
        format=record.format,
        label=record.served_format or record.format,
        virtual_size=record.virtual_size,
        disk_format=order.label,
    )


# -------------------------------------------------------------------------------------------------------------- the download


def _download(order: Order, staging: Staging, observer: Observer) -> Journal:
    stagings.restart(staging)
    try:
        room = _Room(order, staging, observer)
        room.claim(_peak(order, None, received=0))  # a size that is announced and has no room costs no transfer
        _tell(observer, order, "fetching", level=Level.INFO, size=order.version.size)
        with translated(staging.directory, needed=order.version.size):
            fd = create(staging.download, 0o600)
            try:
                return _receive(order, room, fd, observer)
            finally:
                os.close(fd)
    except BaseException:
        stagings.discard(staging)
        raise


def _receive(order: Order, room: "_Room", fd: int, observer: Observer) -> Journal:
    inspector = None if order.exempt else _inspector(order)
    digests = Digests(tuple(dict.fromkeys(["sha256", *(digest.algorithm for digest in order.expected)])))
    writer = SparseWriter(fd)
    meter = _Meter(order.what, order.version.size, room.staging, observer)
    with order.source.open(order.version) as stream:
        for chunk in filled(stream):
            _check_length(order, writer.size + len(chunk))
            if inspector is not None:
                inspector.feed(chunk)
            digests.feed(chunk)
            received = writer.size + len(chunk)
            room.claim(_peak(order, inspector.early if inspector else None, received=received), received=received)
            writer.feed(chunk)
            meter.advance("fetch", writer.size)
    _tell(observer, order, "received", size=writer.size)
    if order.version.size is not None and writer.size < order.version.size:
        raise BodyTruncated(f"{order.what}: {writer.size} bytes arrived of {order.version.size} announced", hint="try again")
    facts = inspector.finish() if inspector else ImageFacts(format="raw", label="raw", virtual_size=writer.size)
    _check_digests(order, digests.result())
    stored = writer.finish()
    if not order.exempt:
        facts = images.prove_whole(order.store, room.staging.download, fd, facts, what=order.what)
    _tell(observer, order, "verified", level=Level.INFO, size=writer.size, format=facts.label)
    return _journal(order, facts, size=writer.size, digests=digests.result(), stored=stored)


def _inspector(order: Order) -> Inspector:
    return Inspector(what=order.what, label=order.label, virtual_size_limit=order.store.virtual_size_limit)


def _check_length(order: Order, received: int) -> None:
    announced = order.version.size
    if announced is not None and received > announced:
        raise BodyTooLong(f"{order.what}: more bytes arrive than the {announced} announced", hint="the source may be changing")


def _peak(order: Order, facts: ImageFacts | None, *, received: int) -> int:
    """Bytes that the ingest may allocate at most, as far as can be told by now: the download, and beside it the raw form."""
    announced = order.version.size
    download = -(-received // _UNKNOWN_STEP) * _UNKNOWN_STEP if announced is None else announced
    if facts is None or _form(order, facts)[0] is Form.AS_SERVED:
        return download
    # The raw form is taken to hold as much as the download, until all its tables are here and tell exactly.
    return download + (download if facts.virtual_size is None else min(download, facts.virtual_size))


@dataclass(slots=True)
class _Room:
    """What the ingest has claimed of the file system; it grows as more becomes known."""

    order: Order
    staging: Staging
    observer: Observer
    stays: bool = False
    claimed: int = 0

    def claim(self, need: int, *, received: int = 0) -> None:
        """Claim ``need`` bytes in all. Of an image without an announced size, what has arrived will do when no more is left.

        Raises:
            InsufficientSpace
        """
        if need <= self.claimed:
            return
        if self.order.version.size is not None or received <= self.claimed:
            self._reserve(need)
            return
        with suppress(InsufficientSpace):
            self._reserve(need)
            return
        with suppress(InsufficientSpace):
            self._reserve(received)
            return
        self._reserve(_GROWTH * received)  # which says how much is missing, as far as can be told

    def _reserve(self, need: int) -> None:
        try:
            space.reserve(self.order.store, self.staging, need=need + _SMALL_FILES, neighbours=self.order.neighbours)
        except InsufficientSpace as error:
            if self.stays or error.needed is None:
                raise
            raise _from_the_start(error, error.needed, stagings.allocated(self.staging)) from error
        self.claimed = need
        _tell(self.observer, self.order, "reserved", size=need)


def _from_the_start(error: InsufficientSpace, missing: int, had: int) -> InsufficientSpace:
    """The same of an ingest that is given up with all that it had: that is free then, and needed again."""
    needed, free = missing + had, error.free + had
    return InsufficientSpace(error.where, needed=needed, free=free, reclaimable=error.reclaimable, claimed=error.claimed)


def _form(order: Order, facts: ImageFacts) -> tuple[Form, Reason]:
    if order.exempt:
        return Form.AS_SERVED, Reason("exempt", "the image is kept as served, without inspection")
    return choose_form(facts, order.want, label=order.label, force_raw=order.store.force_raw)


def _check_digests(order: Order, actual: Sequence[Digest]) -> None:
    computed = {digest.algorithm: digest for digest in actual}
    for expected in order.expected:
        found = computed[expected.algorithm]
        if found != expected:
            raise DigestMismatch(order.what, expected=str(expected), actual=str(found))


def _qcow2_header(fd: int) -> qcow2.Header:
    return qcow2.parse_header(os.pread(fd, qcow2.HEADER_BYTES, 0))


def _journal(order: Order, facts: ImageFacts, *, size: int, digests: Sequence[Digest], stored: str) -> Journal:
    sha256 = next(digest.hex for digest in digests if digest.algorithm == "sha256")
    assert facts.virtual_size is not None
    return Journal(
        layout=LAYOUT,
        ref=order.version.ref.canonical,
        version_id=order.version.id or order.source.version_id(order.version.ref, sha256),
        validator=order.version.validator,
        size=size,
        digests=tuple(str(digest) for digest in digests),
        stored=stored,
        format=facts.format,
        label=facts.label,
        virtual_size=facts.virtual_size,
        exempt=order.exempt,
        disk_format=order.label,
    )


def _still_serves(journal: Journal, order: Order, staging: Staging) -> bool:
    """Whether a former attempt's verified download is what is wanted now."""
    version = order.version
    same_id = version.id is not None and version.id == journal.version_id
    same_validator = version.validator is not None and version.validator == journal.validator
    if journal.ref != version.ref.canonical or not (same_id or same_validator) or not _same_rules(journal, order):
        return False
    with translated(staging.download):
        fd = open_regular(staging.download)
        try:
            return all(
                str(expected) in journal.digests or served_digest(fd, expected.algorithm) == expected
                for expected in order.expected
            )
        finally:
            os.close(fd)


def _same_rules(journal: Journal, order: Order) -> bool:
    """Whether the bytes passed the rules that hold now, under the label that they have now."""
    if (journal.exempt, journal.disk_format) != (order.exempt, order.label):
        return False
    return order.exempt or journal.virtual_size <= order.store.virtual_size_limit


# ------------------------------------------------------------------------------------------------------ conversion, publication


def _store(order: Order, staging: Staging, journal: Journal, observer: Observer) -> BaseImage:
    staged, record = _kept_form(order, staging, journal, observer)
    # Remembered first: a ref that means a version not in the cache yet does no harm, a published image that no ref means
    # would be fetched again.
    version, now = order.version, datetime.now(UTC)
    validator, no_store = journal.validator, version.no_store
    refs.remember(order.store, version.ref, journal.version_id, validator=validator, now=now, no_store=no_store)
    _tell(observer, order, "remembered")
    return _publish(order, staging, staged, record, observer)


def _kept_form(order: Order, staging: Staging, journal: Journal, observer: Observer) -> tuple[Path, ImageRecord]:
    """The file that is to be the image, converted if need be, and its record."""
    facts = ImageFacts(format=journal.format, label=journal.label, virtual_size=journal.virtual_size)
    form, reason = _form(order, facts)
    _tell(observer, order, reason.code, detail=reason.detail)
    if form is Form.RAW:
        return staging.converted, _convert(order, staging, journal, observer)
    record = _record(journal, format=journal.format, size=journal.size, stored=journal.stored, as_served=True)
    label = order.version.disk_format
    if journal.exempt and label in EXEMPT_FORMATS and order.want.disk_format in (None, label):
        record = replace(record, served_format=label)  # its source says so, not only who asks
    return staging.download, record


def _publish(order: Order, staging: Staging, staged: Path, record: ImageRecord, observer: Observer) -> BaseImage:
    # All is written: once the file has left for its place, a claim would count what it occupies a second time.
    stagings.drop_reservation(staging)
    name = _name(order, record)
    put = images.publish_over if order.store.kind is CacheKind.MASTERS else images.publish
    image = put(order.store, staged, name, record, holding=order.holding)
    _tell(observer, order, "published", level=Level.INFO, name=name, size=image.size)
    return image


def _convert(order: Order, staging: Staging, journal: Journal, observer: Observer) -> ImageRecord:
    _keep_download(staging, journal)
    _tell(observer, order, "download-durable")
    _Room(order, staging, observer, stays=True).claim(_converted_peak(staging, journal))
    meter = _Meter(order.what, journal.virtual_size, staging, observer)
    meter.advance("convert", 0)
    with translated(staging.directory, needed=journal.virtual_size):
        with _watched(staging.converted, meter):
            qemuimg.convert_to_raw(staging.download, staging.converted, format=journal.format)
        fd = open_regular(staging.converted)
        try:
            size, stored = os.fstat(fd).st_size, stored_digest(fd)
        finally:
            os.close(fd)
    if size != journal.virtual_size:
        raise StorageFailed(f"{order.what}: its raw form has {size} bytes, its header says {journal.virtual_size}")
    meter.advance("convert", size)
    _tell(observer, order, "converted", level=Level.INFO, size=size)
    return _record(journal, format="raw", size=size, stored=stored, as_served=False)


@contextmanager
def _watched(target: Path, meter: "_Meter") -> Iterator[None]:
    """Tell how far a tool has come by what its output occupies, from a thread that ends with the context."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_PROGRESS_INTERVAL):
            with suppress(OSError, UnderlayError):
                meter.advance("convert", allocated_bytes(target.stat()))

    watcher = threading.Thread(target=watch, name="underlay-convert-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _converted_peak(staging: Staging, journal: Journal) -> int:
    """The download and its raw form, now that its tables can be counted."""
    raw = journal.virtual_size
    if journal.format == "qcow2":
        fd = open_regular(staging.download)
        try:
            raw = qcow2.mapped_bytes(fd, _qcow2_header(fd))
        finally:
            os.close(fd)
    return stagings.allocated(staging) + raw


def _keep_download(staging: Staging, journal: Journal) -> None:
    with translated(staging.download):
        fd = open_regular(staging.download)
        try:
            os.fsync(fd)  # crash: a download without a journal, which is fetched again
        finally:
            os.close(fd)
    stagings.keep(staging, journal)  # crash: a verified download, which the next ingest takes


def _record(journal: Journal, *, format: str, size: int, stored: str, as_served: bool) -> ImageRecord:  # noqa: A002
    return ImageRecord(
        layout=LAYOUT,
        version_id=journal.version_id,
        ref=journal.ref,
        format=format,
        size=size,
        virtual_size=journal.virtual_size,
        digests=journal.digests,
        stored=stored,
        as_served=as_served,
        served_format=None if journal.exempt else journal.label,
        fetched_at=datetime.now(UTC).replace(microsecond=0),
        underlay=__version__,
    )


def _name(order: Order, record: ImageRecord) -> str:
    ref = order.version.ref
    if order.store.kind is CacheKind.MASTERS:
        # As Ironic has it: the suffix tells that raw was wanted, whether the image had to be converted or came so.
        return master_name(record.version_id, ref=ref, raw=order.raw_only)
    return original_name(record.version_id, ref=ref, stored_format=record.format)


def _settle(staging: Staging, journal: Journal, error: BaseException) -> None:
    """After a failure behind the verified download: keep it, unless it is refused or the storage did not hold it."""
    with suppress(UnderlayError, OSError):
        if not isinstance(error, ImageRefused | StorageFailed):
            staging.converted.unlink(missing_ok=True)  # first: it may have filled the file system
            _keep_download(staging, journal)
            stagings.drop_reservation(staging)
            return
    with suppress(UnderlayError, OSError):
        stagings.discard(staging)


# ------------------------------------------------------------------------------------------------------------------- telling


@dataclass(slots=True)
class _Meter:
    """Tells how far the work has come, to the observer and to those who wait for it, a few times a second."""

    ref: str
    total: int | None
    staging: Staging
    observer: Observer
    _next: float = 0.0

    def advance(self, stage: str, done: int) -> None:
        now = time.monotonic()
        if now < self._next and done != self.total:
            return
        self._next = now + _PROGRESS_INTERVAL
        progress = Progress(ref=self.ref, stage=stage, done=done, total=self.total)
        self.observer.progress(progress)
        stagings.write_progress(self.staging, progress)


def _tell(
    observer: Observer, order: Order, code: str, *, level: Level = Level.DEBUG, detail: str = "", **facts: str | int | None
) -> None:
    observer.event(Event(code=code, level=level, detail=detail, fields={"ref": order.what, **facts}))
