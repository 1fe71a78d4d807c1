"""The room that an ingest claims of the file system before it writes, as much of it as can be told at each moment."""

import threading
from contextlib import suppress
from dataclasses import dataclass, field

from underlay.contracts import Observer
from underlay.errors import InsufficientSpace
from underlay.model import Form, ImageFacts
from underlay.order import Order
from underlay.store import space, staging as stagings
from underlay.store.staging import Staging
from underlay.telling import tell

_UNKNOWN_STEP = 64 << 20  # bytes reserved at a time when the size is not known
_GROWTH = 2  # of what has come of an image of unknown size, so much may yet come
_SMALL_FILES = 256 << 10  # bytes claimed beside an image's own, for our records and the file system's


@dataclass(slots=True)
class Claim:
    """What the ingest has claimed of the file system; it grows as more becomes known.

    Attributes:
        announced: bytes that the download will have, if that is known.
        stays: the download is kept when there is no room for more.
        raw: bytes that the raw form is known to occupy in the end, as far as that is known, when it is made while the image
            arrives.
    """

    order: Order
    staging: Staging
    observer: Observer
    announced: int | None = None
    stays: bool = False
    claimed: int = 0
    raw: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def expect(self, facts: ImageFacts | None, *, received: int) -> None:
        """Claim what the ingest may allocate at most, as far as can be told now that so much of its download is here.

        Raises:
            InsufficientSpace
        """
        with self._lock:
            self.grow(self._peak(facts, received=received, raw=self.raw), received=received)

    def expect_raw(self, facts: ImageFacts, raw: int, *, received: int) -> None:
        """Claim so many bytes for the raw form as well, before they are written while the rest of the download arrives.

        Raises:
            InsufficientSpace
        """
        with self._lock:
            need = self._peak(facts, received=received, raw=raw)
            if need > self.claimed:
                self._reserve(need)
            self.raw = raw  # only now: what has no room beside the download must not end the download

    def _peak(self, facts: ImageFacts | None, *, received: int, raw: int) -> int:
        announced = self.announced
        download = -(-received // _UNKNOWN_STEP) * _UNKNOWN_STEP if announced is None else announced
        if facts is None or self.order.form(facts)[0] is Form.AS_SERVED:
            return download
        # The raw form is taken to hold as much as the download, until all its tables are here and tell exactly.
        assumed = download if facts.virtual_size is None else min(download, facts.virtual_size)
        return download + max(assumed, raw)

    def grow(self, need: int, *, received: int = 0) -> None:
        """Claim ``need`` bytes in all. Of an image without an announced size, what has arrived will do when no more is left.

        Raises:
            InsufficientSpace
        """
        if need <= self.claimed:
            return
        if self.announced is not None or received <= self.claimed:
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
        tell(self.observer, self.order, "reserved", size=need)


def _from_the_start(error: InsufficientSpace, missing: int, had: int) -> InsufficientSpace:
    """The same of an ingest that is given up with all that it had: that is free then, and needed again."""
    needed, free = missing + had, error.free + had
    return InsufficientSpace(error.where, needed=needed, free=free, reclaimable=error.reclaimable, claimed=error.claimed)
