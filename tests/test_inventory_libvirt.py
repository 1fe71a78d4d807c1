"""Instances from libvirt, by libvirt's own test driver: which files a domain names, and what Nova left in it."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from underlay.errors import InvalidInventory, InventoryUnavailable
from underlay.inventory.libvirt import LibvirtInventory, _parsed
from underlay.model import Ephemeral, InstanceRecord, KnownDisk
from underlay.registry import open_inventory

pytestmark = pytest.mark.component("libvirt-python")

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
NODE = "<node>{domains}<pool type='dir'><name>images</name><target><path>/srv/images</path></target>{volumes}</pool></node>"
DOMAIN = """
<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
  <name>{name}</name><uuid>{uuid}</uuid><memory>1024</memory>
  <metadata>{metadata}</metadata>
  <os><type>hvm</type>{boot}</os>
  <devices>{devices}</devices>
  {extras}
</domain>
"""
NOVA = """
<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/{version}'>
  <nova:name>web</nova:name>
  <nova:flavor name='m1.small'><nova:swap>{swap}</nova:swap><nova:ephemeral>{ephemeral}</nova:ephemeral></nova:flavor>
  {root}
</nova:instance>
"""


def domain(
    devices: str = "", *, name: str = "one", uuid: str = UUID, metadata: str = "", boot: str = "", extras: str = ""
) -> str:
    return DOMAIN.format(devices=devices, name=name, uuid=uuid, metadata=metadata, boot=boot, extras=extras)


def disk(source: str, *, kind: str = "file", target: str = "vda", layers: str = "", disk_format: str = "qcow2") -> str:
    driver = f"<driver name='qemu' type='{disk_format}'/>" if disk_format else ""
    return f"<disk type='{kind}' device='disk'>{driver}<source {source}/>{layers}<target dev='{target}'/></disk>"


def nova(*, version: str = "1.1", swap: str = "0", ephemeral: str = "0", root: str = "") -> str:
    return NOVA.format(version=version, swap=swap, ephemeral=ephemeral, root=root)


class Libvirt:
    """Test drivers, each with the domains of one file."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "node.xml"

    def inventory(self, *domains: str, volumes: str = "") -> LibvirtInventory:
        self.file.write_text(NODE.format(domains="".join(domains), volumes=volumes))
        return LibvirtInventory(f"test://{self.file}", host="node1", hosts=["node1", "node2"])

    def record(self, one: str) -> InstanceRecord:
        (record,) = self.inventory(one).instances()
        return record


@pytest.fixture
def libvirt(tmp_path: Path) -> Libvirt:
    return Libvirt(tmp_path)


def test_every_domain_is_there_whether_it_runs_or_not(libvirt: Libvirt) -> None:
    running = domain(name="runs", uuid="00000000-0000-4000-8000-000000000001")
    off = domain(name="is-off", uuid="00000000-0000-4000-8000-000000000002", extras="<test:runstate>5</test:runstate>")

    records = libvirt.inventory(running, off).instances()

    assert {
        ("00000000-0000-4000-8000-000000000001", "runs", "node1"),
        ("00000000-0000-4000-8000-000000000002", "is-off", "node1"),
    } == {(record.uuid, record.name, record.host) for record in records}


def test_no_domains_are_an_answer(libvirt: Libvirt) -> None:
    assert [] == libvirt.inventory().instances()


def test_files_and_block_devices_are_disks_with_their_formats(libvirt: Libvirt) -> None:
    devices = (
        disk("file='/srv/a'")
        + disk("dev='/dev/vg/b'", kind="block", target="vdb", disk_format="raw")
        + disk("protocol='rbd' name='pool/c'", kind="network", target="vdc", disk_format="raw")
        + "<disk type='file' device='cdrom'><target dev='hda'/></disk>"
        + "<interface type='direct'><source dev='eth0' mode='bridge'/></interface>"
    )

    record = libvirt.record(domain(devices))

    assert (KnownDisk(Path("/srv/a"), "qcow2"), KnownDisk(Path("/dev/vg/b"), "raw")) == record.disks


