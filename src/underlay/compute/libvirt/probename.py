"""What the guest of a probe is called, and how it is told from an instance."""

from typing import Any

_PREFIX = "underlay-probe-"
_LETTERS = 8


def probe_name(uuid: str) -> str:
    """Its name, by its UUID."""
    return f"{_PREFIX}{uuid[:_LETTERS]}"


def is_probe(domain: Any) -> bool:
    """Whether a domain (virDomain) is that of a probe, of whichever driver. libvirt is not asked for that."""
    return bool(domain.name() == probe_name(domain.UUIDString()))
