"""How long a guest may stand still, and how long its move may take. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from underlay.config.libvirt import Moves

_GIB = 1 << 30
_LEAST_GIB = 2.0  # of memory, and of each disk, as Nova counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The pace of one move.

    Attributes:
        steps: from so many seconds on, so many milliseconds in which the guest may stand still; ascending.
        timeout: seconds after which something is done about it; None: never.
    """

    steps: tuple[tuple[float, int], ...]
    timeout: float | None

    def downtime(self, elapsed: float) -> int:
        """Milliseconds in which the guest may stand still, after so many seconds."""
        return [most for begins, most in self.steps if begins <= elapsed][-1]


def pace_of(options: Moves, *, memory: int, disks: Iterable[int]) -> Pace:
    """The pace of a guest with so many bytes of memory, and of each disk that is copied."""
    gib = max(memory / _GIB, _LEAST_GIB) + sum(max(size / _GIB, _LEAST_GIB) for size in disks)
    most, count = options.downtime * 1000, options.downtime_steps
    first = most / count
    steps = tuple(
        (options.downtime_delay * gib * number, int(first + (most - first) / count * number)) for number in range(count + 1)
    )
    return Pace(steps=steps, timeout=options.completion_timeout * gib or None)
