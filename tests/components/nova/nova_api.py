"""Runs in Nova's environment: a real nova-api on SQLite databases.

``nova_api.py make DIRECTORY`` reads ``{"hosts": […], "servers": [{…}]}`` and makes the databases; ``nova_api.py serve
DIRECTORY`` prints its port and serves until its standard input ends. Nova's own code answers. Its neighbours are stand-ins: in
Keystone's place a token ``user:project`` is taken at its word, and Neutron has no networks.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

CONFIGURATION = """
[DEFAULT]
state_path = {directory}
log_file = {directory}/nova.log
transport_url = fake:/
[api]
max_limit = 3
[api_database]
connection = sqlite:///{directory}/api.db
[database]
connection = sqlite:///{directory}/cell1.db
[oslo_concurrency]
lock_path = {directory}
"""
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def make(directory: Path, wanted: Mapping[str, Any]) -> None:
    """The configuration and the databases, as ``nova-manage`` makes them, with services and servers."""
    (directory / "nova.conf").write_text(CONFIGURATION.format(directory=directory))
    import_module("nova.config").parse_args(["make", "--config-file", os.fspath(directory / "nova.conf")])
    context, objects = import_module("nova.context"), import_module("nova.objects")
    migration = import_module("nova.db.migration")
    objects.register_all()
    admin = context.get_admin_context()
    migration.db_sync(database="api")
    for name, uuid in (("cell0", objects.CellMapping.CELL0_UUID), ("cell1", "00000000-0000-4000-8000-00000000ce11")):
        place = f"sqlite:///{directory}/{name}.db"
        cell = objects.CellMapping(admin, uuid=uuid, name=name, transport_url="fake:///", database_connection=place)
        cell.create()
        with context.target_cell(admin, cell) as inside:
            migration.db_sync(None, context=inside)
            if name == "cell1":
                _fill(objects, admin, cell, inside, wanted)


def _fill(objects: Any, admin: Any, cell: Any, inside: Any, wanted: Mapping[str, Any]) -> None:
    for host in wanted["hosts"]:
        service = {"host": host, "binary": "nova-compute", "topic": "compute", "report_count": 1}
        objects.Service(inside, **service).create()
        objects.HostMapping(admin, host=host, cell_mapping=cell).create()
    for server in wanted["servers"]:
        instance = objects.Instance(inside, **_columns(objects, server))
        instance.create()
        mapping = {"instance_uuid": instance.uuid, "project_id": "project", "user_id": "user"}
        objects.InstanceMapping(admin, cell_mapping=cell, **mapping).create()
        if server.get("is_gone"):
            instance.destroy()


def _columns(objects: Any, server: Mapping[str, Any]) -> dict[str, Any]:
    network = import_module("nova.network.model")
    flavor = objects.Flavor(name="m1.small", flavorid="1", memory_mb=512, vcpus=1, root_gb=1)
    flavor.update({"ephemeral_gb": server.get("ephemeral", 0), "swap": server.get("swap", 0), "extra_specs": {}})
    flavor.update({"id": 1, "rxtx_factor": 1.0, "vcpu_weight": 1, "disabled": False, "is_public": True, "description": None})
    flavor.update({"deleted": False, "created_at": None, "updated_at": None, "deleted_at": None})
    plain = ("uuid", "host", "image_ref", "kernel_id", "ramdisk_id", "vm_state", "task_state")
    return {
        **{field: server[field] for field in plain if field in server},
        "project_id": "project",
        "user_id": "user",
        "display_name": "a server",
        "hostname": "a-server",
        "power_state": 1,
        "flavor": flavor,
        "old_flavor": None,
        "new_flavor": None,
        "system_metadata": {},
        "metadata": {},
        "info_cache": objects.InstanceInfoCache(instance_uuid=server["uuid"], network_info=network.NetworkInfo([])),
    }


def tokens(_configuration: Mapping[str, str], **_local: str) -> Callable[[Application], Application]:
    """A paste filter in the place of Keystone's: the user ``admin`` is an administrator, any other is not."""

    def wrap(application: Application) -> Application:
        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            user, _, project = environ.get("HTTP_X_AUTH_TOKEN", "").partition(":")
            if not user:
                start_response("401 Unauthorized", [("Content-Length", "0")])
                return [b""]
            roles = "admin,member,reader" if user == "admin" else "member,reader"
            environ.update(HTTP_X_USER_ID=user, HTTP_X_PROJECT_ID=project, HTTP_X_ROLES=roles)
            environ["HTTP_X_IDENTITY_STATUS"] = "Confirmed"
            return application(environ, start_response)

        return answer

    return wrap


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nova logs its requests itself."""


def serve(directory: Path) -> None:
    """Nova's API, until the standard input ends."""
    pipeline = (Path(sys.prefix) / "etc/nova/api-paste.ini").read_text()
    (directory / "api-paste.ini").write_text(
        pipeline.replace("keystonemiddleware.auth_token:filter_factory", "nova_api:tokens")
    )
    os.environ["OS_NOVA_CONFIG_DIR"] = os.fspath(directory)
    sys.argv = ["nova-api"]
    application: Application = import_module("nova.wsgi.osapi_compute").application

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith("/neutron/"):
            return application(environ, start_response)
        body = b'{"ports": [], "security_groups": [], "extensions": []}'
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    server = make_server("127.0.0.1", 0, answer, server_class=_Server, handler_class=_Quiet)
    neutron = f"http://127.0.0.1:{server.server_port}/neutron"
    import_module("nova.conf").CONF.set_override("endpoint_override", neutron, "neutron")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"port {server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), json.load(sys.stdin))
    else:
        serve(Path(sys.argv[2]))
