"""Runs in Nova's environment: reads one JSON object a line, asks Nova's own compute contract, answers in one line.

Nova's code is loaded beside ours, so that objects of Nova's own kinds can be given to ours as well.
"""

import inspect
import json
import os
import sys
import traceback
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import_module("nova.monkey_patch").patch()
CONF: Any = import_module("nova.conf").CONF
objects: Any = import_module("nova.objects")
driver: Any = import_module("nova.virt.driver")
devices: Any = import_module("nova.virt.block_device")
exception: Any = import_module("nova.exception")
event: Any = import_module("nova.virt.event")
console: Any = import_module("nova.console.type")
network_model: Any = import_module("nova.network.model")
power_state: Any = import_module("nova.compute.power_state")
hardware: Any = import_module("nova.virt.hardware")
diagnostics: Any = import_module("nova.objects.diagnostics")
migrate_data: Any = import_module("nova.objects.migrate_data")
trees: Any = import_module("nova.compute.provider_tree")
metadata: Any = import_module("nova.api.metadata.base")
ours: Any = import_module("underlay.compute")
tagging: Any = import_module("underlay.compute.libvirt.tagging")
told: Any = import_module("underlay.compute.libvirt.taggeddevices")
versioned: Any = import_module("nova.objects.base")
livemigration: Any = import_module("underlay.compute.livemigration")
versioneddata: Any = import_module("underlay.compute.versioneddata")
checks: Any = import_module("underlay.compute.libvirt.livemigration.checks")
arriving: Any = import_module("underlay.compute.libvirt.livemigration.arriving")
leaving: Any = import_module("underlay.compute.libvirt.livemigration.leaving")
xml: Any = import_module("underlay.compute.libvirt.livemigration.xml")
msgspec: Any = import_module("msgspec")
CONVERTED = ("convert_swap", "convert_ephemerals", "convert_local_images", "convert_volumes", "convert_snapshots")
CONVERSIONS = (*CONVERTED, "convert_images", "convert_blanks")
READERS = ("root_device", "swap", "ephemerals", "mapping", "image", "encrypted_disks")


def contract(request: dict[str, Any]) -> dict[str, Any]:
    """Everything that is fixed: signatures, capabilities, traits, names and numbers."""
    return {
        "signatures": {name: parameters(one) for name, one in methods(driver.ComputeDriver).items()},
        "functions": {name: parameters(one) for name, one in vars(driver).items() if is_function(name, one)},
        "capabilities": driver.ComputeDriver.capabilities,
        "traits": driver.CAPABILITY_TRAITS_MAP,
        "power_states": {str(number): name for number, name in power_state.STATE_MAP.items()},
        "transitions": {str(number): str(name) for number, name in event.NAMES.items()},
        "diagnostics": {name: sorted(getattr(diagnostics, name).fields) for name in request["diagnostics"]},
        "migrations": {name: sorted(getattr(migrate_data, name).fields) for name in request["migrations"]},
    }


def methods(kind: type) -> dict[str, Any]:
    return {name: one for name, one in inspect.getmembers(kind, callable) if not name.startswith("__")}


def is_function(name: str, one: Any) -> bool:
    return inspect.isfunction(one) and one.__module__ == driver.__name__


def parameters(function: Any) -> list[list[Any]]:
    """Of each parameter its name, its kind, and its default, if it has one."""
    found = inspect.signature(function).parameters.values()
    return [[one.name, one.kind.name, None if one.default is one.empty else repr(one.default)] for one in found]


def defaults(request: dict[str, Any]) -> dict[str, Any]:
    """What the base class answers to calls that it can answer."""
    one = driver.ComputeDriver(None)
    answers: dict[str, Any] = {}
    for name, needed in request["calls"].items():
        try:
            answers[name] = repr(getattr(one, name)(*needed))
        except NotImplementedError:
            answers[name] = "NotImplementedError"
    return {"answers": answers, "traits": one.capabilities_as_traits()}


