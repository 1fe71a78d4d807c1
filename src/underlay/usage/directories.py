"""The files of instances: every directory below a root is read until it held still, and every file's header with it.

A disk may have any name (a snapshot of a volume, an administrator's copy), so every plain file is looked at, but for the few
names that are no disks for certain. What cannot be read is told by path; what is no plain file matters only under a name like
a disk's.
"""

import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import msgspec

from underlay.files import has_fine_times
from underlay.formats.backing import References, read_references
from underlay.naming import printable

Stamp = tuple[int, int, int]
"""Inode, mtime and ctime (nanoseconds) of a directory: another one, or another content, has others."""

_NO_STAMP: Stamp = (0, 0, 0)
_DEPTH = 8
_TRIES = 25
_TICK_NS = 20_000_000  # the longest that a file system's clock stands still, on kernels without fine times
_WHOLE_SECOND_NS = 1_000_000_000
_PATIENCE = 5.0  # seconds for what does not hold still
_NO_DISK = frozenset({"disk.info", "disk.info.tmp"})
# What is hardly a disk, and often another user's: one that cannot be read keeps nothing.
_HARDLY_A_DISK = re.compile(r"disk\.config(\.rescue)?|console\.log.*|.*\.(xml|log|pid|sock)|\.underlay", re.DOTALL)
_LIKE_A_DISK = re.compile(r"disk.*|.*\.(qcow2?|img|raw|vmdk|qed|vhdx?|vdi|hds)", re.DOTALL)


class DiskFile(msgspec.Struct, frozen=True, gc=False):
    """A file that may be a disk.

    Attributes:
        references: what its header says, or None when it cannot be read. why: then what is the matter.
    """

    path: str
    references: References | None
    why: str = ""


