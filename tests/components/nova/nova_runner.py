"""Runs in Nova's environment: reads one JSON object a line, does one pass of an image cache manager, answers in one line.

Nova's own code does the pass, with objects of Nova's own kinds. What stands in for the rest of an OpenStack is here: the rows
of the database come from the request, and privileged calls are made in this process.
"""

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

monkey_patch = import_module("nova.monkey_patch")
monkey_patch.patch()  # before all else, as nova-compute does; the environment says whether
CONF: Any = import_module("nova.conf").CONF
privsep = import_module("nova.privsep")
privsep_fs: Any = import_module("nova.privsep.fs")
privsep_qemu: Any = import_module("nova.privsep.qemu")
context = import_module("nova.context")
objects = import_module("nova.objects")
utils = import_module("nova.utils")
compute_manager = import_module("nova.compute.manager")
driver = import_module("nova.virt.libvirt.driver")
imagecache = import_module("nova.virt.libvirt.imagecache")
ATTRIBUTES = [
    "used_images",
    "instance_names",
    "back_swap_images",
    "used_swap_images",
    "back_ephemeral_images",
    "used_ephemeral_images",
    "active_base_files",
    "originals",
    "removable_base_files",
    "unexplained_images",
    "cache_dir",
    "lock_path",
]
TRY_LOCK = """
import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("free")
except OSError:
    print("locked")
"""
kept: dict[str, Any] = {}


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append([record.levelname, record.name, record.getMessage()])


def instance_of(row: dict[str, Any]) -> Any:
    """An instance as the compute manager has it: loaded, without lazy attributes."""
    fields: dict[str, Any] = dict.fromkeys(("image_ref", "kernel_id", "ramdisk_id", "task_state", "os_type"))
    fields |= {"vm_state": "active", "host": "here"}
    fields |= {key: value for key, value in row.items() if key not in ("name", "swap_mib", "ephemerals")}
    return objects.Instance(id=int(row["name"].removeprefix("instance-"), 16), deleted=False, **fields)


