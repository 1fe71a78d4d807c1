"""What a driver tells its compute service unasked: that something happened to an instance.

An event comes late by nature. Who hears one asks `get_info` what is the case now, and takes no notice of an event that does not
agree with it.
"""

import time
from collections.abc import Mapping
from types import MappingProxyType

EVENT_LIFECYCLE_STARTED = 0
EVENT_LIFECYCLE_STOPPED = 1
EVENT_LIFECYCLE_PAUSED = 2
EVENT_LIFECYCLE_RESUMED = 3
EVENT_LIFECYCLE_SUSPENDED = 4
EVENT_LIFECYCLE_POSTCOPY_STARTED = 5
EVENT_LIFECYCLE_MIGRATION_COMPLETED = 6

NAMES: Mapping[int, str] = MappingProxyType(
    {
        EVENT_LIFECYCLE_STARTED: "Started",
        EVENT_LIFECYCLE_STOPPED: "Stopped",
        EVENT_LIFECYCLE_PAUSED: "Paused",
        EVENT_LIFECYCLE_RESUMED: "Resumed",
        EVENT_LIFECYCLE_SUSPENDED: "Suspended",
        EVENT_LIFECYCLE_POSTCOPY_STARTED: "Postcopy started",
        EVENT_LIFECYCLE_MIGRATION_COMPLETED: "Migration completed",
    }
)
"""What each transition is called."""


class Event:
    """Something happened.

    Args:
        timestamp: when, in seconds since the epoch; now, unless it is given.
    """

    def __init__(self, timestamp: float | None = None) -> None:
        self.timestamp = time.time() if timestamp is None else timestamp

    def get_timestamp(self) -> float:
        """When, in seconds since the epoch."""
        return self.timestamp

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.timestamp}>"


class InstanceEvent(Event):
    """Something happened to an instance."""

    def __init__(self, uuid: str, timestamp: float | None = None) -> None:
        super().__init__(timestamp)
        self.uuid = uuid

    def get_instance_uuid(self) -> str:
        """To which."""
        return self.uuid

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.timestamp}, {self.uuid}>"


class LifecycleEvent(InstanceEvent):
    """An instance changed its power state.

    Args:
        transition: one of the numbers above.
    """

    def __init__(self, uuid: str, transition: int, timestamp: float | None = None) -> None:
        super().__init__(uuid, timestamp)
        self.transition = transition

    def get_transition(self) -> int:
        """Which of the numbers above."""
        return self.transition

    def get_name(self) -> str:
        """What the transition is called, ``Unknown`` when it is none of those above."""
        return NAMES.get(self.transition, "Unknown")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.timestamp}, {self.uuid} => {self.get_name()}>"
