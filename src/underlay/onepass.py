"""One pass: the raw form of a qcow2 image is made while the image arrives.

The bytes go into the download's file as always, which is the spool. A thread follows how far it has come, and has converted
what is complete. So tables that come after their data, a transfer that goes on after a break, and compressed images need
nothing of their own, and whoever gives up loses only time: the finished file is converted then. Nothing of it is used before
the image is verified.
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue

from underlay.claim import Claim
from underlay.contracts import Observer
from underlay.errors import StorageFailed, UnderlayError
from underlay.files import translated
from underlay.formats import qcow2
from underlay.formats.qcow2.convert import Conversion, converting, obstacle
from underlay.model import Form, ImageFacts, Level
from underlay.order import Order
from underlay.rawform import RawForm, Settling, reading, writing
from underlay.store.staging import Staging
from underlay.telling import Meter, tell

MOST_WAITING = 1 << 16
"""Clusters, or runs of them, whose table is known and whose bytes have not come: about 16 MiB of memory."""


# Memory, and threads (RuntimeError, "can't start new thread"): when the transfer has given back its own, there may be enough.
# Other errors are faults of the program, which the finished file would meet again: to leave off would only hide them.
_SHORT_OF = (MemoryError, RuntimeError)


class _Stopped(Exception):
    """The transfer has failed."""


@dataclass(slots=True, eq=False)
class Follower:
    """Makes the raw form while the download grows, if that is what is wanted of it. `following` makes one."""

    order: Order
    staging: Staging
    claim: Claim
    observer: Observer
    _pool: ThreadPoolExecutor
    _work: "Future[RawForm | None] | None" = None
    _sizes: "SimpleQueue[int | None]" = field(default_factory=SimpleQueue)
    _is_stopped: bool = False
    _has_ended: bool = False

    @property
    def is_at_work(self) -> bool:
        """Whether the raw form is being made."""
        return self._work is not None and not self._work.done()

    def follow(self, facts: ImageFacts | None, size: int) -> None:
        """The download has ``size`` bytes, of which inspection knows so much."""
        if self._work is None:
            if facts is None or facts.format != "qcow2" or self.order.form(facts)[0] is not Form.RAW:
                return
            self._begin(facts)
        if self.is_at_work:
            self._sizes.put(size)

    def _begin(self, facts: ImageFacts) -> None:
        try:
            self._work = self._pool.submit(self._follow, facts)
        except RuntimeError as error:
            self._work = Future()
            self._work.set_result(None)
            self._leave_off(_short_of(error))

    def finish(self) -> RawForm | None:
        """The raw form, now that the download is whole and verified; None: it is to be made of the finished file.

        Raises:
            StorageFailed
        """
        if self._work is None:
            return None
        self._has_ended = True
        self._sizes.put(None)
        return self._work.result()

    def stop(self) -> None:
        """Leave off; nothing is left of what has been made."""
        self._is_stopped = True
        self._sizes.put(None)
        self._pool.shutdown()
        with suppress(OSError):
            self.staging.converted.unlink(missing_ok=True)

    def _follow(self, facts: ImageFacts) -> RawForm | None:
        try:
            with translated(self.staging.directory):
                made = self._made(facts)
        except _Stopped:
            return None
        except StorageFailed:  # which the finished file has no better chance to escape
            raise
        except UnderlayError as error:  # whatever is wrong with the image, the finished file will show it
            made = str(error)
        except _SHORT_OF as error:
            made = _short_of(error)
        if isinstance(made, RawForm):
            return made
        self._leave_off(made)
        return None

    def _leave_off(self, why: str) -> None:
        self.staging.converted.unlink(missing_ok=True)
        self.claim.raw = 0
        tell(self.observer, self.order, "converted-later", level=Level.INFO, detail=why)

    def _made(self, facts: ImageFacts) -> RawForm | str:
        """The raw form, or why it is not made here."""
        with reading(self.staging) as source, writing(self.staging) as target:
            header = qcow2.parse_header(os.pread(source, qcow2.HEADER_BYTES, 0), what=self.order.what)
            meter = Meter(self.order.what, facts.virtual_size, self.staging, self.observer)
            settling, size = Settling.of(target, header.disk_bytes), 0
            with converting(source, target, header, what=self.order.what) as conversion:
                for size in self._arrivals():
                    if why := obstacle(header, size) or _overtaxed(conversion):
                        return why
                    for settled in self._steps(conversion, facts, size):
                        if why := _overtaxed(conversion):  # much may have arrived at once, with many tables in it
                            return why
                        settling.advance(settled)
                        if self._has_ended and settled < header.disk_bytes:  # before that, how much has arrived is told
                            meter.advance("convert", settled)
                conversion.finish(size)
            raw = settling.finish()
            meter.advance("convert", raw.size)
            return raw

    def _steps(self, conversion: Conversion, facts: ImageFacts, size: int) -> Iterator[int]:
        """Convert what can be of the download's first ``size`` bytes, and claim beforehand what is written."""
        for settled in conversion.advance(size):
            if self._is_stopped:
                raise _Stopped
            if conversion.mapped > self.claim.raw:
                self.claim.expect_raw(facts, conversion.mapped, received=size)
            yield settled

    def _arrivals(self) -> Iterator[int]:
        """How far the download has come, each time that it has come further."""
        sizes: list[int | None] = []
        while None not in sizes:
            sizes = [self._sizes.get()]
            while not self._sizes.empty():
                sizes.append(self._sizes.get())
            if self._is_stopped:
                raise _Stopped
            yield from [size for size in sizes if size is not None][-1:]


def _short_of(error: Exception) -> str:
    return f"the machine is short of something: {str(error) or type(error).__name__}"


def _overtaxed(conversion: Conversion) -> str | None:
    return f"more than {MOST_WAITING} clusters wait for their bytes" if conversion.waiting > MOST_WAITING else None


@contextmanager
def following(order: Order, staging: Staging, claim: Claim, observer: Observer) -> Iterator[Follower]:
    """A follower of the download, whose threads have ended when the context has. After a failure nothing is left of it."""
    with ThreadPoolExecutor(1, "underlay-follow") as pool:
        follower = Follower(order, staging, claim, observer, pool)
        try:
            yield follower
        except BaseException:
            follower.stop()
            raise
