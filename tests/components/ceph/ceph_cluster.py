"""A real Ceph beside us: one monitor and one OSD on the loopback interface, all in one directory, ended by their pids.

Disks need no manager. A pool's quota does, because a manager tells the monitors what a pool holds: it is started on demand.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "ceph-mgr", "ceph-authtool", "monmaptool", "rbd")
PACKAGES = "ceph-mon ceph-osd ceph-mgr ceph-common"

_PATIENCE = 60.0  # seconds for each program
_ATTEMPTS = 2  # to bring all of it up; now and then a monitor does not
_OSD_ATTEMPTS = 9  # an OSD that is told "wrong fsid" by a young monitor starts a moment later
_LONGEST_DIRECTORY = 64  # bytes, for the unix sockets below it
_OSD_PORTS = range(6800, 7569)

_CONF = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = [v1:127.0.0.1:{port}]
public_network = 127.0.0.1/32
cluster_network = 127.0.0.1/32
ms_bind_ipv6 = false
ms_type = async+posix
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
mon_data = {directory}/mon
mon_data_avail_crit = 1
mon_cluster_log_file = {directory}/log/cluster.log
osd_data = {directory}/osd
osd_objectstore = memstore
osd_memory_target = 939524096
memstore_device_bytes = 4294967296
# What changes the maps of the monitors, a snapshot for one, waits for other changes that may come along: here, none do.
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mgr_data = {directory}/mgr
mgr_initial_modules =
mgr_tick_period = 1
mgr_stats_period = 1
keyring = {directory}/keyring
run_dir = {directory}/run
admin_socket = {directory}/run/$name.$pid.asok
pid_file = {directory}/run/$name.daemon
log_file = {directory}/log/$name.log
crash_dir = {directory}/log
# One that is halted for a while is neither called down, nor does it take itself for outdated.
osd_heartbeat_grace = 3600
mon_osd_report_timeout = 3600
"""


@dataclass(slots=True)
class Ceph:
    """A Ceph that answers.

    Attributes:
        port: of its monitor. pids: of its daemons, by name.
    """

    directory: Path
    fsid: str
    port: int
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.directory / "ceph.conf"

    def run(self, program: str, *arguments: str, content: bytes | None = None) -> bytes:
        """What one of Ceph's programs prints."""
        argv = [program, "-c", os.fspath(self.conf), *arguments]
        done = subprocess.run(argv, capture_output=True, input=content, timeout=_PATIENCE, check=False)
        if done.returncode:
            raise CephFailed(f"{' '.join(argv)}: status {done.returncode}: {done.stderr.decode()[-600:]}")
        return done.stdout

    def ceph(self, *arguments: str) -> Any:
        """What a command of the monitors answers."""
        printed = self.run("ceph", *arguments, "--format=json")
        return json.loads(printed) if printed.strip() else None

    def rbd(self, *arguments: str, content: bytes | None = None) -> bytes:
        return self.run("rbd", *arguments, content=content)

    def configure_osd(self, option: str, value: str) -> None:
        """Have the OSD go by another value from now on."""
        self.run("ceph", "tell", "osd.0", "config", "set", option, value)

    def requests(self) -> int:
        """How many requests of clients the OSD has answered."""
        socket_of = self.directory / "run" / f"osd.0.{self.pids['osd.0']}.asok"
        counted: int = json.loads(_call("ceph", "--admin-daemon", os.fspath(socket_of), "perf", "dump", "osd"))["osd"]["op"]
        return counted

    def make_pool(self, name: str) -> str:
        self.run("ceph", "osd", "pool", "create", name, "4")
        self.run("rbd", "pool", "init", name)
        return name

    def add_user(self, name: str, **capabilities: str) -> None:
        """Make a user, whose key is where the clients of this host look for it."""
        words = [word for kind, text in capabilities.items() for word in (kind, text)]
        made = self.run("ceph", "auth", "get-or-create", f"client.{name}", *words)
        with (self.directory / "keyring").open("ab") as keyring:
            keyring.write(made)

    @contextmanager
    def halted(self, *daemons: str) -> Iterator[None]:
        """Daemons that do not answer while the block lasts, as if their host were gone; none named: all."""
        chosen = [self.pids[name] for name in daemons or self.pids]
        for pid in chosen:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in chosen:
                os.kill(pid, signal.SIGCONT)

    @contextmanager
    def without_room(self, pool: str) -> Iterator[None]:
        """A pool over its quota while the block lasts."""
        self.start_manager()
        self._set_quota(pool, 1)
        try:
            yield
        finally:
            self._set_quota(pool, 0)

    def _set_quota(self, pool: str, size: int) -> None:
        if size:
            self.run("rados", "-p", pool, "put", "ballast", "/proc/self/cmdline")
        self.run("ceph", "osd", "pool", "set-quota", pool, "max_bytes", str(size))
        _wait(lambda: self._is_full(pool) == bool(size), f"pool {pool} to be{' ' if size else ' no more '}full")

    def _is_full(self, pool: str) -> bool:
        return any(
            "full_quota" in one["flags_names"].split(",")
            for one in self.ceph("osd", "pool", "ls", "detail")
            if one["pool_name"] == pool
        )

    def start_manager(self) -> None:
        """Which tells the monitors what pools hold."""
        if "mgr.x" not in self.pids:
            self.run("ceph-mgr", "-i", "x")
            self.note("mgr.x")

    def note(self, daemon: str) -> None:
        """Remember the pid that a daemon has written."""
        self.pids[daemon] = int((self.directory / "run" / f"{daemon}.daemon").read_text())

    def end(self) -> None:
        """Kill its daemons; nothing of it is wanted any more."""
        for pid in self.pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                _wait(lambda pid=pid: not Path(f"/proc/{pid}").exists(), f"process {pid} to end")


