"""Makes an instance whose disks are in a Ceph, in a process that kills itself before a function of the driver.

``ceph_maker.py CONFIG REF UUID FUNCTION``: FUNCTION is that before whose call it dies, such as ``domain.Domain.start``.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from libvirt_stage import record

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import load_config
from underlay.host import Host
from underlay.testing.fakedriver import FakeFlavor, FakeImage


def main() -> None:
    config, ref, uuid, function = sys.argv[1:]
    driver = LibvirtDriver(None, host=Host.open(load_config(Path(config))))
    driver.init_host("node1")
    image = FakeImage(id=ref)

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}".endswith(function):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)
    driver.spawn(None, record(image, uuid=uuid, flavor=FakeFlavor(memory_mb=32, root_gb=1)), image, [], None, {})
    os.kill(os.getpid(), signal.SIGUSR1)  # the moment never came


if __name__ == "__main__":
    main()
