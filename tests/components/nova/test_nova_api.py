"""The OpenStack inventory on the real nova-api: what it lists, and what it leaves out unless one knows how to ask."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nova_environment import python

from underlay.errors import InventoryUnavailable
from underlay.inventory.openstack import OpenstackInventory
from underlay.model import Ephemeral

pytestmark = [
    pytest.mark.component("nova", "openstacksdk"),
    # The library warns of what it does itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
]

SCRIPT = Path(__file__).with_name("nova_api.py")
PATIENCE = 120.0
IMAGE, KERNEL, RAMDISK = (f"70a599e0-31e7-49b7-b260-00000000000{number}" for number in range(3))


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def server(number: int, **columns: Any) -> dict[str, Any]:
    return {"uuid": uuid(number), "host": "node1", "image_ref": IMAGE, "vm_state": "active"} | columns


SERVERS = [
    server(1, image_ref="", kernel_id=KERNEL, ramdisk_id=RAMDISK, swap=512, ephemeral=20),
    server(2, vm_state="soft-delete"),
    server(3, vm_state="resized", task_state="resize_reverting"),
    server(4, vm_state="stopped"),
    server(5, vm_state="error"),
    server(6, vm_state="rescued"),
    server(7),
    server(8, is_gone=True),
    server(9, host="node2"),
    server(10, host="node2", vm_state="soft-delete"),
    server(11, host="node3"),
    server(12, host="NODE1-not"),
]


@dataclass(frozen=True)
class Api:
    """A running nova-api; three servers a page."""

    directory: Path

    def inventory(self, *hosts: str, cloud: str = "admin") -> OpenstackInventory:
        return OpenstackInventory(cloud, host=hosts[0], hosts=hosts)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    directory = tmp_path_factory.mktemp("nova")
    environment = {
        **os.environ,
        "OS_NOVA_DISABLE_EVENTLET_PATCHING": "1",
        "PYTHONPATH": os.fspath(SCRIPT.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    wanted = json.dumps({"hosts": ["node1", "node2", "node3", "empty"], "servers": SERVERS})
    argv = [os.fspath(python()), os.fspath(SCRIPT)]
    made = subprocess.run(
        [*argv, "make", directory], input=wanted, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False
    )
    assert 0 == made.returncode, made.stderr
    with served([*argv, "serve", os.fspath(directory)], environment, directory) as port:
        endpoint = f"http://127.0.0.1:{port}/v2.1"
        clouds = {
            user: {"auth_type": "admin_token", "auth": {"endpoint": endpoint, "token": f"{user}:project"}}
            for user in ("admin", "somebody")
        }
        (directory / "clouds.yaml").write_text(json.dumps({"clouds": clouds}))
        yield Api(directory)


@contextmanager
def served(argv: list[str], environment: Mapping[str, str], directory: Path) -> Iterator[int]:
    with (
        (directory / "output").open("wb") as errors,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            ports = (line.split()[1] for line in process.stdout if line.startswith(b"port "))
            port = next(ports, None)
            assert port is not None, (directory / "output").read_text()[-4000:]
            yield int(port)
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def clouds(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(api.directory / "clouds.yaml"))


def test_every_server_of_the_host_is_listed_with_soft_deleted_ones_and_over_all_pages(api: Api) -> None:
    assert {uuid(number) for number in range(1, 8)} == {one.uuid for one in api.inventory("node1").instances()}


def test_the_servers_of_all_hosts_that_share_the_storage_are_listed(api: Api) -> None:
    found = {one.uuid: one.host for one in api.inventory("node1", "node2").instances()}

    assert {**{uuid(number): "node1" for number in range(1, 8)}, uuid(9): "node2", uuid(10): "node2"} == found


def test_what_nova_knows_of_a_server_is_in_its_record(api: Api) -> None:
    found = {one.uuid: one for one in api.inventory("node1").instances()}

    from_volume = found[uuid(1)]
    assert (None, KERNEL, RAMDISK) == (from_volume.image_ref, from_volume.kernel_id, from_volume.ramdisk_id)
    assert ((512,), (Ephemeral(size_gib=20),)) == (from_volume.swap_mib, from_volume.ephemerals)
    assert (IMAGE, (), ()) == (found[uuid(2)].image_ref, found[uuid(2)].swap_mib, found[uuid(2)].ephemerals)
    assert ("resized", "resize_reverting") == (found[uuid(3)].vm_state, found[uuid(3)].task_state)
    assert ["active", "soft-delete", "resized", "stopped", "error", "rescued", "active"] == [
        found[uuid(number)].vm_state for number in range(1, 8)
    ]
    assert all(one.name.startswith("instance-0000000") for one in found.values())


def test_a_host_without_servers_is_an_answer_and_an_unknown_host_is_not(api: Api) -> None:
    assert [] == list(api.inventory("empty").instances())
    with pytest.raises(InventoryUnavailable, match="no compute service on the host 'elsewhere'"):
        api.inventory("elsewhere").instances()
    with pytest.raises(InventoryUnavailable, match="no compute service on the host 'elsewhere'"):
        api.inventory("node1", "elsewhere").instances()


def test_somebody_who_is_no_administrator_gets_no_part_of_the_list(api: Api) -> None:
    with pytest.raises(InventoryUnavailable, match="403") as refusal:
        api.inventory("node1", cloud="somebody").instances()

    assert "administrator" in str(refusal.value.hint)


def test_a_cell_whose_database_is_out_of_reach_is_not_an_empty_host(api: Api) -> None:
    database = api.directory / "cell1.db"
    database.rename(api.directory / "away.db")
    try:
        with pytest.raises(InventoryUnavailable, match="cell of the host 'node1'"):
            api.inventory("node1").instances()
    finally:
        (api.directory / "away.db").rename(database)

    assert 7 == len(api.inventory("node1").instances())
