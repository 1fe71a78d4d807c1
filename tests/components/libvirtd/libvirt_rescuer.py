"""Rescues or unrescues one instance in a process that is killed as a step begins.

Its arguments: ROOT, URI, the image's ref, the rescue image's, the instance's UUID, ``rescue`` or ``unrescue``, and the step:
the qualified name of a function of the driver.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from libvirt_stage import CONFIG, record

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host
from underlay.testing.fakedriver import FakeImage


def main() -> None:
    root, uri, ref, rescue_ref, uuid, action, step = sys.argv[1:]
    text = CONFIG.format(root=root, uri=uri, instances="", more="", virt_type="qemu")
    driver = LibvirtDriver(None, host=Host.open(parse_config(text, origin=Path(root, "underlay.toml"))))
    driver.init_host("node1")
    instance = record(FakeImage(id=ref), uuid=uuid)

    def kill_at_step(frame: FrameType, event: str, _argument: Any) -> None:
        if event == "call" and frame.f_code.co_qualname == step and "/compute/libvirt/" in frame.f_code.co_filename:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(kill_at_step)
    if action == "rescue":
        driver.rescue(None, instance, [], FakeImage(id=rescue_ref), "secret", {})
    else:
        driver.unrescue(instance, [])


if __name__ == "__main__":
    main()
