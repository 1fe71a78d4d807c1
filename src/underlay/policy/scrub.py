"""Which images are read again and in which order, and what their readings say. Facts in, decisions out; no I/O.

One reading condemns nothing: memory, a cable or a controller may have given a wrong bit. Two readings that agree do, and one
more keeps an image where they have put it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from underlay.model import Damage, Reason
from underlay.units import format_duration, format_size

_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubSubject:
    """An image as a scrub finds it.

    Attributes:
        cache: the cache's name. root: its directory. inode, size, allocated: of the file; sizes in bytes.
        ref, version_id, stored, recorded_size, published_at: as its record says; None: it is unrecorded, so nothing tells
            what its bytes should be. published_at: when it was last known to be right without a scrub.
        read_at: when a scrub last read all of it. reached: bytes from its beginning, where the last scrub stopped in it.
        damage: what a scrub has found before.
    """

    cache: str
    root: Path
    name: str
    inode: int
    size: int
    allocated: int
    ref: str | None = None
    version_id: str | None = None
    stored: str | None = None
    recorded_size: int | None = None
    published_at: datetime | None = None
    read_at: datetime | None = None
    reached: int = 0
    damage: Damage | None = None

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.root / self.name

    @property
    def known_since(self) -> datetime | None:
        """When all its bytes were last looked at: by a scrub, else as it was published."""
        return max((at for at in (self.read_at, self.published_at) if at is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubVerdict:
    """Whether an image is read again now, and why: ``stopped``, ``never-read``, ``due`` or ``read-recently``."""

    subject: ScrubSubject
    scrubs: bool
    reason: Reason


def plan_scrub(subjects: Sequence[ScrubSubject], *, older_than: float, now: datetime) -> list[ScrubVerdict]:
    """The verdicts in the order in which the images are read: where the last scrub stopped, then what was read longest ago.

    Args:
        older_than: seconds; what was looked at since is left out. 0: nothing is.
    """
    judged = [_judged(subject, older_than, now) for subject in subjects]
    return sorted(judged, key=_order)


def _order(verdict: ScrubVerdict) -> tuple[bool, bool, datetime, str, str]:
    subject = verdict.subject
    since = subject.known_since or _LONG_AGO
    return not verdict.scrubs, not subject.reached, since, str(subject.root), subject.name


def _judged(subject: ScrubSubject, older_than: float, now: datetime) -> ScrubVerdict:
    since = subject.known_since
    if subject.reached:
        stopped = Reason("stopped", f"the last scrub stopped at {format_size(subject.reached)}")
        return ScrubVerdict(subject=subject, scrubs=True, reason=stopped)
    if since is None:
        never = Reason("never-read", "it was not read since it is here")
        return ScrubVerdict(subject=subject, scrubs=True, reason=never)
    age = (now - since).total_seconds()
    how = "read" if since == subject.read_at else "published"
    reason = Reason("due" if age >= older_than else "read-recently", f"{how} {format_duration(max(0.0, age))} ago")
    return ScrubVerdict(subject=subject, scrubs=age >= older_than, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One reading of an image.

    Attributes:
        stored: the stored digest of what was read; None when the reading did not come to its end.
        failure: the file system's error, and where in the file; None when there was none.
    """

    stored: str | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is known of an image after one reading or two.

    Attributes:
        outcome: ``sound``; ``readable``: of an unrecorded image no more can be told; ``damaged``; ``unsteady``: its readings
            contradict each other, so it is not the image that is to blame; ``suspect``: it has to be read once more.
        damage: its code and what is told of it, when it is damaged.
    """

    outcome: str
    detail: str
    damage: Reason | None = None


def judge(subject: ScrubSubject, size: int, readings: Sequence[Reading]) -> Finding:
    """What the readings of an image say.

    Args:
        size: bytes that the file has. readings: one or two; none, when the size says enough.
    """
    if subject.recorded_size not in (None, size):
        return _damaged("size-differs", f"it has {size} bytes, its record says {subject.recorded_size}")
    if not readings:
        return Finding(outcome="suspect", detail="it was not read")
    last = readings[-1]
    if last.failure is None and subject.stored in (None, last.stored):
        return _right(subject, readings)
    if len(readings) == 1 and subject.damage is None:
        return Finding(
            outcome="suspect", detail=last.failure or f"its digest is {last.stored}, its record says {subject.stored}"
        )
    return _settled(subject, readings[0], last)


def _right(subject: ScrubSubject, readings: Sequence[Reading]) -> Finding:
    first = readings[0]
    is_right = first.failure is None and subject.stored in (None, first.stored)
    blame = "" if is_right else f"; a first reading was wrong ({first.failure or first.stored}): memory, cable or controller"
    if subject.stored is None:
        return Finding(outcome="readable", detail=f"unrecorded, so nothing tells what it should be{blame}")
    return Finding(outcome="sound", detail=f"as it was published{blame}")


def _settled(subject: ScrubSubject, first: Reading, second: Reading) -> Finding:
    if first.failure and second.failure:
        return _damaged("unreadable", second.failure)
    if first.stored is not None and first.stored == second.stored:
        return _damaged("content-differs", f"its digest is {second.stored}, its record says {subject.stored}")
    told = " then ".join(one.failure or f"the digest {one.stored}" for one in (first, second))
    return Finding(outcome="unsteady", detail=f"two readings gave {told}: look at memory, cables and the controller")


def _damaged(code: str, detail: str) -> Finding:
    return Finding(outcome="damaged", detail=detail, damage=Reason(code, detail))
