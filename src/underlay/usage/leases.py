"""Pins and leases. One that cannot be read may name any image, so it keeps them all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from underlay.errors import UnderlayError
from underlay.model import Lease, Problem
from underlay.plan import HELD_KINDS, Inventory, Observed, Unknown, Use
from underlay.store import Store
from underlay.store.leases import leases


@dataclass(frozen=True, slots=True)
class LeasesProbe:
    """Reads the leases of each cache.

    Attributes:
        now: leases that have ended by then keep nothing.
    """

    stores: Sequence[Store]
    now: datetime

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """The files that are leased or pinned."""
        wanted = {inventory.root for inventory in inventories}
        uses: list[Use] = []
        unknowns: list[Unknown] = []
        problems: list[Problem] = []
        for store in self.stores:
            if store.root not in wanted:
                continue
            try:
                found, wrong = leases(store)
            except UnderlayError as error:
                found, wrong = [], [Problem("lease-unreadable", store.paths.leases, error.message)]
            uses += [use for lease in found if lease.holds_at(self.now) for use in _uses(store, lease)]
            unknowns += [Unknown(problem.code, problem.detail, keeps=HELD_KINDS, root=store.root) for problem in wrong]
            problems += wrong
        return Observed(uses=uses, unknowns=unknowns, problems=problems)


def _uses(store: Store, lease: Lease) -> Iterator[Use]:
    until = "" if lease.expires is None else f" until {lease.expires:%Y-%m-%d %H:%M} UTC"
    for name in lease.names:
        yield Use(store.root, name, "pin" if lease.expires is None else "lease", f"{lease.holder}{until}")
