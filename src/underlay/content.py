"""What becomes of the bytes that arrive: they are inspected, room is claimed for them, and they are written, in this order."""

from dataclasses import dataclass

from underlay.claim import Claim
from underlay.formats.inspect import Inspector
from underlay.model import ImageFacts
from underlay.order import Order
from underlay.stream import SparseWriter


@dataclass(slots=True)
class Content:
    """Takes the bytes of an image in order; nothing is written that inspection has not seen."""

    claim: Claim
    writer: SparseWriter
    inspector: Inspector | None

    @classmethod
    def of(cls, order: Order, claim: Claim, writer: SparseWriter) -> "Content":
        """Where no rule applies, nothing is inspected."""
        inspector = Inspector(what=order.what, label=order.label, virtual_size_limit=order.store.virtual_size_limit)
        return cls(claim, writer, None if order.exempt else inspector)

    def feed(self, chunk: memoryview, /) -> None:
        """Take the next bytes.

        Raises:
            UnsafeImage, FormatMismatch, VirtualSizeRefused, InsufficientSpace, OSError
        """
        if self.inspector is not None:
            self.inspector.feed(chunk)
        self.claim.expect(self.inspector.early if self.inspector else None, received=self.writer.size + len(chunk))
        self.writer.feed(chunk)

    def finish(self) -> tuple[ImageFacts, str]:
        """What the bytes are, and the stored digest.

        Raises:
            UnsafeImage, FormatMismatch, VirtualSizeRefused, OSError
        """
        size = self.writer.size
        facts = self.inspector.finish() if self.inspector else ImageFacts(format="raw", label="raw", virtual_size=size)
        return facts, self.writer.finish()
