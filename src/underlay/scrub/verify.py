"""One image, read and judged, and what is noted of it.

While it is read no lock is held: a reading takes minutes, and who makes a disk must not wait for it. The file is open, so a
prune that meets it keeps it until its next pass. The image's locks are taken for the moment in which it is condemned, and it is
looked at once more: is it the file that was read, with the digest that it was held against? Content is never written again
after its publication, and times change with each use, so that is all that tells one image from another.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from underlay.attributes import decode_image_record
from underlay.contracts import Observer
from underlay.errors import CacheError, InsufficientSpace, UnderlayError
from underlay.files import open_regular, read_attribute, translated
from underlay.model import LAYOUT, Damage, Event, Level, Progress, Reason
from underlay.policy.scrub import Finding, Reading, ScrubSubject, judge
from underlay.scrub.outcome import Scrubbed
from underlay.scrub.pace import Pace
from underlay.scrub.reading import ImageReader, OpenedImage, opened
from underlay.store import Store, ballast, locking, quarantine, scrubs
from underlay.store.scrubs import ScrubRecord, Stopped

_SAVED = 10.0  # seconds of reading that a killed scrub has to do again
_TOLD = 0.2  # seconds between what the observer hears


@dataclass(slots=True)
class Meter:
    """Tells the observer how far a scrub has come, over all its images.

    Attributes:
        what: how it is called. total: bytes that are to be read. before: bytes of the images that it is done with.
    """

    observer: Observer
    what: str
    total: int
    before: int = 0
    _next: float = 0.0

    def advance(self, read: int) -> None:
        """So much of the present image has been read."""
        if (now := time.monotonic()) >= self._next:
            self._next = now + _TOLD
            done = min(self.total, self.before + read)
            self.observer.progress(Progress(ref=self.what, stage="scrub", done=done, total=self.total))

    def finish(self, subject: ScrubSubject) -> None:
        """The present image is done with."""
        self.before += to_read(subject)
        done = min(self.total, self.before)
        self.observer.progress(Progress(ref=self.what, stage="scrub", done=done, total=self.total))


def to_read(subject: ScrubSubject) -> int:
    """Bytes that are to be read of an image, as far as can be told before."""
    return max(0, subject.allocated - subject.reached)


@dataclass(frozen=True, slots=True)
class _Work:
    """One image that is being verified."""

    store: Store
    subject: ScrubSubject
    image: OpenedImage
    pace: Pace
    meter: Meter
    observer: Observer

    def tell(self, code: str, detail: str) -> None:
        fields = {"name": self.subject.name, "path": os.fspath(self.subject.path)}
        self.observer.event(Event(code=code, level=Level.WARNING, detail=detail, fields=fields))

    def record(self, *, read_at: datetime | None, stopped: Stopped | None) -> None:
        subject = self.subject
        made = ScrubRecord(
            layout=LAYOUT,
            inode=subject.inode,
            size=subject.size,
            stored=subject.stored,
            read_at=read_at,
            stopped=stopped,
        )
        scrubs.note(self.store, subject.name, made)


def verify(store: Store, subject: ScrubSubject, pace: Pace, meter: Meter, observer: Observer) -> Scrubbed:
    """Read an image and note what it is; a damaged one is put into quarantine. The caller holds the cache's scrub lock.

    What cannot be done is part of the answer: ``failed``, with the error.
    """
    try:
        with translated(subject.path), opened(subject.path) as image:
            found = scrubs.described(store, subject.cache, subject.name, image.fd)
            if (found.inode, found.stored, found.size) != (subject.inode, subject.stored, subject.size):
                return _changed(subject)
            return _verified(_Work(store, found, image, pace, meter, observer))
    except UnderlayError as error:
        if not os.path.lexists(subject.path):
            return _changed(subject)
        return Scrubbed(subject=subject, outcome="failed", detail=error.message, error=error)


def _changed(subject: ScrubSubject) -> Scrubbed:
    return Scrubbed(subject=subject, outcome="changed", detail="it was removed or replaced meanwhile")


def _verified(work: _Work) -> Scrubbed:
    subject = work.subject
    finding, read = judge(subject, subject.size, ()), 0
    if finding.outcome == "suspect":
        reader = ImageReader(work.image, work.pace)
        first = _first_reading(work, reader)
        read = reader.read
        if first is None:
            return Scrubbed(subject=subject, outcome="stopped", detail=_where(reader, subject), read=read)
        finding, read = _judged(work, first, read)
    if finding.damage is not None:
        return _condemned(work, finding, read)
    work.record(read_at=_now(), stopped=None)
    if finding.outcome in ("sound", "readable") and os.path.lexists(work.store.paths.quarantined(subject.name)):
        _lift(work)  # the note may be of a file that had the name before
        if subject.damage is not None:
            finding = replace(finding, detail=f"{finding.detail}; it was found damaged before, and is served again")
    return Scrubbed(subject=subject, outcome=finding.outcome, detail=finding.detail, read=read)


def _where(reader: ImageReader, subject: ScrubSubject) -> str:
    return f"the time was up at byte {reader.done} of {subject.size}; the next scrub goes on from there"


def _first_reading(work: _Work, reader: ImageReader) -> Reading | None:
    """The first reading, from where the last one stopped; None when it stops again, which is noted then."""
    record = _recalled(work)
    reader.go_on_from(record.stopped if record else None)
    saved = time.monotonic()

    def advance() -> bool:
        nonlocal saved
        work.meter.advance(reader.read)
        if time.monotonic() - saved >= _SAVED:
            with suppress(CacheError):  # a full cache is read all the same
                _save(work, reader, record)
            saved = time.monotonic()
        # Where a reading cannot be gone on with it is not stopped either: else no image would ever be read to its end.
        return not (work.pace.is_over and reader.can_stop)

    try:
        reading = reader.finish(advance)
    except BaseException:  # an interrupt
        with suppress(UnderlayError):
            _save(work, reader, record)
        raise
    if reading is None:
        _save(work, reader, record)
    return reading


def _recalled(work: _Work) -> ScrubRecord | None:
    subject = work.subject
    return scrubs.recall(work.store, subject.name, inode=subject.inode, size=subject.size, stored=subject.stored)


def _save(work: _Work, reader: ImageReader, record: ScrubRecord | None) -> None:
    if (stopped := reader.stopped) is not None and stopped.offset:
        work.record(read_at=record.read_at if record else None, stopped=stopped)


def _judged(work: _Work, first: Reading, read: int) -> tuple[Finding, int]:
    """What one reading says, or two: the second one is of the whole image, with hashlib, however little time is left."""
    subject = work.subject
    finding = judge(subject, subject.size, [first])
    if finding.outcome != "suspect":
        return finding, read
    work.tell("suspect", f"{finding.detail}; it is read once more")
    again = ImageReader(work.image, Pace(rate=work.pace.rate))
    second = again.finish(_always(lambda: work.meter.advance(read)))
    assert second is not None
    finding = judge(subject, subject.size, [first, second])
    return finding, read + again.read


def _always(tell: Callable[[], None]) -> Callable[[], bool]:
    def advance() -> bool:
        tell()
        return True

    return advance


# ---------------------------------------------------------------------------------------------------------------- quarantine


def _condemned(work: _Work, finding: Finding, read: int) -> Scrubbed:
    """Put the image into quarantine, if it is still the one that was read."""
    subject = work.subject
    assert finding.damage is not None
    try:
        is_noted = _noted_with_room(work, finding.damage)
    except UnderlayError as error:
        return _found_only(work, finding, read, error)
    if not is_noted:
        return _changed(subject)
    with suppress(UnderlayError):  # nothing but the order of the next scrub hangs on it
        work.record(read_at=_now(), stopped=None)
    if subject.damage is None:
        work.tell("quarantined", finding.detail)
    return Scrubbed(subject=subject, outcome="damaged", detail=finding.detail, read=read, damage=finding.damage)


def _noted_with_room(work: _Work, damage: Reason) -> bool:
    """Note the damage, also where the file system is full to the last block; False when the image is another by now."""
    try:
        return _noted(work, damage)
    except InsufficientSpace:
        if not ballast.throw_off(work.store.paths):
            raise
        return _noted(work, damage)


def _noted(work: _Work, damage: Reason) -> bool:
    subject = work.subject
    found_at = subject.damage.found_at if subject.damage else _now()
    with locking.exclusive(work.store, subject.name):
        if not _is_still_there(work, size_differs=damage.code == "size-differs"):
            return False
        noted = Damage(code=damage.code, detail=damage.detail, found_at=found_at)
        quarantine.put(work.store, subject.name, inode=subject.inode, damage=noted)
    return True


def _found_only(work: _Work, finding: Finding, read: int, error: UnderlayError) -> Scrubbed:
    """What is damaged is told so, though it could not be noted; it does not count as read, so the next scrub finds it again."""
    if not os.path.lexists(work.subject.path):
        return _changed(work.subject)
    served = "" if work.subject.damage else ", so it is still served"
    detail = f"{finding.detail}; that could not be noted{served}: {error.message}"
    return Scrubbed(subject=work.subject, outcome="damaged", detail=detail, read=read, damage=finding.damage, error=error)


def _is_still_there(work: _Work, *, size_differs: bool) -> bool:
    """Whether the name leads to the file that was read, which has the record that it was held against."""
    with translated(work.subject.path):
        try:
            fd = open_regular(work.subject.path)
        except FileNotFoundError:
            return False
        try:
            named, mine, record = os.fstat(fd), os.fstat(work.image.fd), decode_image_record(read_attribute(fd))
        finally:
            os.close(fd)
    if not os.path.samestat(named, mine) or (record.stored if record else None) != work.subject.stored:
        return False
    return not size_differs or (record is not None and record.size != named.st_size)


def _lift(work: _Work) -> None:
    with locking.exclusive(work.store, work.subject.name):
        if _is_still_there(work, size_differs=False):
            quarantine.lift(work.store, work.subject.name)


def _now() -> datetime:
    return datetime.now(UTC)
