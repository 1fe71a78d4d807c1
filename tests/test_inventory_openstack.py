"""Instances from Nova's API: what every kind of poor answer means. The real nova-api answers in components/nova."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from underlay.errors import InventoryUnavailable
from underlay.inventory.openstack import OpenstackInventory
from underlay.model import Ephemeral, InstanceRecord
from underlay.registry import open_inventory

pytestmark = [
    pytest.mark.component("openstacksdk"),
    # The library warns of what it does itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"),
]

Answer = Callable[[str, Mapping[str, str]], tuple[int, Any]]
SERVICES = {"services": [{"binary": "nova-compute", "host": host, "state": "up"} for host in ("node1", "node2")]}


def server(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"00000000-0000-4000-8000-{number:012d}",
        "image": {"id": "70a599e0-31e7-49b7-b260-868f441e862b", "links": []},
        "flavor": {"disk": 1, "ephemeral": 0, "original_name": "m1.tiny", "ram": 512, "swap": 0, "vcpus": 1},
        "OS-EXT-SRV-ATTR:host": "node1",
        "OS-EXT-SRV-ATTR:instance_name": f"instance-{number:08x}",
        "OS-EXT-SRV-ATTR:kernel_id": "",
        "OS-EXT-SRV-ATTR:ramdisk_id": "",
        "OS-EXT-STS:task_state": None,
        "OS-EXT-STS:vm_state": "active",
    } | changes


def listing(*servers: Mapping[str, Any]) -> Answer:
    """A Nova with these servers, which honours filters and markers, two servers a page."""

    def answer(path: str, query: Mapping[str, str]) -> tuple[int, Any]:
        if path.endswith("/os-services"):
            return 200, SERVICES
        found = [one for one in servers if one.get("OS-EXT-SRV-ATTR:host", query["host"]) == query["host"]]
        if marker := query.get("marker"):
            found = found[[one["id"] for one in found].index(marker) + 1 :]
        return 200, {"servers": found[:2]}

    return answer


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says where the cloud named ``here`` is."""

    def name(url: str) -> None:
        clouds = {"clouds": {"here": {"auth_type": "admin_token", "auth": {"endpoint": url, "token": "t"}}}}
        (tmp_path / "clouds.yaml").write_text(json.dumps(clouds))
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(tmp_path / "clouds.yaml"))

    return name


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            status, body = answer(url.path, dict(parse_qsl(url.query)))
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing is logged."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}/v2.1"
        finally:
            web.shutdown()
            thread.join()


@pytest.fixture
def asked(cloud: Callable[[str], None]) -> Callable[..., list[InstanceRecord]]:
    def ask(answer: Answer, *, hosts: tuple[str, ...] = ("node1",), timeout: float = 20.0) -> list[InstanceRecord]:
        with serving(answer) as url:
            cloud(url)
            return list(OpenstackInventory("here", host=hosts[0], hosts=hosts, timeout=timeout).instances())

    return ask


Asked = Callable[..., list[InstanceRecord]]


def test_a_server_is_a_record_with_all_that_nova_says(asked: Asked) -> None:
    full = server(
        1,
        flavor={"ephemeral": 20, "swap": 512},
        **{
            "OS-EXT-SRV-ATTR:kernel_id": "k",
            "OS-EXT-SRV-ATTR:ramdisk_id": "r",
            "OS-EXT-STS:vm_state": "resized",
            "OS-EXT-STS:task_state": "resize_reverting",
        },
    )

    assert [
        InstanceRecord(
            uuid="00000000-0000-4000-8000-000000000001",
            name="instance-00000001",
            host="node1",
            image_ref="70a599e0-31e7-49b7-b260-868f441e862b",
            kernel_id="k",
            ramdisk_id="r",
            vm_state="resized",
            task_state="resize_reverting",
            swap_mib=(512,),
            ephemerals=(Ephemeral(size_gib=20),),
        )
    ] == asked(listing(full))


def test_a_server_booted_from_a_volume_claims_no_image_and_an_empty_swap_none(asked: Asked) -> None:
    (record,) = asked(listing(server(1, image="", flavor={"ephemeral": 0, "swap": ""})))

    assert (None, (), ()) == (record.image_ref, record.swap_mib, record.ephemerals)


def test_every_page_is_read(asked: Asked) -> None:
    servers = [server(number) for number in range(1, 6)]

    assert [one["id"] for one in servers] == [record.uuid for record in asked(listing(*servers))]


def test_the_servers_of_every_host_that_shares_the_storage_are_there(asked: Asked) -> None:
    servers = [server(1), server(2, **{"OS-EXT-SRV-ATTR:host": "node2"}), server(3, **{"OS-EXT-SRV-ATTR:host": "node3"})]

    found = asked(listing(*servers), hosts=("node1", "node2"))

    assert {("instance-00000001", "node1"), ("instance-00000002", "node2")} == {(one.name, one.host) for one in found}


def test_a_server_that_moves_to_a_host_already_asked_is_not_missed(asked: Asked) -> None:
    moved = server(1, **{"OS-EXT-SRV-ATTR:host": "node2"})
    whole = listing(moved)

    def answer(path: str, query: Mapping[str, str]) -> tuple[int, Any]:
        if query.get("host") == "node2":
            moved["OS-EXT-SRV-ATTR:host"] = "node1"
        return whole(path, query)

    assert ["instance-00000001"] == [record.name for record in asked(answer, hosts=("node1", "node2"))]


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 406, 500, 502, 503])
def test_any_error_leaves_the_inventory_unavailable(asked: Asked, status: int) -> None:
    with pytest.raises(InventoryUnavailable, match=str(status)) as refusal:
        asked(lambda path, query: (status, {"error": "no"}))

    expected = {401: "administrator", 403: "administrator", 406: "2.69"}.get(status, "clouds.yaml")
    assert expected in str(refusal.value.hint)


