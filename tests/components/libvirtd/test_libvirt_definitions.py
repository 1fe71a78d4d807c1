"""What libvirt makes of disks that no guest here can be started from: it takes their definition, and has it as it was meant."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4
from xml.etree.ElementTree import Element

import pytest
from libvirt_daemon import Daemon, quiet_library

from underlay.compute.libvirt import guestxml
from underlay.compute.libvirt.guest import Guest, GuestDisk, SerialLine
from underlay.model import Attachment
from underlay.values import replace

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-system-x86_64")

# As `disks.lvm` and `disks.rbd` say how their disks are opened.
LVM = Attachment(type="block", source="/dev/vg/instance_disk", format="raw", cache="none", io="native", discard="unmap")
CEPH = Attachment(
    type="network",
    source="vms/instance_disk",
    format="raw",
    protocol="rbd",
    servers=(("192.0.2.1", 6789), ("2001:db8::1", 3300)),
    user="underlay",
    secret="457eb676-33da-42ec-9a8c-9293d545c337",
)


@pytest.fixture
def connection(daemon: Daemon) -> Iterator[Any]:
    connection = quiet_library().open(daemon.uri)
    yield connection
    connection.close()


def defined(connection: Any, attachment: Attachment) -> Element:
    """The disk as libvirt has it."""
    uuid = str(uuid4())
    guest = Guest(
        uuid=uuid,
        name=f"defined-{uuid}",
        memory=64 << 20,
        vcpus=1,
        virt_type="qemu",
        architecture="x86_64",
        machine="q35",
        cpu_mode="",
        cpu_model="",
        boot=None,
        disks=(GuestDisk(attachment=attachment, device="vda", bus="virtio", boot_order=1),),
        interfaces=(),
        serial=SerialLine(log=Path("/dev/null")),
        screen=None,
        local_time=False,
        agent=False,
        metadata=None,
    )
    domain = connection.defineXML(guestxml.to_xml(guest))
    try:
        disk = guestxml.parsed(domain.XMLDesc(0)).find("devices/disk")
    finally:
        domain.undefine()
    assert disk is not None
    return disk


def attributes(disk: Element, path: str) -> list[dict[str, str]]:
    return [one.attrib for one in disk.iterfind(path)]


def test_a_logical_volume_is_a_block_device(connection: Any) -> None:
    disk = defined(connection, LVM)
    assert ("block", [{"dev": LVM.source}]) == (disk.get("type"), attributes(disk, "source"))
    assert [{"name": "qemu", "type": "raw", "cache": "none", "io": "native", "discard": "unmap"}] == attributes(disk, "driver")


def test_an_image_in_a_ceph_is_reached_by_its_monitors(connection: Any) -> None:
    disk = defined(connection, CEPH)
    assert "network" == disk.get("type")
    assert [{"protocol": "rbd", "name": CEPH.source}] == attributes(disk, "source")
    assert list(CEPH.servers) == [(one["name"], int(one["port"])) for one in attributes(disk, "source/host")]
    assert [{"username": CEPH.user}] == attributes(disk, "source/auth")
    assert [{"type": "ceph", "uuid": CEPH.secret}] == attributes(disk, "source/auth/secret")


@pytest.mark.parametrize(
    ("changed", "auth"), [({"secret": None}, []), ({"user": None}, [{"username": "admin"}])], ids=["a user", "a secret"]
)
def test_who_asks_a_ceph_is_told_with_a_secret_and_not_without(
    connection: Any, changed: dict[str, Any], auth: list[dict[str, str]]
) -> None:
    assert auth == attributes(defined(connection, replace(CEPH, **changed)), "source/auth")
