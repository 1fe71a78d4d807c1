"""What of the libvirt driver's live migrations needs no libvirt: addresses, the pace, the XML, what hosts tell each other."""

import base64
import os
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree.ElementTree import tostring

import pytest

from underlay import locks
from underlay.compute.errors import (
    InvalidInput,
    InvalidLocalStorage,
    InvalidSharedStorage,
    MigrationPreCheckError,
    OperationFailed,
)
from underlay.compute.libvirt.directory import InstanceDirectory
from underlay.compute.libvirt.guestxml import parsed
from underlay.compute.libvirt.livemigration import addresses, arriving, checks, disks, marks, returning, xml
from underlay.compute.libvirt.livemigration.marks import Mark
from underlay.compute.libvirt.livemigration.moves import Moves
from underlay.compute.libvirt.livemigration.pace import pace_of
from underlay.compute.libvirt.livemigration.sights import Sight
from underlay.compute.libvirt.livemigration.verdicts import Where, is_surely_here, may_go, where_of
from underlay.compute.libvirt.volume import Volume
from underlay.compute.livemigration import (
    InterfaceMigrateData,
    LocalDiskMigrateData,
    UnderlayLiveMigrateData,
    VolumeMigrateData,
)
from underlay.config import parse_config
from underlay.config.libvirt import LibvirtTable, Moves as Options, libvirt_of
from underlay.errors import ConfigError
from underlay.model import Attachment
from underlay.values import replace as with_changes

GIB = 1 << 30
UUID = "3d8f0c5a-58a8-4a6c-a1d5-5b9c7e1f2a00"


def options(**more: Any) -> Options:
    return with_changes(libvirt_of(LibvirtTable()).moves, **more)


@pytest.mark.parametrize(
    ("configured", "inbound", "expected"),
    [
        ({}, None, "qemu+tcp://node2/system"),
        ({"scheme": "tls"}, "192.0.2.1", "qemu+tls://192.0.2.1/system"),
        ({}, "2001:db8::1", "qemu+tcp://[2001:db8::1]/system"),
        ({"uri": "qemu+unix:///system?socket=/run/%s/sock"}, "192.0.2.1", "qemu+unix:///system?socket=/run/node2/sock"),
    ],
)
def test_another_host_s_libvirt_has_its_uri(configured: dict[str, Any], inbound: str | None, expected: str) -> None:
    assert expected == addresses.of_libvirt(options(**configured), "node2", inbound)


def test_memory_is_sent_to_an_address_that_was_told() -> None:
    assert None is addresses.of_stream(None)
    assert "tcp://[2001:db8::1]" == addresses.of_stream("2001:db8::1")


@pytest.mark.parametrize("wrong", ["", "-o", "a/b", "a b", "a?b", "a@b", "a\n", "%s", "x" * 254])
def test_what_could_be_more_than_a_host_is_none(wrong: str) -> None:
    with pytest.raises(InvalidInput):
        addresses.check(wrong)


def test_a_guest_may_stand_still_for_longer_the_longer_it_takes() -> None:
    pace = pace_of(options(downtime=0.4, downtime_steps=10, downtime_delay=30.0), memory=3 * GIB, disks=[])
    assert [40, 76, 112, 400] == [pace.downtime(seconds) for seconds in (0, 90, 180, 900)]
    assert [40, 400] == [pace.downtime(seconds) for seconds in (89.9, 1e9)]
    assert 3 * 800 == pace.timeout


def test_small_guests_and_disks_count_as_two_gib_each() -> None:
    assert 800 * (2 + 2 + 5) == pace_of(options(), memory=1, disks=[1, 5 * GIB]).timeout
    assert None is pace_of(options(completion_timeout=0), memory=1, disks=[]).timeout


# ----------------------------------------------------------------------------------------------------------------- the XML

