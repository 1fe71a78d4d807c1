"""Makes one instance in a process that can be killed: ROOT, URI, the image's ref and the instance's UUID are its arguments."""

import sys
from pathlib import Path

from libvirt_stage import CONFIG, record

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host
from underlay.testing.fakedriver import FakeImage


def main() -> None:
    root, uri, ref, uuid = sys.argv[1:]
    text = CONFIG.format(root=root, uri=uri, instances="", more="", virt_type="qemu")
    driver = LibvirtDriver(None, host=Host.open(parse_config(text, origin=Path(root, "underlay.toml"))))
    driver.init_host("node1")
    image = FakeImage(id=ref, properties={"img_config_drive": "mandatory"})
    driver.spawn(None, record(image, uuid=uuid), image, [], None, {})


if __name__ == "__main__":
    main()
