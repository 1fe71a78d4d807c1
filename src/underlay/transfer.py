"""The bytes of one version, from its source into staging: verified, and never asked for twice when once will do.

A transfer that breaks goes on from the byte that it got to, after a pause, for as long as each attempt gets further; so does
one whose process died, after its bytes on disk have been read again. Bytes of two versions are never mixed: what goes on is
bound to a validator of the version, or to a digest that all the bytes must have in the end.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from underlay import signatures
from underlay.claim import Claim
from underlay.content import Content
from underlay.contracts import Observer
from underlay.errors import (
    BodyTooLong,
    BodyTruncated,
    DigestMismatch,
    ImageRefused,
    SourceChanged,
    SourceUnavailable,
    UnderlayError,
)
from underlay.files import check_writeback, create, open_regular, translated
from underlay.formats.compressed import MAGIC_BYTES
from underlay.intake import Intake, fetch, replay
from underlay.model import LAYOUT, Digest, ImageFacts, Level
from underlay.onepass import following
from underlay.order import Order
from underlay.pipeline import running
from underlay.policy.retry import Tries
from underlay.rawform import RawForm
from underlay.retrying import pause
from underlay.store import images, staging as stagings
from underlay.store.staging import Journal, Partial, Staging
from underlay.stream import BLOCK_BYTES, Digests, SparseWriter
from underlay.telling import Meter, tell
from underlay.values import replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A download that is whole and verified.

    Attributes:
        raw: its raw form, when that is wanted and was made while the image arrived.
    """

    journal: Journal
    raw: RawForm | None = None


def transfer(order: Order, staging: Staging, observer: Observer) -> Received:
    """Bring the bytes, or the rest of them, into staging, and verify them. The caller holds the ref's ingest lock.

    What broke off stays in staging when the next attempt can go on from there; after any other failure nothing is left.

    Raises:
        SourceError, ImageRefused, InsufficientSpace, CacheError, ToolError
    """
    goes_on = _may_go_on(order, stagings.partial(staging))
    try:
        return _transferred(order, staging, observer, goes_on=goes_on)
    except BaseException as error:
        _leave(order, staging, error)
        raise


def _transferred(order: Order, staging: Staging, observer: Observer, *, goes_on: bool) -> Received:
    tries = Tries(order.retries)
    while True:
        if not goes_on:
            stagings.restart(staging)
        try:
            return _received(order, staging, tries, observer)
        except (BodyTooLong, ImageRefused, SourceChanged):
            if not goes_on:  # what an earlier attempt left may have been of another version
                raise
        except (SourceUnavailable, BodyTruncated) as error:
            if order.is_fixed:  # it has been tried again from where it broke
                raise
            pause(tries, error, what=order.what, reached=0, observer=observer)
        goes_on = False


def _may_go_on(order: Order, partial: Partial | None) -> bool:
    """Whether what a former attempt left is the beginning of what is wanted now."""
    if partial is None or partial.ref != order.version.ref.canonical:
        return False
    version = order.version
    same_id = version.id is not None and version.id == partial.version_id
    same_validator = version.validator is not None and version.validator == partial.validator
    return same_id or same_validator or any(str(digest) in partial.expected for digest in order.expected)


def _leave(order: Order, staging: Staging, error: BaseException) -> None:
    """After a failure: keep what has come when it can be gone on from."""
    is_broken_off = isinstance(error, SourceUnavailable | BodyTruncated) or not isinstance(error, Exception)
    with suppress(UnderlayError, OSError):
        if order.is_fixed and is_broken_off and stagings.partial(staging) is not None and _kept_bytes(staging.download):
            stagings.drop_reservation(staging)
        else:
            stagings.discard(staging)


def _kept_bytes(download: Path | int) -> int:
    """Bytes of a download on disk that another process goes on from: a block that was not written whole is fetched again."""
    return os.stat(download).st_size // BLOCK_BYTES * BLOCK_BYTES


def _received(order: Order, staging: Staging, tries: Tries, observer: Observer) -> Received:
    claim = Claim(order, staging, observer, announced=order.version.size)
    claim.expect(None, received=0)  # a size that is announced and has no room costs no transfer
    tell(observer, order, "fetching", level=Level.INFO, size=order.version.size)
    with (
        translated(staging.directory, needed=order.version.size),
        _opened(order, staging) as fd,
        following(order, staging, claim, observer) as follower,
    ):
        content = Content(order, claim, SparseWriter(fd, kept=os.fstat(fd).st_size), follower)
        digests = Digests(order.algorithms)
        with running((*digests.consumers, content)) as pipeline:
            intake = Intake(order, fd, pipeline, content, Meter(order.what, order.version.size, staging, observer))
            _take_in(intake, tries, observer)
        tell(observer, order, "received", size=intake.size)
        facts = content.finish()
        served, stored = digests.served(), content.stored() or digests.stored()
        _check_digests(order, served)
        if not order.exempt:
            facts = images.prove_whole(order.store, staging.download, fd, facts, what=order.what)
        tell(observer, order, "verified", level=Level.INFO, size=intake.size, format=facts.label)
        journal = _journal(intake.order, facts, size=content.writer.size, digests=served, stored=stored)
        raw = follower.finish()
        if raw is not None:
            check_writeback(fd)  # it was made of what could be read back, and nobody will fsync the download any more
        return Received(journal=replace(journal, compression=content.compression), raw=raw)


def _take_in(intake: Intake, tries: Tries, observer: Observer) -> None:
    """Let the consumers have every byte, those on disk already first."""
    try:
        replay(intake, intake.content.writer.kept, observer)
        fetch(intake, tries, observer)
    finally:  # also what has come of a transfer that broke off is to be written
        intake.finish()


@contextmanager
def _opened(order: Order, staging: Staging) -> Iterator[int]:
    """The download, cut to what of it can be gone on from."""
    fd = open_regular(staging.download, os.O_RDWR) if staging.download.exists() else create(staging.download, 0o600)
    try:
        kept = _kept_bytes(fd)
        if kept and order.undoes_beginning(os.pread(fd, MAGIC_BYTES, 0)):
            kept = 0  # it was left by who wanted it compressed; what is kept of it now is what it holds
        if kept < os.fstat(fd).st_size:  # a file that is truncated to nothing is flushed by ext4 when it is closed
            os.ftruncate(fd, kept)
        yield fd
    finally:
        os.close(fd)


# -------------------------------------------------------------------------------------------------------------- what it was


def _check_digests(order: Order, actual: Sequence[Digest]) -> None:
    computed = {digest.algorithm: digest for digest in actual}
    for expected in order.expected:
        found = computed[expected.algorithm]
        if found != expected:
            raise _mismatch(order, expected, found)
    if (signature := order.version.signature) is not None:
        signatures.verify(order.what, signature, computed[signature.algorithm])


def _mismatch(order: Order, expected: Digest, found: Digest) -> DigestMismatch:
    is_promised = expected in order.version.digests and expected != order.want.checksum
    if not is_promised:
        return DigestMismatch(order.what, expected=str(expected), actual=str(found))
    why = "its source promises the expected one and serves other bytes, which were damaged or replaced in their place"
    hint = "try again later, when what the source says may be newer, or tell its publisher"
    return DigestMismatch(order.what, expected=str(expected), actual=str(found), why=why, hint=hint)


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
        min_disk=order.version.min_disk,
    )