DOMAIN = """
<domain type="qemu"><uuid>3d8f0c5a-58a8-4a6c-a1d5-5b9c7e1f2a00</uuid>
<os><type>hvm</type><kernel>/a/U/kernel</kernel><initrd>/a/U/ramdisk</initrd></os>
<devices>
<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/a/U/disk" index="1"/>
<backingStore type="file"><source file="/a/_base/x"/></backingStore><target dev="vda"/></disk>
<disk type="file" device="cdrom"><driver name="qemu" type="raw"/><source file="/a/U/disk.config"/><target dev="sda"/></disk>
<disk type="network" device="disk"><driver name="qemu" type="raw"/><source protocol="rbd" name="p/v"/><target dev="vdb"/></disk>
<interface type="bridge"><mac address="52:54:00:00:00:01"/><source bridge="br0"/><target dev="tap0"/></interface>
<interface type="bridge"><mac address="52:54:00:00:00:02"/><source bridge="br0"/><target dev="tap1"/></interface>
<serial type="tcp"><source mode="bind" host="127.0.0.1" service="10001"/><log file="/a/U/console.log" append="off"/></serial>
<graphics type="vnc" port="5900" autoport="yes" listen="192.0.2.1"><listen type="address" address="192.0.2.1"/></graphics>
</devices></domain>
"""
DISK = LocalDiskMigrateData(
    name="disk", path="/a/U/disk", format="qcow2", size=1, allocated=1, there="/b/U/disk", format_there="raw"
)
DATA = UnderlayLiveMigrateData(
    directory="/a/U",
    directory_there="/b/U",
    local_disks=(DISK,),
    interfaces=(InterfaceMigrateData(address="52:54:00:00:00:01", device="tap9", bridge="br9"),),
    graphics_listen_addr_vnc="192.0.2.2",
    serial_listen_addr="192.0.2.2",
    serial_listen_ports=(10002,),
)


def test_the_destination_s_domain_has_its_own_paths_and_addresses() -> None:
    found = parsed(xml.moved(DOMAIN, xml.there_of(DATA))).find("devices")
    assert found is not None
    sources = [(disk.find("driver").get("type"), disk.find("source").get("file")) for disk in found.iterfind("disk")]  # type: ignore[union-attr]
    assert [("raw", "/b/U/disk"), ("raw", "/b/U/disk.config"), ("raw", None)] == sources
    assert [] == found.findall("disk/backingStore")
    assert ["br9", "br0"] == [one.get("bridge") for one in found.iterfind("interface/source")]
    assert ["tap9", "tap1"] == [one.get("dev") for one in found.iterfind("interface/target")]
    [line], [log] = found.findall("serial/source"), found.findall("serial/log")
    assert ("192.0.2.2", "10002", "/b/U/console.log", "off") == (
        line.get("host"),
        line.get("service"),
        log.get("file"),
        log.get("append"),
    )
    [screen] = found.findall("graphics")
    assert ["192.0.2.2", "192.0.2.2", "-1"] == [screen.get("listen"), screen[0].get("address"), screen.get("port")]


def test_the_destination_s_kernel_lies_in_its_own_directory() -> None:
    system = parsed(xml.moved(DOMAIN, xml.there_of(DATA))).find("os")
    assert system is not None
    assert ["/b/U/kernel", "/b/U/ramdisk"] == [system.findtext("kernel"), system.findtext("initrd")]


def test_two_hosts_write_to_one_file_what_a_serial_line_says() -> None:
    there = xml.there_of(replace(DATA, is_shared_instance_path=True, serial_listen_addr=None, graphics_listen_addr_vnc=None))
    [log] = parsed(xml.moved(DOMAIN, there)).findall("devices/serial/log")
    assert "on" == log.get("append")
    assert 'service="10001"' in xml.moved(DOMAIN, there)


def test_disks_that_are_copied_are_named_by_their_devices() -> None:
    assert {"vda": DISK} == xml.copied_devices(DOMAIN, DATA)
    assert [True, False] == [xml.has_backing(DOMAIN, device) for device in ("vda", "sda")]


# ------------------------------------------------------------------------------------------- volumes, and disks in a storage

VOLUMES = """
<domain type="qemu"><devices>
<disk type="network" device="disk"><driver name="qemu" type="raw"/><source protocol="rbd" name="vms/u_disk"/>
<target dev="vda"/></disk>
<disk type="block" device="disk"><driver name="qemu" type="raw" cache="none" io="native"/><source dev="/dev/a" index="3"/>
<backingStore/><target dev="vdb"/><serial>v1</serial></disk>
<disk type="network" device="disk"><driver name="qemu" type="raw" cache="none"/><source protocol="rbd" name="vols/v2">
<host name="192.0.2.1" port="6789"/><auth username="a"><secret type="ceph" uuid="s1"/></auth></source><target dev="vdc"/></disk>
<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/a/s1"/><backingStore type="file">
<format type="raw"/><source file="/a/v3"/></backingStore><target dev="vdd"/></disk>
</devices></domain>
"""
CEPH = Attachment(
    type="network",
    source="vols/v2",
    format="raw",
    cache="none",
    discard="unmap",
    protocol="rbd",
    servers=(("192.0.2.9", 3300), ("192.0.2.8", 3300)),
    user="b",
    secret="s2",
)


