"""What the project tests itself with, shipped so that others can test against the same contracts."""

from typing import TYPE_CHECKING

from underlay.later import exports

if TYPE_CHECKING:
    from underlay.testing.fakedriver import FakeDriver

__all__ = ["FakeDriver"]

__getattr__, __dir__ = exports(__name__, {"underlay.testing.fakedriver": ["FakeDriver"]})
