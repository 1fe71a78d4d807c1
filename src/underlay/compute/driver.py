"""The contract between a compute service and a hypervisor, whole.

A driver inherits from `ComputeDriver` and overrides what it can do, which is the way in which every compute service knows it.
"""

from typing import Any, ClassVar

from underlay.compute.capabilities import no_capabilities, traits_of
from underlay.compute.contract.diagnosis import Diagnosis
from underlay.compute.contract.images import Images
from underlay.compute.contract.lifecycle import LifeCycle
from underlay.compute.contract.listening import Listening
from underlay.compute.contract.livemigration import LiveMigration
from underlay.compute.contract.networks import Networks
from underlay.compute.contract.power import Power
from underlay.compute.contract.resize import Resize
from underlay.compute.contract.resources import Resources
from underlay.compute.contract.volumes import Volumes
from underlay.compute.options import excluded_image_types

THEMES = (LifeCycle, Power, Volumes, Networks, Diagnosis, Resize, LiveMigration, Resources, Images, Listening)
"""What it consists of."""


class ComputeDriver(LifeCycle, Power, Volumes, Networks, Diagnosis, Resize, LiveMigration, Resources, Images, Listening):
    """What a compute service asks of a hypervisor. Its methods are those of the themes.

    Attributes:
        virtapi: what the service lets a driver ask of it.
        capabilities: what is supported, all False. The mapping belongs to the class; a driver has one of its own.
        rebalances_nodes: whether a node may move to another host's driver by itself.
    """

    capabilities: dict[str, bool] = no_capabilities()
    rebalances_nodes: ClassVar[bool] = False

    def __init__(self, virtapi: Any) -> None:
        self.virtapi = virtapi
        self._compute_event_callback = None

    def capabilities_as_traits(self) -> dict[str, bool]:
        """The capabilities that placement has a trait for, by the trait, each with whether it is supported.

        Image types that the configuration leaves out are not.

        Raises:
            ExtraMissing: os-traits is not installed. ConfigError.
        """
        return traits_of(self.capabilities, excluded_image_types=excluded_image_types())
