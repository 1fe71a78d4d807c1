"""What disks are backed by: every file below every instance directory, those that an inventory names, and ours elsewhere.

Directories that no inventory knows count as much as the others: an instance that was evacuated, a host that its service has
forgotten. A header is believed as far as it adds protection; nothing that a guest may have written takes any away.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from underlay import diskinfo, filedisk
from underlay.attributes import decode_disk_record
from underlay.errors import DiskUnrecorded, UnderlayError
from underlay.files import read_attribute
from underlay.model import DiskRecord, InstanceRecord, Problem
from underlay.naming import printable
from underlay.plan import Inventory, Observed, Unknown, Usage, Use
from underlay.store import Store, listing, roots as disk_roots, volumes
from underlay.usage.chains import Chain, Chains
from underlay.usage.directories import DiskFile, Sight, Stamp, look, look_again, plain_header
from underlay.usage.records import by_directory, names_of_refs, owner_of

_MADE_FROM_IMAGES = frozenset({"original", "resized"})


@dataclass(frozen=True, slots=True)
class Places:
    """Where disks are.

    Attributes:
        instances: the directory that holds a directory for each instance. extra: further roots.
        stores: the caches, which hold no disks, and remember ours elsewhere.
        records: the known instances; an empty list where there is no inventory.
    """

    instances: Path
    extra: Sequence[Path]
    stores: Sequence[Store]
    records: Sequence[InstanceRecord] = ()

    @property
    def roots(self) -> list[str]:
        """Every directory that is read whole."""
        return [os.fspath(path) for path in (self.instances, *self.extra)]

    def skipped(self) -> frozenset[tuple[int, int]]:
        """Device and inode of the directories in them that are not read with the others: caches, and Nova's locks."""
        found = set()
        for store in self.stores:
            for path in (store.root, store.nova_locks):
                with suppress(OSError):
                    if path is not None:
                        status = os.stat(path)
                        found.add((status.st_dev, status.st_ino))
        return frozenset(found)

    def strangers(self, judged: Mapping[Path, Collection[str]]) -> list[str]:
        """What lies in the caches under names that are no images', and among Nova's locks under names that are no locks'.

        An overlay beside its base, a directory of disks.
        """
        found: list[str] = []
        for store in self.stores:
            with suppress(OSError):
                found += [f"{store.root}/{name}" for name in listing.strangers(store, judged.get(store.root))]
            with suppress(OSError):
                if (locks := store.nova_locks) is not None:
                    ours = store.nova_lock_prefix
                    found += [f"{locks}/{name}" for name in os.listdir(locks) if not name.startswith(ours)]
        return found


@dataclass(frozen=True, slots=True)
class BackingProbe:
    """Reads the headers of disks and follows their backing chains.

    Attributes:
        again, files: only what changed since these directories and files were seen; None to read everything.
        chains: into the caches that are observed; None to make them.
        judged: the names of all images by cache, when those that are observed are not all of them.
        seen, seen_files, mounts: filled with the directories and files that were read, and with what is mounted among them.
    """

    places: Places
    again: Mapping[str, Stamp] | None = None
    files: Mapping[str, Stamp] = field(default_factory=dict)
    chains: Chains | None = None
    judged: Mapping[Path, Collection[str]] | None = None
    seen: dict[str, Stamp] = field(default_factory=dict)
    seen_files: dict[str, Stamp] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """The files that a disk is backed by."""
        skipped = self.places.skipped()
        chains = self.chains or Chains.into(inventories)
        strangers = self.places.strangers(chains.names if self.judged is None else self.judged)
        roots = self.places.roots + [path for path in strangers if os.path.isdir(path)]
        if self.again is None:
            sight = look(roots, skipped=skipped)
        else:
            sight = look_again(roots, self.again, skipped=skipped, files=self.files)
        looked = _Look(chains, self.places, by_directory(self.places.records), inventories)
        looked.directories(sight)
        looked.strangers(path for path in strangers if not os.path.isdir(path))
        looked.known_disks()
        looked.disks_elsewhere()
        self.seen.update(sight.directories)
        self.seen_files.update(sight.stamps() | looked.chains.stamps)
        self.mounts.extend(sight.mounts())
        return Observed(uses=looked.uses, unknowns=looked.unknowns, problems=looked.problems)


