"""The bytes of one version on their way into the pipeline: from disk what is there already, from the source what is not."""

import os
from dataclasses import dataclass

from underlay.content import Content
from underlay.contracts import ByteStream, ClonableStream, Observer, UnconfirmedStream
from underlay.errors import BodyTooLong, BodyTruncated, SourceChanged, SourceUnavailable, StorageFailed
from underlay.formats.compressed import MAGIC_BYTES
from underlay.model import LAYOUT, Level
from underlay.order import Order
from underlay.pipeline import Buffer, Pipeline
from underlay.policy.retry import Tries
from underlay.retrying import pause
from underlay.store import staging as stagings
from underlay.store.staging import Partial
from underlay.telling import Meter, tell
from underlay.values import replace


@dataclass(slots=True)
class Intake:
    """Fills the pipeline's buffers, across as many streams as it takes.

    Attributes:
        order: without the version's validator once that is not known to mean what comes.
        fd: of the download.
        size: bytes that have come so far.
    """

    order: Order
    fd: int
    pipeline: Pipeline
    content: Content
    meter: Meter
    size: int = 0
    buffer: Buffer | None = None
    _has_begun: bool = False

    def forget_validator(self) -> None:
        """What comes is not known to be what the validator means, so it is not kept under it, nor gone on with by it."""
        self.order = replace(self.order, version=replace(self.order.version, validator=None))

    def take(self, stream: ByteStream) -> None:
        """Everything that the stream has.

        Raises:
            BodyTooLong; what the stream or a consumer raises
        """
        while received := stream.readinto(self.room()):
            self.add(received)
            self.check_length()
            self.meter.advance("fetch", self.size)

    def read_back(self, size: int) -> None:
        """The download's own first bytes, which are here already.

        Raises:
            BodyTooLong, StorageFailed; what a consumer raises
        """
        while self.size < size:
            length = os.preadv(self.fd, [self.room()[: size - self.size]], self.size)
            if not length:
                raise StorageFailed(f"{self.order.what}: what has come of it is gone from the staging directory")
            self.add(length)
            self.meter.advance("fetch", self.size)
        self.check_length()

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
        """Make sure that no more has come than was announced.

        Raises:
            BodyTooLong
        """
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
        self.buffer = None  # first: an interrupt between the two must not have it passed on again
        self.pipeline.pass_on(buffer)

    def _begin(self, beginning: bytes) -> None:
        self._has_begun = True
        self.content.begin(beginning)
        # What is on disk of a compressed image are not its bytes as served, so another process could not go on from there.
        if self.order.is_fixed and self.content.compression is None:
            stagings.write_partial(self.meter.staging, partial_of(self.order))


def replay(intake: Intake, kept: int, observer: Observer) -> None:
    """Let the consumers read the bytes that a former attempt left on disk."""
    if kept:
        tell(observer, intake.order, "resumed", level=Level.INFO, detail="from where a former attempt broke off", size=kept)
        intake.read_back(kept)


def fetch(intake: Intake, tries: Tries, observer: Observer) -> None:
    """Take what is not here yet from the source, in as many attempts as it takes.

    Args:
        tries: how the attempts have gone so far.

    Raises:
        SourceError, BodyTooLong; what a consumer raises
    """
    order = intake.order
    while True:
        try:
            with order.source.open(intake.order.version, offset=intake.size) as stream:
                if isinstance(stream, UnconfirmedStream):
                    intake.forget_validator()
                if not (isinstance(stream, ClonableStream) and _share(intake, stream, observer)):
                    intake.take(stream)
            _check_end(order, intake.size)
            return
        except (SourceUnavailable, BodyTruncated) as error:
            if intake.size and order.is_fixed and not intake.order.is_fixed:
                why = f"{order.what} broke off, and its server did not say which version it sent"
                raise SourceChanged(why, hint="try again") from error
            if intake.size and not order.is_fixed:
                raise
            pause(tries, error, what=order.what, reached=intake.size, observer=observer)


def _share(intake: Intake, stream: ClonableStream, observer: Observer) -> bool:
    """Have the download share the blocks of a file of this host, and read it back; False when its bytes have to be read."""
    if intake.size or not stream.clone_into(intake.fd):
        return False
    if intake.order.undoes_beginning(os.pread(intake.fd, MAGIC_BYTES, 0)):
        os.ftruncate(intake.fd, 0)  # what is kept of a compressed image is what it holds
        return False
    size = os.fstat(intake.fd).st_size
    intake.content.writer.kept = size
    tell(observer, intake.order, "shared", detail="its blocks are shared with the file that it comes from", size=size)
    intake.read_back(size)
    return True


def _check_end(order: Order, size: int) -> None:
    announced = order.version.size
    if announced is not None and size < announced:
        raise BodyTruncated(f"{order.what}: {size} bytes arrived of {announced} announced", hint="try again")


def partial_of(order: Order) -> Partial:
    """What a download that begins says of itself."""
    version = order.version
    return Partial(
        layout=LAYOUT,
        ref=version.ref.canonical,
        version_id=version.id,
        validator=version.validator,
        expected=tuple(str(digest) for digest in order.expected),
        boot=stagings.boot(),
    )