def errors(request: dict[str, Any]) -> dict[str, Any]:
    """What each error is made from, its status, and whether it is made from those keywords without complaint."""
    found = {}
    for name, keywords in request["errors"].items():
        kind = getattr(exception, name)
        found[name] = {"code": kind.code, "text": str(kind(**keywords)), "bases": [one.__name__ for one in kind.__mro__]}
    return {"errors": found}


def options(request: dict[str, Any]) -> dict[str, Any]:
    """What follows from options and inventory."""
    for name, value in request["options"].items():
        CONF.set_override(name, value)
    try:
        return {
            "ratios": driver.ComputeDriver._get_allocation_ratios(request["inventory"]),
            "reserved": driver.ComputeDriver._get_reserved_host_disk_gb_from_config(),
        }
    finally:
        for name in request["options"]:
            CONF.clear_override(name)


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Block devices by Nova's functions, and by ours from the same objects of Nova's."""
    answers: dict[str, Any] = {}
    for side, conversions, functions in (("nova", devices, driver), ("ours", ours, ours)):
        rows = objects.BlockDeviceMappingList(objects=[objects.BlockDeviceMapping(**row) for row in request["rows"]])
        instance = SimpleNamespace(root_device_name=request["root_device_name"])
        info = functions.get_block_device_info(instance, rows)
        disks = conversions.convert_swap(rows)
        answers[side] = {
            **{name: getattr(conversions, name)(rows) for name in CONVERSIONS},
            "convert_all_volumes": conversions.convert_all_volumes(*rows),
            "get_swap": conversions.get_swap(disks),
            "left": disks,
            "get_swap of others": conversions.get_swap(conversions.convert_ephemerals(rows)),
            "info": info,
            **{name: getattr(functions, f"block_device_info_get_{name}")(info) for name in READERS},
            "usable": bool(functions.swap_is_usable(functions.block_device_info_get_swap(info))),
        }
    return answers


def grow(request: dict[str, Any]) -> dict[str, Any]:
    """What a provider tree answers to each step, and what is in it afterwards."""
    tree, answers = trees.ProviderTree(), []
    for name, arguments in request["steps"]:
        try:
            answers.append([name, plain(getattr(tree, name)(*arguments)), shown(tree)])
        except ValueError:
            answers.append([name, "ValueError", None if name == "populate_from_iterable" else shown(tree)])
            if name == "populate_from_iterable":
                break  # it may have been done by half
    return {"answers": answers}


def shown(tree: Any) -> list[Any]:
    found = [tree.data(uuid) for uuid in tree.get_provider_uuids()]
    return [
        [one.uuid, one.name, one.generation, one.parent_uuid, one.inventory, plain(one.traits), plain(one.aggregates)]
        for one in found
    ]


def plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def values(request: dict[str, Any]) -> dict[str, Any]:
    """Consoles, and whether what is said of an instance is equal."""
    info = hardware.InstanceInfo
    return {
        "console": console.ConsoleVNC("host", 5900, "/path").get_connection_info("token", "url"),
        "spice": console.ConsoleSpice("host", 5900, 5901).get_connection_info("token", "url"),
        "equal": [info(1) == info(1), info(1, "a") == info(1), info(1) == 1],
    }


class KeptInstance(objects.Instance):  # type: ignore[misc]
    """One whose rows are here, and in no database."""

    def get_bdms(self) -> Any:
        return objects.BlockDeviceMappingList(objects=[objects.BlockDeviceMapping(**row) for row in self.rows])


def tag(request: dict[str, Any]) -> dict[str, Any]:
    """What our driver writes down of an instance of Nova's, once Nova has kept and read it, as either tells it to guests."""
    instance = KeptInstance(uuid=request["uuid"])
    instance.rows = request["rows"]
    instance.info_cache = objects.InstanceInfoCache(network_info=network_model.NetworkInfo.hydrate(request["vifs"]))
    domain = SimpleNamespace(running_xml=lambda: request["xml"])
    tagging.write_down_change(SimpleNamespace(domain=lambda _: domain), instance, tagging.known(instance, request["vifs"]))
    written = instance.device_metadata
    if written is None:
        return {"nova": None, "ours": None, "again": None}
    kept = json.dumps(written.obj_to_primitive())
    instance.device_metadata = objects.InstanceDeviceMetadata.obj_from_db(None, kept)
    guest = SimpleNamespace(instance=instance, _check_os_version=lambda *_: True)
    tagging.write_down_change(SimpleNamespace(domain=lambda _: domain), instance, tagging.known(instance))
    return {
        "nova": metadata.InstanceMetadata._get_device_metadata(guest, "latest"),
        "ours": told.devices_of(instance.device_metadata),
        "again": kept == json.dumps(instance.device_metadata.obj_to_primitive()),
    }


