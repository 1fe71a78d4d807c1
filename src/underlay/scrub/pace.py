"""How fast a scrub reads, and for how long."""

import math
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Pace:
    """The pace of one scrub, over all its images.

    Attributes:
        rate: bytes a second at most; infinity: as fast as it goes.
        until: when it stops, by the monotonic clock; infinity: when all is read.
    """

    rate: float = math.inf
    until: float = math.inf
    _due: float = field(default=-math.inf)

    @property
    def is_over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() >= self.until

    def spend(self, size: int) -> None:
        """Wait until so many bytes may be read, or the time is up. What was slow before is not made up for."""
        now = time.monotonic()
        begins = max(self._due, now)
        self._due = begins + size / self.rate
        if begins > now:
            time.sleep(min(begins, self.until) - now if self.until > now else 0)
