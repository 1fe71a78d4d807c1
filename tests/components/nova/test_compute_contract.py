"""Our compute contract beside the real Nova's: signatures by our policy, defaults, errors, block devices and provider trees."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from nova_environment import compute_contract

from underlay import compute
from underlay.compute import (
    ComputeDriver,
    InstanceInfo,
    ProviderTree,
    consoles,
    diagnostics,
    errors,
    events,
    livemigration as migrations,
    states,
)
from underlay.compute.capabilities import TRAITS
from underlay.compute.options import allocation_ratios

pytestmark = pytest.mark.component("nova")

DIAGNOSTICS = ["CpuDiagnostics", "NicDiagnostics", "DiskDiagnostics", "MemoryDiagnostics", "Diagnostics"]
MIGRATIONS = ["VIFMigrateData", "LibvirtLiveMigrateBDMInfo", "LiveMigrateData", "LibvirtLiveMigrateData"]
# What Nova has added to its methods of 2020, which ours take by keyword only.
LATER = {"accel_uuids", "reimage_boot_volume", "destroy_secrets", "share_info"}
# Here Nova put what it added before what was there, or took something away: a call by position would mean something else.
OTHERWISE = {"finish_migration", "unrescue"}
REMOVED = """
get_console_pool_info get_rdp_console get_all_bw_counters post_interrupted_snapshot_cleanup set_bootable reset_network
inject_file change_instance_metadata add_to_aggregate remove_from_aggregate undo_aggregate_operation get_per_instance_usage
"""
# Names that Nova's data has and nobody reads any more, or that its versioned objects have for themselves.
UNUSED_DATA = {
    "connection_info_json",
    "vif_details_json",
    "profile_json",
    "src_supports_native_luks",
    "file_backed_memory_discard",
    "src_supports_numa_live_migration",
    "dst_supports_numa_live_migration",
    "dst_numa_info",
    "dst_supports_mdev_live_migration",
    "source_mdev_types",
    "target_mdevs",
    "dst_cpu_shared_set_info",
    "vtpm_secret_uuid",
    "vtpm_secret_value",
}


@pytest.fixture(scope="module")
def nova() -> Iterator[Any]:
    """A process with Nova in it."""
    with compute_contract() as one:
        yield one


@pytest.fixture(scope="module")
def contract(nova: Any) -> Any:
    """What Nova's contract fixes."""
    return nova.ask(do="contract", diagnostics=DIAGNOSTICS, migrations=MIGRATIONS)


def parameters(function: Any) -> list[list[Any]]:
    found = inspect.signature(function).parameters.values()
    return [[one.name, one.kind.name, None if one.default is one.empty else repr(one.default)] for one in found]


# -------------------------------------------------------------------------------------------------------------- signatures


def test_no_method_of_nova_s_is_missing_and_none_is_there_that_nova_never_had(contract: Any) -> None:
    every = {name for name, one in inspect.getmembers(ComputeDriver, callable) if not name.startswith("__")}
    assert set() == contract["signatures"].keys() - every
    assert set(REMOVED.split()) == every - contract["signatures"].keys()
    assert 110 == len(contract["signatures"])


def test_every_method_takes_what_nova_s_takes_by_the_policy(contract: Any) -> None:
    for name, theirs in contract["signatures"].items():
        our = parameters(getattr(ComputeDriver, name))
        if name in OTHERWISE:
            continue
        assert [one for one in theirs if one[0] not in LATER] == [one for one in our if one[1] != "KEYWORD_ONLY"], name
        added = {one[0] for one in theirs} & LATER
        assert added == {one[0] for one in our if one[1] == "KEYWORD_ONLY"}, name
        for later in (one for one in our if one[1] == "KEYWORD_ONLY"):
            [default] = [one[2] for one in theirs if one[0] == later[0]]
            assert later[2] == default or default is None, f"{name}: {later[0]}"  # one that Nova needs, ours can do without


def test_where_nova_moved_arguments_ours_stay(contract: Any) -> None:
    finish = [one[0] for one in contract["signatures"]["finish_migration"]]
    assert "allocations" == finish[8]
    our = parameters(ComputeDriver.finish_migration)
    assert ["block_device_info", "allocations"] == [our[8][0], our[-1][0]]
    assert ["self", "context", "instance"] == [one[0] for one in contract["signatures"]["unrescue"]]
    assert ["self", "instance", "network_info"] == [one[0] for one in parameters(ComputeDriver.unrescue)]