def volume(device: str, source: str, there: Attachment | None, **more: Any) -> VolumeMigrateData:
    return VolumeMigrateData(
        device=device, bus="virtio", id=None, kind="local", source=source, format="raw", there=there, **more
    )


def test_volumes_are_as_the_destination_opens_them_and_disks_in_a_storage_as_they_were() -> None:
    file = Attachment(type="file", source="/b/v1", format="raw")
    above = Attachment(type="file", source="/a/s1", format="qcow2")
    moved = (
        volume("vdb", "/dev/a", file),
        volume("vdc", "vols/v2", CEPH),
        volume("vdd", "/a/s1", above, is_written_above=True),
    )
    data = UnderlayLiveMigrateData(directory="/a/U", directory_there="/b/U", volumes=moved)
    assert {} == xml.copied_devices(VOLUMES, data)
    before = parsed(VOLUMES).findall("devices/disk")
    root, first, second, third = parsed(xml.moved(VOLUMES, xml.there_of(data))).findall("devices/disk")
    assert [tostring(before[0]).strip(), tostring(before[3]).strip()] == [tostring(one).strip() for one in (root, third)]
    assert ("file", "v1") == (first.get("type"), first.findtext("serial"))
    assert [{"file": "/b/v1"}] == [one.attrib for one in first.iterfind("source")]
    assert [{"name": "qemu", "type": "raw"}] == [one.attrib for one in first.iterfind("driver")]
    assert None is first.find("backingStore")
    assert ["192.0.2.9", "192.0.2.8"] == [one.get("name") for one in second.iterfind("source/host")]
    assert ["b", "s2"] == [second.find("source/auth").get("username"), second.find("source/auth/secret").get("uuid")]  # type: ignore[union-attr]
    assert [{"name": "qemu", "type": "raw", "cache": "none", "discard": "unmap"}] == [
        one.attrib for one in second.iterfind("driver")
    ]


@pytest.mark.parametrize(
    ("wanted", "is_shared", "has_own", "expected"),
    [
        (None, False, True, True),
        (None, True, True, False),
        (None, True, False, False),
        (None, False, False, False),  # nothing but volumes, or all in a Ceph
        (True, False, True, True),
        (False, True, True, False),
        (False, False, False, False),
        (True, True, True, InvalidLocalStorage),
        (True, False, False, InvalidLocalStorage),
        (False, False, True, InvalidSharedStorage),
    ],
)
def test_what_one_host_alone_has_is_copied_and_nothing_else(
    *, wanted: bool | None, expected: bool | type[Exception], is_shared: bool, has_own: bool
) -> None:
    told = UnderlayLiveMigrateData(host="node2", block_migration=wanted)
    if isinstance(expected, bool):
        assert expected is checks.copies(told, Path("/i"), here="node1", is_shared=is_shared, has_own=has_own)
    else:
        with pytest.raises(expected):
            checks.copies(told, Path("/i"), here="node1", is_shared=is_shared, has_own=has_own)


def test_disks_in_a_storage_go_to_hosts_that_keep_theirs_there() -> None:
    opened = {"disk": Attachment(type="network", source="vms/u_disk", format="raw"), "disk.swap": file_of("/a/U/disk.swap")}
    shared = disks.in_storage(opened)
    assert {"disk": "vms/u_disk"} == shared
    checks.check_storage(replace(DATA, image_type="rbd"), shared, images_type="rbd")
    checks.check_storage(replace(DATA, image_type="qcow2"), {}, images_type="rbd")
    with pytest.raises(MigrationPreCheckError, match="vms/u_disk is not reached"):
        checks.check_storage(replace(DATA, image_type="qcow2"), shared, images_type="rbd")


def file_of(path: str) -> Attachment:
    return Attachment(type="file", source=path, format="raw")


# ------------------------------------------------------------------------------------------------------------ config drives


@pytest.mark.parametrize(
    "packed",
    [
        "%",
        "AAAA",
        base64.b64encode(zlib.compress(b"x" * 1000)[:-6]).decode(),
        base64.b64encode(zlib.compress(bytes(65 << 20))).decode(),
    ],
    ids=["no-base64", "no-zlib", "cut", "too-large"],
)
def test_a_config_drive_that_is_none_is_refused(packed: str) -> None:
    with pytest.raises(MigrationPreCheckError):
        checks.unpacked(packed)


