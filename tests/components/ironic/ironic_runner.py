"""Runs in Ironic's environment: reads one JSON object a line, does with Ironic's own code what it says, answers in one line.

With the argument ``in-place`` our module has taken the place of Ironic's before anything of Ironic is imported.
"""

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any

IN_PLACE = "in-place" in sys.argv[1:]
ours: Any = import_module("underlay.openstack.ironic")
if IN_PLACE:
    sys.modules["ironic.drivers.modules.image_cache"] = ours
CONF: Any = import_module("ironic.conf").CONF
exception = import_module("ironic.common.exception")
context = import_module("ironic.common.context")
checksum_utils: Any = import_module("ironic.common.checksum_utils")
pxe_utils: Any = import_module("ironic.common.pxe_utils")
deploy_utils: Any = import_module("ironic.drivers.modules.deploy_utils")
image_utils: Any = import_module("ironic.drivers.modules.image_utils")
manager: Any = import_module("ironic.conductor.manager")
theirs: Any = import_module("ironic.drivers.modules.image_cache")


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append([record.levelname, record.name, record.getMessage()])


def module_of(request: dict[str, Any]) -> Any:
    return ours if request["whose"] == "underlay" else theirs


def attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """What came of it: a result, or an exception as its callers see it."""
    try:
        return {"result": work(), "error": None}
    except Exception as error:  # noqa: BLE001 - told to who asked
        return {
            "result": None,
            "error": type(error).__name__,
            "module": type(error).__module__,
            "kinds": [kind.__name__ for kind in type(error).__mro__],
            "message": str(error),
            "arguments": {name: str(value) for name, value in getattr(error, "kwargs", {}).items()},
            "traceback": traceback.format_exc(),
        }


def do_clean_up(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    ahead, clock = request["ahead"], time.time
    if ahead:
        stack.enter_context(replaced(time, "time", lambda: clock() + ahead))
    cache = module_of(request).ImageCache(**request["cache"])
    return attempt(lambda: cache.clean_up(amount=request["amount"]))


def do_fetch(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """Ironic's own function, with the module that it looks names up in being whose it is to be."""
    stack.enter_context(replaced(deploy_utils, "image_cache", module_of(request)))
    cache = module_of(request).ImageCache(**request["cache"])
    images = [tuple(one) for one in request["images"]]
    return attempt(lambda: deploy_utils.fetch_images(context.get_admin_context(), cache, images, **request["how"]))


def do_fetch_many(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """As `do_fetch`, each image from a thread of its own."""
    stack.enter_context(replaced(deploy_utils, "image_cache", module_of(request)))
    cache = module_of(request).ImageCache(**request["cache"])
    answers: list[dict[str, Any]] = []

    def one(image: list[str]) -> None:
        fetch = deploy_utils.fetch_images
        answers.append(attempt(lambda: fetch(context.get_admin_context(), cache, [tuple(image)], **request["how"])))

    threads = [threading.Thread(target=one, args=(image,)) for image in request["images"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"answers": answers}


def do_make_room(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """``clean_up_caches`` as Ironic calls it, by position."""
    images = [tuple(one) for one in request["images"]]
    return attempt(lambda: module_of(request).clean_up_caches(None, request["directory"], images, None))


def do_instance(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """The image of a node that is deployed, and its removal afterwards."""
    node = SimpleNamespace(
        uuid=request["node"], driver_internal_info={"image_source": request["href"]}, instance_info={}, driver_info={}
    )
    stack.enter_context(replaced(deploy_utils, "parse_instance_info", lambda _node: {}))
    answer = attempt(lambda: deploy_utils.cache_instance_image(context.get_admin_context(), node, **request["how"]))
    if request.get("destroy"):
        deploy_utils.destroy_images(node.uuid)
    return answer


def do_kernel(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """What a node boots over the network."""
    node = SimpleNamespace(uuid=request["node"], instance_info={}, driver_info={})
    task = SimpleNamespace(node=node, context=context.get_admin_context())
    return attempt(lambda: pxe_utils.cache_ramdisk_kernel(task, {"deploy_kernel": tuple(request["image"])}))


def do_iso(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """An ISO image, as Ironic fetches one to publish it: into a temporary directory."""
    cache = image_utils.ISOImageCache()
    how = {"ctx": context.get_admin_context(), "force_raw": False}
    return attempt(lambda: cache.fetch_image(request["href"], request["path"], **how))


def do_periodic(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """The conductor's periodic task."""
    conductor = manager.ConductorManager.__new__(manager.ConductorManager)
    return attempt(lambda: manager.ConductorManager._clean_up_caches(conductor, context.get_admin_context()))


def do_registered(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    return {
        "ours": [[priority, f"{kind.__module__}.{kind.__name__}"] for priority, kind in ours._cache_cleanup_list],
        "cleaned": [type(cache).__name__ for _, cache in import_module("underlay.openstack.ironic.registry").registered()],
        "derived": issubclass(deploy_utils.InstanceImageCache, ours.ImageCache),
        "module": getattr(deploy_utils.image_cache, "__name__", ""),
    }


def do_meanings(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    """Ironic's exception for each error of ours."""
    errors, exceptions = import_module("underlay.errors"), import_module("underlay.openstack.ironic.exceptions")

    def said(name: str) -> Callable[[], None]:
        def say() -> None:
            with exceptions.translated("http://user:secret@host/image?sig=1", where="/masters"):
                raise getattr(errors, name)("our reason", hint="our hint")

        return say

    return {name: attempt(said(name)) for name in request["names"]}


def do_checksum(request: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    checksums = import_module("underlay.openstack.ironic.checksums")
    module = checksums if request["whose"] == "underlay" else checksum_utils
    stack.enter_context(replaced(checksum_utils, "get_checksum_from_url", module.get_checksum_from_url))
    return attempt(lambda: checksum_utils.get_checksum_and_algo(request["instance_info"]))


DO: dict[str, Callable[..., dict[str, Any]]] = {
    "clean-up": do_clean_up,
    "fetch": do_fetch,
    "fetch-many": do_fetch_many,
    "make-room": do_make_room,
    "instance": do_instance,
    "kernel": do_kernel,
    "iso": do_iso,
    "periodic": do_periodic,
    "registered": do_registered,
    "meanings": do_meanings,
    "checksum": do_checksum,
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
def configured(options: dict[str, Any]) -> Iterator[None]:
    """The options of the request, such as {"pxe.image_cache_ttl": 5}, and nothing of the last one."""
    for name, value in options.items():
        group, _, key = name.rpartition(".")
        CONF.set_override(key, value, group=group or None)
    try:
        yield
    finally:
        for name in options:
            group, _, key = name.rpartition(".")
            CONF.clear_override(key, group=group or None)


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    with ExitStack() as stack:
        stack.enter_context(configured(request.get("options", {})))
        lines = Lines()
        for name in ("ironic", "underlay"):
            logging.getLogger(name).addHandler(lines)
            stack.callback(logging.getLogger(name).removeHandler, lines)
        return {"log": lines.lines} | DO[request["do"]](request, stack)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # nothing that is printed on the way may get among the answers
    os.dup2(2, 1)
    CONF([], project="ironic", default_config_files=[])
    for name in ("ironic", "underlay"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    for line in sys.stdin:
        try:
            answer = answer_to(json.loads(line))
        except BaseException:  # noqa: BLE001 - told to who asked
            answer = {"failed": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
