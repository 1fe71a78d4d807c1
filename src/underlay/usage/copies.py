"""Images that were delivered as copies: as much in use as those that were linked."""

from collections.abc import Sequence
from dataclasses import dataclass

from underlay.errors import UnderlayError
from underlay.model import Problem
from underlay.naming import printable
from underlay.plan import HELD_KINDS, Inventory, Observed, Unknown, Use
from underlay.store import Store, copies as delivered

_MASTERS = frozenset({"master", "original", "resized"})


@dataclass(frozen=True, slots=True)
class CopiesProbe:
    """Reads the records of copies in each cache, and looks whether they are still there."""

    stores: Sequence[Store]

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """The files of which a delivered copy is there, or may be."""
        wanted = {inventory.root for inventory in inventories}
        uses: list[Use] = []
        unknowns: list[Unknown] = []
        problems: list[Problem] = []
        for store in self.stores:
            if store.root not in wanted:
                continue
            try:
                found, wrong = delivered.copies(store)
            except UnderlayError as error:
                found, wrong = [], [Problem("copy-unreadable", store.paths.copies, error.message)]
            for copy in found:
                answer = delivered.is_there(copy)
                if answer is not False:
                    uses.append(Use(store.root, copy.name, "copied", printable(copy.path), sure=bool(answer)))
            problems += wrong
            unknowns += [Unknown(problem.code, problem.detail, keeps=HELD_KINDS, root=store.root) for problem in wrong]
        return Observed(uses=uses, unknowns=unknowns, problems=problems)