@dataclass(frozen=True, slots=True)
class BasesProbe:
    """Follows the chains of files that are in use themselves: a base may stand on another one.

    Attributes:
        usage: what the other probes found. chains: into the caches that are observed.
    """

    usage: Usage
    chains: Chains

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """The files that another file in use is backed by."""
        return Observed(
            uses=[
                Use(root, base, "backing-file" if sure else "backing-name", f"{name}, which is in use", sure)
                for cache, by_name in self.usage.uses.items()
                for name in by_name
                for root, base, sure in self.chains.of_path(f"{cache}/{name}").bases
                if (root, base) != (cache, name)
            ]
        )


@dataclass(frozen=True, slots=True)
class _Look:
    """One look over all disks, and what it finds."""

    chains: Chains
    places: Places
    owners: Mapping[str, InstanceRecord]
    inventories: Sequence[Inventory]
    uses: list[Use] = field(default_factory=list)
    unknowns: list[Unknown] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def directories(self, sight: Sight) -> None:
        """The files below the roots."""
        for path, why in sight.failed.items():
            detail = f"{printable(path)} cannot be read: {why}"
            self.problems.append(Problem("directory-unreadable", Path(path), detail))
            self.unknowns.append(Unknown("directory-unreadable", detail))
        for file in sight.files():
            self._file(file, self._owner(file.path))

    def strangers(self, paths: Iterable[str]) -> None:
        """Files in the caches whose names are no images'."""
        for path in paths:
            try:
                references = plain_header(path)
            except FileNotFoundError:
                continue
            except OSError:  # a link to nowhere, a socket: no overlay that could be opened
                continue
            if references.format is not None:
                self._file(DiskFile(path, references), None)

    def known_disks(self) -> None:
        """The files that an inventory names: a domain's disks may lie anywhere."""
        for record in self.places.records:
            for disk in record.disks:
                path = os.fspath(disk.path)
                who = f"{printable(path)} of instance {record.name}"
                is_raw = disk.format == "raw" or _is_recorded_raw(path)  # whose header is the guest's
                self._chain(path, self.chains.of_path(path), who, record=record, sure=not is_raw)

    def disks_elsewhere(self) -> None:
        """The disks that we made outside the roots: recorded in the cache of their base, by now on another's perhaps."""
        for store in self.places.stores:
            try:
                recorded = disk_roots.disks(store)
            except UnderlayError as error:
                self.problems.append(Problem(error.code, store.paths.disks, error.message))
                self.unknowns.append(Unknown("disks-unreadable", error.message, root=store.root))
                continue
            for name, path in recorded:
                self._recorded_disk(store.root, name, path)
            self._volumes(store)

    def _volumes(self, store: Store) -> None:
        """The disks that are no files and read from their base; nothing here can look into them, so what is recorded holds."""
        try:
            recorded = volumes.volumes(store)
        except UnderlayError as error:
            self.problems.append(Problem(error.code, store.paths.volumes, error.message))
            self.unknowns.append(Unknown("disks-unreadable", error.message, root=store.root))
            return
        for volume in recorded:
            if volume.keeps_base and volume.base is not None:
                self.uses.append(Use(store.root, volume.base, "recorded-base", printable(volume.path)))

    def _recorded_disk(self, root: Path, name: str, path: Path) -> None:
        """A disk of ours; while it cannot be read, its base is what was recorded when it was made."""
        for file in map(_looked_at, _parts(path)):
            references = file.references
            if references is None or references.names or references.malformed is not None:
                self.uses.append(Use(root, name, "recorded-base", printable(file.path)))
            if references is not None:
                self._file(file, None)
        if _is_missing(path):
            why = "it is recorded, and not there; if it is gone for good, 'underlay disk forget' says so"
            self._problem("disk-missing", os.fspath(path), why)

    def _file(self, file: DiskFile, record: InstanceRecord | None) -> None:
        who = printable(file.path)
        if file.references is None:
            self._unreadable(file.path, file.why, record)
            return
        sure = True
        if file.references.names and _is_recorded_raw(file.path):
            sure = False
            self._problem("raw-disk-with-header", file.path, "it is recorded raw, and its content names other files")
        if file.references.malformed is not None:
            self._problem("disk-malformed", file.path, file.references.malformed)
            self.uses.extend(_recorded_bases(file.path, self.places.stores))
        if file.references.names:
            chain = self.chains.of(file.references, directory=os.path.dirname(file.path))
            self._chain(file.path, chain, who, record=record if sure else None, sure=sure)

    def _chain(self, path: str, chain: Chain, who: str, *, record: InstanceRecord | None, sure: bool) -> None:
        for root, name, certain in chain.bases:
            known = certain and sure
            self.uses.append(Use(root, name, "backing-file" if known else "backing-name", who, known))
        for where, why in chain.odd:
            self._problem("disk-malformed", where, why)
        if chain.broken is not None and sure:
            self._unreadable(path, chain.broken, record)

    def _unreadable(self, path: str, why: str, record: InstanceRecord | None) -> None:
        """What a disk that cannot be read keeps: what is recorded of it; without that, whatever it may be made from."""
        self._problem("disk-unreadable", path, why)
        bases = _recorded_bases(path, self.places.stores)
        self.uses.extend(bases)
        keeps = _made_from(os.path.basename(path))
        if bases or self._tells_image(record, path):
            keeps = keeps - _MADE_FROM_IMAGES
        if keeps:
            self.unknowns.append(Unknown("disk-unreadable", f"{printable(path)}: {why}", keeps=keeps))

    def _owner(self, path: str) -> InstanceRecord | None:
        root = f"{self.places.instances}/"
        return owner_of(path[len(root) :].partition("/")[0], self.owners) if path.startswith(root) else None

    def _tells_image(self, record: InstanceRecord | None, path: str) -> bool:
        """Whether the instance's record keeps the image of this disk: one that is here. A rescue disk has another."""
        if record is None or not record.image_ref or ".rescue" in os.path.basename(path):
            return False
        return any(names_of_refs(one, [record.image_ref])[record.image_ref] for one in self.inventories)

    def _problem(self, code: str, path: str, why: str) -> None:
        self.problems.append(Problem(code, Path(path), f"{printable(path)}: {why}"))