def rows_of(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table of block devices."""
    rows: list[dict[str, Any]] = []
    for row in instances:
        swaps = row.get("swap_mib") or []
        wanted = [{"guest_format": "swap", "volume_size": size} for size in ([swaps] if isinstance(swaps, int) else swaps)]
        wanted += [
            {"guest_format": each.get("guest_format"), "volume_size": each["size_gib"]} for each in row.get("ephemerals") or []
        ]
        root = {"source_type": "image", "image_id": row.get("image_ref") or None, "boot_index": 0, "volume_size": 1}
        for device in [root, *wanted]:
            rows.append(block_device(len(rows) + 1, row["uuid"], device))
    return rows


def block_device(number: int, instance_uuid: str, device: dict[str, Any]) -> dict[str, Any]:
    empty = dict.fromkeys(name for name in objects.BlockDeviceMapping.fields if name != "instance")
    return (
        empty
        | {
            "id": number,
            "uuid": f"00000000-0000-0000-0000-{number:012x}",
            "instance_uuid": instance_uuid,
            "source_type": "blank",
            "destination_type": "local",
            "device_name": f"/dev/vd{chr(97 + number % 26)}",
            "boot_index": -1,
            "delete_on_termination": True,
            "no_device": False,
            "encrypted": False,
            "created_at": None,
            "updated_at": None,
            "deleted_at": None,
            "deleted": False,
        }
        | device
    )


def manager_of(whose: str) -> Any:
    if whose == "nova":
        return imagecache.ImageCacheManager()
    return import_module("underlay.openstack.nova").ImageCacheManager()


def do_pass(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    instances = [instance_of(row) for row in request["instances"]]
    asked: list[list[str]] = []

    def devices(_context: Any, uuids: list[str], **_rest: Any) -> list[dict[str, Any]]:
        asked.append(list(uuids))
        return [row for row in rows_of(request["instances"]) if row["instance_uuid"] in uuids]

    query = "_db_block_device_mapping_get_all_by_instance_uuids"
    stack.enter_context(replaced(objects.BlockDeviceMappingList, query, staticmethod(devices)))
    key = request["keep"]
    manager = kept.get(key) or manager_of(request["manager"])
    if key is not None:
        kept[key] = manager
    answer: dict[str, Any] = {"error": None, "through": None}
    try:
        answer["through"] = THROUGH[request["through"]](manager, instances, stack)
    except Exception as error:  # noqa: BLE001 - as the periodic task does
        answer["error"] = f"{type(error).__name__}: {error}"
        answer["traceback"] = traceback.format_exc()
    answer["asked"] = asked
    answer["state"] = {name: plain(getattr(manager, name)) for name in ATTRIBUTES}
    return answer


def update(manager: Any, instances: list[Any], stack: ExitStack) -> None:
    manager.update(context.get_admin_context(), instances)


def driver_of(manager: Any, *, has_imagecache: bool = True) -> Any:
    """Nova's own driver with a manager of ours or its own; it never meets a libvirt."""
    one = driver.LibvirtDriver.__new__(driver.LibvirtDriver)
    one.image_cache_manager = manager
    one.capabilities = {"has_imagecache": has_imagecache}
    return one


def manage_image_cache(manager: Any, instances: list[Any], stack: ExitStack) -> None:
    driver_of(manager).manage_image_cache(context.get_admin_context(), instances)


def compute(manager: Any, instances: list[Any], stack: ExitStack, *, has_imagecache: bool = True) -> list[dict[str, Any]]:
    """The periodic task of Nova's compute service; the filters that it asks instances by are the answer."""
    filters: list[dict[str, Any]] = []

    def by_filters(_cls: type, _context: Any, asked: dict[str, Any], /, **_rest: Any) -> Any:
        filters.append(dict(asked))
        return objects.InstanceList(objects=[one for one in instances if one.host in asked["host"]])

    stack.enter_context(replaced(objects.InstanceList, "get_by_filters", classmethod(by_filters)))
    service = compute_manager.ComputeManager.__new__(compute_manager.ComputeManager)
    service.driver = driver_of(manager, has_imagecache=has_imagecache)
    service._run_image_cache_manager_pass(context.get_admin_context())
    return filters


def compute_without_cache(manager: Any, instances: list[Any], stack: ExitStack) -> list[dict[str, Any]]:
    return compute(manager, instances, stack, has_imagecache=False)


def do_usage(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    return {"usage": manager_of(request["manager"]).get_disk_usage()}


def do_reserved(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """What Nova's driver takes off its inventory for the cache, in GB."""
    return {"reserved": driver_of(manager_of(request["manager"]))._get_disk_size_reserved_for_image_cache()}


def do_lock(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """Hold a lock of Nova's while our pass runs in this same process."""
    lock_path = os.path.join(request["instances_path"], "locks")
    with utils.lockutils.lock(request["name"], "nova-", external=True, lock_path=lock_path):
        answer = do_pass(request, stack)
        tried = subprocess.run(
            [sys.executable, "-c", TRY_LOCK, os.path.join(lock_path, f"nova-{request['name']}")],
            check=True,
            capture_output=True,
        )
        return answer | {"still_locked": tried.stdout == b"locked\n"}


def do_pass_while_locks_are_removed(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """Each lock file goes as soon as it is locked: another host's Nova has just removed the image of an earlier pass."""
    locks = utils.lockutils

    class Unlucky(locks.InterProcessLock):  # type: ignore[misc, name-defined, unused-ignore]
        def acquire(self, *rest: Any, **options: Any) -> bool:
            taken: bool = super().acquire(*rest, **options)
            os.unlink(self.path)
            return taken

    stack.enter_context(replaced(locks, "InterProcessLock", Unlucky))
    return do_pass(request, stack)


def do_usage_while_a_file_goes(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """A file goes after it was listed: whoever takes its size next finds nothing."""
    manager = manager_of(request["manager"])
    path = os.path.join(request["instances_path"], "_base", request["goes"])
    stat = os.stat

    def gone_by_now(asked: Any, *rest: Any, **options: Any) -> os.stat_result:
        if os.path.basename(path) in os.listdir(os.path.dirname(path)):
            os.unlink(path)
        return stat(asked, *rest, **options)

    stack.enter_context(replaced(os, "stat", gone_by_now))
    return {"usage": manager.get_disk_usage()}


def do_pass_as(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """A pass by a user who is not root and has Nova's real helper for privileged calls, as in nova-compute."""
    manager_of(request["manager"])  # what is imported on use is imported while it may be read
    import_module("encodings.ascii")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer: dict[str, Any]
        try:
            privsep.sys_admin_pctxt.set_client_mode(True)
            privsep.sys_admin_pctxt.start(import_module("oslo_privsep.priv_context").Method.FORK)
            os.setgroups([])
            os.setresgid(request["user"], request["user"], request["user"])
            os.setresuid(request["user"], request["user"], request["user"])
            answer = do_pass(request, stack)
        except BaseException:  # noqa: BLE001 - told to who asked
            answer = {"failed": traceback.format_exc()}
        with os.fdopen(writer, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = json.load(file)
    os.waitpid(child, 0)
    return answer


def do_recipe(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """The module of a guide that puts our parts in the place of Nova's: what Nova's driver would make and call by then."""
    imagebackend, images = import_module("nova.virt.libvirt.imagebackend"), import_module("nova.virt.images")
    replaceable = [(imagecache, "ImageCacheManager"), (imagebackend, "Backend"), (imagebackend, "Qcow2")]
    for module, name in [*replaceable, (images, "fetch"), (images, "fetch_to_raw")]:
        stack.callback(setattr, module, name, getattr(module, name))
    names: dict[str, Any] = {}
    exec(compile(request["code"], "guide", "exec"), names)
    backend = driver.imagebackend.Backend(CONF.use_cow_images)
    disk = backend.by_name(instance_of({"uuid": request["uuid"], "name": "instance-1"}), "disk")
    made = [driver.imagecache.ImageCacheManager(), backend, disk]
    return {
        "made": [f"{type(one).__module__}.{type(one).__name__}" for one in made],
        "is_overlay": isinstance(disk, driver.imagebackend.Qcow2),
        "functions": [function.__module__ for function in (images.fetch, images.fetch_to_raw)],
        "is_driver": names["LibvirtDriver"] is driver.LibvirtDriver,
    }


THROUGH: dict[str, Callable[..., Any]] = {
    "update": update,
    "manage_image_cache": manage_image_cache,
    "compute": compute,
    "compute-without-cache": compute_without_cache,
}
DO: dict[str, Callable[..., dict[str, Any]]] = {
    "pass": do_pass,
    "usage": do_usage,
    "usage-while-a-file-goes": do_usage_while_a_file_goes,
    "reserved": do_reserved,
    "lock": do_lock,
    "pass-as": do_pass_as,
    "pass-while-locks-are-removed": do_pass_while_locks_are_removed,
    "recipe": do_recipe,
}


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def configured(request: dict[str, Any]) -> Iterator[None]:
    """The options of the request, such as {"image_cache.subdirectory_name": "_base"}, and nothing of the last one."""
    commands = request.get("options", {}).pop("virt_mkfs", [])
    privsep_fs._MKFS_COMMAND.clear()
    privsep_fs._DEFAULT_MKFS_COMMAND = None
    for entry in commands:
        privsep_fs.load_mkfs_command(*entry.split("=", 1))
    CONF.set_override("virt_mkfs", commands)
    options = {"host": "here", "instances_path": request["instances_path"], **request.get("options", {})}
    for name, value in options.items():
        group, _, key = name.rpartition(".")
        CONF.set_override(key, value, group=group or None)
    try:
        yield
    finally:
        for name in ("virt_mkfs", *options):
            group, _, key = name.rpartition(".")
            CONF.clear_override(key, group=group or None)


def plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    with ExitStack() as stack:
        stack.enter_context(configured(request))
        lines = Lines()
        for name in ("nova", "underlay"):
            logging.getLogger(name).addHandler(lines)
            stack.callback(logging.getLogger(name).removeHandler, lines)
        answer = DO[request["do"]](request, stack)
        return {"log": lines.lines, "eventlet": monkey_patch.is_patched()} | answer


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # nothing that is printed on the way may get among the answers
    os.dup2(2, 1)
    CONF([], project="nova", default_config_files=[])
    objects.register_all()
    logging.getLogger("nova").setLevel(logging.DEBUG)
    logging.getLogger("underlay").setLevel(logging.DEBUG)
    privsep.sys_admin_pctxt.set_client_mode(False)
    # Each qemu-img runs below a limiter of its own, in Python; without it, a pass takes a fifth of the time.
    privsep_qemu.QEMU_IMG_LIMITS = None
    for line in sys.stdin:
        try:
            answer = answer_to(json.loads(line))
        except BaseException:  # noqa: BLE001 - told to who asked
            answer = {"failed": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
