"""This machine: its caches, sources, backends and instances put together. The composition root, and the public face.

Everything that it does is a call further down; what it adds is which cache, which source, which backend.
"""

from underlay.host.face import Host
from underlay.host.parts import Parts, Silent

__all__ = ["Host", "Parts", "Silent"]
