"""Calls one method of the driver in a process that can be killed: ROOT, URI, METHOD, UUID and its arguments as JSON."""

import json
import sys
from pathlib import Path

from libvirt_stage import CONFIG, record

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host
from underlay.testing.fakedriver import FakeImage


def main() -> None:
    root, uri, method, uuid, arguments = sys.argv[1:]
    text = CONFIG.format(root=root, uri=uri, instances="", more="", virt_type="qemu")
    driver = LibvirtDriver(None, host=Host.open(parse_config(text, origin=Path(root, "underlay.toml"))))
    driver.init_host("node1")
    instance = record(FakeImage(), uuid=uuid)
    told = [instance if one == "INSTANCE" else one for one in json.loads(arguments)]
    getattr(driver, method)(None, *told)


if __name__ == "__main__":
    main()
