"""The raw form of an image: made of a verified download, by our own converter or by qemu-img, with its stored digest."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from underlay import qemuimg
from underlay.contracts import Observer
from underlay.errors import StorageFailed, UnderlayError
from underlay.files import allocated_bytes, create, open_regular, start_writeback, translated
from underlay.formats import qcow2
from underlay.formats.qcow2.convert import converting, obstacle
from underlay.model import Level
from underlay.order import Order
from underlay.store.staging import Journal, Staging
from underlay.stream import WRITEBACK_BYTES, StoredReader, stored_digest
from underlay.telling import PROGRESS_INTERVAL, Meter, tell


@dataclass(frozen=True, slots=True, kw_only=True)
class RawForm:
    """A raw form that is whole, in its staging directory.

    Attributes:
        size: bytes, holes among them. stored: its stored digest.
    """

    size: int
    stored: str


def make_raw(order: Order, staging: Staging, journal: Journal, observer: Observer) -> RawForm:
    """Make the raw form of a verified download. Durability is the caller's, as is what a failure leaves.

    Raises:
        UnsafeImage: its tables or its data are broken. InsufficientSpace, StorageFailed, ToolError
    """
    meter = Meter(order.what, journal.virtual_size, staging, observer)
    meter.advance("convert", 0)
    with translated(staging.directory, needed=journal.virtual_size):
        raw = _made(order, staging, journal, observer, meter)
    if raw.size != journal.virtual_size:
        raise StorageFailed(f"{order.what}: its raw form has {raw.size} bytes, its header says {journal.virtual_size}")
    meter.advance("convert", raw.size)
    return raw


def _made(order: Order, staging: Staging, journal: Journal, observer: Observer, meter: Meter) -> RawForm:
    if journal.format != "qcow2":
        return _made_by_qemu_img(staging, journal, meter)
    with reading(staging) as source:
        header = qcow2.parse_header(os.pread(source, qcow2.HEADER_BYTES, 0), what=order.what)
        why = obstacle(header, journal.size)
        if why is None:
            return _made_by_us(order, staging, source, header, meter)
    tell(observer, order, "left-to-qemu-img", level=Level.INFO, detail=why)
    return _made_by_qemu_img(staging, journal, meter)


# ------------------------------------------------------------------------------------------------------------ our own converter


@dataclass(slots=True)
class Settling:
    """Takes what is final of a raw form: reads it for the stored digest, and has it written out early."""

    fd: int
    _reader: StoredReader
    _synced: int = 0

    @classmethod
    def of(cls, fd: int, size: int) -> "Settling":
        """Of an empty file that will have ``size`` bytes.

        Raises:
            OSError
        """
        # Its length first: a block that reaches beyond what is written so far reads as it will.
        os.ftruncate(fd, size)
        return cls(fd, StoredReader(fd))

    def advance(self, settled: int) -> None:
        """The bytes before ``settled`` are final.

        Raises:
            OSError
        """
        # Read again while it is in memory: plain clusters never pass through ours, and the others are not made in their order.
        self._reader.advance(settled)
        if settled - self._synced >= WRITEBACK_BYTES:
            start_writeback(self.fd, self._synced, settled - self._synced)
            self._synced = settled

    def finish(self) -> RawForm:
        """All of it is final.

        Raises:
            OSError
        """
        return RawForm(size=os.fstat(self.fd).st_size, stored=self._reader.finish())


def _made_by_us(order: Order, staging: Staging, source: int, header: qcow2.Header, meter: Meter) -> RawForm:
    size = os.fstat(source).st_size
    with writing(staging) as target, converting(source, target, header, what=order.what) as conversion:
        settling = Settling.of(target, header.disk_bytes)
        for settled in conversion.advance(size):
            settling.advance(settled)
            if settled < header.disk_bytes:  # that it has come to its end is told once it is known to be right
                meter.advance("convert", settled)
        conversion.finish(size)
        return settling.finish()


@contextmanager
def reading(staging: Staging) -> Iterator[int]:
    """The download, open."""
    fd = open_regular(staging.download)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def writing(staging: Staging) -> Iterator[int]:
    """The raw form, new and empty."""
    staging.converted.unlink(missing_ok=True)
    fd = create(staging.converted, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


# --------------------------------------------------------------------------------------------------------------------- qemu-img


def _made_by_qemu_img(staging: Staging, journal: Journal, meter: Meter) -> RawForm:
    with _watched(staging, meter):
        qemuimg.convert_to_raw(staging.download, staging.converted, format=journal.format)
    fd = open_regular(staging.converted)
    try:
        return RawForm(size=os.fstat(fd).st_size, stored=stored_digest(fd))
    finally:
        os.close(fd)


@contextmanager
def _watched(staging: Staging, meter: Meter) -> Iterator[None]:
    """Tell how far a tool has come by what its output occupies, from a thread that ends with the context."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(PROGRESS_INTERVAL):
            with suppress(OSError, UnderlayError):
                meter.advance("convert", allocated_bytes(staging.converted.stat()))

    watcher = threading.Thread(target=watch, name="underlay-convert-progress", daemon=True)
    with suppress(RuntimeError):  # "can't start new thread": the work goes on unwatched
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if watcher.is_alive():
            watcher.join()
