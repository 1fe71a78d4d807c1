"""The libvirt inventory on libvirt's real QEMU driver: domains whose disks are chains, defined and running."""

import os
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from libvirt_daemon import Daemon

from machine import MIB, Machine
from underlay.errors import DiskInUse
from underlay.inventory.libvirt import LibvirtInventory
from underlay.model import InstanceRecord

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <metadata>
    <nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>
      <nova:flavor name='m1.small'><nova:swap>512</nova:swap><nova:ephemeral>0</nova:ephemeral></nova:flavor>
      <nova:root type='image' uuid='70a599e0-31e7-49b7-b260-868f441e862b'/>
    </nova:instance>
  </metadata>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    <memballoon model='none'/>
  </devices>
</domain>
"""
SNAPSHOT = """
<domainsnapshot><name>first</name>
  <disks><disk name='vda' snapshot='external'><driver type='qcow2'/><source file='{disk}'/></disk></disks>
</domainsnapshot>
"""


@pytest.fixture
def uri(daemon: Daemon) -> str:
    return daemon.uri


@pytest.fixture
def connection(uri: str) -> Iterator[Any]:
    connection = import_module("libvirt").open(uri)
    yield connection
    connection.close()


@pytest.fixture
def chain(tmp_path: Path) -> list[Path]:
    """A disk and all that is below it, topmost first."""
    base, middle, disk = tmp_path / "base.raw", tmp_path / "middle.qcow2", tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", base, "1M"], check=True)
    for backing, kind, overlay in ((base, "raw", middle), (middle, "qcow2", disk)):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", kind, overlay], check=True)
    return [disk, middle, base]


@pytest.fixture
def domain(connection: Any, chain: list[Path]) -> Iterator[Any]:
    library = import_module("libvirt")
    domain = connection.defineXML(DOMAIN.format(name=f"ul-{os.getpid()}", disk=chain[0]))
    yield domain
    if domain.isActive():
        domain.destroy()
    domain.undefineFlags(library.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | library.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


def record(uri: str) -> InstanceRecord:
    (found,) = LibvirtInventory(uri, host="node1", hosts=["node1"]).instances()
    return found


def paths(found: InstanceRecord) -> dict[Path, str | None]:
    return {one.path: one.format for one in found.disks}


def test_a_domain_that_is_off_names_its_disk_and_what_nova_left(uri: str, domain: Any, chain: list[Path]) -> None:
    found = record(uri)

    assert (domain.UUIDString(), domain.name(), "node1") == (found.uuid, found.name, found.host)
    assert ("70a599e0-31e7-49b7-b260-868f441e862b", (512,), ()) == (found.image_ref, found.swap_mib, found.ephemerals)
    assert "qcow2" == paths(found)[chain[0]]


def test_a_running_domain_names_its_whole_chain(uri: str, domain: Any, chain: list[Path]) -> None:
    domain.createWithFlags(import_module("libvirt").VIR_DOMAIN_START_PAUSED)

    assert {chain[0]: "qcow2", chain[1]: "qcow2", chain[2]: "raw"} == paths(record(uri))


def test_an_external_snapshot_adds_its_overlay_and_keeps_the_disk_below(
    uri: str, domain: Any, chain: list[Path], tmp_path: Path
) -> None:
    library = import_module("libvirt")
    domain.createWithFlags(library.VIR_DOMAIN_START_PAUSED)
    overlay = tmp_path / "after.qcow2"
    domain.snapshotCreateXML(SNAPSHOT.format(disk=overlay), library.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY)

    assert {overlay, *chain} == set(paths(record(uri)))

    domain.destroy()

    assert {overlay, chain[0]} <= set(paths(record(uri)))


def test_what_a_running_domain_will_have_next_counts_too(uri: str, domain: Any, chain: list[Path], tmp_path: Path) -> None:
    domain.createWithFlags(import_module("libvirt").VIR_DOMAIN_START_PAUSED)
    domain.connect().defineXML(domain.XMLDesc(0).replace(os.fspath(chain[0]), os.fspath(tmp_path / "next")))

    assert {chain[0], tmp_path / "next"} <= set(paths(record(uri)))


def test_the_disks_that_a_saved_domain_will_go_on_with_count(uri: str, domain: Any, chain: list[Path], tmp_path: Path) -> None:
    domain.createWithFlags(import_module("libvirt").VIR_DOMAIN_START_PAUSED)
    domain.managedSave(0)
    saved = domain.managedSaveGetXMLDesc(0)
    domain.managedSaveDefineXML(saved.replace(os.fspath(chain[0]), os.fspath(tmp_path / "saved")), 0)

    assert {chain[0], tmp_path / "saved"} <= set(paths(record(uri)))


def test_no_domain_is_an_answer(uri: str, connection: Any) -> None:
    assert [] == LibvirtInventory(uri, host="node1", hosts=["node1"]).instances()


def test_a_domain_starts_with_a_ploop_disk_as_a_hypervisor_is_told(connection: Any, tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    machine.host().create_disk("web-1", machine.raw_image(), backend="ploop")
    told = machine.host().attachment("web-1")
    text = DOMAIN.format(name=f"ul-ploop-{os.getpid()}", disk=told.source).replace("type='qcow2'", f"type='{told.format}'")

    domain = connection.createXML(text, import_module("libvirt").VIR_DOMAIN_START_PAUSED)
    try:
        assert 16 * MIB == domain.blockInfo("vda")[0]
        with pytest.raises(DiskInUse):
            machine.host().remove_disk("web-1")
    finally:
        domain.destroy()
    machine.host().remove_disk("web-1")