def test_a_whole_chain_and_the_target_of_a_copy_are_disks(libvirt: Libvirt) -> None:
    chain = """
      <backingStore type='file'><format type='qcow2'/><source file='/srv/middle'/>
        <backingStore type='block'><format type='raw'/><source dev='/dev/vg/base'/><backingStore/></backingStore>
      </backingStore>
    """

    record = libvirt.record(domain(disk("file='/srv/top'", layers=chain)))

    assert [("/srv/top", "qcow2"), ("/srv/middle", "qcow2"), ("/dev/vg/base", "raw")] == [
        (os.fspath(one.path), one.format) for one in record.disks
    ]


def test_a_kernel_and_an_initial_ramdisk_are_raw_disks(libvirt: Libvirt) -> None:
    record = libvirt.record(domain(boot="<kernel>/srv/my kernel</kernel><initrd>/srv/ramdisk</initrd>"))

    assert (KnownDisk(Path("/srv/my kernel"), "raw"), KnownDisk(Path("/srv/ramdisk"), "raw")) == record.disks


def test_the_disks_of_a_snapshot_count(libvirt: Libvirt) -> None:
    inside = domain(disk("file='/srv/before'"))
    snapshot = f"""
      <test:domainsnapshot><name>first</name><state>shutoff</state><creationTime>1</creationTime><active>1</active>
        <disks><disk name='vda' snapshot='external' type='file'>
          <driver type='qcow2'/><source file='/srv/after'/></disk></disks>
        {inside}
      </test:domainsnapshot>
    """

    record = libvirt.record(domain(disk("file='/srv/now'"), extras=snapshot))

    assert {"/srv/now", "/srv/after", "/srv/before"} == {os.fspath(one.path) for one in record.disks}


def test_a_disk_that_is_named_by_pool_and_volume_is_looked_up(libvirt: Libvirt) -> None:
    volume = "<volume><name>disk-1</name><capacity>1024</capacity><target><path>/srv/images/disk-1</path></target></volume>"
    one = domain(disk("pool='images' volume='disk-1'", kind="volume"))

    (record,) = libvirt.inventory(one, volumes=volume).instances()

    assert (KnownDisk(Path("/srv/images/disk-1"), "qcow2"),) == record.disks


@pytest.mark.parametrize("source", ["pool='images' volume='gone'", "pool='nowhere' volume='disk-1'"])
def test_a_volume_that_libvirt_does_not_find_leaves_the_inventory_unavailable(libvirt: Libvirt, source: str) -> None:
    with pytest.raises(InventoryUnavailable, match="domain 'one'"):
        libvirt.record(domain(disk(source, kind="volume")))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_nova_left_in_a_domain_is_claimed(libvirt: Libvirt, version: str) -> None:
    image = "70a599e0-31e7-49b7-b260-868f441e862b"
    left = nova(version=version, swap="512", ephemeral="20", root=f"<nova:root type='image' uuid='{image}'/>")

    record = libvirt.record(domain(metadata=left))

    assert (image, (512,), (Ephemeral(size_gib=20),)) == (record.image_ref, record.swap_mib, record.ephemerals)


def test_what_nova_does_not_say_is_not_claimed(libvirt: Libvirt) -> None:
    record = libvirt.record(domain(metadata=nova(root="<nova:root type='volume' uuid='v'/>")))

    assert (None, (), ()) == (record.image_ref, record.swap_mib, record.ephemerals)


def test_a_size_in_novas_metadata_that_is_none_is_told_with_its_domain(libvirt: Libvirt) -> None:
    for broken in ("-1", "many", "9" * 5000):
        with pytest.raises(InvalidInventory, match="domain 'one': swap of the flavor"):
            libvirt.record(domain(metadata=nova(swap=broken)))


