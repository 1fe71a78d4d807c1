"""Images in OpenStack's image service: who we are by openstacksdk's configuration, the bytes by our own client for the web."""

from underlay.sources.glance.source import GlanceSource

__all__ = ["GlanceSource"]