def test_every_function_of_nova_s_is_there_with_its_signature(contract: Any) -> None:
    assert len(contract["functions"]) >= 10
    for name, theirs in contract["functions"].items():
        home = compute if hasattr(compute, name) else __import__("underlay.compute.options", fromlist=[name])
        assert theirs == parameters(getattr(home, name)), name


# ---------------------------------------------------------------------------------------------------- names, numbers, values


def test_capabilities_and_their_traits_are_nova_s(contract: Any) -> None:
    assert contract["capabilities"] == ComputeDriver.capabilities
    assert {name: trait for name, trait in contract["traits"].items() if name in contract["capabilities"]} == TRAITS


def test_power_states_and_transitions_are_nova_s(contract: Any) -> None:
    assert contract["power_states"] == {str(number): name for number, name in states.STATE_MAP.items()}
    assert contract["transitions"] == {str(number): name for number, name in events.NAMES.items()}


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostics_have_nova_s_fields(contract: Any, name: str) -> None:
    assert contract["diagnostics"][name] == sorted(field.name for field in fields(getattr(diagnostics, name)))


@pytest.mark.parametrize("name", MIGRATIONS)
def test_data_about_migrations_has_the_fields_that_are_read(contract: Any, name: str) -> None:
    theirs = set(contract["migrations"][name]) - UNUSED_DATA
    # Nova writes three of them as JSON text; ours hold what that says.
    decoded = {"connection_info", "vif_details", "profile"}
    assert theirs == {field.name for field in fields(getattr(migrations, name))} - decoded


def test_consoles_and_states_behave_as_nova_s(nova: Any) -> None:
    theirs = nova.ask(do="values")
    assert theirs["console"] == consoles.ConsoleVNC("host", 5900, "/path").get_connection_info("token", "url")
    assert theirs["spice"] == consoles.ConsoleSpice("host", 5900, 5901).get_connection_info("token", "url")
    one = InstanceInfo(1)
    assert theirs["equal"] == [one == InstanceInfo(1), InstanceInfo(1, "a") == one, one == 1]


def test_errors_are_made_from_nova_s_keywords(nova: Any) -> None:
    every = [one for one in vars(errors).values() if inspect.isclass(one) and issubclass(one, errors.ComputeError)]
    ours_alone = {"ComputeError", "NotFound", "NotSupported", "AgentMissing", "OperationFailed"}
    named = {one.__name__: one for one in every if one.__name__ not in ours_alone}
    numbers = {"maximum", "flavor_size", "image_size"}  # which their sentences want
    asked = {name: {word: 26 if word in numbers else f"<{word}>" for word in one.keywords()} for name, one in named.items()}
    found = nova.ask(do="errors", errors=asked)["errors"]
    for name, keywords in asked.items():
        for value in keywords.values():
            assert str(value) in found[name]["text"], f"{name}: {found[name]['text']}"
        assert "%(" not in found[name]["text"], name
        assert "NovaException" in found[name]["bases"], name
        for base in ("Invalid", "NotFound"):  # by which callers catch many at once
            assert (base in found[name]["bases"]) == issubclass(named[name], getattr(errors, base)), f"{name}: {base}"
    assert errors.NovaException is errors.ComputeError
    statuses = {name: (found[name]["code"], one.http_status) for name, one in named.items()}
    assert {} == {name: both for name, both in statuses.items() if both[0] != both[1]}


# ---------------------------------------------------------------------------------------------------- data of a migration