def test_an_error_on_a_later_page_leaves_the_inventory_unavailable(asked: Asked) -> None:
    whole = listing(*(server(number) for number in range(1, 6)))

    with pytest.raises(InventoryUnavailable, match="500"):
        asked(lambda path, query: (500, {}) if "marker" in query else whole(path, query))


def test_pages_that_repeat_leave_the_inventory_unavailable(asked: Asked) -> None:
    whole = listing(*(server(number) for number in range(1, 6)))

    with pytest.raises(InventoryUnavailable, match="two pages"):
        asked(lambda path, query: whole(path, {**query, "marker": ""}))


@pytest.mark.parametrize("attribute", ["host", "instance_name"])
def test_what_only_an_administrator_sees_must_be_there(asked: Asked, attribute: str) -> None:
    poor = server(1)
    del poor[f"OS-EXT-SRV-ATTR:{attribute}"]

    def answer(path: str, query: Mapping[str, str]) -> tuple[int, Any]:
        if path.endswith("/os-services"):
            return 200, SERVICES
        return 200, {"servers": [] if query["host"] != "node1" else [poor]}

    with pytest.raises(InventoryUnavailable, match="does not show") as refusal:
        asked(answer)

    assert "administrator" in str(refusal.value.hint)


def test_a_user_whose_filters_are_ignored_is_refused(asked: Asked) -> None:
    whole = listing(server(1))

    with pytest.raises(InventoryUnavailable, match="filter"):
        asked(lambda path, query: whole(path, {**query, "host": "node1"}))


def test_a_host_that_nova_does_not_know_is_no_empty_host(asked: Asked) -> None:
    with pytest.raises(InventoryUnavailable, match="no compute service on the host 'node3'"):
        asked(listing(), hosts=("node1", "node3"))


def test_a_cell_that_goes_out_of_reach_meanwhile_leaves_the_inventory_unavailable(asked: Asked) -> None:
    down = {"services": [{"binary": "nova-compute", "host": "node1", "status": "UNKNOWN"}]}
    listed: list[str] = []

    def answer(path: str, query: Mapping[str, str]) -> tuple[int, Any]:
        if path.endswith("/os-services"):
            return 200, down if listed else SERVICES
        listed.append(path)
        return 200, {"servers": []}

    with pytest.raises(InventoryUnavailable, match="cell of the host 'node1'"):
        asked(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"<html>",
        b"\xff",
        b'{"servers": [{"id": "a"}], "services": []}',
        b'{"servers": [{"id": "\xff"}]}',
        b'{"servers": ' + b"[" * 100_000,
    ],
)
def test_an_answer_that_is_not_novas_leaves_the_inventory_unavailable(asked: Asked, body: bytes) -> None:
    whole = listing()

    with pytest.raises(InventoryUnavailable):
        asked(lambda path, query: (200, body) if "/servers" in path else whole(path, query))


def test_a_nova_that_is_not_there_is_unavailable(cloud: Callable[[str], None]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        cloud(f"http://127.0.0.1:{unused.getsockname()[1]}/v2.1")

        with pytest.raises(InventoryUnavailable):
            OpenstackInventory("here", host="node1", hosts=["node1"]).instances()


def test_a_nova_that_never_answers_is_given_up(cloud: Callable[[str], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cloud(f"http://127.0.0.1:{silent.getsockname()[1]}/v2.1")
        begun = time.monotonic()

        with pytest.raises(InventoryUnavailable):
            OpenstackInventory("here", host="node1", hosts=["node1"], timeout=0.5).instances()

    assert time.monotonic() - begun < 10


def test_a_cloud_that_clouds_yaml_does_not_have_is_told(cloud: Callable[[str], None]) -> None:
    cloud("http://127.0.0.1:1/")

    with pytest.raises(InventoryUnavailable, match="nonesuch"):
        OpenstackInventory("nonesuch", host="node1", hosts=["node1"]).instances()


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "clouds: []", "clouds: {here: 7}", "clouds: {here: {auth_type: nonesuch}}", "\0"]
)
def test_a_clouds_yaml_that_makes_no_sense_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "clouds.yaml").write_text(text)
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", os.fspath(tmp_path / "clouds.yaml"))

    with pytest.raises(InventoryUnavailable):
        OpenstackInventory("here", host="node1", hosts=["node1"]).instances()


def test_the_registry_opens_it_by_its_cloud_without_connecting() -> None:
    inventory = open_inventory("openstack:my-cloud", host="node1", hosts=["node2", "node1"])

    assert isinstance(inventory, OpenstackInventory)
    assert ("my-cloud", ("node1", "node2")) == (inventory.cloud, inventory.hosts)


def test_without_the_library_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['openstack'] = None\n"
        "from underlay.inventory.openstack import OpenstackInventory; from underlay.errors import ExtraMissing\n"
        "try: OpenstackInventory('', host='a', hosts=['a']).instances()\n"
        "except ExtraMissing as error: print(error.hint)"
    )

    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert "pip install 'underlay[openstack]'\n" == ended.stdout
