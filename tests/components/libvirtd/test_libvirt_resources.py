"""What a real host tells a compute service and placement: amounts, inventory, traits, and whether it is to have instances."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from libvirt_stage import Place, command

from underlay.compute import ProviderTree, states
from underlay.compute.errors import OperationFailed
from underlay.compute.libvirt import LibvirtDriver
from underlay.compute.libvirt.storageroom import room_of
from underlay.compute.node import local_node_uuid
from underlay.testing.fakedriver import FakeFlavor, fake_vif

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "ip")

GIB, MIB = 1 << 30, 1 << 20
ROOT = "0b0c7a2e-4ad3-4a5b-9f0e-6d4a3a6f2c10"
SHARING = "5c1d7a2e-4ad3-4a5b-9f0e-6d4a3a6f2c11"
DISABLED = "COMPUTE_STATUS_DISABLED"
COMPUTE = """
[compute]
cpu_allocation_ratio = 3.0
initial_ram_allocation_ratio = 1.25
reserved_host_cpus = 1
reserved_host_memory_mb = 256
reserved_host_disk_mb = 1025
image_type_exclude_list = ["vdi"]
"""


@pytest.fixture
def driver(place: Place) -> Iterator[LibvirtDriver]:
    driver = place.driver(more=COMPUTE)
    yield driver
    driver.cleanup_host("node1")


def tree_of(driver: LibvirtDriver, *traits: str) -> tuple[ProviderTree, str]:
    [node] = driver.get_available_nodes()
    tree = ProviderTree()
    tree.new_root(node, ROOT, generation=1)
    tree.add_traits(node, *traits)
    return tree, node


def updated(driver: LibvirtDriver, *traits: str) -> set[str]:
    """The node's traits after an update, when it had these."""
    tree, node = tree_of(driver, *traits)
    driver.update_provider_tree(tree, node)
    found: set[str] = tree.data(node).traits
    return found


