"""The libvirt driver with guests that run Linux and QEMU's guest agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import linux_guest
from libvirt_stage import LibvirtStage, Place, record, wait_until
from linux_guest import LinuxGuest

from underlay.compute.libvirt import LibvirtDriver
from underlay.testing.compute_suite import Ability
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance

_MEMORY = 192  # MiB
_COMMAND_LINE = "console=ttyS0 quiet"


@dataclass(frozen=True, slots=True)
class LinuxPlace:
    """Instances of one Linux, below a place's directory."""

    place: Place
    guest: LinuxGuest

    def image(self, *, words: str = "", agent: bool = True, **properties: str) -> FakeImage:
        """An image whose guest is told further words by its kernel's command line."""
        told = {"os_command_line": f"{_COMMAND_LINE} {words}", "hw_qemu_guest_agent": "yes" if agent else "no"}
        size = self.guest.disk.stat().st_size
        return FakeImage(id=f"file://{self.guest.disk}", size=size, disk_format="raw", properties=told | properties)

    def instance(self, image: FakeImage, **more: Any) -> FakeInstance:
        kernel, ramdisk = f"file://{self.guest.kernel}", f"file://{self.guest.ramdisk}"
        return record(image, flavor=FakeFlavor(memory_mb=_MEMORY), kernel_id=kernel, ramdisk_id=ramdisk, **more)

    def lines(self, instance: FakeInstance, word: str) -> list[str]:
        """What the guest has written behind a word, by lines that are whole."""
        lines = self.place.console(instance).rpartition("\n")[0].splitlines()
        return [line.partition(word)[2].strip() for line in lines if line.startswith(word)]

    def await_agent(self, driver: LibvirtDriver, instance: FakeInstance) -> None:
        """Until the guest's agent has taken its end of the line."""
        connected = lambda: "state='connected'" in str(driver.site.domain(instance).running_xml())  # noqa: E731
        wait_until(connected, f"the agent of {instance.name} is there")

    def await_up(self, instance: FakeInstance) -> None:
        """Until it is up, and writes to its disk."""
        wait_until(lambda: linux_guest.UP in self.place.console(instance), f"{instance.name} comes up")
        wait_until(lambda: self.lines(instance, linux_guest.WROTE), f"{instance.name} writes to its disk")


@dataclass(slots=True)
class LinuxStage(LibvirtStage):
    """What the suite is told of it."""

    guest: LinuxGuest | None = None
    cannot: ClassVar[Mapping[Ability, str]] = MappingProxyType(
        {ability: reason for ability, reason in LibvirtStage.cannot.items() if ability is not Ability.AGENT}
    )

    @property
    def linux(self) -> LinuxPlace:
        assert self.guest is not None
        return LinuxPlace(self.place, self.guest)

    def image(self) -> FakeImage:
        return self.linux.image()

    def instance(self, image: FakeImage) -> FakeInstance:
        return self.linux.instance(image)

    def await_guest(self, instance: FakeInstance) -> None:
        self.linux.await_up(instance)
        self.linux.await_agent(self.driver, instance)
