"""Runs in Nova's environment and does with Nova's own image cache manager what it is asked, see side.py.

``load`` has the instances path and the instances' records, and is not timed: Nova has them from its database. ``update`` is one
pass over them.

As in the tests, privileged calls are made in this process, and qemu-img runs without the limiter that Nova starts it by. With
the limiter a pass takes about five times as long.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.append(os.fspath(Path(__file__).parents[1] / "tests" / "components" / "nova"))
runner: Any = import_module("nova_runner")  # first, as it imports Nova the way nova-compute does
side: Any = import_module("side")  # it lies beside this program

loaded: dict[str, Any] = {}


def load(request: dict[str, Any]) -> dict[str, Any]:
    """Have the instances ready, and the table of their block devices."""
    runner.CONF.set_override("instances_path", request["instances_path"])
    runner.CONF.set_override("host", "here")
    rows = {row["instance_uuid"]: row for row in runner.rows_of(request["instances"])}

    def devices(_context: Any, uuids: list[str], **_rest: Any) -> list[dict[str, Any]]:
        return [rows[uuid] for uuid in uuids]

    query = "_db_block_device_mapping_get_all_by_instance_uuids"
    setattr(runner.objects.BlockDeviceMappingList, query, staticmethod(devices))
    loaded["instances"] = [runner.instance_of({**row, "host": "here"}) for row in request["instances"]]
    return {}


def update(_: dict[str, Any]) -> dict[str, Any]:
    """As the compute service's periodic task does."""
    manager = runner.imagecache.ImageCacheManager()
    manager.update(runner.context.get_admin_context(), loaded["instances"])
    return {"used": len(manager.active_base_files)}


def main() -> None:
    """Answer until there are no more requests."""
    with side.answers() as answers:
        runner.CONF([], project="nova", default_config_files=[])
        runner.objects.register_all()
        runner.privsep.sys_admin_pctxt.set_client_mode(False)
        runner.privsep_qemu.QEMU_IMG_LIMITS = None
        side.answer({"load": load, "update": update}, answers)


if __name__ == "__main__":
    main()