FIELDS = {
    "is_volume_backed": False,
    "old_vol_attachment_ids": {"v1": "a1"},
    "wait_for_vif_plugged": True,
    "pci_dev_map_src_dst": {"0000:01:00.0": "0000:02:00.0"},
    "filename": "probe",
    "image_type": "qcow2",
    "block_migration": True,
    "disk_over_commit": False,
    "disk_available_mb": 100,
    "is_shared_instance_path": False,
    "is_shared_block_storage": False,
    "instance_relative_path": "u",
    "graphics_listen_addr_vnc": "192.0.2.1",
    "graphics_listen_addr_spice": "2001:db8::1",
    "serial_listen_addr": "192.0.2.2",
    "serial_listen_ports": [10001],
    "target_connect_addr": "192.0.2.3",
    "supported_perf_events": ["cpu"],
    "dst_wants_file_backed_memory": False,
}
CONNECTION = {"driver_volume_type": "local", "serial": "v1", "data": {"device_path": "/b/v1"}}
BDM = {
    "serial": "v1",
    "bus": "virtio",
    "dev": "vdb",
    "type": "disk",
    "format": "raw",
    "boot_index": 1,
    "connection_info": CONNECTION,
    "encryption_secret_uuid": "70a599e0-31e7-49b7-b260-000000000003",
}
VIF = {
    "port_id": "p1",
    "vnic_type": "direct",
    "vif_type": "bridge",
    "vif_details": {"bridge_name": "br9"},
    "profile": {"a": 1},
    "host": "node2",
    "source_vif": {"id": "p1"},
}


def test_every_field_of_nova_s_data_about_a_migration_is_read(nova: Any) -> None:
    migration = "70a599e0-31e7-49b7-b260-000000000004"
    told = nova.ask(do="read", fields=FIELDS, bdms=[BDM], vifs=[VIF], migration=migration)
    every = {field.name for field in fields(migrations.LibvirtLiveMigrateData)} - {"migration", "bdms", "vifs"}
    assert every == FIELDS.keys()
    assert FIELDS == {name: told["read"][name] for name in every}
    assert ([BDM], migration) == (told["read"]["bdms"], told["migration"])
    [vif] = told["read"]["vifs"]
    assert VIF["source_vif"] == {"id": vif.pop("source_vif")["id"]}
    assert {name: value for name, value in VIF.items() if name != "source_vif"} == vif


def test_a_field_that_nobody_has_set_is_none_and_is_never_asked_for(nova: Any) -> None:
    told = nova.ask(do="read", fields={}, bdms=[{}], vifs=[{}])["read"]
    [bdm], [vif] = told.pop("bdms"), told.pop("vifs")
    assert {None} == {*bdm.values()}
    assert {None, "normal"} == {*vif.values()}
    assert {None} == {value for value in told.values() if value not in ([], {}, ())}
    assert (None, None) == tuple(nova.ask(do="read", fields={})["read"][name] for name in ("bdms", "vifs"))


def test_what_our_driver_says_travels_in_nova_s_object(nova: Any) -> None:
    volume = {"device": "vdb", "bus": "virtio", "id": "v1", "kind": "local", "source": "/a/v1", "format": "raw", "size": 512}
    there = {"type": "file", "source": "/b/v1", "format": "raw"}
    said = {
        **{name: value for name, value in FIELDS.items() if name not in ("old_vol_attachment_ids", "pci_dev_map_src_dst")},
        "bdms": [BDM],
        "host": "node2",
        "libvirt": "l2",
        "directory": "/a/u",
        "directory_there": "/b/u",
        "volumes": [{**volume, "there": there}],
        "local_disks": [
            {"name": "disk", "path": "/a/u/disk", "format": "qcow2", "size": 1, "allocated": 1, "there": "/b/u/disk"}
        ],
        "shared_disks": {"disk.swap": "vms/u_disk.swap"},
        "interfaces": [{"address": "52:54:00:00:00:01", "device": "tap9"}],
        "config_drive": "AAAA",
    }
    domain = (
        "<domain><devices><disk type='block'><driver name='qemu' type='raw' cache='none'/><source dev='/dev/v1'/>"
        "<target dev='vdb'/></disk></devices></domain>"
    )
    told = nova.ask(do="carry", fields={}, said=said, xml=domain, vifs=[VIF])
    assert [True, True, True] == told["same"]
    assert (["v1", "underlay"], [CONNECTION]) == (told["serials"], told["connections"])
    assert {*FIELDS, "bdms", "vifs"} - {"old_vol_attachment_ids", "pci_dev_map_src_dst"} == {*told["set"]}
    assert '<source file="/b/v1" />' in told["xml"]
    assert "cache" not in told["xml"]
    assert not told["leaves"]


