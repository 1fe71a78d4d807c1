"""From a described version to a published image: transfer, convert, publish.

Nothing opens the bytes before inspection has passed them, which the transfer sees to. The caller holds the ref's ingest
lock, so there is one ingest of a ref at a time. Each step is told to the observer, and a test kills the process at each.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from underlay import signatures
from underlay.claim import Claim
from underlay.contracts import Observer
from underlay.errors import (
    ImageDamaged,
    ImageRefused,
    NotCached,
    SignatureRefused,
    StorageFailed,
    UnderlayError,
)
from underlay.files import link, open_regular, translated
from underlay.formats import qcow2
from underlay.formats.compressed import MAGIC_BYTES
from underlay.model import (
    LAYOUT,
    BaseImage,
    Digest,
    Form,
    ImageFacts,
    ImageRecord,
    Level,
)
from underlay.naming import CacheKind, master_name, original_name
from underlay.order import Order
from underlay.policy.form import EXEMPT_FORMATS
from underlay.rawform import RawForm, make_raw
from underlay.store import images, refs, staging as stagings
from underlay.store.staging import Journal, Staging
from underlay.stream import served_digest, stored_digest
from underlay.telling import tell
from underlay.transfer import Received, transfer
from underlay.values import replace
from underlay.version import __version__

_WHEN = ("from the finished file", "while the image arrived")


def ingest(order: Order, staging: Staging, observer: Observer) -> BaseImage:
    """Bring the image into the cache. The caller holds the ref's ingest lock.

    A verified download stays in staging when a later step fails, so that the next ingest does not download it again, and so
    does what has come of a transfer that broke off; after any other failure nothing is left.

    Raises:
        SourceError, ImageRefused, InsufficientSpace, CacheError, ToolError
    """
    left = stagings.begin(staging)
    tell(observer, order, "staged")
    if left is not None and _still_serves(left, order, staging) and _is_as_verified(order, staging, left, observer):
        # The least disk may have changed since.
        received = Received(journal=replace(left, min_disk=order.version.min_disk))
        tell(observer, order, "download-kept", detail="a verified download of a former attempt is used")
    else:
        received = transfer(order, staging, observer)
    try:
        image = _store(order, staging, received, observer)
    except BaseException as error:
        _settle(staging, received.journal, error)
        raise
    stagings.discard(staging)  # crash before this: a dead ingest, swept later; the image is published
    tell(observer, order, "cleared")
    return image


def convert_kept(order: Order, staging: Staging, image: BaseImage, observer: Observer) -> BaseImage | None:
    """Bring the raw form of an image that the cache has as it was served; nothing is transferred.

    The caller holds the ref's ingest lock. None when the image is gone, is another by now, is damaged, or cannot be linked
    here: then it has to be fetched. After a failure nothing is left.

    Raises:
        InsufficientSpace, CacheError, ToolError
    """
    stagings.restart(staging)
    tell(observer, order, "staged")
    try:
        journal = _linked(order, staging, image)
        converted = None
        if journal is not None and _is_as_verified(order, staging, journal, observer):
            staged, record = _kept_form(order, staging, Received(journal=journal), observer)
            converted = _publish(order, staging, staged, record, observer)
    except BaseException:
        with suppress(UnderlayError, OSError):
            stagings.discard(staging)
        raise
    stagings.discard(staging)  # crash before this: a dead ingest, swept later; the image is published
    tell(observer, order, "cleared")
    return converted


def _linked(order: Order, staging: Staging, image: BaseImage) -> Journal | None:
    """The image as a verified download: a second link to it, so that nobody takes it away meanwhile."""
    try:
        with images.held(order.store, image.name) as hold, translated(staging.download):
            record = hold.image.record
            if record is None or record != image.record or not link(hold.image.path, staging.download):
                return None
    except (NotCached, ImageDamaged):
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
        compression=record.compression,
        min_disk=record.min_disk,
    )


def _is_as_verified(order: Order, staging: Staging, journal: Journal, observer: Observer) -> bool:
    """Whether bytes that have lain here are still those that were verified; what cannot be read is not.

    What is made of them gets digests of its own, which would vouch for whatever has become of them meanwhile.
    """
    try:
        fd = open_regular(staging.download)
        try:
            found = stored_digest(fd)
        finally:
            os.close(fd)
    except OSError as error:
        why = f"cannot be read any more: {error.strerror or error}"
    else:
        if found == journal.stored:
            return True
        why = "are not any more those that were verified"
    tell(observer, order, "download-damaged", level=Level.WARNING, detail=f"its bytes on disk {why}; they are fetched anew")
    return False


def _still_serves(journal: Journal, order: Order, staging: Staging) -> bool:
    """Whether a former attempt's verified download is what is wanted now."""
    version = order.version
    same_id = version.id is not None and version.id == journal.version_id
    same_validator = version.validator is not None and version.validator == journal.validator
    if journal.ref != version.ref.canonical or not (same_id or same_validator) or not _same_rules(journal, order):
        return False
    if not _is_signed(journal, order) or not _same_compression(journal, order, staging.download):
        return False
    unknown = [expected for expected in order.expected if str(expected) not in journal.digests]
    return not unknown or (journal.compression is None and _has_digests(staging.download, unknown))