def test_a_domain_without_metadata_of_novas_claims_its_disks_only(libvirt: Libvirt) -> None:
    record = libvirt.record(domain(disk("file='/srv/a'")))

    assert InstanceRecord(uuid=UUID, name="one", host="node1", disks=(KnownDisk(Path("/srv/a"), "qcow2"),)) == record


def test_a_domain_that_is_gone_by_the_time_it_is_asked_is_no_instance() -> None:
    library = import_module("libvirt")
    connection = library.open("test:///default")
    gone = connection.defineXML(domain(name="soon-gone", uuid="00000000-0000-4000-8000-00000000dead"))
    gone.undefine()
    (there,) = connection.listAllDomains()

    inventory = LibvirtInventory("test:///default", host="node1", hosts=["node1"])

    assert inventory._record(library, connection, gone) is None
    assert inventory._record(library, connection, there) is not None
    connection.close()


def test_a_domain_that_was_saved_is_there(libvirt: Libvirt) -> None:
    saved = domain(disk("file='/srv/a'"), extras="<test:runstate>5</test:runstate><test:hasmanagedsave>1</test:hasmanagedsave>")

    assert (KnownDisk(Path("/srv/a"), "qcow2"),) == libvirt.record(saved).disks


@pytest.mark.parametrize("text", ["<!DOCTYPE d [<!ENTITY a 'aaaa'>]><d>&a;</d>", "<domain>", "", "<domain>\x01</domain>"])
def test_xml_that_libvirt_does_not_write_is_refused(text: str) -> None:
    with pytest.raises(InvalidInventory, match="domain 'one'"):
        _parsed(text, "one")


def test_a_libvirt_that_is_not_there_is_unavailable(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for uri in (f"qemu+unix:///system?socket={tmp_path}/none", "nonesuch+unix:///?socket=/none", "no uri at all"):
        with pytest.raises(InventoryUnavailable, match=r"^libvirt at "):
            LibvirtInventory(uri, host="node1", hosts=["node1"]).instances()

    assert ("", "") == capfd.readouterr()  # libvirt itself prints errors unless told not to


@pytest.fixture
def silent(short_directory: Path) -> Iterator[Path]:
    """A socket of something that accepts connections and never says a word."""
    path, held = short_directory / "sock", []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()

    def accept() -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield path
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    for one in (listener, *held):
        one.close()


def test_a_libvirt_that_never_answers_is_given_up(silent: Path) -> None:
    inventory = LibvirtInventory(f"qemu+unix:///system?socket={silent}", host="node1", hosts=["node1"], timeout=0.5)

    with pytest.raises(InventoryUnavailable, match=r"does not answer for 0\.5 s"):
        inventory.instances()


def test_a_program_ends_although_libvirt_never_answered_it(silent: Path) -> None:
    script = (
        "import sys\n"
        "from underlay.inventory.libvirt import LibvirtInventory; from underlay.errors import InventoryUnavailable\n"
        "try: LibvirtInventory(sys.argv[1], host='a', hosts=['a'], timeout=0.2).instances()\n"
        "except InventoryUnavailable: print('unavailable')"
    )
    argv = [sys.executable, "-c", script, f"qemu+unix:///system?socket={silent}"]

    ended = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)

    assert (0, "unavailable\n", "") == (ended.returncode, ended.stdout, ended.stderr)


def test_the_registry_opens_it_by_its_uri_without_connecting(libvirt: Libvirt) -> None:
    inventory = open_inventory("libvirt:qemu+ssh://nowhere/system?a=b", host="node1", hosts=["node1"])

    assert isinstance(inventory, LibvirtInventory)
    assert "qemu+ssh://nowhere/system?a=b" == inventory.uri


def test_without_the_library_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['libvirt'] = None\n"
        "from underlay.inventory.libvirt import LibvirtInventory; from underlay.errors import ExtraMissing\n"
        "try: LibvirtInventory('', host='a', hosts=['a']).instances()\n"
        "except ExtraMissing as error: print(error.hint)"
    )

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "pip install 'underlay[libvirt]'\n" == ended.stdout
