"""Runs in Nova's environment: reads one JSON object a line, does what it asks of image backends, answers in one line.

The backends are Nova's own or ours, the callbacks and the driver around them are Nova's. What stands in for the rest of an
OpenStack is here: Glance's images come from the request, and privileged calls are made in this process.
"""

import inspect
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any

monkey_patch = import_module("nova.monkey_patch")
monkey_patch.patch()  # before all else, as nova-compute does; the environment says whether
CONF: Any = import_module("nova.conf").CONF
context: Any = import_module("nova.context")
objects: Any = import_module("nova.objects")
exception: Any = import_module("nova.exception")
privsep: Any = import_module("nova.privsep")
privsep_fs: Any = import_module("nova.privsep.fs")
privsep_qemu: Any = import_module("nova.privsep.qemu")
glance: Any = import_module("nova.image.glance")
driver: Any = import_module("nova.virt.libvirt.driver")
imagebackend: Any = import_module("nova.virt.libvirt.imagebackend")
images: Any = import_module("nova.virt.images")
libvirt_utils: Any = import_module("nova.virt.libvirt.utils")
ATTRIBUTES = [
    "path",
    "source_type",
    "driver_format",
    "driver_io",
    "discard_mode",
    "is_block_dev",
    "preallocate",
    "disk_info_path",
    "disk_info_mapping",
    "lock_path",
    "SUPPORTS_CLONE",
    "SUPPORTS_LUKS",
]
PARTS = {"nova.virt.images": ("fetch", "fetch_to_raw"), "nova.virt.libvirt.imagebackend": ("Backend", "Qcow2")}
ABOUT = ("exists", "is_shared_block_storage", "is_file_in_instance_path")


