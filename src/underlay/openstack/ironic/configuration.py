"""A conductor's caches as a configuration of ours: one to work with, and the others that may give up images for it."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from underlay.config import Config
from underlay.naming import CacheKind
from underlay.openstack.ironic.options import Options
from underlay.openstack.ironic.registry import _cache_cleanup_list, made
from underlay.plan import Rules
from underlay.store import Store
from underlay.values import replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Masters:
    """A directory of masters.

    Attributes:
        size: bytes, or None for any. ttl: seconds, or None for ever. inspects: whether its images are inspected.
        priority: that of the highest gives up its images first.
    """

    root: Path
    size: int | None = None
    ttl: float | None = None
    inspects: bool = True
    priority: int = 0

    @classmethod
    def at(cls, path: str | None, *, size: int | None, ttl: float | None, inspects: bool) -> "Masters | None":
        """Those at a path; None without one."""
        return cls(root=Path(os.path.abspath(path)), size=size, ttl=ttl, inspects=inspects) if path else None

    @classmethod
    def of(cls, cache: Any) -> "Masters | None":
        """Those of a cache; None when it has no directory."""
        size, ttl = getattr(cache, "_cache_size", None), getattr(cache, "_cache_ttl", None)
        return cls.at(cache.master_dir, size=size, ttl=ttl, inspects=not getattr(cache, "_disable_validation", False))

    @property
    def name(self) -> str:
        """What the cache is called in a configuration."""
        return os.fspath(self.root)

    def is_same(self, other: "Masters") -> bool:
        """Whether both are one directory."""
        return os.path.realpath(self.root) == os.path.realpath(other.root)

    def is_inspected(self, options: Options) -> bool:
        """Whether images are inspected as they come."""
        return self.inspects and not options.disable_deep_image_inspection


def registered_masters(options: Options) -> list[Masters]:
    """The directories of the registered caches that are there, the highest priority first, each once."""
    found: list[Masters] = []
    for priority, kind in tuple(_cache_cleanup_list):
        # A cache makes its directory as it is made itself, so one that can be told of otherwise is not made to be asked.
        described = getattr(kind, "described", None)
        masters = described(options) if described is not None else Masters.of(made(kind))
        if masters is not None and masters.root.is_dir() and not any(one.is_same(masters) for one in found):
            found.append(replace(masters, priority=priority))
    return found


def configuration(masters: Masters, options: Options, *, others: Iterable[Masters] = ()) -> Config:
    """A host with these masters, which come first, and with others.

    What is used is told by links, leases, copies and who has a file open; no directory of instances is read.
    """
    caches = [masters, *(one for one in others if not one.is_same(masters))]
    return Config(
        origin=masters.root,
        caches={
            one.name: Store(root=one.root, kind=CacheKind.MASTERS, force_raw=False, validation=one.is_inspected(options))
            for one in caches
        },
        sources={},
        instances=masters.root,  # which is not read, as no cache is
        use_cow_images=False,
        rules={one.name: Rules(ttl=one.ttl, max_size=one.size, keep_recent=0, priority=one.priority) for one in caches},
    )
