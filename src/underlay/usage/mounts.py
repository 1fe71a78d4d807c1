"""Whether the directories of instances are what they were: a file system that is not mounted has no disks in it to see."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from underlay.errors import UnderlayError
from underlay.files import translated
from underlay.filesystems import file_system
from underlay.naming import printable
from underlay.plan import Inventory, Observed, Unknown
from underlay.store import Store, mounts
from underlay.store.mounts import SeenRoot


@dataclass(frozen=True, slots=True)
class MountsProbe:
    """Compares the roots with what was noted of them.

    Attributes:
        now: the roots as they are, see `seen_roots`. expected: whether instances are known to be on this host.
    """

    stores: Sequence[Store]
    now: Mapping[str, SeenRoot]
    expected: bool

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """Nothing is used by this; a root that is another than it was keeps everything."""
        wanted = {inventory.root for inventory in inventories}
        unknowns: list[Unknown] = []
        for store in self.stores:
            if store.root in wanted:
                unknowns += self._doubts(store)
        return Observed(unknowns=unknowns)

    def _doubts(self, store: Store) -> list[Unknown]:
        try:
            before = mounts.recall(store)
            with translated(store.root):
                cache_key = file_system(store.root).key
        except UnderlayError as error:
            return [Unknown("root-unknown", error.message, root=store.root)]
        return [
            Unknown(code, f"{printable(path)} {why}; say 'underlay check --accept' if that is right", root=store.root)
            for path, root in self.now.items()
            for code, why in self._changes(path, root, before.get(path), cache_key)
        ]

    def _changes(self, path: str, root: SeenRoot, before: SeenRoot | None, cache_key: str) -> list[tuple[str, str]]:
        if before is not None and not _is_same(root, before):
            return [("root-moved", "is another directory than it was, or lies on another file system")]
        if before is not None and (lost := sorted(set(before.mounts) - set(root.mounts))):
            return [("root-moved", f"had a file system of its own mounted at {printable(lost[0])}")]
        if root.directories == 0 and file_system(Path(path)).key != cache_key:
            if before is not None and before.directories:
                return [("root-empty", f"is empty, and had {before.directories} directories")]
            if self.expected and before is None:  # one that was noted as empty was so, or was accepted
                return [("root-empty", "is empty, and the inventory has instances on this host")]
        return []


def seen_roots(roots: Sequence[str], read: Iterable[str], mounted: Sequence[str]) -> dict[str, SeenRoot]:
    """The roots that can be read as they are now.

    Args:
        read: directories that were read. mounted: those of them with a file system of their own.
    """
    counts = Counter(map(os.path.dirname, read))
    found: dict[str, SeenRoot] = {}
    for path in roots:
        try:
            storage, inode = file_system(Path(path)), os.stat(path).st_ino
        except OSError:
            continue
        below = tuple(mount for mount in mounted if mount.startswith(f"{path}/"))
        found[path] = SeenRoot(uuid=storage.uuid, source=storage.source, directories=counts[path], inode=inode, mounts=below)
    return found


def _is_same(root: SeenRoot, before: SeenRoot) -> bool:
    if root.inode and before.inode and root.inode != before.inode:
        return False
    return root.uuid == before.uuid if root.uuid and before.uuid else root.source == before.source