def test_nova_s_object_that_says_too_little_is_refused(nova: Any) -> None:
    row = {"serial": "underlay", "type": "underlay"}
    for bdms in ([], [{**row, "connection_info": {"disks": 1}}]):
        told = nova.ask(do="refuse", fields=FIELDS, bdms=bdms)["said"]
        assert ["does not say" in one for one in told] == [True, True]
    for wrong in ({"host": 1}, {"host": "node2", "volumes": [{}]}):
        told = nova.ask(do="refuse", fields=FIELDS, bdms=[{**row, "connection_info": wrong}])["said"]
        assert ["makes no sense" in one for one in told] == [True, True]
    shared = {"host": "node2", "directory": "/a/u"}
    fields_of_both = {**FIELDS, "is_shared_instance_path": True}
    told = nova.ask(do="refuse", fields=fields_of_both, bdms=[{**row, "connection_info": shared}])["said"]
    assert "onto themselves" in told[1]


# ------------------------------------------------------------------------------------------------------------------ defaults


def test_what_a_driver_need_not_do_is_what_nova_s_does_not_do(nova: Any, contract: Any) -> None:
    without = {"emit_event", "register_event_listener", "get_instance_driver_metadata", "get_nodenames_by_uuid", "unrescue"}
    without |= {"_get_allocation_ratios", "network_binding_host_id", "capabilities_as_traits"}
    calls = {
        name: [
            one[0] for one in theirs if one[0] not in ("self", "cls") and one[2] is None and one[1] == "POSITIONAL_OR_KEYWORD"
        ]
        for name, theirs in contract["signatures"].items()
        if name not in without and name not in ("get_num_instances", "instance_exists", "node_is_available")
    }
    theirs = nova.ask(do="defaults", calls=calls)
    for name, arguments in calls.items():
        assert theirs["answers"][name] == _answer(name, arguments), name
    assert len(calls) > 90
    traits = ComputeDriver(None).capabilities_as_traits()
    assert theirs["traits"] == traits


def _answer(name: str, arguments: list[str]) -> str:
    """What ours answers when each argument is its own name."""
    method = getattr(ComputeDriver(None), name)
    needed = [one for one in arguments if one in inspect.signature(method).parameters]
    positional = [one for one in needed if inspect.signature(method).parameters[one].kind.name == "POSITIONAL_OR_KEYWORD"]
    try:
        return repr(method(*positional))
    except NotImplementedError:
        return "NotImplementedError"


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "cpu_allocation_ratio": st.sampled_from([0.0, 1.5, 16.0]),
        "ram_allocation_ratio": st.sampled_from([0.0, 1.5]),
        "disk_allocation_ratio": st.sampled_from([0.0, 2.0]),
        "initial_cpu_allocation_ratio": st.sampled_from([1.0, 8.0]),
        "initial_disk_allocation_ratio": st.sampled_from([1.0, 8.0]),
        "reserved_host_disk_mb": st.integers(0, 1 << 14),
    },
)
INVENTORY = st.dictionaries(
    st.sampled_from(["VCPU", "MEMORY_MB", "DISK_GB", "CUSTOM_THING"]),
    st.fixed_dictionaries({"allocation_ratio": st.sampled_from([1.0, 3.5])}),
)


