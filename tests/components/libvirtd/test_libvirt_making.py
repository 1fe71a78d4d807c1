"""How instances come to be on a real libvirt: disks from the cache, kernels, config drives, and where their consoles are."""

import base64
import json
import socket
import struct
import threading
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from guest_kernel import RAMDISK_SEEN, kernel_image
from libvirt_daemon import Daemon, quiet_library
from libvirt_stage import MESSAGE, Place, command, wait_until

from installed import install_backend
from underlay.compute import states
from underlay.compute.capabilities import IMAGE_TYPE
from underlay.compute.errors import InstanceExists, InvalidInput
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.guestxml import NOVA, parsed
from underlay.inventory.libvirt import LibvirtInventory
from underlay.testing.bootimage import INTERRUPTED, PREFIX, SECTOR, boot_line, boot_sector, write_qcow2, write_raw
from underlay.testing.fakedriver import FakeFlavor, FakeImage, FakeInstance, fake_vif
from underlay.testing.httpserver import Served, serving

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64")

MANY = 20
QEMUS_WORDS = {"raw": "raw", "qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"}


def spawn(driver: LibvirtDriver, instance: FakeInstance, image: FakeImage, **more: Any) -> None:
    driver.spawn(None, instance, image, [], more.pop("password", None), {}, **more)


def domain_xml(daemon: Daemon, instance: FakeInstance) -> str:
    connection = quiet_library().open(daemon.uri)
    try:
        return str(connection.lookupByUUIDString(instance.uuid).XMLDesc(0))
    finally:
        connection.close()


