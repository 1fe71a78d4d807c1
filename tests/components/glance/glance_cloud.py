"""Runs in Glance's environment: a real Keystone and two real Glances on SQLite, each a uWSGI on the loopback interface.

``glance_cloud.py DIRECTORY`` makes and starts them, says ``ready``, and ends them when nobody holds the file ``users`` of the
directory locked any more. One Glance asks Keystone for who may do what; the other lets everybody do everything. Both have one
database and one store.
"""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 180.0
BIN = Path(sys.prefix) / "bin"
ADMIN, SERVICE, ALICE, BOB = "admin-secret", "service-secret", "alice-secret", "bob-secret"
_PR_SET_PDEATHSIG = 1

KEYSTONE = """
[DEFAULT]
log_file = {directory}/keystone.log
[database]
connection = sqlite:///{directory}/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = {directory}/fernet
[credential]
key_repository = {directory}/credential
[cache]
# Each look at a token would cost it half a second without.
enabled = true
backend = dogpile.cache.memory
[identity]
# The least there is: nobody is to guess these passwords, and each token costs such a hash.
password_hash_rounds = 4
"""
GLANCE = """
[DEFAULT]
log_file = {directory}/{name}.log
enabled_backends = fs:file
enabled_import_methods = [glance-direct]
show_image_direct_url = true
worker_self_reference_url = {url}
[database]
connection = sqlite:///{directory}/glance.db
[glance_store]
default_backend = fs
[fs]
filesystem_store_datadir = {directory}/images
[os_glance_staging_store]
filesystem_store_datadir = {directory}/staging
[os_glance_tasks_store]
filesystem_store_datadir = {directory}/tasks
[paste_deploy]
flavor = {flavor}
config_file = {directory}/glance-api-paste.ini
[oslo_policy]
enforce_scope = {checked}
enforce_new_defaults = {checked}
policy_file = {directory}/{name}-policy.json
[keystone_authtoken]
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
project_domain_name = Default
user_domain_name = Default
project_name = service
username = glance
password = {password}
service_token_roles_required = true
# A revoked token is refused at once.
token_cache_time = -1
"""
_ALLOWED = (
    *("default", "get_images", "get_image", "add_image", "upload_image", "download_image", "delete_image", "modify_image"),
    *("publicize_image", "communitize_image"),
)


def main(directory: Path) -> None:
    """The cloud, for as long as somebody uses it."""
    with (directory / "users").open("w") as users, _started(directory):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        fcntl.flock(users, fcntl.LOCK_EX)
        (directory / "state.json").unlink()  # under the lock: who comes now starts anew