class CephFailed(Exception):
    """A program of Ceph failed."""


@contextmanager
def ceph(directory: Path) -> Iterator[Ceph]:
    """A new Ceph with the pool ``rbd``, which ends with the block."""
    assert len(os.fsencode(directory)) < _LONGEST_DIRECTORY, "Ceph's unix sockets need a shorter path"
    running = _brought_up(directory)
    try:
        yield running
    finally:
        running.end()


def _brought_up(directory: Path) -> Ceph:
    for attempt in range(1, _ATTEMPTS + 1):
        place = directory / str(attempt)
        running = Ceph(place, str(uuid4()), _free_port())
        try:
            _start(running)
        except (CephFailed, OSError, subprocess.TimeoutExpired):
            running.end()
            if attempt == _ATTEMPTS:
                raise
        else:
            return running
    raise AssertionError("unreachable")


def _start(running: Ceph) -> None:
    directory, osd = running.directory, str(uuid4())
    for name in ("mon", "osd", "mgr", "run", "log"):
        (directory / name).mkdir(parents=True)
    running.conf.write_text(_CONF.format(fsid=running.fsid, port=running.port, directory=directory))
    _make_keys(directory)
    monmap, keyring = os.fspath(directory / "monmap"), os.fspath(directory / "keyring")
    _call("monmaptool", "--create", "--fsid", running.fsid, "--addv", "a", f"[v1:127.0.0.1:{running.port}]", monmap)
    running.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
    running.run("ceph-mon", "-i", "a")
    running.note("mon.a")
    _register_osd(running, osd)
    running.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    _start_osd(running)
    running.note("osd.0")
    running.make_pool("rbd")


def _make_keys(directory: Path) -> None:
    keyring = os.fspath(directory / "keyring")
    _call("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    admin = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"]
    _call("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *admin)
    _call("ceph-authtool", keyring, "--gen-key", "-n", "osd.0", "--cap", "mon", "allow profile osd", "--cap", "osd", "allow *")
    manager = ["--cap", "mon", "allow profile mgr", "--cap", "osd", "allow *"]
    _call("ceph-authtool", keyring, "--gen-key", "-n", "mgr.x", *manager)


def _register_osd(running: Ceph, osd: str) -> None:
    running.run("ceph", "osd", "new", osd)


def _start_osd(running: Ceph) -> None:
    for attempt in range(1, _OSD_ATTEMPTS + 1):
        try:
            running.run("ceph-osd", "-i", "0")
        except CephFailed:
            if attempt == _OSD_ATTEMPTS:
                raise
            time.sleep(0.2)
        else:
            return


def _call(*argv: str) -> bytes:
    done = subprocess.run(argv, capture_output=True, timeout=_PATIENCE, check=False)
    if done.returncode:
        raise CephFailed(f"{argv[0]}: {done.stderr.decode()[-600:]}")
    return done.stdout


def _free_port() -> int:
    """A port that is free, and is none of those that OSDs take."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in _OSD_PORTS:
            return port


def _wait(until: Any, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not until():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
