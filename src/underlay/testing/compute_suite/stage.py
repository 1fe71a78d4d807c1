"""What a third party sets up for the suite: its driver, what instances are made from, and what the driver cannot do."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any, ClassVar, Protocol

from underlay.compute import ComputeDriver
from underlay.compute.arguments import ConnectionInfo, Context, Flavor, ImageMeta, Instance, NetworkInfo


class Ability(Enum):
    """Everything that a case may need beside instances that come, run and go."""

    BREAKING = "a spawn can be made to fail at each of its steps"
    RESTART = "another driver can take the hypervisor over"
    PAUSE = "pause and unpause"
    SUSPEND = "suspend and resume"
    GRACEFUL = "the guest shuts down when it is asked to"
    RESCUE = "rescue and unrescue"
    REBUILD = "rebuild"
    SOFT_DELETE = "soft_delete and restore"
    CRASH_DUMP = "trigger_crash_dump"
    AGENT = "the guest has an agent: passwords are set, file systems frozen"
    SNAPSHOT = "snapshot"
    VOLUMES = "volumes are attached and detached"
    SWAP_VOLUME = "swap_volume"
    EXTEND_VOLUME = "extend_volume"
    INTERFACES = "interfaces are attached to a running guest and detached"
    TAGS = "tagged interfaces are written down, and the stage has networks"
    CONSOLE_OUTPUT = "what the guest writes is kept"
    VNC = "a VNC console"
    SERIAL = "a serial console"
    DIAGNOSTICS = "both kinds of diagnostics"
    COUNTERS = "counters of disks and interfaces"
    DISK_FACTS = "get_instance_disk_info"
    DEVICE_NAMES = "devices are named"
    RESIZE = "resize on this host, confirmed and reverted"
    LIVE_MIGRATION = "live migration to another host"
    SHARED_STORAGE = "probes of shared storage"
    RESOURCES = "the host's resources and its provider tree"
    ENABLING = "set_host_enabled"
    IMAGE_CACHE = "images are cached"
    EVENTS = "life-cycle events"


class Stage(Protocol):
    """A driver to be tried, with a real hypervisor behind it.

    Cases may share a stage: each makes instances of its own, and destroys them. None of them runs beside another. A hypervisor
    may be slow: how long the suite waits for a guest is the stage's ``patience``.
    """

    cannot: ClassVar[Mapping[Ability, str]]
    """What this driver, or this machine, cannot do, each with the reason."""

    @property
    def driver(self) -> ComputeDriver:
        """The driver, after its `init_host`."""
        ...

    @property
    def host(self) -> str:
        """The name that the driver's `init_host` was given."""
        ...

    @property
    def patience(self) -> float:
        """Seconds within which a guest starts, stops or does what it is asked, on a bad day."""
        ...

    @property
    def context(self) -> Context:
        """Who asks."""
        ...

    @property
    def other(self) -> "Stage":
        """Another host, to which instances can be migrated. Asked for with LIVE_MIGRATION only."""
        ...

    @property
    def steps(self) -> Sequence[str]:
        """The steps of a spawn that can be made to fail. Asked for with BREAKING only."""
        ...

    def instance(self, image: ImageMeta) -> Instance:
        """A new record of an instance of this image, with a UUID and a name of its own; nothing is made."""
        ...

    def larger(self, flavor: Flavor) -> Flavor:
        """A flavor with more memory and a larger root disk than this one. Asked for with RESIZE only."""
        ...

    def image(self) -> ImageMeta:
        """An image that boots. With CONSOLE_OUTPUT its guest writes something, with GRACEFUL it shuts down when asked."""
        ...

    def network_info(self) -> NetworkInfo:
        """The interfaces of a new instance: one, or none where there are no networks."""
        ...

    def volume(self) -> ConnectionInfo:
        """A new volume of at least 1 MiB. Asked for with VOLUMES only."""
        ...

    def await_guest(self, instance: Instance) -> None:
        """Wait until the guest is up as far as it is going to be: it answers what a case asks of it from now on."""
        ...

    def traces(self, instance: Instance) -> Sequence[str]:
        """Whatever the host has of an instance, in words: a domain, files, interfaces. Nothing when it is gone."""
        ...

    def breaking(self, step: str) -> AbstractContextManager[None]:
        """While the block lasts, every spawn fails at this step. Asked for with BREAKING only."""
        ...

    def restarted(self) -> ComputeDriver:
        """Another driver of the same hypervisor, after its `init_host`, as when the service was started again."""
        ...

    def snapshot_id(self) -> str:
        """The id of an image that is there to be uploaded to. Asked for with SNAPSHOT only."""
        ...

    def uploaded(self, image_id: str) -> int | None:
        """Bytes of the image that was uploaded under this id; None when nothing was."""
        ...

    def compute_facts(self) -> Mapping[str, Any]:
        """The node's record, as a live migration's destination is told it. Asked for with LIVE_MIGRATION only."""
        ...
