"""Images of product streams: ``simplestreams:https://…/#ubuntu:24.04:amd64`` is the current version of that product."""

from underlay.sources.simplestreams.source import SimplestreamsSource

__all__ = ["SimplestreamsSource"]