class World:
    """One request: whose parts, which of them, and what Glance has.

    Attributes:
        fetched: ids of the images whose bytes were asked for, in order.
    """

    def __init__(self, request: dict[str, Any], stack: ExitStack) -> None:
        self.is_ours = request["whose"] == "underlay"
        self.glance: dict[str, dict[str, Any]] = request.get("glance", {})
        self.fetched: list[str] = []
        self.uuid: str = request["uuid"]
        if "site" in request:  # a third party's packages
            sys.path.append(request["site"])
            stack.callback(sys.path.remove, request["site"])
        stack.enter_context(replaced(glance.API, "get", self.get))
        stack.enter_context(replaced(glance.API, "download", self.download))
        if self.is_ours:
            ours = import_module("underlay.openstack.nova")
            for part in request.get("parts", PARTS):
                for name in PARTS[part]:
                    stack.enter_context(replaced(import_module(part), name, getattr(ours, name)))

    def backend(self) -> Any:
        return imagebackend.Backend(CONF.use_cow_images)

    def instance(self, **fields: Any) -> Any:
        made = {"id": 1, "uuid": self.uuid, "host": "here", "task_state": None, "vm_state": "building", "os_type": None}
        return objects.Instance(deleted=False, system_metadata={}, metadata={}, **made | fields)

    def image(self, step: dict[str, Any]) -> Any:
        if "libvirt_path" in step:
            return self.backend().by_libvirt_path(self.instance(), step["libvirt_path"], step.get("type"))
        mapping = step.get("mapping")
        return self.backend().by_name(self.instance(), step["disk"], step.get("type"), disk_info_mapping=mapping)

    def row(self, image_id: str) -> dict[str, Any]:
        if image_id not in self.glance:
            raise exception.ImageNotFound(image_id=image_id)
        return self.glance[image_id]

    def get(self, _context: Any, image_id: str, include_locations: bool = False, show_deleted: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002
        shown = {key: value for key, value in self.row(image_id).items() if key not in ("file", "raises")}
        return {"id": image_id, "properties": {}, "min_disk": 0, "checksum": None, "locations": []} | shown

    def download(
        self, _context: Any, image_id: str, data: Any = None, dest_path: str | None = None, trusted_certs: Any = None
    ) -> None:
        self.fetched.append(image_id)
        row = self.row(image_id)
        with open(row["file"], "rb") as source:
            if data is None:
                assert dest_path is not None
                with open(dest_path, "wb") as target:
                    target.write(source.read())
            else:
                while piece := source.read(1 << 16):
                    data.write(piece)
        if row.get("raises"):
            raise import_module("cryptography.exceptions").InvalidSignature


def callback(world: World, step: dict[str, Any]) -> Any:
    """What makes the base image: Nova's own callbacks, and some that go wrong."""
    kind = step["with"]
    if kind in ("fetch_image", "fetch_raw_image"):
        return getattr(libvirt_utils, kind)
    if kind == "swap":
        return driver.LibvirtDriver._create_swap
    return partial(OTHERS[kind], world)


def write(world: World, target: str, content: str = "", **_rest: Any) -> None:
    with open(target, "w") as file:
        file.write(content)


def fail(world: World, target: str, **_rest: Any) -> None:
    write(world, target, content="half of it")
    raise exception.ImageNotFound(image_id="gone")


def nothing(world: World, target: str, **_rest: Any) -> None:
    pass


OTHERS: dict[str, Callable[..., None]] = {"fail": fail, "nothing": nothing, "write": write}


def do_cache(world: World, step: dict[str, Any]) -> None:
    passed = {
        key: step[key]
        for key in ("filename", "size", "image_id", "swap_mb", "ephemeral_size", "safe", "content")
        if key in step
    }
    world.image(step).cache(fetch_func=callback(world, step), context=context.get_admin_context(), **passed)


def do_show(world: World, step: dict[str, Any]) -> dict[str, Any]:
    image = world.image(step)
    return {name: getattr(image, name) for name in ATTRIBUTES} | {name: getattr(image, name)() for name in ABOUT}


def do_type(world: World, step: dict[str, Any]) -> list[Any]:
    kind = world.backend().backend(step["type"])
    return [kind.SUPPORTS_CLONE, kind.SUPPORTS_LUKS, kind.is_shared_block_storage(), kind.is_file_in_instance_path()]


def do_is_qcow2(world: World, step: dict[str, Any]) -> bool:
    """As Nova's driver asks it."""
    return isinstance(world.image(step), imagebackend.Qcow2)


def do_xml(world: World, step: dict[str, Any]) -> str:
    image = world.image(step)
    info = image.libvirt_info(
        step["cache_mode"], step["extra_specs"], boot_order=step.get("boot_order"), disk_unit=step.get("unit")
    )
    xml: str = info.to_xml()
    return xml


def do_fs_xml(world: World, step: dict[str, Any]) -> str:
    xml: str = world.image(step).libvirt_fs_info("/target", step.get("driver_type")).to_xml()
    return xml


def do_model(world: World, step: dict[str, Any]) -> list[Any]:
    model = world.image(step).get_model(None)
    return [type(model).__name__, sorted(vars(model).items())]


def do_extract(world: World, step: dict[str, Any]) -> None:
    world.image(step).snapshot_extract(step["target"], step["format"])


def do_resize(world: World, step: dict[str, Any]) -> None:
    world.image(step).resize_image(step["size"])


def do_verify(world: World, step: dict[str, Any]) -> None:
    world.image(step).verify_base_size(step["base"], step["size"], step.get("base_size", 0))


def do_size(world: World, step: dict[str, Any]) -> int:
    size: int = world.image(step).get_disk_size(step["name"])
    return size


def do_call(world: World, step: dict[str, Any]) -> None:
    """A method without arguments."""
    getattr(world.image(step), step["method"])(*step.get("arguments", ()))


def do_fetch(world: World, step: dict[str, Any]) -> None:
    request = context.get_admin_context()
    if step["function"] == "fetch_raw_image":
        libvirt_utils.fetch_raw_image(request, step["path"], step["image_id"])
    else:
        getattr(images, step["function"])(request, step["image_id"], step["path"])


def do_precache(world: World, step: dict[str, Any]) -> bool:
    """What the conductor asks of a compute host."""
    made = driver.LibvirtDriver.__new__(driver.LibvirtDriver)
    made.image_cache_manager = import_module("nova.virt.libvirt.imagecache").ImageCacheManager()
    cached: bool = made.cache_image(context.get_admin_context(), step["image_id"])
    return cached


def do_fallback(world: World, step: dict[str, Any]) -> None:
    """Nova's driver makes the root disk of an instance that comes from another host, whose files are in a directory here."""

    def copy(src: str, dest: str, host: str, receive: bool) -> None:  # noqa: FBT001
        assert (src, receive) == (dest, True)
        with open(os.path.join(host, os.path.basename(src)), "rb") as source, open(dest, "wb") as target:
            target.write(source.read())

    made = driver.LibvirtDriver.__new__(driver.LibvirtDriver)
    instance = world.instance(trusted_certs=None, migration_context=None)
    where = (context.get_admin_context(), step["filename"], step["image_id"], instance, step["size"], step["host"])
    with replaced(libvirt_utils, "copy_image", copy):
        made._try_fetch_image_cache(world.image(step), libvirt_utils.fetch_image, *where)


def do_spawn(world: World, step: dict[str, Any]) -> list[Any]:
    """Nova's driver makes the disks of an instance: its kernel and ramdisk, its root, its ephemeral and its swap."""
    made = driver.LibvirtDriver.__new__(driver.LibvirtDriver)
    made.image_backend = world.backend()
    flavor = objects.Flavor(root_gb=step["root_gb"], ephemeral_gb=step["ephemeral_gb"], swap=step["swap_mb"], extra_specs={})
    instance = world.instance(
        flavor=flavor,
        image_ref=step["image_id"],
        kernel_id=step.get("kernel_id"),
        ramdisk_id=None,
        trusted_certs=None,
        migration_context=None,
        config_drive="",
        vm_mode=None,
    )
    os.makedirs(libvirt_utils.get_instance_path(instance), exist_ok=True)
    mapping: dict[str, Any] = {
        name: {"bus": "virtio", "dev": "vda", "type": "disk"} for name in ("disk", "disk.local", "disk.swap")
    }
    return list(made._create_image(context.get_admin_context(), instance, mapping))


def do_signatures(world: World, step: dict[str, Any]) -> dict[str, dict[str, list[list[str]]]]:
    """The public methods of Nova's classes, and its functions, with their parameters and how each is passed."""
    owners = {name: getattr(imagebackend, name) for name in ("Image", "Backend")} | {"images": images, "utils": libvirt_utils}
    return {owner: dict(signatures(found)) for owner, found in owners.items()}


def signatures(owner: Any) -> Iterator[tuple[str, list[list[str]]]]:
    for name, member in vars(owner).items():
        function = member.__func__ if isinstance(member, staticmethod) else member
        if inspect.isfunction(function) and not name.startswith("_"):
            found = inspect.signature(function).parameters.values()
            yield name, [[one.name, one.kind.name] for one in found if one.name != "self"]


DO: dict[str, Callable[[World, dict[str, Any]], Any]] = {
    "cache": do_cache,
    "show": do_show,
    "type": do_type,
    "is-qcow2": do_is_qcow2,
    "xml": do_xml,
    "fs-xml": do_fs_xml,
    "model": do_model,
    "extract": do_extract,
    "resize": do_resize,
    "verify": do_verify,
    "size": do_size,
    "call": do_call,
    "fetch": do_fetch,
    "precache": do_precache,
    "spawn": do_spawn,
    "fallback": do_fallback,
    "signatures": do_signatures,
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
    """The options of the request, such as {"libvirt.images_type": "raw"}, and nothing of the last one."""
    privsep_fs._MKFS_COMMAND.clear()
    privsep_fs._DEFAULT_MKFS_COMMAND = None
    options = {"host": "here", "instances_path": request["instances_path"], **request.get("options", {})}
    for name, value in options.items():
        group, _, key = name.rpartition(".")
        CONF.set_override(key, value, group=group or None)
    try:
        yield
    finally:
        for name in options:
            group, _, key = name.rpartition(".")
            CONF.clear_override(key, group=group or None)


def outcome(world: World, step: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"value": DO[step["do"]](world, step), "error": None}
    except Exception as error:  # noqa: BLE001 - told to who asked
        told = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        return {"value": None, "causes": [type(one).__name__ for one in islice(causes(error), 10)], **told}


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    with ExitStack() as stack:
        stack.enter_context(configured(request))
        world = World(request, stack)
        steps = [outcome(world, step) for step in request["steps"]]
        return {"steps": steps, "fetched": world.fetched, "eventlet": monkey_patch.is_patched()}


def answer_as(request: dict[str, Any], user: int) -> dict[str, Any]:
    """The answer of a process that is not root and has Nova's real helper for privileged calls, as in nova-compute."""
    import_module("underlay.openstack.nova")  # what is imported on use is imported while it may be read
    answer_to(request | {"steps": []})
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer: dict[str, Any]
        try:
            privsep.sys_admin_pctxt.set_client_mode(True)
            privsep.sys_admin_pctxt.start(import_module("oslo_privsep.priv_context").Method.FORK)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            answer = answer_to(request)
        except BaseException:  # noqa: BLE001 - told to who asked
            answer = {"failed": traceback.format_exc()}
        with os.fdopen(writer, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        told: dict[str, Any] = json.load(file)
    os.waitpid(child, 0)
    return told


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # nothing that is printed on the way may get among the answers
    os.dup2(2, 1)
    CONF([], project="nova", default_config_files=[])
    objects.register_all()
    logging.getLogger("nova").setLevel(logging.CRITICAL)
    privsep.sys_admin_pctxt.set_client_mode(False)
    privsep_qemu.QEMU_IMG_LIMITS = None  # each qemu-img runs below a limiter of its own, in Python
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = answer_as(request, request["user"]) if "user" in request else answer_to(request)
        except BaseException:  # noqa: BLE001 - told to who asked
            answer = {"failed": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
