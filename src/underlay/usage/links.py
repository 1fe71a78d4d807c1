"""Hard links: a file that has a name outside its cache was delivered to somebody."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from underlay.plan import Inventory, Observed, Use


@dataclass(frozen=True, slots=True)
class LinksProbe:
    """Counts the names of each inode. Two names inside one cache, as deduplication makes them, are no use."""

    def observe(self, inventories: Sequence[Inventory]) -> Observed:
        """The files that somebody else has a link to."""
        names = Counter((file.device, file.inode) for one in inventories for file in one.files if file.links > 1)
        return Observed(
            uses=[
                Use(one.root, file.name, "linked", f"{file.links - here} of its names lie outside the caches")
                for one in inventories
                for file in one.files
                if file.links > 1 and file.links > (here := names[file.device, file.inode])
            ]
        )
