"""The fake driver, whole."""

from typing import Any

from underlay.compute.capabilities import no_capabilities
from underlay.compute.driver import ComputeDriver
from underlay.testing.fakedriver.diagnosis import FakeDiagnosis
from underlay.testing.fakedriver.hypervisor import FakeSite
from underlay.testing.fakedriver.images import FakeImages
from underlay.testing.fakedriver.lifecycle import FakeLifeCycle
from underlay.testing.fakedriver.livemigration import FakeLiveMigration
from underlay.testing.fakedriver.networks import FakeNetworks
from underlay.testing.fakedriver.power import FakePower
from underlay.testing.fakedriver.resize import FakeResize
from underlay.testing.fakedriver.resources import FakeResources
from underlay.testing.fakedriver.volumes import FakeVolumes

_CAN = (
    "has_imagecache",
    "supports_migrate_to_same_host",
    "supports_attach_interface",
    "supports_device_tagging",
    "supports_tagged_attach_interface",
    "supports_extend_volume",
    "supports_image_type_qcow2",
    "supports_image_type_raw",
)


class FakeDriver(
    FakeLifeCycle,
    FakePower,
    FakeVolumes,
    FakeNetworks,
    FakeDiagnosis,
    FakeResize,
    FakeLiveMigration,
    FakeResources,
    FakeImages,
    ComputeDriver,
):
    """A compute driver whose hypervisor is in memory. Safe to share between threads as far as two do not work on one instance.

    Attributes:
        site: the hosts among which instances can be moved. Two drivers with one site, each with a host of its own, can.
        hypervisor: this host's, from `init_host` on; on a site where its host was before, with the instances of then.
    """

    def __init__(self, virtapi: Any, *, site: FakeSite | None = None) -> None:
        super().__init__(virtapi)
        self.site = FakeSite() if site is None else site
        self.capabilities = no_capabilities() | dict.fromkeys(_CAN, True)
