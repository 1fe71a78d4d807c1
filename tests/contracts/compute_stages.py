"""Our compute drivers, each with its hypervisor, for the shipped conformance suite."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from types import MappingProxyType
from typing import Any, ClassVar
from uuid import uuid4

from underlay.compute.arguments import ConnectionInfo
from underlay.testing import FakeDriver
from underlay.testing.compute_suite import Ability
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, FakeSite, fake_vif

_NONE: Mapping[Ability, str] = MappingProxyType({})


@dataclass(slots=True)
class FakeStage:
    """The shipped fake, on a site of its own."""

    cannot: ClassVar[Mapping[Ability, str]] = _NONE
    kind: ClassVar[type[FakeDriver]] = FakeDriver
    host: str = "node1"
    site: FakeSite = field(default_factory=FakeSite)
    patience: float = 1.0
    context: Any = None
    steps: Sequence[str] = ("disks", "network", "start")
    drivers: list[FakeDriver] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def driver(self) -> FakeDriver:
        if not self.drivers:
            self.drivers.append(self.restarted())
        return self.drivers[0]

    @property
    def other(self) -> "FakeStage":
        other = type(self)(host="node2", site=self.site)
        other.drivers.append(other.restarted())
        return other

    def instance(self, image: FakeImage) -> FakeInstance:
        return FakeInstance(host=self.host, node=self.host, image_ref=image.id, image_meta=image)

    def larger(self, flavor: FakeFlavor) -> FakeFlavor:
        return replace(flavor, name="large", memory_mb=flavor.memory_mb * 2, root_gb=flavor.root_gb + 1)

    def image(self) -> FakeImage:
        return FakeImage()

    def network_info(self) -> list[dict[str, Any]]:
        return [fake_vif(next(self.numbers))]

    def volume(self) -> ConnectionInfo:
        return {"driver_volume_type": "local", "data": {"device_path": "/dev/null"}, "serial": str(uuid4())}

    def await_guest(self, instance: FakeInstance) -> None:
        """It is up at once."""

    def traces(self, instance: FakeInstance) -> list[str]:
        return self.driver.hypervisor.traces(instance)

    @contextmanager
    def breaking(self, step: str) -> Iterator[None]:
        self.driver.hypervisor.broken = step
        yield
        self.driver.hypervisor.broken = None

    def restarted(self) -> FakeDriver:
        driver = self.kind(None, site=self.site)
        driver.init_host(self.host)
        return driver

    def snapshot_id(self) -> str:
        return str(uuid4())

    def uploaded(self, image_id: str) -> int | None:
        return self.site.images.get(image_id)

    def compute_facts(self) -> Mapping[str, Any]:
        return {"hypervisor_hostname": self.host, "host": self.host}