def _parts(path: Path) -> list[str]:
    """The files of a disk of ours: those in a directory that is recorded as one, else what has its name.

    Any other directory is where the disk was, such as a mount point without its file system, and says nothing of it.
    """
    try:
        if path.is_dir() and filedisk.backend_of_directory(path) is not None:
            return [f"{os.fspath(path)}/{name}" for name in os.listdir(path)] or [os.fspath(path)]
    except OSError:  # then it is no plain file either
        pass
    return [os.fspath(path)]


def _is_missing(path: Path) -> bool:
    """Whether nothing has the name, as opposed to what cannot be looked at."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _looked_at(path: str) -> DiskFile:
    """A file that a disk of ours is, or a part of one; one that is gone by now tells as little as one that cannot be read."""
    try:
        return DiskFile(path, plain_header(path))
    except OSError as error:
        return DiskFile(path, None, error.strerror or str(error))


def _made_from(name: str) -> frozenset[str]:
    """Kinds of file that a disk of this name may stand on."""
    if name.startswith("disk.swap"):
        return _MADE_FROM_IMAGES | {"swap"}
    if name.startswith(("disk.eph", "disk.local")):
        return _MADE_FROM_IMAGES | {"ephemeral"}
    return _MADE_FROM_IMAGES


def _recorded_bases(path: str, stores: Iterable[Store]) -> list[Use]:
    """The base that a disk's own record names, or that of the directory that is the disk."""
    record = _record(path) or _record(os.path.dirname(path))
    if record is None or record.base is None:
        return []
    return [
        Use(store.root, record.base, "recorded-base", printable(path))
        for store in stores
        if os.fspath(store.root) == record.cache
    ]


def _record(path: str) -> DiskRecord | None:
    try:
        return decode_disk_record(read_attribute(path))
    except OSError:
        return None


def _is_recorded_raw(path: str) -> bool:
    """Whether something that no guest can write says that the disk is raw; what cannot be read says nothing."""
    return _is_recorded(path, "raw") or _is_recorded(os.path.dirname(path), "parallels")  # in which an image may be raw


def _is_recorded(path: str, disk_format: str) -> bool:
    if (record := _record(path)) is not None:
        return record.format == disk_format
    with suppress(DiskUnrecorded, OSError):
        noted = diskinfo.mentions(os.path.dirname(path), disk_format)
        return noted and diskinfo.recorded_format(Path(path)) == disk_format
    return False