def test_a_config_drive_is_not_shown() -> None:
    content = os.urandom(1000)
    data = replace(DATA, config_drive=base64.b64encode(zlib.compress(content)).decode())
    assert str(data.config_drive) not in repr(data)
    assert content == checks.unpacked(str(data.config_drive))


# -------------------------------------------------------------------------------------------------------------------- marks

MARK = Mark(
    host="node1",
    other="node2",
    shared=False,
    volumes=(Volume(kind="rbd", id="v", source="p/v", servers=(("192.0.2.1", 6789),)),),
)


@pytest.fixture
def directory(tmp_path: Path) -> InstanceDirectory:
    (tmp_path / UUID).mkdir()
    return InstanceDirectory(tmp_path, UUID)


def test_a_mark_is_left_when_nobody_is_at_work(directory: InstanceDirectory) -> None:
    with marks.made(directory, marks.LEAVING, MARK):
        with marks.left(directory, marks.LEAVING, "node1") as left:
            assert left is None
        with pytest.raises(OperationFailed, match="leaving already"), marks.made(directory, marks.LEAVING, MARK):
            raise AssertionError
    with marks.left(directory, marks.LEAVING, "node1") as left:
        assert MARK == left
    with marks.left(directory, marks.LEAVING, "node2") as left:
        assert left is None  # another host's, in a directory that both have
    assert [directory] == marks.marked(directory.instances, marks.LEAVING, "node1")
    assert [] == marks.marked(directory.instances, marks.LEAVING, "node2")
    marks.remove(directory, marks.LEAVING, "node2")
    assert MARK == marks.read(directory, marks.LEAVING, "node1")
    marks.remove(directory, marks.LEAVING, "node1")
    marks.remove(directory, marks.LEAVING, "node1")
    assert None is marks.read(directory, marks.LEAVING, "node1")


def test_two_hosts_put_their_marks_into_one_directory_beside_each_other(directory: InstanceDirectory) -> None:
    other = Mark(host="node2", other="node1", shared=True)
    with marks.made(directory, marks.LEAVING, MARK), marks.made(directory, marks.LEAVING, other):
        assert ["leaving.node1", "leaving.node2"] == sorted(os.listdir(directory.path))
    with marks.left(directory, marks.LEAVING, "node1") as left, marks.left(directory, marks.LEAVING, "node2") as second:
        assert (MARK, other) == (left, second)
    taken = marks.path_of(directory, marks.LEAVING, "node2").replace(marks.path_of(directory, marks.LEAVING, "node3"))
    assert None is marks.read(directory, marks.LEAVING, "node3")  # whoever has copied it there: it is another host's
    assert taken.exists()


@pytest.mark.parametrize("host", ["../node1", "a/b", "..", "a\0b", "n\u00f6de"])
def test_no_name_of_a_host_leads_a_mark_out_of_its_directory(directory: InstanceDirectory, host: str) -> None:
    with marks.made(directory, marks.ARRIVING, Mark(host=host, other="node2", shared=False)):
        assert [marks.name_of(marks.ARRIVING, host)] == os.listdir(directory.path)
    assert [directory] == marks.marked(directory.instances, marks.ARRIVING, host)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": "node1"}'])
def test_a_mark_that_nobody_came_to_write_means_nothing_and_goes(directory: InstanceDirectory, content: bytes) -> None:
    path = marks.path_of(directory, marks.ARRIVING, "node1")
    path.write_bytes(content)
    with locks.try_exclusive(path) as lock, marks.left(directory, marks.ARRIVING, "node1") as left:
        assert lock is not None
        assert left is None
    assert path.exists()  # its writer is at it
    with marks.left(directory, marks.ARRIVING, "node1") as left:
        assert left is None
    assert not directory.path.exists()  # nothing else was in it


def test_an_instance_is_moved_once_at_a_time() -> None:
    moves = Moves()
    with moves.begun(UUID) as move:
        assert move is moves.of(UUID)
        with pytest.raises(OperationFailed), moves.begun(UUID):
            raise AssertionError
    assert None is moves.of(UUID)


# ------------------------------------------------------------------------------------------------------- where a guest is

