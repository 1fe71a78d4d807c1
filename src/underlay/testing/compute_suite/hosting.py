"""Cases about the host: its nodes, its resources, what it can do, and its images."""

import json
from copy import deepcopy
from typing import Any

from underlay.compute import ComputeDriver, ProviderTree
from underlay.compute.capabilities import IMAGE_TYPE
from underlay.testing.compute_suite.case import Case, case, expect, expect_equal, spawned
from underlay.testing.compute_suite.stage import Ability, Stage

_ROOT = "0b0c7a2e-4ad3-4a5b-9f0e-6d4a3a6f2c10"
_OTHERS_CHILD = "5c1d7a2e-4ad3-4a5b-9f0e-6d4a3a6f2c11"
_NUMBERS = ("vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "local_gb", "local_gb_used")
_NEEDED = (*_NUMBERS, "cpu_info", "numa_topology", "hypervisor_hostname")
_ABILITY_OF = {
    "has_imagecache": Ability.IMAGE_CACHE,
    "supports_attach_interface": Ability.INTERFACES,
    "supports_extend_volume": Ability.EXTEND_VOLUME,
}


@case()
def what_is_supported_is_said_by_a_mapping_of_its_own(stage: Stage) -> None:
    told = stage.driver.capabilities
    expect(told is not ComputeDriver.capabilities, "a driver has a mapping of its own")
    expect(not any(ComputeDriver.capabilities.values()), "the base class supports nothing still")
    expect(ComputeDriver.capabilities.keys() <= told.keys(), "every capability is spoken of")
    expect(all(value in (True, False) for value in told.values()), "each is true or false")
    expect(any(told[name] for name in told if name.startswith(IMAGE_TYPE)), "some type of image can be booted")


@case()
def what_is_supported_is_what_can_be_done(stage: Stage) -> None:
    for capability, ability in _ABILITY_OF.items():
        can = ability not in stage.cannot
        expect_equal(can, stage.driver.capabilities[capability], f"{capability}, given what the stage says")


@case()
def a_host_has_nodes_that_last(stage: Stage) -> None:
    driver = stage.driver
    nodes = driver.get_available_nodes()
    expect(nodes, "there is a node")
    expect_equal(sorted(nodes), sorted(driver.get_available_nodes(refresh=True)), "the nodes, asked anew")
    for node in nodes:
        expect(driver.node_is_available(node), "a node is available")
        expect(not driver.is_node_deleted(node), "a node is not deleted")
    expect(not driver.node_is_available("no-such-node.invalid"), "another node is not")
    by_uuid = driver.get_nodenames_by_uuid()
    expect_equal(sorted(nodes), sorted(by_uuid.values()), "the nodes by UUID")
    expect_equal(by_uuid, driver.get_nodenames_by_uuid(refresh=True), "the nodes' UUIDs, asked anew")


@case(Ability.RESOURCES)
def a_host_says_what_it_has_and_what_is_taken(stage: Stage) -> None:
    [node, *_] = stage.driver.get_available_nodes()
    before = stage.driver.get_available_resource(node)
    expect(before.keys() >= {*_NEEDED}, "every key that a service needs is there")
    expect(all(isinstance(before[key], int) and before[key] >= 0 for key in _NUMBERS), "amounts are integers from 0 on")
    cpu: dict[str, Any] = json.loads(before["cpu_info"])
    expect({"arch", "model", "vendor", "topology", "features"} <= cpu.keys(), "the CPU is described")
    expect(before["numa_topology"] is None or json.loads(before["numa_topology"]), "a NUMA topology is JSON or None")
    expect_equal(node, before["hypervisor_hostname"], "the node's name")
    with spawned(stage) as guest:
        after = stage.driver.get_available_resource(node)
        expect_equal(before["vcpus_used"] + guest.instance.flavor.vcpus, after["vcpus_used"], "CPUs that are taken")
        expect(after["memory_mb_used"] >= before["memory_mb_used"], "a guest takes memory")


@case(Ability.RESOURCES)
def the_provider_tree_has_the_host_s_inventory_and_what_others_put_there(stage: Stage) -> None:
    [node, *_] = stage.driver.get_available_nodes()
    tree = ProviderTree()
    tree.new_root(node, _ROOT, generation=3)
    tree.new_child("somebody-else-s", node, _OTHERS_CHILD)
    tree.update_inventory(_OTHERS_CHILD, {"CUSTOM_THING": {"total": 1}})
    tree.add_traits(node, "CUSTOM_TRAIT_OF_SOMEBODY")
    tree.add_aggregates(node, "an-aggregate")
    stage.driver.update_provider_tree(tree, node)
    found = tree.data(node)
    expect({"VCPU", "MEMORY_MB", "DISK_GB"} <= found.inventory.keys(), "there are CPUs, memory and disk")
    for name, one in found.inventory.items():
        expect(one["total"] > 0, f"of {name} there is something, or it is left out")
        expect(0 <= one.get("reserved", 0) <= one["total"], f"no more than all of {name} is reserved")
    expect("CUSTOM_TRAIT_OF_SOMEBODY" in found.traits, "others' traits stay")
    expect_equal({"an-aggregate"}, found.aggregates, "the aggregates")
    expect_equal({"CUSTOM_THING": {"total": 1}}, tree.data(_OTHERS_CHILD).inventory, "others' inventory")
    again = deepcopy(tree)
    stage.driver.update_provider_tree(again, node)
    expect(not tree.has_inventory_changed(node, again.data(node).inventory), "asked again, nothing changes")


@case(Ability.RESOURCES)
def a_host_tells_its_time_and_its_processors(stage: Stage) -> None:
    stats = stage.driver.get_host_cpu_stats()
    for key in ("kernel", "idle", "user", "iowait", "frequency"):
        expect(isinstance(stats[key], int) and stats[key] >= 0, f"{key} is an integer from 0 on")
    later = stage.driver.get_host_cpu_stats()
    # Linux may tell less idle time than before, as that of a processor is reckoned in two ways.
    expect(all(later[key] >= stats[key] for key in ("kernel", "user")), "times only grow")
    expect(stage.driver.get_host_uptime(), "the host tells how long it is up")
    expect(stage.driver.get_host_ip_addr(), "the host has an address")


@case(Ability.ENABLING)
def a_host_is_disabled_and_enabled_and_its_guests_run_on(stage: Stage) -> None:
    with spawned(stage) as guest:
        try:
            expect_equal("disabled", stage.driver.set_host_enabled(False), "what became of it")
            expect(stage.driver.instance_exists(guest.instance), "guests stay on a host that is disabled")
        finally:
            expect_equal("enabled", stage.driver.set_host_enabled(True), "what became of it")


@case(Ability.IMAGE_CACHE)
def an_image_is_fetched_once(stage: Stage) -> None:
    image = stage.image()
    stage.driver.cache_image(stage.context, image.id)
    expect_equal(False, stage.driver.cache_image(stage.context, image.id), "whether it was fetched again")


@case(Ability.IMAGE_CACHE)
def an_image_that_is_used_outlasts_the_cache_s_care(stage: Stage) -> None:
    with spawned(stage) as guest:
        stage.driver.manage_image_cache(stage.context, [guest.instance])
        expect_equal(False, stage.driver.cache_image(stage.context, guest.image.id), "whether it had to be fetched")


@case()
def what_a_driver_need_not_do_does_no_harm(stage: Stage) -> None:
    with spawned(stage, power_on=False) as guest:
        driver, instance = stage.driver, guest.instance
        driver.prepare_networks_before_block_device_mapping(instance, guest.network_info)
        driver.clean_networks_preparation(instance, guest.network_info)
        driver.reset_network(instance)
        driver.inject_network_info(instance, guest.network_info)
        driver.change_instance_metadata(stage.context, instance, {"key": ["+", "value"]})
        expect(driver.need_legacy_block_device_info in (True, False), "which shapes of block devices it takes is said")
        expect(driver.is_supported_fs_format("ext4") in (True, False), "whether a file system can be made is said")


CASES: tuple[Case, ...] = (
    what_is_supported_is_said_by_a_mapping_of_its_own,
    what_is_supported_is_what_can_be_done,
    a_host_has_nodes_that_last,
    a_host_says_what_it_has_and_what_is_taken,
    the_provider_tree_has_the_host_s_inventory_and_what_others_put_there,
    a_host_tells_its_time_and_its_processors,
    a_host_is_disabled_and_enabled_and_its_guests_run_on,
    an_image_is_fetched_once,
    an_image_that_is_used_outlasts_the_cache_s_care,
    what_a_driver_need_not_do_does_no_harm,
)