def _has_digests(path: Path, wanted: Sequence[Digest]) -> bool:
    with translated(path):
        fd = open_regular(path)
        try:
            return all(served_digest(fd, digest.algorithm) == digest for digest in wanted)
        finally:
            os.close(fd)


def _is_signed(journal: Journal, order: Order) -> bool:
    """Whether the bytes have the signature that is wanted now, as far as their recorded digests tell."""
    signature = order.version.signature
    if signature is None:
        return True
    digests = {digest.algorithm: digest for digest in map(Digest.parse, journal.digests)}
    if signature.algorithm not in digests:
        return False
    try:
        signatures.verify(order.what, signature, digests[signature.algorithm])
    except SignatureRefused:
        return False
    return True


def _same_rules(journal: Journal, order: Order) -> bool:
    """Whether the bytes passed the rules that hold now, under the label that they have now."""
    if (journal.exempt, journal.disk_format) != (order.exempt, order.label):
        return False
    if order.want.formats is not None and journal.label not in order.want.formats:
        return False
    return order.exempt or journal.virtual_size <= order.store.virtual_size_limit


def _same_compression(journal: Journal, order: Order, download: Path) -> bool:
    """Whether what is on disk was decompressed if it would be now, and only then."""
    if journal.compression is not None:
        return order.undoes(journal.compression)
    with translated(download):
        fd = open_regular(download)
        try:
            return not order.undoes_beginning(os.pread(fd, MAGIC_BYTES, 0))
        finally:
            os.close(fd)


# ------------------------------------------------------------------------------------------------------ conversion, publication


def _store(order: Order, staging: Staging, received: Received, observer: Observer) -> BaseImage:
    journal = received.journal
    staged, record = _kept_form(order, staging, received, observer)
    # Remembered first: a ref that means a version not in the cache yet does no harm, a published image that no ref means
    # would be fetched again.
    version, now = order.version, datetime.now(UTC)
    validator, no_store = journal.validator, version.no_store
    refs.remember(order.store, version.ref, journal.version_id, validator=validator, now=now, no_store=no_store)
    tell(observer, order, "remembered")
    return _publish(order, staging, staged, record, observer)


def _kept_form(order: Order, staging: Staging, received: Received, observer: Observer) -> tuple[Path, ImageRecord]:
    """The file that is to be the image, converted if need be, and its record."""
    journal = received.journal
    facts = ImageFacts(format=journal.format, label=journal.label, virtual_size=journal.virtual_size)
    form, reason = order.form(facts)
    tell(observer, order, reason.code, detail=reason.detail)
    if form is Form.RAW:
        raw = received.raw or _convert(order, staging, journal, observer)
        tell(observer, order, "converted", level=Level.INFO, detail=_WHEN[received.raw is not None], size=raw.size)
        # Should we die once it is published, what is left of the download is known to be of no use.
        stagings.identify(staging, journal.version_id)
        return staging.converted, _record(journal, format="raw", size=raw.size, stored=raw.stored, as_served=False)
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
    tell(observer, order, "published", level=Level.INFO, name=name, size=image.size)
    return image


def _convert(order: Order, staging: Staging, journal: Journal, observer: Observer) -> RawForm:
    _keep_download(staging, journal)
    tell(observer, order, "download-durable")
    Claim(order, staging, observer, stays=True).grow(_converted_peak(staging, journal))
    return make_raw(order, staging, journal, observer)


def _converted_peak(staging: Staging, journal: Journal) -> int:
    """The download and its raw form, now that its tables can be counted."""
    raw = journal.virtual_size
    if journal.format == "qcow2":
        fd = open_regular(staging.download)
        try:
            raw = qcow2.mapped_bytes(fd, qcow2.parse_header(os.pread(fd, qcow2.HEADER_BYTES, 0)))
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
        compression=journal.compression,
        min_disk=journal.min_disk,
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
