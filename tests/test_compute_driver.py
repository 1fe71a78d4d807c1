"""The contract as its callers know it: every method with its arguments, what is left out, and what is there for all."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest

from underlay.compute import ComputeDriver
from underlay.compute.contract.livemigration import LiveMigration
from underlay.compute.driver import THEMES
from underlay.compute.metadata import InstanceDriverMetadata

# The signatures of the contract: methods of `ComputeDriver`, without self. A star begins what is by keyword only.
SIGNATURES = """
init_host(host)
cleanup_host(host)
process_instances_at_startup(context, instances)
get_info(instance, use_cache=True)
get_num_instances()
instance_exists(instance)
list_instances()
list_instance_uuids()
get_instance_driver_metadata(instance, network_info)
rebuild(context, instance, image_meta, injected_files, admin_password, allocations, bdms, detach_block_devices, \
attach_block_devices, network_info=None, evacuate=False, block_device_info=None, preserve_ephemeral=False, *, \
accel_uuids=None, reimage_boot_volume=False)
prepare_for_spawn(instance)
failed_spawn_cleanup(instance)
spawn(context, instance, image_meta, injected_files, admin_password, allocations, network_info=None, \
block_device_info=None, power_on=True, accel_info=None)
destroy(context, instance, network_info, block_device_info=None, destroy_disks=True, *, destroy_secrets=True)
cleanup(context, instance, network_info, block_device_info=None, destroy_disks=True, migrate_data=None, \
destroy_vifs=True, *, destroy_secrets=True)
reboot(context, instance, network_info, reboot_type, block_device_info=None, bad_volumes_callback=None, \
accel_info=None, *, share_info=None)
get_console_pool_info(console_type)
get_console_output(context, instance)
get_vnc_console(context, instance)
get_spice_console(context, instance)
get_rdp_console(context, instance)
get_serial_console(context, instance)
get_mks_console(context, instance)
get_diagnostics(instance)
get_instance_diagnostics(instance)
get_all_bw_counters(instances)
get_all_volume_usage(context, compute_host_bdms)
get_host_ip_addr()
attach_volume(context, connection_info, instance, mountpoint, disk_bus=None, device_type=None, encryption=None)
detach_volume(context, connection_info, instance, mountpoint, encryption=None)
swap_volume(context, old_connection_info, new_connection_info, instance, mountpoint, resize_to)
extend_volume(context, connection_info, instance, requested_size)
prepare_networks_before_block_device_mapping(instance, network_info)
clean_networks_preparation(instance, network_info)
attach_interface(context, instance, image_meta, vif)
detach_interface(context, instance, vif)
migrate_disk_and_power_off(context, instance, dest, flavor, network_info, block_device_info=None, timeout=0, \
retry_interval=0)
snapshot(context, instance, image_id, update_task_state)
post_interrupted_snapshot_cleanup(context, instance)
finish_migration(context, migration, instance, disk_info, network_info, image_meta, resize_instance, \
block_device_info=None, power_on=True, *, allocations=None)
confirm_migration(context, migration, instance, network_info)
finish_revert_migration(context, instance, network_info, migration, block_device_info=None, power_on=True, *, \
share_info=None)
pause(instance)
unpause(instance)
suspend(context, instance)
resume(context, instance, network_info, block_device_info=None, *, share_info=None)
resume_state_on_host_boot(context, instance, network_info, block_device_info=None, *, share_info=None)
rescue(context, instance, network_info, image_meta, rescue_password, block_device_info, *, share_info=None)
set_bootable(instance, is_bootable)
unrescue(instance, network_info)
power_off(instance, timeout=0, retry_interval=0)
power_on(context, instance, network_info, block_device_info=None, accel_info=None, *, share_info=None)
power_update_event(instance, target_power_state)
trigger_crash_dump(instance)
soft_delete(instance)
restore(instance)
_get_reserved_host_disk_gb_from_config()
_get_allocation_ratios(inventory)
update_provider_tree(provider_tree, nodename, allocations=None)
capabilities_as_traits()
get_available_resource(nodename)
pre_live_migration(context, instance, block_device_info, network_info, disk_info, migrate_data)
live_migration(context, instance, dest, post_method, recover_method, block_migration=False, migrate_data=None)
live_migration_force_complete(instance)
live_migration_abort(instance)
rollback_live_migration_at_source(context, instance, migrate_data)
rollback_live_migration_at_destination(context, instance, network_info, block_device_info, destroy_disks=True, \
migrate_data=None)
post_live_migration(context, instance, block_device_info, migrate_data=None)
post_live_migration_at_source(context, instance, network_info)
post_live_migration_at_destination(context, instance, network_info, block_migration=False, block_device_info=None)
check_instance_shared_storage_local(context, instance)
check_instance_shared_storage_remote(context, data)
check_instance_shared_storage_cleanup(context, data)
check_can_live_migrate_destination(context, instance, src_compute_info, dst_compute_info, block_migration=False, \
disk_over_commit=False)
check_source_migrate_data_at_dest(ctxt, instance, migrate_data, migration, limits, allocs)
post_claim_migrate_data(context, instance, migrate_data, claim)
cleanup_live_migration_destination_check(context, dest_check_data)
check_can_live_migrate_source(context, instance, dest_check_data, block_device_info=None)
get_instance_disk_info(instance, block_device_info=None)
reset_network(instance)
set_admin_password(instance, new_pass)
inject_file(instance, b64_path, b64_contents)
change_instance_metadata(context, instance, diff)
inject_network_info(instance, nw_info)
poll_rebooting_instances(timeout, instances)
host_power_action(action)
host_maintenance_mode(host, mode)
set_host_enabled(enabled)
get_host_uptime()
plug_vifs(instance, network_info)
unplug_vifs(instance, network_info)
get_host_cpu_stats()
block_stats(instance, disk_id)
manage_image_cache(context, all_instances)
cache_image(context, image_id)
add_to_aggregate(context, aggregate, host, **kwargs)
remove_from_aggregate(context, aggregate, host, **kwargs)
undo_aggregate_operation(context, op, aggregate, host, set_error=True)
get_volume_connector(instance)
get_available_nodes(refresh=False)
get_nodenames_by_uuid(refresh=False)
node_is_available(nodename)
is_node_deleted(nodename)
get_per_instance_usage()
instance_on_disk(instance)
register_event_listener(callback)
emit_event(event)
delete_instance_files(instance)
cleanup_lingering_instance_resources(instance)
volume_snapshot_create(context, instance, volume_id, create_info)
volume_snapshot_delete(context, instance, volume_id, snapshot_id, delete_info)
default_root_device_name(instance, image_meta, root_bdm)
default_device_names_for_instance(instance, root_device_name, *block_device_lists)
get_device_name_for_instance(instance, bdms, block_device_obj)
is_supported_fs_format(fs_type)
quiesce(context, instance, image_meta)
unquiesce(context, instance, image_meta)
mount_share(context, instance, share_mapping)
umount_share(context, instance, share_mapping)
is_share_mounted(share_mapping)
network_binding_host_id(context, instance)
manages_network_binding_host_id()
"""
NOTHING = """
cleanup_host prepare_for_spawn failed_spawn_cleanup prepare_networks_before_block_device_mapping clean_networks_preparation
post_interrupted_snapshot_cleanup rollback_live_migration_at_source post_live_migration check_instance_shared_storage_cleanup
reset_network change_instance_metadata inject_network_info manage_image_cache
"""
VALUES: dict[str, Any] = {
    "get_per_instance_usage": {},
    "instance_on_disk": False,
    "delete_instance_files": True,
    "cleanup_lingering_instance_resources": True,
    "is_supported_fs_format": False,
    "manages_network_binding_host_id": False,
    "is_node_deleted": False,
}
COMPUTED = """
process_instances_at_startup get_num_instances instance_exists get_instance_driver_metadata
_get_reserved_host_disk_gb_from_config _get_allocation_ratios capabilities_as_traits check_source_migrate_data_at_dest
post_claim_migrate_data get_nodenames_by_uuid node_is_available register_event_listener emit_event network_binding_host_id
"""
INSTANCE = SimpleNamespace(uuid="6ddd9f0a-f4b3-4b33-a9d9-1cbd84dc1b14", name="instance-00000001")


class Few(ComputeDriver):
    """Has one instance, and remembers how it was asked for its nodes."""

    def __init__(self, virtapi: Any) -> None:
        super().__init__(virtapi)
        self.asked: list[bool] = []

    def list_instances(self) -> list[str]:
        return [INSTANCE.name]

    def get_available_nodes(self, refresh: bool = False) -> list[str]:  # noqa: FBT001, FBT002
        self.asked.append(refresh)
        return ["node1", "late"] if refresh else ["node1"]


def signatures() -> dict[str, str]:
    return {line.partition("(")[0]: line for line in SIGNATURES.strip().splitlines()}


def method_names() -> set[str]:
    every = inspect.getmembers_static(ComputeDriver)
    return {
        name
        for name, one in every
        if (inspect.isfunction(one) or isinstance(one, staticmethod | classmethod))
        and (not name.startswith("_") or name in signatures())
    }


def shown(name: str) -> str:
    """The signature as it is written above."""
    parameters = inspect.signature(getattr(ComputeDriver, name)).parameters.values()
    bare = [one.replace(annotation=inspect.Parameter.empty) for one in parameters if one.name != "self"]
    return f"{name}{inspect.Signature(bare)}"


def called(driver: ComputeDriver, name: str) -> Any:
    """What a method answers when each argument that it needs is an instance."""
    needed = [
        one
        for one in inspect.signature(getattr(driver, name)).parameters.values()
        if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    return getattr(driver, name)(*[INSTANCE for _ in needed])


def test_the_methods_are_those_of_the_contract_with_its_signatures() -> None:
    assert 122 == len(signatures())
    assert signatures().keys() == method_names()
    assert {name: shown(name) for name in signatures()} == signatures()


@pytest.mark.parametrize("name", sorted(signatures()))
def test_each_method_is_documented(name: str) -> None:
    sentence = " ".join((inspect.getdoc(getattr(ComputeDriver, name)) or "").partition("\n\n")[0].split())
    assert sentence.endswith(".")
    assert len(sentence.split()) > 3


def test_every_method_belongs_to_one_theme() -> None:
    homes = {name: [theme for theme in THEMES if name in vars(theme)] for name in signatures()}
    assert {"capabilities_as_traits": []} == {name: found for name, found in homes.items() if len(found) != 1}


@pytest.mark.parametrize("name", NOTHING.split())
def test_what_a_driver_need_not_do_does_nothing(name: str) -> None:
    assert called(ComputeDriver(None), name) is None


@pytest.mark.parametrize("name", VALUES)
def test_what_a_driver_need_not_say_has_an_answer(name: str) -> None:
    assert VALUES[name] == called(ComputeDriver(None), name)


@pytest.mark.parametrize("name", sorted(signatures().keys() - {*NOTHING.split(), *VALUES, *COMPUTED.split()}))
def test_everything_else_is_not_implemented(name: str) -> None:
    with pytest.raises(NotImplementedError) as caught:
        called(ComputeDriver(None), name)
    assert (name == "post_live_migration_at_source") == bool(str(caught.value))


def test_a_driver_keeps_the_virtapi_and_has_no_listener() -> None:
    virtapi = object()
    driver = ComputeDriver(virtapi)
    assert driver.virtapi is virtapi
    assert driver._compute_event_callback is None


def test_block_devices_come_in_the_older_shapes_unless_a_driver_says_otherwise() -> None:
    assert ComputeDriver(None).need_legacy_block_device_info is True


def test_data_about_a_migration_is_handed_on_as_it_is() -> None:
    data = object()
    driver = ComputeDriver(None)
    assert driver.post_claim_migrate_data(None, INSTANCE, data, None) is data
    assert driver.check_source_migrate_data_at_dest(None, INSTANCE, data, None, None, None) is data
    assert [INSTANCE] == driver.process_instances_at_startup(None, [INSTANCE])


def test_instances_are_counted_and_found_by_name_where_uuids_are_not_listed() -> None:
    driver = Few(None)
    assert 1 == driver.get_num_instances()
    assert driver.instance_exists(INSTANCE)
    assert not driver.instance_exists(SimpleNamespace(uuid="other", name="other"))


def test_an_instance_is_found_by_its_uuid_and_not_by_its_name_where_uuids_are_listed() -> None:
    class Listing(Few):
        """Lists UUIDs as well."""

        def list_instance_uuids(self) -> list[str]:
            return [str(INSTANCE.uuid)]

    assert Listing(None).instance_exists(SimpleNamespace(uuid=INSTANCE.uuid, name="renamed"))
    assert not Listing(None).instance_exists(SimpleNamespace(uuid="other", name=INSTANCE.name))


@pytest.mark.parametrize(
    ("node", "available", "asked"), [("node1", True, [False]), ("late", True, [False, True]), ("none", False, [False, True])]
)
def test_a_node_that_is_not_known_is_asked_for_once_more(node: str, available: bool, asked: list[bool]) -> None:  # noqa: FBT001
    driver = Few(None)
    assert available is driver.node_is_available(node)
    assert asked == driver.asked


def test_a_node_has_one_uuid() -> None:
    first, second = Few(None).get_nodenames_by_uuid(), Few(None).get_nodenames_by_uuid(refresh=True)
    assert first == second
    assert ["node1"] == list(first.values())
    assert 36 == len(next(iter(first)))


def test_the_host_of_a_port_is_the_instance_s() -> None:
    assert "node7" == ComputeDriver(None).network_binding_host_id(None, {"host": "node7"})
    assert ComputeDriver(None).network_binding_host_id(None, {}) is None


def test_a_newer_caller_of_unrescue_is_told_rather_than_misunderstood() -> None:
    with pytest.raises(TypeError, match="has no uuid"):
        ComputeDriver(None).unrescue(object(), INSTANCE)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["power_on", "resume", "rescue", "resume_state_on_host_boot", "finish_migration"])
def test_one_argument_more_by_position_is_a_wrong_call(name: str) -> None:
    method = getattr(ComputeDriver(None), name)
    positional = [one for one in inspect.signature(method).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    with pytest.raises(TypeError, match="positional arguments"):
        method(*[None for _ in positional], None)


def test_what_is_supported_is_nothing_and_belongs_to_the_class() -> None:
    assert not any(ComputeDriver.capabilities.values())
    assert ComputeDriver(None).capabilities is ComputeDriver.capabilities
    assert ComputeDriver.rebalances_nodes is False


def test_the_themes_know_nothing_of_each_other() -> None:
    assert all(theme.__bases__ == (object,) for theme in THEMES)
    assert LiveMigration in THEMES


def test_what_may_be_written_down_of_an_instance() -> None:
    image = SimpleNamespace(
        container_format="bare", disk_format="qcow2", min_disk=1, min_ram=64, properties={"os_distro": "debian"}
    )
    flavor = {"name": "small", "flavorid": "1", "memory_mb": 512, "vcpus": 1, "root_gb": 2, "ephemeral_gb": 0, "swap": 0}
    instance = SimpleNamespace(
        uuid=INSTANCE.uuid,
        display_name="",
        system_metadata={"image_name": "debian", "image_base_image_ref": "first", "owner_user_name": "ada"},
        user_id="u",
        project_id="p",
        image_ref="now",
        image_meta=image,
        flavor=SimpleNamespace(**flavor, extra_specs={}),
    )
    found = ComputeDriver.get_instance_driver_metadata(instance, [])
    assert isinstance(found, InstanceDriverMetadata)
    assert ("image", "first", INSTANCE.uuid) == (found.root_type, found.root_id, found.instance_meta.name)
    assert ("ada", "N/A", "now", "debian") == (found.owner.username, found.owner.projectname, found.image.id, found.image.name)
    assert ("bare", {"os_distro": "debian"}, 512) == (
        found.image.container_format,
        found.image.properties,
        found.flavor.memory_mb,
    )
