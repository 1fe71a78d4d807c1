"""All files of a cache that its rules judge, with what tells one from another: the observation before a prune.

One pass over the directory, one ``stat`` a file; an attribute is read only of names that do not tell their image by themselves.
A listing is repeated until the directory did not change meanwhile. Names outside the grammar, links, directories and special
files are left out: they are never judged, so never touched.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from stat import S_ISREG

import msgspec

from underlay.attributes import decode_identity
from underlay.files import read_attribute, translated
from underlay.naming import STEM_LENGTH, kind_of_name
from underlay.plan import CachedFile
from underlay.store import refs, staging as stagings
from underlay.store.layout import Store

_TRIES = 20


def files(store: Store) -> list[CachedFile]:
    """The judged files of a cache, by name, and its dead ingests.

    Raises:
        CacheMissing, CacheNotWritable, StorageFailed
    """
    found: list[CachedFile] = []
    with translated(store.root):
        directory = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # What comes while we list is young; what goes is not removed twice. So a listing that is never still will do, as
            # each file in it is as it was seen, and its removal looks again.
            for _ in range(_TRIES):
                before = os.fstat(directory).st_mtime_ns
                found = _listed(store, directory)
                if os.fstat(directory).st_mtime_ns == before:
                    break
        finally:
            os.close(directory)
        return found + dead_ingests(store)


def _listed(store: Store, directory: int) -> list[CachedFile]:
    # The loop that a hundred thousand files go through: it calls as little as it can.
    markers = _markers(store)
    found = []
    for name in _sorted_names(directory):
        kind = kind_of_name(name, kind=store.kind)
        if kind is None:
            continue
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if S_ISREG(status.st_mode):
            record = _record(store, name) if kind == "original" else None
            found.append(described(name, kind, status, markers.get(name, 0), record))
    return found


def _sorted_names(directory: int) -> list[str]:
    # The kernel tells names in the order of their hashes. Written anew they lie in memory in the order in which all that
    # follows goes through them; to jump from one to the next costs more than to sort them. No name has a slash.
    return "/".join(sorted(os.listdir(directory))).split("/")


def look(store: Store, name: str) -> CachedFile | None:
    """One judged file as it is now; None when no plain file of such a name is there.

    Raises:
        OSError
    """
    kind = kind_of_name(name, kind=store.kind)
    if kind is None:
        return None
    directory = os.open(store.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _look(store, directory, name, kind, marker=marker_of(store, name))
    finally:
        os.close(directory)


def _look(store: Store, directory: int, name: str, kind: str, *, marker: int) -> CachedFile | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not S_ISREG(status.st_mode):
        return None
    return described(name, kind, status, marker, _record(store, name) if kind == "original" else None)


def described(name: str, kind: str, status: os.stat_result, marker: int, record: tuple[str, str] | None = None) -> CachedFile:
    """A file by its status, its marker's mtime (nanoseconds, 0 without one) and its record's ref and version id."""
    ref, version_id = record or (None, None)
    mtime_ns = status.st_mtime_ns
    return CachedFile(
        name=name,
        kind=kind,
        device=status.st_dev,
        inode=status.st_ino,
        size=status.st_size,
        mtime_ns=mtime_ns,
        ctime_ns=status.st_ctime_ns,
        links=status.st_nlink,
        allocated=status.st_blocks * 512,
        used_ns=(marker or mtime_ns) if kind == "master" else max(marker, mtime_ns),
        ref=ref,
        version_id=version_id,
    )


def dead_ingests(store: Store) -> list[CachedFile]:
    """Ingests that nobody works on, as leftovers: by the name of their directory, used when its files last were."""
    if not os.access(store.paths.tmp, os.R_OK | os.X_OK):
        return []
    return [file for staging, alive in stagings.ingests(store) if not alive and (file := dead_ingest(staging))]


def dead_ingest(staging: stagings.Staging) -> CachedFile | None:
    """An ingest that nobody works on as it is now; None when it is gone.

    Raises:
        OSError
    """
    try:
        status = os.lstat(staging.directory)
        newest = max((entry.stat(follow_symlinks=False).st_mtime_ns for entry in os.scandir(staging.directory)), default=0)
    except (FileNotFoundError, NotADirectoryError):  # a stranger's file is no ingest
        return None
    file = described(f".underlay/tmp/{staging.directory.name}", "leftover", status, newest)
    return msgspec.structs.replace(file, links=1, allocated=stagings.allocated(staging))  # a directory has more, by its nature


def strangers(store: Store, judged: Collection[str] | None) -> list[str]:
    """The names in the cache that are never judged, but our own directory's.

    Args:
        judged: all names that are; None to tell by the grammar, which takes longer.

    Raises:
        OSError
    """
    own = store.paths.private.name
    names = os.listdir(store.root)
    if judged is None:
        return [name for name in names if name != own and kind_of_name(name, kind=store.kind) is None]
    return [name for name in names if name not in judged and name != own]


def versions(store: Store) -> dict[str, Sequence[str]]:
    """The version ids that each ref has meant, as remembered; a record that cannot be read says nothing.

    Raises:
        CacheNotWritable, StorageFailed
    """
    return {record.ref: [seen.id for seen in record.versions] for record in refs.all_records(store)}


def _markers(store: Store) -> dict[str, int]:
    """The mtimes of all markers in nanoseconds, by name."""
    try:
        directory = os.open(store.paths.used, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    try:
        return dict(_mtimes(directory))
    finally:
        os.close(directory)


def _mtimes(directory: int) -> Iterator[tuple[str, int]]:
    for name in os.listdir(directory):
        try:
            yield name, os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime_ns
        except FileNotFoundError:
            continue


def marker_of(store: Store, name: str) -> int:
    """The mtime of a file's marker in nanoseconds, 0 without one."""
    try:
        return os.lstat(store.paths.used_marker(name)).st_mtime_ns
    except FileNotFoundError:
        return 0


def _record(store: Store, name: str) -> tuple[str, str] | None:
    """The ref and the version id that a file records. A bare name is Glance's, whose version id is the name's own."""
    if len(name) == STEM_LENGTH:
        return None
    try:
        return decode_identity(read_attribute(f"{store.root}/{name}"))
    except FileNotFoundError:
        return None
