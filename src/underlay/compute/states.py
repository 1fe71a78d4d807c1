"""Power states of an instance, by the numbers that a compute service stores, and what `get_info` answers.

The numbers 2 and 5 are free: what they stood for is gone.
"""

from collections.abc import Mapping
from types import MappingProxyType

NOSTATE = 0
RUNNING = 1
PAUSED = 3
SHUTDOWN = 4
CRASHED = 6
SUSPENDED = 7

STATE_MAP: Mapping[int, str] = MappingProxyType(
    {
        NOSTATE: "pending",
        RUNNING: "running",
        PAUSED: "paused",
        SHUTDOWN: "shutdown",
        CRASHED: "crashed",
        SUSPENDED: "suspended",
    }
)
"""What each number is called."""


class InstanceInfo:
    """What a hypervisor says of an instance.

    Attributes:
        state: one of the numbers above. internal_id: the hypervisor's own id of it, if it has one.

    Two are equal when their class and everything that they hold are; a class of a driver may hold more.
    """

    def __init__(self, state: int, internal_id: object = None) -> None:
        self.state = state
        self.internal_id = internal_id

    def __eq__(self, other: object) -> bool:
        if self.__class__ is not other.__class__:
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"InstanceInfo(state={self.state}, internal_id={self.internal_id!r})"