def read(request: dict[str, Any]) -> dict[str, Any]:
    """What ours reads from the data of a migration, of which a service has set these fields and no others."""
    answer = versioneddata.read(nova_data(request))
    return {"read": msgspec.to_builtins(replace(answer, migration=None)), "migration": getattr(answer.migration, "uuid", None)}


def nova_data(request: dict[str, Any]) -> Any:
    data = migrate_data.LibvirtLiveMigrateData(**request["fields"])
    for name, kind in (("vifs", migrate_data.VIFMigrateData), ("bdms", migrate_data.LibvirtLiveMigrateBDMInfo)):
        if name in request:
            setattr(data, name, [filled(kind(), row) for row in request[name]])
    if "migration" in request:
        data.migration = objects.Migration(uuid=request["migration"])
    return data


def filled(row: Any, values: dict[str, Any]) -> Any:
    for name, value in values.items():
        setattr(row, name, network_model.VIF(**value) if name == "source_vif" else value)
    return row


def carry(request: dict[str, Any]) -> dict[str, Any]:
    """What ours says, written to Nova's object, carried from host to host as its RPC does, and read there."""
    said = msgspec.convert(request["said"], livemigration.UnderlayLiveMigrateData)
    data = versioneddata.write(said, nova_data(request))
    carried = versioned.NovaObject.obj_from_primitive(json.loads(json.dumps(data.obj_to_primitive())))
    again = checks.ours(carried)
    answer = checks.answer(again, carried)
    return {
        "set": sorted(name for name in data.fields if data.obj_attr_is_set(name)),
        "serials": [row.serial for row in carried.bdms],
        "connections": [row.connection_info for row in carried.bdms][:-1],
        "same": [again == replace(said, vifs=again.vifs), answer is carried, len(answer.bdms) == len(data.bdms)],
        "xml": xml.moved(request["xml"], xml.there_of(again)),
        "leaves": leaving.leaves_directory(carried),
    }


def refuse(request: dict[str, Any]) -> dict[str, Any]:
    """What the steps say to an object of Nova's that tells them too little, or something that cannot be."""
    said = []
    data = nova_data(request)
    for step, before in ((checks.ours, ()), (arriving.prepare, (None,) * 5)):
        try:
            said.append(repr(step(*before, data)))
        except ours.errors.ComputeError as error:
            said.append(str(error))
    return {"said": said}


DO = {
    "read": read,
    "carry": carry,
    "refuse": refuse,
    "contract": contract,
    "defaults": defaults,
    "errors": errors,
    "options": options,
    "convert": convert,
    "grow": grow,
    "values": values,
    "tag": tag,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # nothing that is printed on the way may get among the answers
    os.dup2(2, 1)
    CONF([], project="nova", default_config_files=[])
    objects.register_all()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = DO[request["do"]](request)
        except BaseException:  # noqa: BLE001 - told to who asked
            answer = {"failed": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