RUNS = Sight(active=True, moving=False, sending=False, runs=True)
PAUSED = Sight(active=True, moving=False, sending=False)
STANDS = Sight(active=True, moving=True, sending=False)
FOLLOWED = Sight(active=True, moving=True, sending=False, runs=True)  # by its memory
SPLIT = Sight(active=True, moving=True, sending=False, is_split=True)
OFF = Sight(active=False, moving=False, sending=False)


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (STANDS, None, Where.HERE),
        (PAUSED, None, Where.HERE),
        (OFF, None, Where.HERE),
        (STANDS, RUNS, Where.THERE),
        (PAUSED, RUNS, Where.THERE),  # it was paused so that its move would complete, and it has
        (PAUSED, PAUSED, Where.THERE),
        (None, OFF, Where.THERE),
        (PAUSED, STANDS, Where.OPEN),
        (None, None, Where.UNKNOWN),
        (OFF, OFF, Where.UNKNOWN),
        (STANDS, OFF, Where.UNKNOWN),  # it may have run there, and been switched off
        (PAUSED, OFF, Where.UNKNOWN),
        (SPLIT, None, Where.UNKNOWN),  # it has run there, and that host has lost it
        (SPLIT, OFF, Where.UNKNOWN),
        (SPLIT, FOLLOWED, Where.OPEN),
    ],
)
def test_a_guest_that_was_to_leave_is_where_it_can_be_alone(here: Sight | None, there: Sight | None, expected: Where) -> None:
    assert not is_surely_here(here)
    assert expected is where_of(here, there)


def test_a_guest_that_runs_and_is_not_being_moved_has_stayed() -> None:
    assert is_surely_here(RUNS)
    assert not is_surely_here(FOLLOWED)


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (None, None, True),
        (STANDS, RUNS, True),
        (PAUSED, PAUSED, True),
        (OFF, RUNS, True),
        (RUNS, STANDS, False),  # its source has not heard that it has come
        (RUNS, PAUSED, False),
        (FOLLOWED, SPLIT, False),
        (SPLIT, SPLIT, False),
        (PAUSED, None, False),
        (OFF, None, False),  # it has come, and switched itself off
        (OFF, OFF, False),
    ],
)
def test_what_may_be_all_that_there_is_of_a_guest_stays(here: Sight | None, there: Sight | None, *, expected: bool) -> None:
    assert expected is may_go(here, there)


def test_only_what_an_interrupted_removal_left_is_put_back(directory: InstanceDirectory) -> None:
    instances, held = directory.instances, directory.instances / f"{UUID}.held"
    (instances / "notes.held").write_text("new")
    (instances / "notes").write_text("old")
    directory.path.rename(held)
    with locks.try_exclusive(held / "arriving.node1") as lock:
        assert lock is not None
        returning.put_back(instances, "node1")
        assert held.is_dir()  # somebody is removing it
    returning.put_back(instances, "node1")
    assert [UUID, "notes", "notes.held"] == sorted(os.listdir(instances))
    assert "old" == (instances / "notes").read_text()


def test_disks_are_not_copied_onto_themselves() -> None:
    data = replace(DATA, block_migration=True, is_shared_instance_path=True)
    nothing: Any = SimpleNamespace()
    with pytest.raises(MigrationPreCheckError, match="onto themselves"):
        arriving.prepare(nothing, Moves(), nothing, None, None, data)


# ----------------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('live_migration_uri = "node2"', "no URI"),
        ('live_migration_uri = "qemu:///system"', "one host's for all"),
        ('live_migration_scheme = "t/c"', "no transport"),
        ('live_migration_inbound_addr = "a/b"', "no address"),
        ('live_migration_bandwidth = "1.5MiB"', "no whole number of MiB"),
        ('live_migration_bandwidth = "0B"', "nothing at all"),
        ('live_migration_downtime = "0.05s"', "less than 0.1"),
        ("live_migration_downtime_steps = 2", "less than 3"),
        ('live_migration_downtime_delay = "2s"', "less than 3"),
        ('live_migration_timeout_action = "wait"', "wait"),
        ("live_migration_completion_timeout = 800", "no unit"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(tmp_path: Path, line: str, said: str) -> None:
    text = f'[instances]\npath = "{tmp_path}"\n[caches.base]\nkind = "base"\npath = "{tmp_path}/_base"\n[libvirt]\n{line}\n'
    with pytest.raises(ConfigError, match=said) as caught:
        parse_config(text, origin=tmp_path / "underlay.toml")
    assert line.split(" ")[0] in str(caught.value)


def test_a_processor_that_cannot_be_read_is_not_taken_for_one() -> None:
    site: Any = SimpleNamespace(name="node2", connection=None)
    checks.check_processor(site, "")
    for wrong in ("{", "[]", '{"topology": {"cores": 1}}'):
        with pytest.raises(MigrationPreCheckError, match="processor cannot be read"):
            checks.check_processor(site, wrong)
