"""Does one thing to an instance in a process that can be killed, or that kills itself at a step.

``libvirt_maker.py ROOT URI REF UUID [WHAT [EVENT TEXT]]``: WHAT is spawn, rebuild, destroy or snapshot. At the first of the
interpreter's audit events that is called EVENT and has TEXT in an argument the process dies, before what the event tells of;
where EVENT is ``call``, as the function of the driver begins whose qualified name TEXT is.
"""

import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any

from libvirt_stage import CONFIG, record

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host
from underlay.testing.fakedriver import FakeImage, FakeInstance


def spawn(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage) -> None:
    driver.spawn(None, instance, image, [], None, {})


def rebuild(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage) -> None:
    driver.rebuild(None, instance, image, [], None, {}, [], print, print, network_info=[])


def destroy(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage) -> None:
    driver.destroy(None, instance, [])


def snapshot(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage) -> None:
    driver.snapshot(None, instance, "snapshot", lambda *states, **more: None)


WHAT: Mapping[str, Callable[[LibvirtDriver, FakeInstance, FakeImage], None]] = MappingProxyType(
    {"spawn": spawn, "rebuild": rebuild, "destroy": destroy, "snapshot": snapshot}
)


def main() -> None:
    root, uri, ref, uuid, *more = sys.argv[1:]
    what, *moment = more or ["spawn"]
    text = CONFIG.format(root=root, uri=uri, instances="", more="", virt_type="qemu")
    driver = LibvirtDriver(None, host=Host.open(parse_config(text, origin=Path(root, "underlay.toml"))))
    driver.init_host("node1")
    image = FakeImage(id=ref, properties={"img_config_drive": "mandatory"})
    if moment:
        die_at(*moment)
    WHAT[what](driver, record(image, uuid=uuid), image)


def die_at(event: str, text: str) -> None:
    def hear(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and any(text in str(one) for one in arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    def follow(frame: FrameType, happens: str, _argument: Any) -> None:
        if happens == "call" and frame.f_code.co_qualname == text and "/compute/libvirt/" in frame.f_code.co_filename:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(follow) if event == "call" else sys.addaudithook(hear)


if __name__ == "__main__":
    main()