class _Content(msgspec.Struct, frozen=True, gc=False):
    """What one listing of a directory saw.

    Attributes:
        changed: while it was read. tick: nanoseconds within which a second change may leave the stamp as the first made it.
        fresh: its last change is no older than that.
    """

    identity: tuple[int, int]
    stamp: Stamp
    changed: bool
    fresh: bool
    tick: int
    files: list[DiskFile]
    directories: list[str]
    plain: dict[str, Stamp]


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen below some roots.

    Attributes:
        contents: of each directory that was read. directories: those, with their stamps, and those that needed no look.
        failed: what kept others from being read, by path. rewritten: files that changed in their place since they were seen.
    """

    contents: dict[str, _Content] = field(default_factory=dict)
    directories: dict[str, Stamp] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    rewritten: list[DiskFile] = field(default_factory=list)

    def files(self) -> list[DiskFile]:
        """The files whose header names something, is odd, or cannot be read, by path."""
        found = [file for content in self.contents.values() for file in content.files]
        return sorted(found + self.rewritten, key=lambda file: file.path)

    def stamps(self) -> dict[str, Stamp]:
        """Every plain file that was looked at, whatever is in it, as it was then."""
        return {path: stamp for content in self.contents.values() for path, stamp in content.plain.items()}

    def mounts(self) -> tuple[str, ...]:
        """The directories that lie on another file system than the one above them."""
        devices = {path: content.identity[0] for path, content in self.contents.items()}
        return tuple(sorted(path for path, device in devices.items() if devices.get(os.path.dirname(path), device) != device))


def look(roots: Sequence[str], *, skipped: frozenset[tuple[int, int]]) -> Sight:
    """Read everything below the roots.

    Args:
        skipped: device and inode of directories that hold no disks: caches, lock files.
    """
    walk = _Walk(Sight(), _fine_devices(roots), skipped)
    for root in roots:
        walk.read(root, depth=0)
    walk.settle()
    return walk.sight


def look_again(
    roots: Sequence[str],
    seen: Mapping[str, Stamp],
    *,
    skipped: frozenset[tuple[int, int]],
    files: Mapping[str, Stamp] = MappingProxyType({}),
) -> Sight:
    """Read the directories and files that changed since they were seen, and the directories that are new.

    A disk may be given another base in its place, and one that was just being made had no header yet: a directory's stamp tells
    of neither.
    """
    walk = _Walk(Sight(directories=dict(seen)), _fine_devices(roots), skipped)
    for root in roots:
        if root not in seen or not os.path.isdir(root):  # it could not be read then, or is gone now
            walk.sight.directories.pop(root, None)
            walk.read(root, depth=0)
    for path, stamp in seen.items():
        try:
            changed = _stamp(os.stat(path)) != stamp
        except FileNotFoundError:
            continue  # gone, or renamed: then the directory above has changed too
        except OSError as error:
            walk.sight.failed[path] = _why(error)
            continue
        if changed:
            walk.sight.directories.pop(path, None)
            walk.read(path, depth=1)
    walk.settle()
    for path, stamp in files.items():
        if os.path.dirname(path) not in walk.sight.contents and (found := _rewritten(path, stamp)) is not None:
            walk.sight.rewritten.append(found)
    return walk.sight


def _rewritten(path: str, stamp: Stamp) -> DiskFile | None:
    """A file that is another than it was when it was seen, if that matters."""
    try:
        if _stamp(os.stat(path)) == stamp:
            return None
        references = plain_header(path)
    except FileNotFoundError:
        return None  # then its directory has changed too
    except OSError as error:
        return None if _HARDLY_A_DISK.fullmatch(os.path.basename(path)) else DiskFile(path, None, _why(error))
    return None if references.format is None else DiskFile(path, references)


def _fine_devices(roots: Sequence[str]) -> frozenset[int]:
    """The file systems of roots on which every change leaves a stamp of its own."""
    found = set()
    for root in roots:
        with suppress(OSError):
            if has_fine_times(Path(root)):
                found.add(os.stat(root).st_dev)
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Walk:
    """A look that is under way.

    Attributes:
        fine: see `_fine_devices`. skipped: directories not to be read. visited: those that were, by which path.
        depths: of what was read. restless: what did not hold still, or changed so lately that it cannot be told.
    """

    sight: Sight
    fine: frozenset[int]
    skipped: frozenset[tuple[int, int]]
    visited: dict[tuple[int, int], str] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    restless: list[str] = field(default_factory=list)

    def read(self, path: str, *, depth: int) -> None:
        """Read one directory, and those in it that were not read yet."""
        if path in self.sight.directories:
            return
        content = self._list(path, depth)
        if content is None:
            return
        self.depths[path] = depth
        self._take(path, content)
        if content.changed or content.fresh:
            self.restless.append(path)

    def settle(self) -> None:
        """Read what was restless again until it holds still; what never does is told as failed.

        A pause is long enough for the clock to tick, so a directory with the same stamp before and after it did not change.
        """
        deadline = time.monotonic() + _PATIENCE
        for _ in range(_TRIES):
            self._find_moved()
            if not self.restless:
                return
            if time.monotonic() > deadline:
                break
            again = list(self.restless)
            self.restless.clear()
            time.sleep(max(_TICK_NS, *(self.sight.contents[path].tick for path in again)) / 1e9)
            for path in again:
                self._settle(path)
        for path in self.restless:
            self.sight.failed[path] = "it did not hold still while it was read"

    def _find_moved(self) -> None:
        """What changed between its own listing and that of what lies in it: a directory may have been renamed in between."""
        for path, depth in self.depths.items():
            content = self.sight.contents[path]
            if (content.directories or depth == 0) and path in self.sight.directories and path not in self.restless:
                try:
                    moved = _stamp(os.stat(path)) != content.stamp
                except OSError as error:
                    moved = False
                    if depth == 0 or not isinstance(error, FileNotFoundError):  # else the directory above has changed too
                        self.sight.failed[path] = _why(error)
                if moved:
                    self.restless.append(path)

    def _settle(self, path: str) -> None:
        before = self.sight.directories.get(path)
        content = self._list(path, self.depths[path])
        if content is None:  # what was in it is remembered: it may be on its way to another name
            self.sight.directories.pop(path, None)
            return
        for below in content.directories:
            self._forget_changed(below)
        self._take(path, content)
        if content.changed or (content.fresh and content.stamp != before):
            self.restless.append(path)

    def _forget_changed(self, path: str) -> None:
        """Have a directory read again that is another by now, or has another content."""
        with suppress(OSError):
            if path in self.depths and _stamp(os.stat(path)) != self.sight.directories.get(path):
                self.sight.directories.pop(path, None)

    def _take(self, path: str, content: _Content) -> None:
        self.visited[content.identity] = path
        self.sight.directories[path] = content.stamp
        self.sight.contents[path] = content
        depth = self.depths[path]
        for below in content.directories:
            if depth >= _DEPTH:
                self.sight.failed[below] = f"it lies more than {_DEPTH} directories deep"
            else:
                self.read(below, depth=depth + 1)

    def _list(self, path: str, depth: int) -> _Content | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return None if self._is_skipped(path, os.fstat(fd)) else _list(path, fd, self.fine)
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            if depth == 0:
                self.sight.failed[path] = _why(error)
        except OSError as error:
            self.sight.failed[path] = _why(error)
        return None

    def _is_skipped(self, path: str, status: os.stat_result) -> bool:
        """Whether it is not to be read, or was read by another name that still leads to it."""
        identity = status.st_dev, status.st_ino
        if identity in self.skipped:
            return True
        other = self.visited.get(identity, path)
        if other == path:
            return False
        try:
            there = os.stat(other)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == identity


def _list(path: str, fd: int, fine: frozenset[int]) -> _Content:
    status = os.fstat(fd)
    before = _stamp(status)
    files: list[DiskFile] = []
    directories: list[str] = []
    plain: dict[str, Stamp] = {}
    tick = _tick(status, fine)
    with os.scandir(fd) as listing:
        for entry in listing:
            if entry.is_dir(follow_symlinks=False):
                directories.append(f"{path}/{entry.name}")
            elif (found := _file(path, fd, entry, directories, plain)) is not None:
                files.append(found)
    if tick:
        _distrust_fresh(plain, tick)
    return _Content(
        identity=(status.st_dev, status.st_ino),
        stamp=before,
        changed=_stamp(os.fstat(fd)) != before,
        fresh=tick > 0 and time.time_ns() - before[2] <= tick,
        tick=tick,
        files=files,
        directories=directories,
        plain=plain,
    )


def _tick(status: os.stat_result, fine: frozenset[int]) -> int:
    if status.st_ctime_ns % _WHOLE_SECOND_NS == 0:  # as file systems have it that keep whole seconds only
        return _WHOLE_SECOND_NS + _TICK_NS
    return 0 if status.st_dev in fine else _TICK_NS


def _distrust_fresh(plain: dict[str, Stamp], tick: int) -> None:
    """Forget the stamps of files that changed so lately that the next change may leave the same."""
    now = time.time_ns()
    plain.update((path, _NO_STAMP) for path, stamp in plain.items() if now - stamp[2] <= tick)


def _file(path: str, fd: int, entry: "os.DirEntry[str]", directories: list[str], plain: dict[str, Stamp]) -> DiskFile | None:
    """What a directory's entry says that matters; a link to a directory joins the directories, a plain file the plain ones."""
    name = entry.name
    if name in _NO_DISK:
        return None
    where = f"{path}/{name}"
    try:
        if not entry.is_file(follow_symlinks=False):
            kind = os.stat(where).st_mode
            if stat.S_ISDIR(kind):
                directories.append(where)
                return None
            if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
                is_like_one = _LIKE_A_DISK.fullmatch(name) and not _HARDLY_A_DISK.fullmatch(name)
                return DiskFile(where, None, "it is no plain file") if is_like_one else None
        references, plain[where] = _header(name, dir_fd=fd)
    except FileNotFoundError as error:
        # Gone meanwhile, which the directory's stamp tells; or a link to what is not there now.
        return DiskFile(where, None, _why(error)) if entry.is_symlink() else None
    except OSError as error:
        return None if _HARDLY_A_DISK.fullmatch(name) else DiskFile(where, None, _why(error))
    return None if references.format is None else DiskFile(where, references)


