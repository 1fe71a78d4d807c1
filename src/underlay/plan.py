"""What is decided and why: the files of a cache, who needs them, and the verdict on each. Values only; `policy` decides.

`Inventory` and `Usage` go into a decision, `Plan` comes out, `Report` says what was done. A cache may have a hundred thousand
files, so the values that there are of each are structs of msgspec, made in a fraction of the time of a dataclass.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from underlay.model import Damage, InstanceRecord, Problem, Reason
from underlay.naming import CacheKind

IMAGE_KINDS = frozenset({"original", "resized", "swap", "ephemeral"})
"""Kinds of file in a base cache that somebody may need; a leftover is needed by nobody."""
HELD_KINDS = IMAGE_KINDS | {"master"}
"""Kinds of file that a lease, a copy or another host may hold."""


class CachedFile(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A file in a cache directory as a listing found it.

    Attributes:
        kind: what its name means: original, resized, swap, ephemeral, master or leftover.
        device, inode, size, mtime_ns, ctime_ns: its identity; any of them different makes it another file.
        links: names that the inode has. allocated: bytes that it occupies.
        used_ns: last use, nanoseconds since the epoch: the newer of its mtime and its marker; of a master the marker alone
            counts once there is one, because its mtime tells its publication.
        ref, version_id: as its record says, or None.
    """

    name: str
    kind: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int
    allocated: int
    used_ns: int
    ref: str | None = None
    version_id: str | None = None


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """By which rules a cache's unused files go; times in seconds, sizes in bytes.

    Attributes:
        remove_unused: False: nothing is removed; uses are refreshed all the same.
        original_age: of originals, swaps and ephemerals. resized_age: of resized files. leftover_age: of leftovers.
        ttl: of masters; None: they do not age.
        keep_recent: nothing used within it goes, whatever the other rules.
        priority: whose files go first when room is wanted: those of the highest.
        max_size: of all the cache's files together, or None. free_low, free_high: when the file system has less than
            ``free_low`` free, unused files go until it has ``free_high``; None: never.
    """

    remove_unused: bool = True
    original_age: float = 86400.0
    resized_age: float = 3600.0
    leftover_age: float = 86400.0
    ttl: float | None = None
    keep_recent: float = 900.0
    priority: int = 0
    max_size: int | None = None
    free_low: int | None = None
    free_high: int | None = None

    def age_of(self, kind: str) -> float:
        """How long a file of this kind stays after its last use."""
        if kind == "master":
            return math.inf if self.ttl is None else self.ttl
        return {"resized": self.resized_age, "leftover": self.leftover_age}.get(kind, self.original_age)


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one cache.

    Attributes:
        cache: its configured name. files: by name.
        versions: the version ids that a canonical ref has meant, as remembered.
        free: bytes that may still be written on its file system. pool: equal for two caches that draw on the same room.
        damaged: what is the matter with the files that a scrub has found damaged, by name.
    """

    cache: str
    root: Path
    kind: CacheKind
    rules: Rules
    files: Sequence[CachedFile]
    versions: Mapping[str, Sequence[str]]
    free: int
    pool: str = ""
    damaged: Mapping[str, Damage] = msgspec.field(default_factory=dict)


class Use(msgspec.Struct, frozen=True, gc=False):
    """Somebody needs a file.

    Attributes:
        name: of the file in its cache. root: the cache's directory.
        how: the code of the reason. who: a sentence's rest, such as the path of the disk.
        sure: False when it only may be so: a name that merely looks the same, a header that a guest may have written.
    """

    root: Path
    name: str
    how: str
    who: str
    sure: bool = True


class Unknown(msgspec.Struct, frozen=True):
    """Something that could not be told, so that files are kept.

    Attributes:
        keeps: kinds of file that it keeps. root: the cache in which it does, or None for all caches.
        detail: why, with the path in question.
    """

    code: str
    detail: str
    keeps: frozenset[str] = IMAGE_KINDS
    root: Path | None = None


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What one probe found."""

    uses: Sequence[Use] = ()
    unknowns: Sequence[Unknown] = ()
    problems: Sequence[Problem] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Who needs which file, as far as it can be told.

    Attributes:
        uses: by cache directory and file name.
    """

    uses: Mapping[Path, Mapping[str, Sequence[Use]]]
    unknowns: Sequence[Unknown]
    problems: Sequence[Problem]


class Verdict(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What is to become of one file, and why.

    Attributes:
        file: as it was when it was judged; a different one is kept.
        removes: whether it goes. refresh: whether its last use is set to the plan's time.
        stays: seconds after its last use at which it would go if nobody comes to need it, or None.
    """

    cache: str
    root: Path
    file: CachedFile
    removes: bool
    refresh: bool
    reasons: tuple[Reason, ...]
    stays: float | None = None

    @property
    def goes_at(self) -> datetime | None:
        """When it would go if nobody comes to need it, or None."""
        if self.stays is None:
            return None
        try:
            return datetime.fromtimestamp(self.file.used_ns / 1e9, UTC) + timedelta(seconds=self.stays)
        except (OverflowError, ValueError, OSError):  # an mtime that no calendar has
            return None

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.root / self.file.name


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The verdicts on all files of some caches.

    Attributes:
        now: by which ages were told. clocks: by cache, when that is by its own file system's clock.
        directories, files: the directories of instances and the files in them that were read, each with its inode, mtime and
            ctime (nanoseconds) then. mounts: those directories that lie on a file system of their own.
        records: the instances that were known, for the second look.
        unknowns: what could not be told.
        whole: whether it judges every file of its caches; else it says nothing of what this host needs besides.
        need, path: of a plan to reclaim: bytes that are to be free, and on whose file system. shortfall: bytes that are missing
            from them all the same. frees: bytes that may come free in each of the caches.
        once: taken when the plan is applied, so that it is applied once.
    """

    id: str
    now: datetime
    verdicts: Sequence[Verdict]
    problems: Sequence[Problem]
    directories: Mapping[str, tuple[int, int, int]]
    files: Mapping[str, tuple[int, int, int]] = msgspec.field(default_factory=dict)
    mounts: Sequence[str] = ()
    clocks: Mapping[Path, datetime] = msgspec.field(default_factory=dict)
    records: Sequence[InstanceRecord] = ()
    unknowns: Sequence[Unknown] = ()
    whole: bool = True
    need: int = 0
    path: Path | None = None
    shortfall: int = 0
    frees: Mapping[Path, int] = msgspec.field(default_factory=dict)
    once: threading.Lock = msgspec.field(default_factory=threading.Lock)


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What applying a plan did.

    Attributes:
        plan: the plan's id. verdicts: as they turned out: what was to go and was kept after all has the reason why.
        removed: paths that are gone. freed: bytes that the file systems have more, as measured over each removal.
        shortfall: bytes that were asked for and could not be freed.
    """

    plan: str
    verdicts: Sequence[Verdict]
    removed: Sequence[Path]
    freed: int
    shortfall: int
    problems: Sequence[Problem]
