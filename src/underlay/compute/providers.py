"""The tree of resource providers that `update_provider_tree` changes: what a host has to give, as placement counts it.

It is the one thing of the contract that is changed in place, because the caller compares it with what it was.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from threading import RLock
from typing import Any, NamedTuple
from uuid import uuid4

_SHARES = "MISC_SHARES_VIA_AGGREGATE"


class ProviderData(NamedTuple):
    """One provider as it was when it was asked for.

    Attributes:
        generation: placement's count of its changes. inventory: by resource class, each with ``total``, ``reserved``,
            ``min_unit``, ``max_unit``, ``step_size`` and ``allocation_ratio``. resources: by class, what is assigned of it.
    """

    uuid: str
    name: str
    generation: int | None
    parent_uuid: str | None
    inventory: dict[str, Any]
    traits: set[str]
    aggregates: set[str]
    resources: dict[str, Any]


class ProviderTree:
    """Providers by UUID and by name, each below its parent or a root. Safe to share between threads.

    Every method that names a provider takes its name or its UUID, and raises ValueError when there is none.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._providers: dict[str, ProviderData] = {}

    # ------------------------------------------------------------------------------------------------------ what there is

    @property
    def roots(self) -> list[ProviderData]:
        """The providers without a parent."""
        with self._lock:
            return [self._copy(one) for one in self._children(None)]

    def exists(self, name_or_uuid: str) -> bool:
        """Whether there is such a provider."""
        with self._lock:
            return self._found(name_or_uuid) is not None

    def data(self, name_or_uuid: str) -> ProviderData:
        """A copy of the provider as it is now."""
        with self._lock:
            return self._copy(self._find(name_or_uuid))

    def get_provider_uuids(self, name_or_uuid: str | None = None) -> list[str]:
        """The UUIDs of a provider and of all below it, parents first; of every provider when none is named."""
        with self._lock:
            tops = self._children(None) if name_or_uuid is None else [self._find(name_or_uuid)]
            return [one.uuid for top in tops for one in self._below(top)]

    def get_provider_uuids_in_tree(self, name_or_uuid: str) -> list[str]:
        """The UUIDs of all providers that have the same root as this one, parents first."""
        with self._lock:
            one = self._find(name_or_uuid)
            while one.parent_uuid is not None:
                one = self._providers[one.parent_uuid]
            return [below.uuid for below in self._below(one)]

    def has_sharing_provider(self, resource_class: str) -> bool:
        """Whether a provider that shares with others (by its trait) has inventory of this class."""
        with self._lock:
            return any(resource_class in one.inventory and _SHARES in one.traits for one in self._providers.values())

    # -------------------------------------------------------------------------------------------------------- the tree itself

    def populate_from_iterable(self, provider_dicts: Iterable[Mapping[str, Any]]) -> None:
        """Add providers, as placement describes them: ``uuid``, ``name``, ``generation``, ``parent_provider_uuid``.

        One that is there already is replaced, and what was below it goes, unless it comes with the others.

        Raises:
            ValueError: a parent is neither there nor among the others, and nothing was changed.
        """
        coming = {one["uuid"]: one for one in provider_dicts}
        with self._lock:
            parents = {one.get("parent_provider_uuid") for one in coming.values()} - {None}
            if missing := parents - coming.keys() - self._providers.keys():
                raise ValueError(f"there are no such parents: {', '.join(sorted(map(str, missing)))}")
            before = dict(self._providers)
            try:
                for one in _parents_first(coming):
                    self._replace(one)
            except ValueError:
                self._providers = before
                raise

    def new_root(self, name: str, uuid: str, generation: int | None = None) -> str:
        """Add a provider without a parent, and return its UUID.

        Raises:
            ValueError: there is a provider of this name or UUID.
        """
        with self._lock:
            return self._add(name, uuid, generation, None)

    def new_child(self, name: str, parent: str, uuid: str | None = None, generation: int | None = None) -> str:
        """Add a provider below another, and return its UUID.

        Raises:
            ValueError: there is a provider of this name or UUID, or no such parent.
        """
        with self._lock:
            return self._add(name, uuid or str(uuid4()), generation, self._find(parent).uuid)

    def remove(self, name_or_uuid: str) -> None:
        """Remove a provider and all below it."""
        with self._lock:
            for one in list(self._below(self._find(name_or_uuid))):
                del self._providers[one.uuid]

    # --------------------------------------------------------------------------------------------------------- inventory

    def has_inventory(self, name_or_uuid: str) -> bool:
        """Whether it has inventory of any class."""
        return self._now(name_or_uuid).inventory != {}

    def has_inventory_changed(self, name_or_uuid: str, inventory: Mapping[str, Any]) -> bool:
        """Whether this is another inventory than it has. A key of a class that is not said again does not count."""
        return _differs(self._now(name_or_uuid).inventory, inventory)

    def update_inventory(self, name_or_uuid: str, inventory: Mapping[str, Any], generation: int | None = None) -> bool:
        """Give it this inventory in place of the whole old one, and the generation if one is given.

        Returns:
            Whether the inventory is another one now.
        """
        with self._lock:
            changed = _differs(self._find(name_or_uuid).inventory, inventory)
            new = {"inventory": deepcopy(dict(inventory))} if changed else {}
            self._put(name_or_uuid, generation, **new)
            return changed

    def update_resources(self, name_or_uuid: str, resources: Mapping[str, Any]) -> bool:
        """Say what is assigned of it; returns whether that is something else now."""
        with self._lock:
            changed = self._find(name_or_uuid).resources != resources
            self._put(name_or_uuid, None, resources=deepcopy(dict(resources)))
            return changed

    # ------------------------------------------------------------------------------------------------------------ traits

    def has_traits(self, name_or_uuid: str, traits: Iterable[str]) -> bool:
        """Whether it has all of these; true of none."""
        return set(traits) <= self._now(name_or_uuid).traits

    def have_traits_changed(self, name_or_uuid: str, traits: Iterable[str]) -> bool:
        """Whether these are others than it has."""
        return set(traits) != self._now(name_or_uuid).traits

    def update_traits(self, name_or_uuid: str, traits: Iterable[str], generation: int | None = None) -> bool:
        """Give it these traits in place of all old ones; returns whether they are others now."""
        with self._lock:
            before, new = self._find(name_or_uuid).traits, set(traits)
            self._put(name_or_uuid, generation, traits=new)
            return before != new

    def add_traits(self, name_or_uuid: str, *traits: str) -> None:
        """Give it these traits too."""
        with self._lock:
            self._put(name_or_uuid, None, traits=self._find(name_or_uuid).traits | set(traits))

    def remove_traits(self, name_or_uuid: str, *traits: str) -> None:
        """Take these traits from it, if it has them."""
        with self._lock:
            self._put(name_or_uuid, None, traits=self._find(name_or_uuid).traits - set(traits))

    # -------------------------------------------------------------------------------------------------------- aggregates

    def in_aggregates(self, name_or_uuid: str, aggregates: Iterable[str]) -> bool:
        """Whether it is in all of these (by UUID); true of none."""
        return set(aggregates) <= self._now(name_or_uuid).aggregates

    def have_aggregates_changed(self, name_or_uuid: str, aggregates: Iterable[str]) -> bool:
        """Whether these are others than it is in."""
        return set(aggregates) != self._now(name_or_uuid).aggregates

    def update_aggregates(self, name_or_uuid: str, aggregates: Iterable[str], generation: int | None = None) -> bool:
        """Put it into these in place of all old ones; returns whether they are others now."""
        with self._lock:
            before, new = self._find(name_or_uuid).aggregates, set(aggregates)
            self._put(name_or_uuid, generation, aggregates=new)
            return before != new

    def add_aggregates(self, name_or_uuid: str, *aggregates: str) -> None:
        """Put it into these too."""
        with self._lock:
            self._put(name_or_uuid, None, aggregates=self._find(name_or_uuid).aggregates | set(aggregates))

    def remove_aggregates(self, name_or_uuid: str, *aggregates: str) -> None:
        """Take it out of these, if it is in them."""
        with self._lock:
            self._put(name_or_uuid, None, aggregates=self._find(name_or_uuid).aggregates - set(aggregates))

    # --------------------------------------------------------------------------------------------------------- in the lock

    def _found(self, name_or_uuid: str) -> ProviderData | None:
        by_uuid = self._providers.get(name_or_uuid)
        return by_uuid or next((one for one in self._providers.values() if one.name == name_or_uuid), None)

    def _find(self, name_or_uuid: str) -> ProviderData:
        found = self._found(name_or_uuid)
        if found is None:
            raise ValueError(f"there is no provider {name_or_uuid}")
        return found

    def _now(self, name_or_uuid: str) -> ProviderData:
        with self._lock:
            return self._find(name_or_uuid)

    def _children(self, parent_uuid: str | None) -> list[ProviderData]:
        return [one for one in self._providers.values() if one.parent_uuid == parent_uuid]

    def _below(self, top: ProviderData) -> Iterator[ProviderData]:
        yield top
        for child in self._children(top.uuid):
            yield from self._below(child)

    def _add(self, name: str, uuid: str, generation: int | None, parent_uuid: str | None) -> str:
        for one in (name, uuid):
            if self._found(one) is not None:
                raise ValueError(f"there is a provider {one} already")
        self._providers[uuid] = ProviderData(uuid, name, generation, parent_uuid, {}, set(), set(), {})
        return uuid

    def _replace(self, described: Mapping[str, Any]) -> None:
        uuid, parent_uuid = described["uuid"], described.get("parent_provider_uuid")
        if uuid in self._providers:
            self.remove(uuid)
        if parent_uuid is not None:
            self._find(parent_uuid)  # it may have been below one that was replaced
        self._add(described["name"], uuid, described.get("generation"), parent_uuid)

    def _put(self, name_or_uuid: str, generation: int | None, **changes: Any) -> None:
        one = self._find(name_or_uuid)
        kept = one.generation if generation is None else generation
        self._providers[one.uuid] = one._replace(generation=kept, **changes)

    def _copy(self, one: ProviderData) -> ProviderData:
        return deepcopy(one)

    def __getstate__(self) -> dict[str, ProviderData]:
        """For a copy, which has a lock of its own."""
        with self._lock:
            return dict(self._providers)

    def __setstate__(self, state: dict[str, ProviderData]) -> None:
        self._lock = RLock()
        self._providers = state


def _differs(now: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if now.keys() != new.keys():
        return True
    return any(
        new[name].keys() - record.keys() or any(new[name][key] != value for key, value in record.items() if key in new[name])
        for name, record in now.items()
    )


def _parents_first(coming: Mapping[str, Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    left = dict(coming)
    while left:
        ready = next((uuid for uuid, one in left.items() if one.get("parent_provider_uuid") not in left), None)
        if ready is None:
            raise ValueError(f"each of these is below another: {', '.join(sorted(left))}")
        yield left.pop(ready)