def header(path: str, *, dir_fd: int | None = None) -> References:
    """What a file's header says. Never waits on a FIFO; somebody's lease on it is waited for.

    Two reads must agree: a disk that is open may be given another backing file at this moment.

    Raises:
        OSError
    """
    return _header(path, dir_fd=dir_fd)[0]


def _header(path: str, *, dir_fd: int | None) -> tuple[References, Stamp]:
    """As `header`, with the file's stamp from before it was read."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    try:
        fd = os.open(path, flags | os.O_NONBLOCK, dir_fd=dir_fd)
    except BlockingIOError:
        fd = os.open(path, flags, dir_fd=dir_fd)
    try:
        stamp = _stamp(os.fstat(fd))
        found = read_references(fd)
        if found.format is None:
            return found, stamp
        for _ in range(_TRIES):
            again = read_references(fd)
            if again == found:
                return found, stamp
            found = again
        return References(found.format, found.names, "it changes as it is read"), stamp
    finally:
        os.close(fd)


def plain_header(path: str) -> References:
    """As `header`, of a plain file or block device only: opening another kind of file may do something.

    Raises:
        OSError
    """
    kind = os.stat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise OSError("it is no plain file")
    return header(path)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _why(error: OSError) -> str:
    return printable(error.strerror or str(error))
