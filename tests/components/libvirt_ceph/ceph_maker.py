"""Does one thing to an instance whose disks are in a Ceph, in a process that kills itself before a function is called.

``ceph_maker.py CONFIG REF UUID FUNCTION [STEP]``: FUNCTION is such as ``domain.Domain.start``; STEP is spawn, begin, revert or
confirm, the last three of a resize.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, MappingProxyType

from libvirt_stage import record
from resized_in_ceph import LARGE, SMALL, info_of

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import load_config
from underlay.host import Host
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, FakeMigration


def spawn(driver: LibvirtDriver, instance: FakeInstance) -> None:
    instance.flavor = FakeFlavor(memory_mb=32, root_gb=1)
    driver.spawn(None, instance, instance.image_meta, [], None, {})


def begin(driver: LibvirtDriver, instance: FakeInstance) -> None:
    driver.migrate_disk_and_power_off(None, instance, driver.get_host_ip_addr(), LARGE, [], info_of(SMALL))


def revert(driver: LibvirtDriver, instance: FakeInstance) -> None:
    driver.finish_revert_migration(None, instance, [], FakeMigration(), info_of(SMALL), False)  # noqa: FBT003


def confirm(driver: LibvirtDriver, instance: FakeInstance) -> None:
    driver.confirm_migration(None, FakeMigration(), instance, [])


STEPS: Mapping[str, Callable[[LibvirtDriver, FakeInstance], None]] = MappingProxyType(
    {"spawn": spawn, "begin": begin, "revert": revert, "confirm": confirm}
)


def main() -> None:
    config, ref, uuid, function, *step = sys.argv[1:]
    driver = LibvirtDriver(None, host=Host.open(load_config(Path(config))))
    driver.init_host("node1")
    image = FakeImage(id=ref, properties={"img_config_drive": "mandatory"} if step else {})
    instance = record(image, uuid=uuid, flavor=SMALL)

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}".endswith(function):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)
    STEPS[step[0] if step else "spawn"](driver, instance)
    os.kill(os.getpid(), signal.SIGUSR1)  # the moment never came


if __name__ == "__main__":
    main()