def test_the_host_is_told_as_it_is(place: Place, driver: LibvirtDriver) -> None:
    [node] = driver.get_available_nodes()
    told = driver.get_available_resource(node)
    status = os.statvfs(place.instances)
    assert (os.cpu_count(), status.f_blocks * status.f_frsize // GIB) == (told["vcpus"], told["local_gb"])
    total = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    assert (total, 256) == (told["memory_mb"], told["memory_mb_used"] - running_memory(driver))
    assert ("QEMU", None, local_node_uuid()) == (told["hypervisor_type"], told["numa_topology"], told["uuid"])
    assert told["hypervisor_version"] >= 7_000_000
    assert ("x86_64", "qemu", "hvm") in told["supported_instances"]
    assert {"qemu"} == {kind for _, kind, _ in told["supported_instances"]}
    assert "pci_passthrough_devices" not in told
    assert " up " in told["stats"]["uptime"]
    assert {local_node_uuid(): node} == driver.get_nodenames_by_uuid()


def running_memory(driver: LibvirtDriver) -> int:
    """MiB of guests that other tests of this session run."""
    kib: list[int] = driver.site.connection.ask(lambda handle: [one.info()[1] for one in handle.listAllDomains(1)])
    return sum(kib) // 1024


def test_what_disks_may_still_take_is_not_available(place: Place, driver: LibvirtDriver) -> None:
    [node] = driver.get_available_nodes()
    before = driver.get_available_resource(node)
    assert 0 == room_of(driver.site).promised
    image = place.image()
    instance = place.instance(image, flavor=FakeFlavor(memory_mb=48, vcpus=2, root_gb=3))
    driver.spawn(None, instance, image, [], None, {})
    after = driver.get_available_resource(node)
    assert (2, 48) == tuple(after[key] - before[key] for key in ("vcpus_used", "memory_mb_used"))
    assert 3 * GIB - MIB <= room_of(driver.site).promised < 3 * GIB
    driver.power_off(instance)
    off = driver.get_available_resource(node)
    assert (0, 0) == tuple(off[key] - before[key] for key in ("vcpus_used", "memory_mb_used"))
    assert 3 * GIB - MIB <= room_of(driver.site).promised < 3 * GIB  # a disk stays
    driver.destroy(None, instance, [])


def test_a_guest_whose_qemu_hangs_keeps_nobody_from_being_told(place: Place, bridge: str) -> None:
    driver = place.driver(more='timeout = "15s"')
    image, vif = place.image(), fake_vif(24, bridge=bridge)
    instance = place.instance(image, flavor=FakeFlavor(memory_mb=48, vcpus=2))
    [node] = driver.get_available_nodes()
    before = driver.get_available_resource(node)
    driver.spawn(None, instance, image, [], None, {}, network_info=[vif])
    qemu = int((place.daemon.directory / f"run/qemu/{instance.name}.pid").read_text())
    os.kill(qemu, signal.SIGSTOP)
    try:
        after = driver.get_available_resource(node)
        [traffic] = driver.get_all_bw_counters([instance])
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert (2, 48) == tuple(after[key] - before[key] for key in ("vcpus_used", "memory_mb_used"))
    assert vif["address"] == traffic["mac_address"]
    driver.destroy(None, instance, [])
    driver.cleanup_host("node1")


def test_more_may_be_promised_than_there_is(place: Place, driver: LibvirtDriver) -> None:
    [node] = driver.get_available_nodes()
    image, instance = place.image(), place.instance(place.image(), flavor=FakeFlavor(memory_mb=32, root_gb=1 << 16))
    driver.spawn(None, instance, image, [], None, {}, power_on=False)
    assert driver.get_available_resource(node)["disk_available_least"] < 0
    driver.destroy(None, instance, [])


def test_inventory_is_what_the_host_has_less_what_is_reserved(place: Place, driver: LibvirtDriver) -> None:
    tree, node = tree_of(driver)
    tree.update_inventory(node, {"CUSTOM_THING": {"total": 7}})
    driver.update_provider_tree(tree, node)
    found, told = tree.data(node).inventory, driver.get_available_resource(node)
    assert {"CUSTOM_THING", "VCPU", "MEMORY_MB", "DISK_GB"} == found.keys()
    amounts = {name: (found[name]["total"], found[name]["reserved"]) for name in ("VCPU", "MEMORY_MB", "DISK_GB")}
    assert {"VCPU": (told["vcpus"], 1), "MEMORY_MB": (told["memory_mb"], 256), "DISK_GB": (told["local_gb"], 2)} == amounts
    assert [3.0, 1.25, 1.0] == [found[name]["allocation_ratio"] for name in ("VCPU", "MEMORY_MB", "DISK_GB")]
    assert all((1, one["total"], 1) == (one["min_unit"], one["max_unit"], one["step_size"]) for one in (found["VCPU"],))

    tree.update_inventory(node, found | {"MEMORY_MB": found["MEMORY_MB"] | {"allocation_ratio": 1.1}})
    driver.update_provider_tree(tree, node)  # an operator's ratio stays where none is configured
    assert 1.1 == tree.data(node).inventory["MEMORY_MB"]["allocation_ratio"]


def test_the_cache_s_share_of_the_disk_is_reserved_where_it_lies_on_it(place: Place, driver: LibvirtDriver) -> None:
    def reserved() -> int:
        tree, node = tree_of(driver)
        driver.update_provider_tree(tree, node)
        found: int = tree.data(node).inventory["DISK_GB"]["reserved"]
        return found

    assert 2 == reserved()
    driver.cache_image(None, place.image().id)
    assert 3 == reserved()
    command("mount", "-t", "tmpfs", "tmpfs", os.fspath(place.instances / "_base"))
    try:
        assert 2 == reserved()
    finally:
        command("umount", os.fspath(place.instances / "_base"))


def test_disks_of_shared_storage_are_its_own_provider_s(driver: LibvirtDriver) -> None:
    tree, node = tree_of(driver)
    tree.new_root("the-share", SHARING)
    tree.update_inventory(SHARING, {"DISK_GB": {"total": 1000}})
    tree.add_traits(SHARING, "MISC_SHARES_VIA_AGGREGATE")
    driver.update_provider_tree(tree, node)
    assert {"VCPU", "MEMORY_MB"} == tree.data(node).inventory.keys()
    assert {"DISK_GB": {"total": 1000}} == tree.data(SHARING).inventory
    with pytest.raises(ValueError, match="no provider"):
        driver.update_provider_tree(tree, "no-such-node")


def test_disks_that_instances_may_have_of_the_node_stay_its_own_and_it_gives_out_no_more(driver: LibvirtDriver) -> None:
    tree, node = tree_of(driver)
    driver.update_provider_tree(tree, node)
    before = tree.data(node).inventory["DISK_GB"]
    tree.new_root("the-share", SHARING)
    tree.update_inventory(SHARING, {"DISK_GB": {"total": 1000}})
    tree.add_traits(SHARING, "MISC_SHARES_VIA_AGGREGATE")
    for _ in range(2):
        driver.update_provider_tree(tree, node)
        assert before | {"reserved": before["total"]} == tree.data(node).inventory["DISK_GB"]
    tree.remove(SHARING)
    driver.update_provider_tree(tree, node)
    assert 2 == tree.data(node).inventory["DISK_GB"]["reserved"]


def test_traits_are_what_the_driver_can_and_those_of_others_stay(driver: LibvirtDriver) -> None:
    found = updated(driver, "CUSTOM_ONE", "COMPUTE_ACCELERATORS", "COMPUTE_IMAGE_TYPE_VDI", "HW_CPU_X86_AVX2", DISABLED)
    wanted = {"COMPUTE_NET_ATTACH_INTERFACE", "COMPUTE_IMAGE_TYPE_QCOW2", "COMPUTE_STORAGE_BUS_VIRTIO", "HW_ARCH_X86_64"}
    assert found >= {"CUSTOM_ONE", "COMPUTE_GRAPHICS_MODEL_VGA", *wanted}
    assert DISABLED in found  # the driver was never told, so that is somebody else's
    # It cannot do the first, the second is excluded, and emulated guests do not have the host's processor.
    assert not found & {"COMPUTE_ACCELERATORS", "COMPUTE_IMAGE_TYPE_VDI", "HW_CPU_X86_AVX2", "COMPUTE_STORAGE_BUS_FDC"}


def test_a_host_that_is_disabled_stays_so_over_restarts_and_its_guests_run_on(place: Place, driver: LibvirtDriver) -> None:
    image = place.image()
    instance = place.instance(image)
    driver.spawn(None, instance, image, [], None, {})
    assert DISABLED not in updated(driver)
    for _ in range(2):
        assert "disabled" == driver.set_host_enabled(False)
        assert DISABLED in updated(driver)
    again = place.driver(more=COMPUTE)
    try:
        assert DISABLED in updated(again)
        assert (True, states.RUNNING) == (again.instance_exists(instance), again.get_info(instance).state)
        assert "enabled" == again.set_host_enabled(True)
        assert DISABLED not in updated(again, DISABLED)
        assert DISABLED not in updated(driver, DISABLED)
    finally:
        again.cleanup_host("node1")
    driver.destroy(None, instance, [])
    assert [] == place.traces(instance)


def test_hosts_that_share_the_instances_are_disabled_each_by_itself(place: Place, driver: LibvirtDriver) -> None:
    other = LibvirtDriver(None, host=place.host())
    other.init_host("node2")
    try:
        other.set_host_enabled(False)
        assert (False, True) == (DISABLED in updated(driver), DISABLED in updated(other))
    finally:
        other.cleanup_host("node2")


def test_a_flag_that_says_nothing_is_told(place: Place, driver: LibvirtDriver) -> None:
    driver.set_host_enabled(False)
    [flag] = place.instances.glob(".underlay-enabled-*")
    flag.write_text("perhaps")
    with pytest.raises(OperationFailed, match="says neither of enabled and disabled"):
        updated(driver)
    flag.unlink()
    flag.mkdir()
    for ask in (lambda: updated(driver), lambda: driver.set_host_enabled(True)):
        with pytest.raises(OperationFailed):
            ask()


def test_the_host_s_times_are_the_kernel_s(driver: LibvirtDriver) -> None:
    def kernel() -> dict[str, int]:
        fields = [int(one) for one in Path("/proc/stat").read_text().split()[1:6]]  # user nice system idle iowait, in ticks
        tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        return {"user": (fields[0] + fields[1]) * tick, "idle": fields[3] * tick, "iowait": fields[4] * tick}

    before, told, after = kernel(), driver.get_host_cpu_stats(), kernel()
    assert all(before[key] <= told[key] <= after[key] for key in before if key != "iowait")  # which may go backwards
    assert told.keys() == {"kernel", "idle", "user", "iowait", "frequency"}
    assert told["frequency"] > 0


def test_the_address_is_the_configured_one(place: Place, driver: LibvirtDriver) -> None:
    assert driver.get_host_ip_addr()
    configured = place.driver(more='my_ip = "192.0.2.7"')
    try:
        assert "192.0.2.7" == configured.get_host_ip_addr()
    finally:
        configured.cleanup_host("node1")


def test_a_host_without_its_instances_path_says_so(place: Place, driver: LibvirtDriver) -> None:
    [node] = driver.get_available_nodes()
    place.instances.rename(place.root / "elsewhere")
    calls: list[Any] = [lambda: driver.get_available_resource(node), lambda: updated(driver)]
    for ask in calls:
        with pytest.raises(OperationFailed, match="instances"):
            ask()
