"""Volumes in a Ceph, as Cinder says how they are reached: attached, grown, swapped, detached, and booted from."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from libvirt_ceph_stage import CephPlace, image_of
from libvirt_stage import wait_until

from underlay.compute import get_block_device_info
from underlay.compute.errors import InvalidInput, OperationFailed, VolumeAttachFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.domaindisks import DomainDisks
from underlay.testing.bootimage import boot_line, boot_sector
from underlay.testing.fakedriver import FakeImage, FakeInstance

pytest_plugins = ["ceph_fixtures", "libvirt_fixtures", "libvirt_ceph_fixtures"]
pytestmark = [
    pytest.mark.component("ceph", "rbd-python", "libvirt", "libvirt-python", "virsh", "root"),
    pytest.mark.component("qemu-img", "qemu-system-x86_64", "qemu-rbd"),
]
MIB = 1 << 20
CONTENT = b"what the volume has".ljust(512, b".")


@pytest.fixture
def instance(cloned: FakeInstance) -> FakeInstance:
    return cloned


def sources(driver: LibvirtDriver, instance: FakeInstance) -> list[dict[str, str]]:
    """What each device is read from: as the guest runs, and as it starts next."""
    disks = DomainDisks(driver.site.domain(instance))
    return [{disk.device: disk.source for disk in found} for found in (disks.live(), disks.lasting())]


def test_a_volume_is_attached_grown_swapped_and_detached(
    there: CephPlace, driver_there: LibvirtDriver, instance: FakeInstance
) -> None:
    driver, volume, other = driver_there, there.volume(32 * MIB, CONTENT), there.volume(32 * MIB)
    names = [image_of(one) for one in (volume, other)]
    driver.attach_volume(None, volume, instance, "/dev/vdb")
    assert [volume["data"]["name"]] * 2 == [found["vdb"] for found in sources(driver, instance)]
    assert 1 == there.watchers(names[0], "other")
    rows = [{"volume_id": volume["serial"], "device_name": "/dev/vdb"}]
    [used] = driver.get_all_volume_usage(None, [{"instance": instance, "instance_bdms": rows}])
    assert volume["serial"] == used["volume"]
    assert driver.block_stats(instance, "vdb") is not None

    with there.opened(names[0], "other", read_only=False) as image:
        image.resize(48 * MIB)
    driver.extend_volume(None, volume, instance, 48 * MIB)
    disks = DomainDisks(driver.site.domain(instance))
    assert 48 * MIB == disks.capacity("vdb")
    with pytest.raises(InvalidInput, match="fewer"):
        driver.extend_volume(None, volume, instance, 32 * MIB)
    with pytest.raises(OperationFailed):
        driver.swap_volume(None, volume, other, instance, "/dev/vdb", 0)
    assert [volume["data"]["name"]] * 2 == [found["vdb"] for found in sources(driver, instance)]

    with there.opened(names[1], "other", read_only=False) as image:
        image.resize(48 * MIB)
    driver.swap_volume(None, volume, other, instance, "/dev/vdb", 0)
    assert [other["data"]["name"]] * 2 == [found["vdb"] for found in sources(driver, instance)]
    assert [0, 1] == [there.watchers(name, "other") for name in names]
    assert CONTENT == there.read(names[1], pool="other")
    driver.reboot(None, instance, [], "HARD", info_of(instance, other, device_name="/dev/vdb"))
    there.place.await_boot(instance)
    driver.detach_volume(None, other, instance, "/dev/vdb")
    assert [{"vda"}, {"vda"}] == [set(found) for found in sources(driver, instance)]
    assert [0, 0] == [there.watchers(name, "other") for name in names]


def test_a_volume_in_the_ceph_may_be_swapped_with_one_on_the_host(
    there: CephPlace, driver_there: LibvirtDriver, instance: FakeInstance
) -> None:
    driver, here, far = driver_there, there.place.volume(size=32 * MIB, content=CONTENT), there.volume(64 * MIB)
    driver.attach_volume(None, here, instance, "/dev/vdb")
    with pytest.raises(OperationFailed):
        driver.swap_volume(None, here, far, instance, "/dev/vdb", 0)
    with there.opened(image_of(far), "other", read_only=False) as image:
        image.resize(32 * MIB)
    driver.swap_volume(None, here, far, instance, "/dev/vdb", 0)
    assert CONTENT == there.read(image_of(far), pool="other")
    driver.swap_volume(None, far, here, instance, "/dev/vdb", 0)
    assert 0 == there.watchers(image_of(far), "other")
    driver.detach_volume(None, here, instance, "/dev/vdb")


def test_a_volume_that_cannot_be_opened_or_is_a_disk_is_refused_and_changes_nothing(
    there: CephPlace, driver_there: LibvirtDriver, instance: FakeInstance
) -> None:
    refused: Sequence[tuple[Mapping[str, Any], str]] = [
        ({"secret_uuid": "457eb676-33da-42ec-9a8c-9293d545c337"}, "457eb676"),
        ({"name": "other/absent"}, "absent"),
        ({"name": "nowhere/image"}, "nowhere"),
        ({"name": f"vms/{instance.uuid}_disk"}, "is a disk of an instance"),
    ]
    before = sources(driver_there, instance)
    for changed, said in refused:
        with pytest.raises(VolumeAttachFailed, match=said):
            driver_there.attach_volume(None, there.volume(MIB, **changed), instance, "/dev/vdb")
        assert before == sources(driver_there, instance)


def test_an_instance_boots_from_a_volume_in_the_ceph(there: CephPlace, driver_there: LibvirtDriver) -> None:
    driver, root = driver_there, there.volume(32 * MIB, boot_sector("from a volume", size=32 * MIB, stays=True))
    image = FakeImage(id="")
    instance = there.instance(image)
    info = info_of(instance, root, boot_index=0)
    driver.spawn(None, instance, image, [], None, {}, block_device_info=info)
    wait_until(lambda: boot_line("from a volume") in there.place.console(instance), "the volume boots")
    assert [] == there.left(instance)
    driver.reboot(None, instance, [], "HARD", info)
    wait_until(lambda: boot_line("from a volume") in there.place.console(instance), "it boots again")
    driver.destroy(None, instance, [], info)
    assert [] == there.traces(instance)
    assert (0, 32 * MIB) == (there.watchers(image_of(root), "other"), there.size(image_of(root), "other"))


def info_of(instance: FakeInstance, volume: Mapping[str, Any], **row: Any) -> dict[str, Any]:
    """What a service says of an instance with this volume."""
    wanted = {"source_type": "volume", "destination_type": "volume", **row, "connection_info": dict(volume)}
    return get_block_device_info(instance, [wanted])