@contextmanager
def _started(directory: Path) -> Iterator[None]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    keystone, glance, open_glance = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in held)
    for name in ("fernet", "credential", "images", "staging", "tasks"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        database = pool.submit(_make_glance, directory, keystone=keystone, urls={"glance": glance, "open": open_glance})
        _make_keystone(directory, keystone)
        database.result()
    for one in held:  # for the minute that this takes somebody else would take a port that is free
        one.close()
    servers = [_serve(directory, "keystone", keystone)]
    try:
        servers += [_serve(directory, name, url) for name, url in (("glance", glance), ("open", open_glance))]
        _await(f"{keystone}/v3", servers)
        _register(directory, keystone, glance, open_glance)
        for url in (glance, open_glance):
            _await(f"{url}/versions", servers)
        urls = {"keystone": keystone, "glance": glance, "open_glance": open_glance}
        state = {**urls, "secrets": [ADMIN, SERVICE, ALICE, BOB]}
        (directory / "state.json").write_text(json.dumps(state), encoding="utf-8")
        yield
    finally:
        for server in servers:
            server.kill()
            server.wait()


def _make_keystone(directory: Path, url: str) -> None:
    place = directory / "keystone-etc"
    place.mkdir(exist_ok=True)
    (place / "keystone.conf").write_text(KEYSTONE.format(directory=directory))
    manage: list[str | Path] = [BIN / "keystone-manage", "--config-dir", place]
    keepers = ["--keystone-user", str(os.getuid()), "--keystone-group", str(os.getgid())]
    _run([*manage, "db_sync"])
    _run([*manage, "fernet_setup", *keepers])
    _run([*manage, "credential_setup", *keepers])
    endpoints = [f"--bootstrap-{interface}-url={url}/v3/" for interface in ("admin", "internal", "public")]
    _run([*manage, "bootstrap", f"--bootstrap-password={ADMIN}", "--bootstrap-region-id=RegionOne", *endpoints])


def _make_glance(directory: Path, *, keystone: str, urls: Mapping[str, str]) -> None:
    shutil.copy(Path(sys.prefix) / "etc/glance/glance-api-paste.ini", directory)
    (directory / "glance-policy.json").write_text("{}")
    (directory / "open-policy.json").write_text(json.dumps(dict.fromkeys(_ALLOWED, "")))
    for name, url in urls.items():
        place = directory / f"{name}-etc"
        place.mkdir(exist_ok=True)
        flavor, checked = ("keystone", "true") if name == "glance" else ("", "false")
        values = {"directory": directory, "name": name, "url": url, "flavor": flavor, "checked": checked}
        (place / "glance-api.conf").write_text(GLANCE.format(**values, keystone=keystone, password=SERVICE))
    _run([BIN / "glance-manage", "--config-file", directory / "glance-etc/glance-api.conf", "db_sync"])


def _run(argv: Sequence[str | Path]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode != 0:
        sys.exit(f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _serve(directory: Path, name: str, url: str) -> "subprocess.Popen[bytes]":
    service = "keystone" if name == "keystone" else "glance"
    argv: list[str | Path] = [
        BIN / "uwsgi",
        "--http-socket",
        url.removeprefix("http://"),
        "--module",
        f"{service}.wsgi.api:application",
    ]
    # A connection that is kept open is reset by this server now and then.
    options = ["--enable-threads", "--threads=4", "--die-on-term", "--buffer-size=65535", "--add-header=Connection: close"]
    environment = {**os.environ, f"OS_{service.upper()}_CONFIG_DIR": os.fspath(directory / f"{name}-etc")}
    with (directory / f"{name}-uwsgi.log").open("wb") as log:
        return subprocess.Popen(
            [*argv, "--virtualenv", sys.prefix, *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _await(url: str, servers: Sequence["subprocess.Popen[bytes]"]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for server in servers:
            if server.poll() is not None:
                sys.exit(f"{server.args!r} ended with {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=60):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{url} does not answer")


def _register(directory: Path, keystone: str, glance: str, open_glance: str) -> None:
    """Glance's own user and endpoint, and users of two projects; the clouds as openstacksdk reads them."""
    clouds: dict[str, Any] = {
        "admin": _cloud(keystone, "admin", ADMIN, "admin"),
        "alice": _cloud(keystone, "alice", ALICE, "wonderland"),
        "bob": _cloud(keystone, "bob", BOB, "works"),
        "open": {"auth_type": "none", "auth": {"endpoint": open_glance}},
    }
    path = directory / "clouds.yaml"
    path.write_text(json.dumps({"clouds": clouds}), encoding="utf-8")
    os.environ["OS_CLIENT_CONFIG_FILE"] = os.fspath(path)
    import openstack

    identity: Any = openstack.connect(cloud="admin").identity
    people = [
        ("glance", SERVICE, "service", "service"),
        ("alice", ALICE, "wonderland", "member"),
        ("bob", BOB, "works", "member"),
    ]
    for name, password, project, role in people:
        made = identity.create_project(name=project, domain_id="default")
        user = identity.create_user(name=name, password=password, default_project_id=made.id, domain_id="default")
        identity.assign_project_role_to_user(made, user, identity.find_role(role))
    service = identity.create_service(name="glance", type="image")
    # Nobody listens at the internal one.
    for interface, url in (("public", glance), ("internal", "http://127.0.0.1:9")):
        identity.create_endpoint(service_id=service.id, interface=interface, region_id="RegionOne", url=url)


def _cloud(keystone: str, user: str, password: str, project: str) -> dict[str, Any]:
    names = {"username": user, "project_name": project, "user_domain_name": "Default", "project_domain_name": "Default"}
    return {"auth": {"auth_url": f"{keystone}/v3", "password": password, **names}, "region_name": "RegionOne"}


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
