"""Underlay: a disk-image cache for the machines that run virtual machines and deploy bare metal.

    >>> import underlay
    >>> underlay.parse_ref("https://user:secret@example.org:443/debian.qcow2").canonical
    'https://example.org/debian.qcow2'

`Host` is where to begin. The names below are the public face; everything else may move. They are imported on first use, so that
``import underlay`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from underlay.version import __version__

if TYPE_CHECKING:
    from underlay.cache import Ensured
    from underlay.config import Config, load_config
    from underlay.contracts import (
        BackendTraits,
        ByteStream,
        ClonableStream,
        DiskBackend,
        ImageSource,
        InstanceInventory,
        KeepsInPlace,
        MeasuresRoom,
        Observer,
        StorageRoom,
        UnconfirmedStream,
    )
    from underlay.delivery import Delivered
    from underlay.errors import UnderlayError
    from underlay.following import Refreshed
    from underlay.host import Host
    from underlay.model import (
        Attachment,
        BaseImage,
        Damage,
        Digest,
        DiskSpec,
        Ephemeral,
        Event,
        Extraction,
        ImageRecord,
        ImageRef,
        ImageVersion,
        InstanceDisk,
        InstanceRecord,
        KnownDisk,
        Lease,
        Level,
        Problem,
        Progress,
        Reason,
    )
    from underlay.plan import CachedFile, Plan, Report, Rules, Verdict
    from underlay.policy.follow import FollowedVersion, HoldVerdict
    from underlay.policy.scrub import ScrubSubject, ScrubVerdict
    from underlay.precache import Precached
    from underlay.refs import parse_ref
    from underlay.scrub import Scrubbed, ScrubReport
    from underlay.store.hosts import HostUse

__all__ = [
    "Attachment",
    "BackendTraits",
    "BaseImage",
    "ByteStream",
    "CachedFile",
    "ClonableStream",
    "Config",
    "Damage",
    "Delivered",
    "Digest",
    "DiskBackend",
    "DiskSpec",
    "Ensured",
    "Ephemeral",
    "Event",
    "Extraction",
    "FollowedVersion",
    "HoldVerdict",
    "Host",
    "HostUse",
    "ImageRecord",
    "ImageRef",
    "ImageSource",
    "ImageVersion",
    "InstanceDisk",
    "InstanceInventory",
    "InstanceRecord",
    "KeepsInPlace",
    "KnownDisk",
    "Lease",
    "Level",
    "MeasuresRoom",
    "Observer",
    "Plan",
    "Precached",
    "Problem",
    "Progress",
    "Reason",
    "Refreshed",
    "Report",
    "Rules",
    "ScrubReport",
    "ScrubSubject",
    "ScrubVerdict",
    "Scrubbed",
    "StorageRoom",
    "UnconfirmedStream",
    "UnderlayError",
    "Verdict",
    "__version__",
    "load_config",
    "parse_ref",
]

_HOMES = {
    "underlay.cache": ("Ensured",),
    "underlay.config": ("Config", "load_config"),
    "underlay.contracts": (
        "BackendTraits",
        "ByteStream",
        "ClonableStream",
        "UnconfirmedStream",
        "DiskBackend",
        "ImageSource",
        "InstanceInventory",
        "KeepsInPlace",
        "MeasuresRoom",
        "Observer",
        "StorageRoom",
    ),
    "underlay.errors": ("UnderlayError",),
    "underlay.delivery": ("Delivered",),
    "underlay.following": ("Refreshed",),
    "underlay.host.face": ("Host",),
    "underlay.policy.follow": ("FollowedVersion", "HoldVerdict"),
    "underlay.policy.scrub": ("ScrubSubject", "ScrubVerdict"),
    "underlay.precache": ("Precached",),
    "underlay.plan": ("CachedFile", "Plan", "Report", "Rules", "Verdict"),
    "underlay.refs": ("parse_ref",),
    "underlay.scrub": ("ScrubReport", "Scrubbed"),
    "underlay.store.hosts": ("HostUse",),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'underlay' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "underlay.model")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
