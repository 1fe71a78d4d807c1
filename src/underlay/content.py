"""What becomes of the bytes that arrive: decompressed if need be, inspected, claimed, written and followed, in this order."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from underlay.claim import Claim
from underlay.errors import DigestMismatch, FormatMismatch
from underlay.formats.compressed import Decompressor, compression_of
from underlay.formats.inspect import Inspector, check_virtual_size
from underlay.model import ImageFacts
from underlay.onepass import Follower
from underlay.order import Order
from underlay.stream import Digests, SparseWriter


@dataclass(slots=True)
class Content:
    """Takes the bytes of an image as served, in order; nothing is written that inspection has not seen.

    Where no rule applies, nothing is inspected, and nothing is decompressed unless that is asked for: it may be anything.

    Attributes:
        compression: what the bytes as served are compressed with; None: they are not.
    """

    order: Order
    claim: Claim
    writer: SparseWriter
    follower: Follower
    compression: str | None = None
    _inspector: Inspector | None = None
    _decompressor: Decompressor | None = None
    _digests: Digests = field(default_factory=lambda: Digests(("sha256",)))

    def begin(self, beginning: bytes) -> None:
        """Find out from the first bytes what is to be done with all of them. Comes before the first `feed`."""
        order = self.order
        if not order.exempt:
            self._inspector = Inspector(what=order.what, label=order.label, virtual_size_limit=order.store.virtual_size_limit)
        if order.undoes_beginning(beginning) and (compression := compression_of(beginning)):
            self.compression = compression
            self._decompressor = Decompressor(order.what, compression)
            promised = (digest.algorithm for digest in order.version.content_digests)
            self._digests = Digests(tuple(dict.fromkeys(["sha256", *promised])))
            self.claim.announced = None  # what comes of it nobody has announced

    def feed(self, chunk: memoryview, /) -> None:
        """Take the next bytes.

        Raises:
            UnsafeImage, FormatMismatch, VirtualSizeRefused, InsufficientSpace, OSError
        """
        self._keep([chunk] if self._decompressor is None else self._decompressor.feed(chunk))

    def finish(self) -> ImageFacts:
        """What the bytes are.

        Raises:
            UnsafeImage, FormatMismatch, VirtualSizeRefused, DigestMismatch, OSError
        """
        if self._decompressor is not None:
            self._keep(self._decompressor.finish())
            self._check_digests()
        size = self.writer.size
        facts = self._inspector.finish() if self._inspector else ImageFacts(format="raw", label="raw", virtual_size=size)
        self._check_permitted(facts if self._inspector else None)
        self.writer.finish()
        return facts

    def stored(self) -> str | None:
        """The stored digest of what a compressed image holds; of another, that of its bytes as served is to be taken."""
        return None if self._decompressor is None else self._digests.stored()

    def _keep(self, pieces: Iterator[memoryview] | list[memoryview]) -> None:
        for piece in pieces:
            size = self.writer.size + len(piece)
            if self._inspector is not None:
                self._inspector.feed(piece)
                self._check_permitted(self._inspector.early)
            early = self._inspector.early if self._inspector else None
            # A few bytes can stand for gigabytes, and what says no size of its own may be without an end.
            if self._decompressor is not None or early is None or early.format == "raw":
                check_virtual_size(self.order.what, size, limit=self.order.store.virtual_size_limit)
            if self._decompressor is not None:
                for digest in self._digests.consumers:
                    digest.feed(piece)
            self.claim.expect(early, received=size)
            self.writer.is_passing = self.follower.is_at_work  # once its raw form is there, the download is of no use
            self.writer.feed(piece)
            self.follower.follow(early, size)

    def _check_permitted(self, facts: ImageFacts | None) -> None:
        permitted = self.order.want.formats
        if facts is None or permitted is None or facts.label in permitted:
            return
        hint = f"permitted formats: {', '.join(sorted(permitted))}"
        raise FormatMismatch(f"{self.order.what} is {facts.label}, which is not permitted", hint=hint)

    def _check_digests(self) -> None:
        computed = {digest.algorithm: digest for digest in self._digests.served()}
        for expected in self.order.version.content_digests:
            if computed[expected.algorithm] != expected:
                what = f"{self.order.what}, decompressed,"
                raise DigestMismatch(what, expected=str(expected), actual=str(computed[expected.algorithm]))
