"""Where a guest is, by what both hosts' libvirt show of it. Pure.

A guest that somebody has paused looks the same before it leaves, and after it has gone while its source's libvirt has not heard
of that. And libvirt writes down on the destination that it has the guest before it lets it go on there, so one that is off
there may have run there. In such cases what one host shows is never enough.
"""

from enum import Enum

from underlay.compute.libvirt.livemigration.sights import Sight


class Where(Enum):
    """Where a guest is: on this host, on the other; libvirt is at it, or one of the two cannot be asked."""

    HERE = "here"
    THERE = "there"
    OPEN = "open"
    UNKNOWN = "unknown"


def is_surely_here(here: Sight | None) -> bool:
    """Whether a guest that was to leave has stayed, whatever the other host says: it runs here, and is not being moved."""
    return here is not None and here.is_settled and here.runs


def where_of(here: Sight | None, there: Sight | None) -> Where:
    """Where a guest is that was to leave, and is neither surely here nor being sent."""
    if there is not None and there.is_settled:
        return Where.THERE
    if there is not None and there.active:
        return Where.OPEN  # it is still coming, or being ended
    if here is None:
        return Where.UNKNOWN if there is None else Where.THERE
    return Where.HERE if there is None and not here.is_split else Where.UNKNOWN


def may_go(here: Sight | None, there: Sight | None) -> bool:
    """Whether what a guest was to come to may be removed here: it has not come, and the other host has it.

    Args:
        there: None also when the other host cannot be asked.
    """
    if here is None:
        return True
    if here.runs or here.is_split:
        return False
    if here.active and here.moving:
        return True  # it is coming, which can be ended until it runs here
    return there is not None and there.active
