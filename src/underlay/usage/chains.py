"""Backing chains: from what a disk's header names to every file of a cache that it reads from, however long the way is.

A name protects the file that it resolves to, and the file of the same name in a cache: paths differ between hosts and mounts. A
chain ends at what is not a local file. Each file's header is read once, however many disks stand on it.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from underlay.errors import InvalidName
from underlay.formats.backing import References, is_remote, targets
from underlay.naming import CachePaths, printable
from underlay.plan import Inventory
from underlay.usage.directories import Stamp, plain_header

_LONGEST = 256  # files in a chain; QEMU itself gives up earlier


@dataclass(frozen=True, slots=True)
class Chain:
    """What a disk stands on.

    Attributes:
        bases: files of caches: directory, name, and whether it surely is that file.
        broken: why it could not be followed to its end, or None. Further bases may be beyond.
        odd: what is malformed on the way, as path and why.
    """

    bases: tuple[tuple[Path, str, bool], ...]
    broken: str | None = None
    odd: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Node:
    """One file that something names: where it is in a cache, what it names itself."""

    base: tuple[Path, str] | None
    references: References
    broken: str | None = None


@dataclass(frozen=True, slots=True)
class Chains:
    """Follows chains, and remembers what it has read while it lives."""

    caches: Mapping[str, Path]
    names: Mapping[Path, frozenset[str]]
    inventories: Sequence[Inventory]
    stamps: dict[str, Stamp] = field(default_factory=dict)
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _chains: dict[tuple[str, str], Chain] = field(default_factory=dict)
    _real: dict[str, str] = field(default_factory=dict)
    _by_inode: dict[tuple[int, int], tuple[Path, str]] = field(default_factory=dict)

    @classmethod
    def into(cls, inventories: Sequence[Inventory]) -> "Chains":
        """Chains that may end in these caches."""
        return cls(
            caches={os.path.realpath(one.root): one.root for one in inventories},
            names={one.root: frozenset(file.name for file in one.files) for one in inventories},
            inventories=inventories,
        )

    def of(self, references: References, *, directory: str) -> Chain:
        """What a disk in a directory stands on, by its header."""
        if len(references.names) == 1:
            return self._named(references.names[0], directory)
        return _joined([self._named(name, directory) for name in references.names])

    def of_path(self, path: str) -> Chain:
        """What is needed for a file to be read: itself, and what it stands on."""
        return self._named(path, "/")

    def _named(self, name: str, directory: str) -> Chain:
        key = (name, "" if name.startswith("/") else directory)
        if key not in self._chains:
            self._chains[key] = self._follow(name, directory)
        return self._chains[key]

    def _follow(self, name: str, directory: str) -> Chain:
        bases: dict[tuple[Path, str], bool] = {}
        odd: list[tuple[str, str]] = []
        broken: str | None = None
        seen: set[str] = set()
        ahead = [(name, directory, True)]
        while ahead:
            name, directory, is_sure = ahead.pop()
            meant = targets(name, directory=directory)
            is_lost = bool(meant) or not is_remote(name)
            for path, sure in ((target.path, target.sure and is_sure) for target in meant):
                node, namesakes = self._node(path), self._namesakes(path)
                is_lost = is_lost and node.broken is not None and not namesakes
                if node.base is not None:
                    bases[node.base] = bases.get(node.base, False) or sure
                for namesake in namesakes:
                    bases.setdefault(namesake, False)
                if path in seen:
                    continue
                if len(seen) >= _LONGEST:
                    return _chain(bases, f"its chain is longer than {_LONGEST} files", odd)
                seen.add(path)
                # A base is told by its name, wherever its directory is said to be: what it is called here is what is meant.
                ahead += [(f"{root}/{namesake}", "/", False) for root, namesake in namesakes if node.base is None]
                if node.broken is not None and sure and not namesakes:
                    broken = f"{printable(path)}: {node.broken}"
                if node.references.malformed is not None:
                    odd.append((path, node.references.malformed))
                ahead += [(further, os.path.dirname(path), sure) for further in node.references.names]
            if is_lost and broken is None:  # which file it means depends on where QEMU was started
                broken = f"nothing that {printable(name)} may mean is there"
        return _chain(bases, broken, odd)

    def _namesakes(self, path: str) -> list[tuple[Path, str]]:
        name = os.path.basename(path)
        return [(root, name) for root, names in self.names.items() if name in names]

    def _node(self, path: str) -> _Node:
        if path not in self._nodes:
            self._nodes[path] = self._read(path)
        return self._nodes[path]

    def _read(self, path: str) -> _Node:
        base = self._base(path)
        try:
            references = plain_header(path)
            if base is None:  # by another way: a bind mount, a hard link
                status = os.stat(path)
                self.stamps[path] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
                base = self._inodes().get((status.st_dev, status.st_ino))
        except FileNotFoundError as error:
            if base is not None:
                return _gone(path, base)
            # Elsewhere a file system may not be mounted at the moment.
            return _Node(None, References(None), printable(error.strerror or "not there"))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            return _Node(base, References(None), printable(getattr(error, "strerror", None) or str(error)))
        return _Node(base, references)

    def _inodes(self) -> Mapping[tuple[int, int], tuple[Path, str]]:
        if not self._by_inode:  # most hosts never ask
            self._by_inode.update(
                ((file.device, file.inode), (one.root, file.name)) for one in self.inventories for file in one.files
            )
        return self._by_inode

    def _base(self, path: str) -> tuple[Path, str] | None:
        """The cache file that a path leads to, whether it is there or not."""
        directory, name = os.path.split(path)
        if directory not in self._real:
            self._real[directory] = os.path.realpath(directory)
        root = self.caches.get(self._real[directory])
        if root is not None and name in self.names[root]:
            return root, name
        directory, name = os.path.split(os.path.realpath(path))
        root = self.caches.get(directory)
        return None if root is None else (root, name)


def _gone(path: str, base: tuple[Path, str]) -> _Node:
    """A base that has left its cache: it is gone, or in the trash, from where it may come back to what it stands on."""
    root, name = base
    try:
        for where in (CachePaths(root).trashed(name), Path(path)):  # or back already
            with suppress(FileNotFoundError):
                return _Node(base, plain_header(os.fspath(where)))
    except InvalidName:  # no name of ours was ever in the trash
        pass
    except OSError as error:
        return _Node(base, References(None), printable(error.strerror or str(error)))
    return _Node(base, References(None))


def _chain(bases: Mapping[tuple[Path, str], bool], broken: str | None, odd: Sequence[tuple[str, str]]) -> Chain:
    return Chain(tuple((root, name, sure) for (root, name), sure in bases.items()), broken, tuple(odd))


def _joined(chains: Sequence[Chain]) -> Chain:
    return Chain(
        bases=tuple(base for chain in chains for base in chain.bases),
        broken=next((chain.broken for chain in chains if chain.broken is not None), None),
        odd=tuple(odd for chain in chains for odd in chain.odd),
    )