@settings(deadline=None, max_examples=60)
@given(options=OPTIONS, inventory=INVENTORY)
def test_options_mean_what_they_mean_to_nova(
    nova: Any, tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any], inventory: dict[str, Any]
) -> None:
    theirs = nova.ask(do="options", options=options, inventory=inventory)
    file = tmp_path_factory.getbasetemp() / "compute.toml"
    lines = [f"{name} = {value}" for name, value in options.items()]
    file.write_text("\n".join(['[caches.base]\nkind = "base"\npath = "/nowhere/base"\n[compute]', *lines]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNDERLAY_CONFIG", str(file))
        assert theirs["ratios"] == allocation_ratios(inventory)
        assert theirs["reserved"] == ComputeDriver._get_reserved_host_disk_gb_from_config()


# ------------------------------------------------------------------------------------------------------------- block devices

NAMES = st.sampled_from([None, "", "/dev/vda", "/dev/vdb", "/dev/sdc"])
ROW = st.fixed_dictionaries(
    {
        "source_type": st.sampled_from(["blank", "image", "snapshot", "volume"]),
        "destination_type": st.sampled_from(["local", "volume", None]),
        "guest_format": st.sampled_from([None, "swap", "ext4", ""]),
        "device_name": NAMES,
        "no_device": st.booleans(),
        "volume_size": st.sampled_from([None, 0, 1, 512]),
        "disk_bus": st.sampled_from([None, "virtio", "ide"]),
        "device_type": st.sampled_from([None, "disk", "cdrom"]),
        "boot_index": st.sampled_from([None, -1, 0, 1]),
        "delete_on_termination": st.booleans(),
        "image_id": st.sampled_from([None, "70a599e0-31e7-49b7-b260-000000000001"]),
        "connection_info": st.sampled_from([None, "{}", json.dumps({"serial": "v1", "data": {"access_mode": "rw"}})]),
        "attachment_id": st.sampled_from([None, "70a599e0-31e7-49b7-b260-000000000002"]),
        "encrypted": st.booleans(),
        "encryption_secret_uuid": st.sampled_from([None, "70a599e0-31e7-49b7-b260-000000000003"]),
        "encryption_format": st.sampled_from([None, "luks", "plain"]),
        "encryption_options": st.sampled_from([None, "{}"]),
    },
    optional={"volume_type": st.sampled_from([None, "fast"])},
)


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(ROW, max_size=6), root=NAMES)
def test_block_devices_are_converted_as_nova_converts_them(nova: Any, rows: list[dict[str, Any]], root: str | None) -> None:
    answer = nova.ask(do="convert", rows=rows, root_device_name=root)
    assert answer["nova"] == answer["ours"]
    # And from plain mappings the same as from Nova's objects.
    info = compute.get_block_device_info(SimpleNamespace(root_device_name=root), rows)
    assert answer["nova"]["info"] == info
    assert answer["nova"]["convert_all_volumes"] == compute.convert_all_volumes(*rows)
    assert answer["nova"]["encrypted_disks"] == compute.block_device_info_get_encrypted_disks(info)


# ------------------------------------------------------------------------------------------------------------ tagged devices

MAC = "52:54:00:00:00:01"
VOLUME = "70a599e0-31e7-49b7-b260-000000000005"
PLACE = "<address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
TAGGED_DOMAIN = f"""<domain><devices>
<disk><target dev='vda' bus='virtio'/>{PLACE}</disk>
<disk><target dev='sda' bus='scsi'/><serial>{VOLUME}</serial>
<address type='drive' controller='0' bus='0' target='1' unit='10'/></disk>
<disk><target dev='sdb' bus='sata'/><serial>s1</serial><address type='drive' controller='0' bus='0' target='0' unit='1'/></disk>
<disk><target dev='sdc' bus='usb'/><serial>u1</serial><address type='usb' bus='0' port='1.2'/></disk>
<disk><target dev='hda' bus='ide'/><serial>i1</serial><address type='drive' controller='0' bus='1' target='0' unit='1'/></disk>
<interface><mac address='{MAC}'/>{PLACE}</interface>
</devices></domain>"""


def test_tagged_devices_of_nova_s_instances_are_written_down_in_nova_s_own_records(nova: Any) -> None:
    rows = [
        {"volume_id": None, "device_name": "/dev/vda", "tag": "root"},
        *({"volume_id": one, "device_name": None, "tag": f"tag of {one}"} for one in (VOLUME, "s1", "u1", "i1")),
        {"volume_id": "v2", "device_name": "/dev/vdz", "tag": None},
    ]
    vif = {"id": "70a599e0-31e7-49b7-b260-000000000006", "address": MAC, "details": {"vlan": 7}, "profile": {"trusted": "true"}}
    asked = {"uuid": "70a599e0-31e7-49b7-b260-000000000007", "xml": TAGGED_DOMAIN, "rows": rows}
    answer = nova.ask(do="tag", vifs=[{**vif, "tag": "front"}], **asked)
    assert answer["again"] is True  # from its own records and what Nova keeps the same is written down again
    [root, scsi, sata, usb, ide, nic] = answer["nova"]
    assert {"type": "disk", "path": "/dev/vda", "bus": "pci", "address": "0000:01:00.0", "tags": ["root"]} == root
    assert ("scsi", "0:0:1:a", VOLUME) == (scsi["bus"], scsi["address"], scsi["serial"])
    assert ("none", "none") == (sata["bus"], sata["address"])
    assert ("usb", "none") == (usb["bus"], usb["address"])
    assert ("ide", "1:1") == (ide["bus"], ide["address"])
    place = {"bus": "pci", "address": "0000:01:00.0"}
    assert {"type": "nic", "mac": MAC, "tags": ["front"], "vlan": 7, "vf_trusted": True, **place} == nic
    assert answer["nova"] == answer["ours"]
    assert {"nova": None, "ours": None, "again": None} == nova.ask(do="tag", vifs=[], **{**asked, "rows": []})


# ------------------------------------------------------------------------------------------------------------ provider trees

PROVIDER = st.sampled_from(["a", "b", "c", "d"])
NAMED = st.one_of(PROVIDER, PROVIDER.map(lambda name: f"u-{name}"))
WORDS = st.lists(st.sampled_from(["X", "Y", "MISC_SHARES_VIA_AGGREGATE"]), max_size=3)
GENERATION = st.sampled_from([None, 1, 2])
RECORD = st.dictionaries(st.sampled_from(["total", "reserved", "step_size"]), st.integers(0, 2), max_size=3)
STOCK = st.dictionaries(st.sampled_from(["VCPU", "DISK_GB"]), RECORD, max_size=2)
DESCRIBED = st.builds(
    lambda name, parent, generation: {
        "uuid": f"u-{name}",
        "name": name,
        "generation": generation,
        "parent_provider_uuid": parent and f"u-{parent}",
    },
    PROVIDER,
    st.one_of(st.none(), PROVIDER),
    GENERATION,
).filter(lambda one: one["uuid"] != one["parent_provider_uuid"])
STEP = st.one_of(
    st.builds(lambda name, generation: ["new_root", [name, f"u-{name}", generation]], PROVIDER, GENERATION),
    st.builds(lambda name, of, number: ["new_child", [name, of, f"u-{name}", number]], PROVIDER, NAMED, GENERATION),
    st.builds(lambda name: ["remove", [name]], NAMED),
    st.builds(lambda name: ["exists", [name]], NAMED),
    st.builds(lambda name: ["get_provider_uuids", [name]], NAMED),
    st.builds(lambda name: ["get_provider_uuids_in_tree", [name]], NAMED),
    st.builds(lambda name: ["has_inventory", [name]], NAMED),
    st.builds(lambda name: ["has_sharing_provider", [name]], st.sampled_from(["VCPU", "DISK_GB"])),
    st.builds(lambda name, stock: ["has_inventory_changed", [name, stock]], NAMED, STOCK),
    st.builds(lambda name, stock, number: ["update_inventory", [name, stock, number]], NAMED, STOCK, GENERATION),
    st.builds(
        lambda what, name, words, number: [what, [name, words, number]],
        st.sampled_from(["update_traits", "update_aggregates"]),
        NAMED,
        WORDS,
        GENERATION,
    ),
    st.builds(
        lambda what, name, words: [what, [name, words]],
        st.sampled_from(["has_traits", "have_traits_changed", "in_aggregates", "have_aggregates_changed"]),
        NAMED,
        WORDS,
    ),
    st.builds(
        lambda what, name, words: [what, [name, *words]],
        st.sampled_from(["add_traits", "remove_traits", "add_aggregates", "remove_aggregates"]),
        NAMED,
        WORDS.filter(bool),
    ),
    st.builds(
        lambda coming: ["populate_from_iterable", [coming]],
        st.lists(DESCRIBED, max_size=4, unique_by=lambda one: str(one["uuid"])),
    ),
)


@settings(deadline=None, max_examples=150)
@given(steps=st.lists(STEP, max_size=14))
def test_a_provider_tree_answers_as_nova_s(nova: Any, steps: list[Any]) -> None:
    theirs = nova.ask(do="grow", steps=steps)["answers"]
    tree = ProviderTree()
    for (name, answer, left), (_, arguments) in zip(theirs, steps, strict=False):
        assert answer == _step(tree, name, arguments), f"{name}{arguments}"
        if left is not None:
            assert left == _shown(tree), f"{name}{arguments}"


def _step(tree: ProviderTree, name: str, arguments: list[Any]) -> Any:
    try:
        answer = getattr(tree, name)(*arguments)
    except ValueError:
        return "ValueError"
    return sorted(answer) if isinstance(answer, set) else answer


def _shown(tree: ProviderTree) -> list[Any]:
    found = [tree.data(uuid) for uuid in tree.get_provider_uuids()]
    return [
        [one.uuid, one.name, one.generation, one.parent_uuid, one.inventory, sorted(one.traits), sorted(one.aggregates)]
        for one in found
    ]