def test_twenty_instances_from_one_image_at_once_fetch_it_once(place: Place, tmp_path: Path) -> None:
    served = tmp_path / "served.qcow2"
    write_qcow2(served, size=4 << 20, message=MESSAGE, payload=1 << 20, stays=True)
    with serving({"/guest.qcow2": Served(served, etag='"1"')}) as server:
        image = FakeImage(id=server.url("/guest.qcow2"), size=served.stat().st_size)
        driver = place.driver()
        instances = [place.instance(image) for _ in range(MANY)]
        threads = [
            threading.Thread(target=spawn, args=(driver, one, image), kwargs={"power_on": number < 2})
            for number, one in enumerate(instances)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert 1 == server.bodies("/guest.qcow2")
    assert {one.uuid for one in instances} <= set(driver.list_instance_uuids())
    [base] = [one for one in (place.instances / "_base").iterdir() if one.is_file()]
    assert {base} == {disk.base_path for disk in driver.site.host.disks()}
    assert MANY == len(driver.site.host.disks())
    for one in instances[:2]:
        place.await_boot(one)
        assert boot_line(MESSAGE) in place.console(one)
    assert [states.SHUTDOWN] * (MANY - 2) == [driver.get_info(one).state for one in instances[2:]]
    for one in instances:
        driver.destroy(None, one, [])
    assert [] == driver.site.host.disks()
    driver.cleanup_host("node1")


@pytest.mark.component("mkfs.ext4")
def test_an_instance_has_its_root_ephemeral_and_swap_disks(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image, flavor=FakeFlavor(memory_mb=32, root_gb=2, ephemeral_gb=1, swap=64))
    info = {
        "root_device_name": "/dev/vda",
        "ephemerals": [{"device_name": "/dev/vdb", "size": 1, "disk_bus": None, "guest_format": "ext4"}],
        "swap": {"device_name": "/dev/vdc", "swap_size": 64, "disk_bus": None},
        "block_device_mapping": [],
    }
    spawn(driver, instance, image, block_device_info=info)
    place.await_boot(instance)

    disks = {disk.name: disk for disk in driver.site.host.disks()}
    assert {"disk": 2 << 30, "disk.eph0": 1 << 30, "disk.swap": 64 << 20} == {name: one.size for name, one in disks.items()}
    domain = parsed(domain_xml(place.daemon, instance))
    found = {one.find("target").get("dev", ""): one for one in domain.iterfind("devices/disk")}  # type: ignore[union-attr]
    assert ["vda", "vdb", "vdc"] == sorted(found)
    assert str(disks["disk"].base_path) == found["vda"].find("backingStore/source").get("file")  # type: ignore[union-attr]

    records = LibvirtInventory(place.daemon.uri, host="node1", hosts=["node1"]).instances()
    facts = {Path(one["path"]).name: one for one in json.loads(driver.get_instance_disk_info(instance, info))}
    assert {name: str(one.size) for name, one in disks.items()} == {name: one["virt_disk_size"] for name, one in facts.items()}
    assert disks["disk"].base == facts["disk"]["backing_file"]
    [record] = [one for one in records if one.uuid == instance.uuid]
    assert (instance.uuid, image.id, (64,)) == (record.uuid, record.image_ref, record.swap_mib)
    assert instance.display_name == domain.findtext(f"metadata/{{{NOVA}}}instance/{{{NOVA}}}name")

    driver.destroy(None, instance, [], info)
    assert [] == place.traces(instance)


def test_disks_are_kept_by_the_configured_backend(place: Place) -> None:
    driver = place.driver(more='images_type = "flat"\nmachine_type = "pc"\nforce_config_drive = true')
    image = place.image(properties={"hw_disk_bus": "ide"})
    instance = place.instance(image)
    spawn(driver, instance, image)
    place.await_boot(instance)
    assert [("flat", "raw", 1 << 30)] == [(one.backend, one.format, one.size) for one in driver.site.host.disks() if one.base]
    found = [
        (one.get("device"), target.get("dev"), target.get("bus"))
        for one in parsed(domain_xml(place.daemon, instance)).iterfind("devices/disk")
        for target in one.iter("target")
    ]
    assert [("disk", "hda", "ide"), ("cdrom", "hdb", "ide")] == sorted(found, reverse=True)
    driver.destroy(None, instance, [])
    assert ([], []) == (place.traces(instance), driver.site.host.disks())
    driver.cleanup_host("node1")


def test_a_kernel_and_a_ramdisk_are_booted_in_place_of_the_disk(place: Place, driver: LibvirtDriver) -> None:
    for name, content in (("kernel", kernel_image()), ("ramdisk", bytes(5000))):
        (place.root / name).write_bytes(content)
    image = place.image(properties={"os_command_line": "told by the image"})
    instance = place.instance(
        image, kernel_id=f"file://{place.root}/kernel", ramdisk_id=f"file://{place.root}/ramdisk", root_device_name=None
    )
    spawn(driver, instance, image)
    wait_until(lambda: RAMDISK_SEEN in place.console(instance), "the kernel is booted")

    assert f"{PREFIX} kernel: told by the image; {RAMDISK_SEEN}" in place.console(instance)
    assert [] == [one for one in driver.site.host.disks() if one.name != "disk"]
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


@pytest.mark.long
def test_an_image_of_every_type_that_is_supported_boots(place: Place, driver: LibvirtDriver) -> None:
    supported = {name.removeprefix(IMAGE_TYPE) for name, can in driver.capabilities.items() if can and IMAGE_TYPE in name}
    assert {*QEMUS_WORDS, "iso", "aki", "ari", "ami"} == supported
    instances = {}
    for kind in (*QEMUS_WORDS, "iso"):
        path = place.root / f"guest.{kind}"
        write_image(path, kind)
        image = FakeImage(id=f"file://{path}", disk_format=kind)
        instances[kind] = place.instance(image)
        spawn(driver, instances[kind], image)
    for kind, instance in instances.items():
        place.await_boot(instance)
        assert boot_line(kind) in place.console(instance)
        driver.destroy(None, instance, [])
        assert [] == place.traces(instance)


def write_image(path: Path, kind: str) -> None:
    if kind == "iso":
        path.write_bytes(bootable_cd(boot_sector(kind, stays=True)))
        return
    raw = path.with_suffix(".source")
    write_raw(raw, size=4 << 20, message=kind, stays=True)
    command("qemu-img", "convert", "-f", "raw", "-O", QEMUS_WORDS[kind], str(raw), str(path))


def bootable_cd(sector: bytes) -> bytes:
    """A CD that boots as El Torito has it, without emulation: its one sector is put where a disk's would be."""
    iso = import_module("pycdlib").PyCdlib()
    iso.new(interchange_level=3)
    iso.add_fp(BytesIO(sector), len(sector), "/BOOT.;1")
    iso.add_eltorito("/BOOT.;1", boot_load_size=1)
    written = BytesIO()
    iso.write_fp(written)
    iso.close()
    return written.getvalue()


def test_a_config_drive_tells_the_guest_about_itself(place: Place, driver: LibvirtDriver) -> None:
    image = place.image(properties={"img_config_drive": "mandatory"})
    instance = place.instance(image, metadata={"role": "web"}, key_data="ssh-ed25519 AAAA", display_name="wëb <1>")
    instance_with_data = with_user_data(instance, b"#cloud-config\n{}\n")
    spawn(driver, instance_with_data, image, password="s3cret&", power_on=False)

    drive = place.instances / instance.uuid / "disk.config"
    assert 0o600 == drive.stat().st_mode & 0o777
    assert b"config-2" == drive.read_bytes()[32808:32840].rstrip()  # ECMA-119, 8.4.7: the volume's identifier
    told = json.loads(content(drive, "meta_data.json"))
    assert (instance.uuid, "wëb <1>", "s3cret&", {"role": "web"}) == (
        told["uuid"],
        told["name"],
        told["admin_pass"],
        told["meta"],
    )
    assert ["ssh-ed25519 AAAA"] == list(told["public_keys"].values())
    assert b"#cloud-config\n{}\n" == content(drive, "user_data")
    assert "cdrom" in domain_xml(place.daemon, instance)
    driver.power_on(None, instance, [])
    place.await_boot(instance)
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


def with_user_data(instance: FakeInstance, data: bytes) -> Any:
    """The record with a field that services have and the shipped one has not."""
    names = [name for name in dir(FakeInstance) if not name.startswith("_")]
    kind = type("Instance", (), {name: getattr(instance, name) for name in names})
    kind.user_data = base64.b64encode(data).decode()  # type: ignore[attr-defined]
    return kind()


def content(drive: Path, name: str) -> bytes:
    iso = import_module("pycdlib").PyCdlib()
    with drive.open("rb") as file:
        iso.open_fp(file)
        read = BytesIO()
        iso.get_file_from_iso_fp(read, rr_path=f"/openstack/latest/{name}")
        joliet = BytesIO()
        iso.get_file_from_iso_fp(joliet, joliet_path=f"/openstack/latest/{name}")
        iso.close()
    assert read.getvalue() == joliet.getvalue()
    return read.getvalue()


def test_consoles_lead_to_the_guest(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image)
    place.await_boot(instance)

    assert boot_line(MESSAGE).encode() in driver.get_console_output(None, instance)
    serial, screen = driver.get_serial_console(None, instance), driver.get_vnc_console(None, instance)
    with socket.create_connection((serial.host, serial.port), timeout=30) as line:
        driver.trigger_crash_dump(instance)
        assert INTERRUPTED.encode() == line.recv(1)
    with socket.create_connection((screen.host, screen.port), timeout=30) as line:
        assert b"RFB " == line.recv(4)  # RFC 6143, 7.1.1
    log = place.instances / instance.uuid / "console.log"
    with log.open("ab") as file:
        file.write(bytes(200_000) + struct.pack("<I", 7))
    output = driver.get_console_output(None, instance)
    assert (102_400, struct.pack("<I", 7)) == (len(output), output[-4:])
    driver.destroy(None, instance, [])


@pytest.mark.component("ip")
def test_a_guest_is_plugged_into_its_bridge_while_it_runs(place: Place, driver: LibvirtDriver, bridge: str) -> None:
    image, vif, ports = place.image(), fake_vif(9, bridge=bridge), Path("/sys/class/net", bridge, "brif")
    instance = place.instance(image)
    spawn(driver, instance, image, network_info=[vif])
    assert [vif["devname"]] == [port.name for port in ports.iterdir()]
    told = [one.get("address") for one in parsed(domain_xml(place.daemon, instance)).iterfind("devices/interface/mac")]
    assert [vif["address"]] == told
    place.await_boot(instance)
    counted = driver.get_diagnostics(instance)
    assert counted["cpu0_time"] > 0
    assert counted["vda_read"] >= SECTOR  # it booted from it
    assert counted[f"{vif['devname']}_rx"] >= 0
    driver.power_off(instance)
    assert ([], None) == (driver.get_all_bw_counters([instance]), driver.block_stats(instance, "vda"))
    assert "cpu0_time" not in driver.get_diagnostics(instance)
    assert "shutdown" == driver.get_instance_diagnostics(instance).state
    driver.destroy(None, instance, [vif])
    assert [] == list(ports.iterdir())


def test_rows_are_named_whatever_they_are(place: Place, driver: LibvirtDriver) -> None:
    image = place.image(properties={"hw_disk_bus": "scsi"})
    instance = place.instance(image)
    row = SimpleNamespace(device_name=None, disk_bus="virtio")
    assert "/dev/sda" == driver.default_root_device_name(instance, image, {"device_name": None})
    driver.default_device_names_for_instance(instance, "/dev/vda", [row], [{"device_name": "/dev/sda"}])
    assert "/dev/vdb" == row.device_name
    assert "/dev/sdb" == driver.get_device_name_for_instance(instance, [row, {"device_name": "/dev/sda"}], {})
    with pytest.raises(InvalidInput, match="floppy"):
        driver.get_device_name_for_instance(instance, [], {"disk_bus": "floppy"})


def test_disks_that_are_to_stay_outlive_the_instance_and_are_not_taken_over(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image, power_on=False)
    driver.destroy(None, instance, [], destroy_disks=False)

    assert (False, True) == (driver.instance_exists(instance), driver.instance_on_disk(instance))
    with pytest.raises(InstanceExists, match="files of an instance"):
        spawn(driver, instance, image)
    assert ["disk"] == [disk.name for disk in driver.site.host.disks()]
    assert driver.delete_instance_files(instance)
    assert (False, True) == (driver.instance_on_disk(instance), driver.delete_instance_files(instance))
    assert [] == place.traces(instance)


def test_an_image_that_is_used_stays_and_goes_when_nobody_needs_it(place: Place) -> None:
    rules = 'cache = "base"\n[compute]\n'
    driver = place.driver(more=rules)
    image = place.image(properties={"img_config_drive": "mandatory"})
    instance = place.instance(image)
    spawn(driver, instance, image, power_on=False)

    driver.manage_image_cache(None, [instance])
    assert 1 == len(driver.site.host.images()[0])
    driver.destroy(None, instance, [])
    assert not driver.cache_image(None, image.id)
    driver.manage_image_cache(None, [])
    assert [] == driver.site.host.images()[0]
    driver.cleanup_host("node1")


def test_an_image_of_a_guest_that_the_service_does_not_know_stays(place: Place) -> None:
    """Somebody else's guest, which is off, as the configured inventory has it."""
    listing = place.root / "guests.json"
    driver = place.driver(instances=f'inventory = "file:{listing}"')
    image = place.image()
    driver.cache_image(None, image.id)

    listing.write_text(json.dumps([{"uuid": str(uuid4()), "name": "theirs", "host": "node1", "image_ref": image.id}]))
    driver.manage_image_cache(None, [])
    assert 1 == len(driver.site.host.images()[0])

    listing.write_text("[")  # then nobody knows
    driver.manage_image_cache(None, [])
    assert 1 == len(driver.site.host.images()[0])

    listing.write_text("[]")
    driver.manage_image_cache(None, [])
    assert [] == driver.site.host.images()[0]
    driver.cleanup_host("node1")


def test_a_disk_that_is_no_file_is_not_taken_over(
    place: Place, driver: LibvirtDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What undoes a failed spawn removes the instance's disks, so there may be none before it."""
    install_backend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    image = place.image()
    instance = place.instance(image)
    disk = driver.site.host.create_disk(instance.uuid, image.id, backend="fake")

    with pytest.raises(InstanceExists, match="disks of an instance"):
        spawn(driver, instance, image)

    assert disk.path == driver.site.host.disk(instance.uuid).path
    driver.site.host.remove_disk(instance.uuid)
    assert [] == place.traces(instance)


def test_a_guest_runs_under_whatever_works_here(place: Place) -> None:
    driver = place.driver(virt_type="auto")
    image = place.image()
    instance = place.instance(image)
    spawn(driver, instance, image)
    place.await_boot(instance)
    assert driver.site.virt_type == parsed(domain_xml(place.daemon, instance)).get("type")
    assert [] == [name.name for name in place.instances.iterdir() if "probe" in name.name]
    driver.destroy(None, instance, [])
    driver.cleanup_host("node1")
