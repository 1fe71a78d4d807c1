"""What a host is put together from: its configuration, who listens, and the adapters that these mean."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from underlay import later, registry
from underlay.cache import Cache
from underlay.config import Config
from underlay.contracts import DiskBackend, ImageSource, Observer
from underlay.errors import CacheError, NotCached, UnknownCache
from underlay.files import make_directory, translated
from underlay.model import BaseImage, Event, InstanceRecord, Level, Problem, Progress
from underlay.naming import CacheKind
from underlay.once import Once
from underlay.store import Store
from underlay.values import hiding

if TYPE_CHECKING:
    from underlay.prune import observation
    from underlay.prune.observation import Known
else:
    observation = later.module("underlay.prune.observation")


class Silent:
    """An observer that listens to nothing."""

    def event(self, event: Event) -> None:
        """Let it pass."""

    def progress(self, progress: Progress) -> None:
        """Let it pass."""


class Parts(msgspec.Struct, frozen=True):
    """The parts of one host. Holds no file or lock of a cache between calls.

    Safe to share between threads and across forks, except that who was forked after a fetch from an object store has none.

    Attributes:
        sources: by scheme, in place of those that the configuration would open.
    """

    config: Config
    observer: Observer
    sources: Mapping[str, ImageSource] = msgspec.field(default_factory=dict)
    _opened: Once[ImageSource] = msgspec.field(default_factory=Once)

    __repr__, __rich_repr__ = hiding("_opened")

    # ------------------------------------------------------------------------------------------------------------- adapters

    def source(self, scheme: str) -> ImageSource:
        """The source that serves a scheme; opened once, so that the next fetch has its connections and its tokens as well.

        Raises:
            UnknownScheme
        """
        if scheme in self.sources:
            return self.sources[scheme]
        return self._opened.get(scheme, lambda: registry.open_source(scheme, self.config.sources.get(scheme, {})))

    def backend(self, name: str | None) -> DiskBackend:
        """A disk backend by name; None and ``default`` as the configuration says.

        Raises:
            UnknownBackend
        """
        default = "qcow2" if self.config.use_cow_images else "flat"
        return registry.open_backend(default if name is None or name == "default" else name, self.config.disks)

    def known(self, instances: Sequence[InstanceRecord] | None, *, beside: Sequence[InstanceRecord] = ()) -> "Known":
        """The instances that are given, else those of the configured inventory, or why they are not known; and those beside."""
        if instances is not None:
            return observation.Known([*instances, *beside])
        config = self.config
        inventory = registry.open_inventory(config.inventory, host=config.host, hosts=config.hosts or (config.host,))
        found = observation.known_instances(inventory, config)
        return observation.Known([*found.records, *beside], found.observed)

    # --------------------------------------------------------------------------------------------------------------- caches

    def cache(self, name: str | None) -> Cache:
        """A cache by name; None for the configuration's first.

        Raises:
            UnknownCache
        """
        name = next(iter(self.config.caches)) if name is None else name
        if name not in self.config.caches:
            known = ", ".join(self.config.caches)
            raise UnknownCache(f"there is no cache {name!r}", hint=f"configured caches: {known}")
        neighbours = [store for other, store in self.config.caches.items() if other != name]
        return Cache(name=name, store=self.config.caches[name], neighbours=neighbours)

    def masters_cache(self) -> Cache:
        """The configuration's first cache of masters, else its first."""
        masters = (name for name, store in self.config.caches.items() if store.kind is CacheKind.MASTERS)
        return self.cache(next(masters, None))

    def store_of(self, image: BaseImage) -> Store:
        """The store of the cache that holds an image.

        Raises:
            NotCached: none of the configured ones.
        """
        for store in self.config.caches.values():
            if store.root == image.cache:
                return store
        raise NotCached(f"{image.path} is in no configured cache")

    def stores(self, cache: str | None = None) -> list[Store]:
        """One cache, or all that can be looked at. The embedded default's come with the first fetch.

        Raises:
            UnknownCache, CacheMissing, UnknownLayout, LayoutDisagrees
        """
        names = list(self.config.caches) if cache is None else [self.cache(cache).name]
        stores = [self.config.caches[name] for name in names]
        if self.config.origin is None:
            stores = [store for store in stores if os.path.lexists(store.root)]
        return self._usable(stores)

    def _usable(self, stores: list[Store]) -> list[Store]:
        """Those that can be looked at; the others are told as events, unless there is nothing but them."""
        usable: list[Store] = []
        problems: list[Problem] = []
        for store in stores:
            try:
                store.check()
                usable.append(store)
            except CacheError as error:
                if store is stores[-1] and not usable:
                    raise
                problems.append(Problem(error.code, store.root, error.message))
        self.tell(problems)
        return usable

    def judged(self, cache: str | None) -> list[str]:
        """The names of the caches that a plan judges; the embedded default's come with the first fetch.

        Raises:
            UnknownCache, CacheMissing, UnknownLayout, LayoutDisagrees: of the named cache.
        """
        if cache is None:
            caches, has_come = self.config.caches, self.config.origin is not None
            return [name for name, store in caches.items() if has_come or os.path.lexists(store.root)]
        self.cache(cache).store.check()
        return [cache]

    def make_directories(self) -> None:
        """The embedded default makes its directories; a configuration names directories that are there."""
        if self.config.origin is not None:
            return
        for directory in (*(store.root for store in self.config.caches.values()), self.config.instances):
            with translated(directory):
                for missing in reversed([path for path in (directory, *directory.parents) if not path.exists()]):
                    make_directory(missing, 0o755)

    # -------------------------------------------------------------------------------------------------------------- who hears

    def tell(self, problems: Sequence[Problem]) -> None:
        """Have the observer hear what could not be looked at, and go on."""
        for problem in problems:
            path = {"path": os.fspath(problem.path)}
            self.observer.event(Event(code=problem.code, level=Level.WARNING, detail=problem.detail, fields=path))
