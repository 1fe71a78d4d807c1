"""Other hosts that share a cache's storage: what they said they use, and whether all of them have said it.

Nothing goes of a cache that other hosts may use unless it is declared which hosts those are, each of them has said what it
needs, and locks on the file system reach them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from underlay.errors import UnderlayError
from underlay.files import translated
from underlay.filesystems import file_system
from underlay.model import Problem
from underlay.plan import HELD_KINDS, IMAGE_KINDS, Inventory, Observed, Rules, Unknown, Use
from underlay.store import Store, hosts as host_uses, registry
from underlay.store.hosts import HostUse
from underlay.units import format_duration

_EVERYTHING = HELD_KINDS | {"leftover"}


@dataclass(frozen=True, slots=True)
class SharedProbe:
    """Reads what the other hosts have recorded in each cache.

    Attributes:
        host: this one. declared: every host that shares the storage, as configured; empty when it is not shared.
        now: by which the age of a host's word is told.
    """

    stores: Sequence[Store]
    host: str
    declared: Sequence[str]
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """The files that other hosts use."""
        wanted = {inventory.root: inventory for inventory in inventories}
        uses: list[Use] = []
        unknowns: list[Unknown] = []
        problems: list[Problem] = []
        for store in self.stores:
            if store.root not in wanted:
                continue
            rules = wanted[store.root].rules
            try:
                said, wrong = host_uses.hosts(store)
                problems += wrong
                unknowns += [Unknown(problem.code, problem.detail, _EVERYTHING, store.root) for problem in wrong]
                uses += [Use(store.root, name, "host", one.host) for one in self._others(said) for name in one.names]
                unknowns += self._doubts(store, said, problems)
                unknowns += [doubt for one in self._others(said) if (doubt := self._stale(store, one, rules))]
            except UnderlayError as error:
                problems.append(Problem(error.code, store.root, error.message))
                unknowns.append(Unknown("hosts-unreadable", error.message, _EVERYTHING, store.root))
        return Observed(uses=uses, unknowns=unknowns, problems=problems)

    def _others(self, said: Sequence[HostUse]) -> list[HostUse]:
        return [one for one in said if one.host != self.host]

    def _stale(self, store: Store, said: HostUse, rules: Rules) -> Unknown | None:
        """What a host's word is too old for: a file that it came to need since may be as old as that by now."""
        age = (self.now - said.at).total_seconds()
        keeps = frozenset(kind for kind in _EVERYTHING if age > max(rules.age_of(kind), rules.keep_recent))
        if not keeps:
            return None
        why = f"{said.host} has not said what it uses of {store.root} for {format_duration(age)}"
        return Unknown("host-stale", why, keeps=keeps, root=store.root)

    def _doubts(self, store: Store, said: Sequence[HostUse], problems: list[Problem]) -> Iterator[Unknown]:
        with translated(store.root):
            storage = file_system(store.root)
        others = {one.host for one in self._others(said)}
        registered = self._registered(store, problems)
        for one in said:
            if one.host == self.host and (one.machine or others) and one.machine != (host_uses.machine_id() or None):
                why = f"two machines call themselves {self.host}: give each a 'host' of its own, or retire it"
                yield Unknown("host-ambiguous", why, _EVERYTHING, store.root)
            elif one.host != self.host and not one.complete:
                yield Unknown("host-incomplete", f"{one.host} could not tell all that it uses", IMAGE_KINDS, store.root)
        if storage.is_shared and not storage.locks_reach_other_hosts:
            why = f"locks on {store.root} ({storage.kind}) are local to each host"
            yield Unknown("locks-local", why, _EVERYTHING, store.root)
        undeclared = sorted((others | registered) - set(self.declared))
        if not self.declared and (storage.is_shared or undeclared):
            used_by = f"used by {', '.join(undeclared)}" if undeclared else f"on {storage.kind}"
            why = f"{store.root} is {used_by}, and instances.hosts does not say which hosts share it"
            yield Unknown("hosts-undeclared", why, _EVERYTHING, store.root)
        for host in sorted((set(self.declared) | registered) - others - {self.host}):
            if self.declared:
                why = f"{host} has not said what it uses of {store.root}"
                yield Unknown("host-silent", why, _EVERYTHING, store.root)

    def _registered(self, store: Store, problems: list[Problem]) -> set[str]:
        """The other hosts in Nova's registry, however long they are silent: their disks may still be there."""
        path = registry.path_beside(store)
        if path is None:
            return set()
        with translated(path):
            stamps = registry.read(path)
        if stamps is None:
            problems.append(Problem("registry-unreadable", Path(path), f"{path} is no registry of hosts"))
            return set()
        return set(stamps) - {self.host}
