"""The bytes of one version, from its source into staging: verified, and never asked for twice when once will do.

A transfer that breaks goes on from the byte that it got to, after a pause, for as long as each attempt gets further; so does
one whose process died, after its bytes on disk have been read again. Bytes of two versions are never mixed: what goes on is
bound to a validator of the version, or to a digest that all the bytes must have in the end.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from underlay import signatures
from underlay.claim import Claim
from underlay.content import Content
from underlay.contracts import ByteStream, Observer
from underlay.errors import BodyTooLong, BodyTruncated, DigestMismatch, SignatureRefused, SourceUnavailable, UnderlayError
from underlay.files import create, open_regular, translated
from underlay.formats.compressed import MAGIC_BYTES
from underlay.model import LAYOUT, Digest, ImageFacts, Level
from underlay.order import Order
from underlay.pipeline import Buffer, Pipeline, running
from underlay.policy.retry import Tries
from underlay.retrying import pause
from underlay.store import images, staging as stagings
from underlay.store.staging import Journal, Partial, Staging
from underlay.stream import BLOCK_BYTES, Digests, SparseWriter
from underlay.telling import Meter, tell


def transfer(order: Order, staging: Staging, observer: Observer) -> Journal:
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


def _transferred(order: Order, staging: Staging, observer: Observer, *, goes_on: bool) -> Journal:
    tries = Tries(order.retries)
    while True:
        if not goes_on:
            stagings.restart(staging)
        try:
            return _received(order, staging, observer)
        except (DigestMismatch, SignatureRefused):
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


def _received(order: Order, staging: Staging, observer: Observer) -> Journal:
    claim = Claim(order, staging, observer, announced=order.version.size)
    claim.expect(None, received=0)  # a size that is announced and has no room costs no transfer
    tell(observer, order, "fetching", level=Level.INFO, size=order.version.size)
    with translated(staging.directory, needed=order.version.size), _opened(staging) as fd:
        kept = _kept_bytes(fd)
        writer = SparseWriter(fd, kept=kept)
        content = Content(order, claim, writer)
        digests = Digests(order.algorithms)
        with running((digests, content)) as pipeline:
            intake = _Intake(order, pipeline, content, Meter(order.what, order.version.size, staging, observer))
            _replay(intake, fd, kept, observer)
            try:
                _fetch(intake, observer)
            finally:  # also what has come of a transfer that broke off is to be written
                intake.finish()
        tell(observer, order, "received", size=intake.size)
        facts, stored = content.finish()
        _check_digests(order, digests.result())
        if not order.exempt:
            facts = images.prove_whole(order.store, staging.download, fd, facts, what=order.what)
    tell(observer, order, "verified", level=Level.INFO, size=intake.size, format=facts.label)
    journal = _journal(order, facts, size=writer.size, digests=digests.result(), stored=stored)
    return replace(journal, compression=content.compression)


@contextmanager
def _opened(staging: Staging) -> Iterator[int]:
    fd = open_regular(staging.download, os.O_RDWR) if staging.download.exists() else create(staging.download, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


# --------------------------------------------------------------------------------------------------------------- the bytes


@dataclass(slots=True)
class _Intake:
    """Fills the pipeline's buffers, across as many streams as it takes.

    Attributes:
        size: bytes that have come so far.
    """

    order: Order
    pipeline: Pipeline
    content: Content
    meter: Meter
    size: int = 0
    buffer: Buffer | None = None
    _has_begun: bool = False

    def take(self, stream: ByteStream) -> None:
        """Everything that the stream has.

        Raises:
            BodyTooLong; what the stream or a consumer raises
        """
        while received := stream.readinto(self.room()):
            self.add(received)
            self.check_length()
            self.meter.advance("fetch", self.size)

    def room(self) -> memoryview:
        """Memory to fill, of which `add` is then told."""
        if self.buffer is None:
            self.buffer = self.pipeline.empty()
        return self.buffer.free

    def add(self, length: int) -> None:
        """So much of the memory has been filled."""
        assert self.buffer is not None
        self.buffer.length += length
        self.size += length
        if not self.buffer.free:
            self._pass_on(self.buffer)

    def check_length(self) -> None:
        announced = self.order.version.size
        if announced is not None and self.size > announced:
            what = f"{self.order.what}: more bytes arrive than the {announced} announced"
            raise BodyTooLong(what, hint="the source may be changing")

    def finish(self) -> None:
        """Pass on what is left, and wait for the consumers."""
        if self.buffer is not None and self.buffer.length:
            self._pass_on(self.buffer)
        if not self._has_begun:
            self._begin(b"")
        self.pipeline.finish()

    def _pass_on(self, buffer: Buffer) -> None:
        if not self._has_begun:
            self._begin(bytes(buffer.memory[: min(buffer.length, MAGIC_BYTES)]))
        self.pipeline.pass_on(buffer)
        self.buffer = None

    def _begin(self, beginning: bytes) -> None:
        self._has_begun = True
        self.content.begin(beginning)
        # What is on disk of a compressed image are not its bytes as served, so another process could not go on from there.
        if self.order.is_fixed and self.content.compression is None:
            stagings.write_partial(self.meter.staging, _partial(self.order))


def _replay(intake: _Intake, fd: int, kept: int, observer: Observer) -> None:
    """Let the consumers read the bytes that are on disk already."""
    if kept == 0:
        return
    os.ftruncate(fd, kept)
    tell(observer, intake.order, "resumed", level=Level.INFO, detail="from where a former attempt broke off", size=kept)
    while intake.size < kept:
        room = intake.room()
        intake.add(os.preadv(fd, [room[: kept - intake.size]], intake.size))
    intake.check_length()


def _fetch(intake: _Intake, observer: Observer) -> None:
    order, tries = intake.order, Tries(intake.order.retries)
    while True:
        try:
            with order.source.open(order.version, offset=intake.size) as stream:
                intake.take(stream)
            _check_end(order, intake.size)
            return
        except (SourceUnavailable, BodyTruncated) as error:
            if intake.size and not order.is_fixed:
                raise
            pause(tries, error, what=order.what, reached=intake.size, observer=observer)


def _check_end(order: Order, size: int) -> None:
    announced = order.version.size
    if announced is not None and size < announced:
        raise BodyTruncated(f"{order.what}: {size} bytes arrived of {announced} announced", hint="try again")


# -------------------------------------------------------------------------------------------------------------- what it was


def _check_digests(order: Order, actual: Sequence[Digest]) -> None:
    computed = {digest.algorithm: digest for digest in actual}
    for expected in order.expected:
        found = computed[expected.algorithm]
        if found != expected:
            raise DigestMismatch(order.what, expected=str(expected), actual=str(found))
    if (signature := order.version.signature) is not None:
        signatures.verify(order.what, signature, computed[signature.algorithm])


def _partial(order: Order) -> Partial:
    version = order.version
    return Partial(
        layout=LAYOUT,
        ref=version.ref.canonical,
        version_id=version.id,
        validator=version.validator,
        expected=tuple(str(digest) for digest in order.expected),
        boot=stagings.boot(),
    )


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
