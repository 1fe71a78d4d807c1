"""A libvirtd of its own: its sockets, its state and its log in one directory; nothing of the machine's own libvirt is touched.

It lives in a mount namespace in which that directory stands for libvirt's, because QEMU's driver reads its configuration from
/etc/libvirt whatever it is told. It can be ended and started again, as when a host's administrator does so; its guests run on.
"""

import contextlib
import grp
import os
import pwd
import subprocess
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from zlib import crc32

READY = 90.0  # seconds: the first start asks QEMU what it can, for each kind of machine
ENDED = 30.0
SCREENS, SCREENS_OF_ONE, DAEMONS = 34_000, 50, 600  # ports

# No control groups, no security driver, no virtlogd: none of them is here in a container.
QEMU_SETTINGS = """
user = "{user}"
group = "{user}"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = {ownership:d}
dynamic_ownership = {ownership:d}
remote_display_port_min = {first}
remote_display_port_max = {last}
"""
DAEMON_SETTINGS = """
listen_tls = 0
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_dir = "{directory}/sock"
log_outputs = "3:file:{directory}/libvirtd.log"
{host_uuid}
"""
# In its own mount namespace; it becomes libvirtd, so that the process that was started is the one to be ended.
IN_NAMESPACE = """
set -e
for name in etc run lib cache log; do
    case $name in etc) place=/etc/libvirt ;; run) place=/run/libvirt ;; *) place=/var/$name/libvirt ;; esac
    mount --bind "$1/$name" "$place"
done
# libvirt asks QEMU again and again what it can, when QEMU has found a KVM that its user may not open.
if [ "$2" != root ] && [ -e /dev/kvm ]; then
    cp -a /dev/kvm "$1/kvm"
    chmod a+rw "$1/kvm"
    mount --bind "$1/kvm" /dev/kvm
fi
exec libvirtd --config "$1/etc/libvirtd.conf" --pid-file "$1/run/libvirtd.pid"
"""


@dataclass(slots=True)
class Daemon:
    """One libvirtd, which is started and ended.

    Attributes:
        host_uuid: its own, when it is to be another host than the machine.
        user: that runs QEMU. Unless it is root, libvirt gives it the files of its guests for as long as they run.
        network: the network namespace that it lives in; None: the machine's.
    """

    directory: Path
    host_uuid: str | None = None
    user: str = "root"
    network: str | None = None
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def uri(self) -> str:
        return f"qemu:///system?socket={self.directory}/sock/libvirt-sock"

    def prepare(self) -> None:
        ensure_account()
        for name in ("etc", "run", "lib/qemu", "cache", "log/qemu", "sock"):
            (self.directory / name).mkdir(parents=True)
        # Of its own: another libvirtd looks for a free port at the same moment, and takes the same one.
        first = SCREENS + crc32(os.fsencode(self.directory)) % DAEMONS * SCREENS_OF_ONE
        screens = {"first": first, "last": first + SCREENS_OF_ONE - 1}
        qemu = QEMU_SETTINGS.format(user=self.user, ownership=self.user != "root", **screens)
        (self.directory / "etc/qemu.conf").write_text(qemu)
        host_uuid = "" if self.host_uuid is None else f'host_uuid = "{self.host_uuid}"'
        settings = DAEMON_SETTINGS.format(directory=self.directory, host_uuid=host_uuid)
        (self.directory / "etc/libvirtd.conf").write_text(settings)
        for place in ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt"):
            Path(place).mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        with (self.directory / "output.log").open("ab") as log:
            argv = ["unshare", "--mount", "--propagation", "private", "bash", "-c", IN_NAMESPACE]
            argv += ["libvirtd", os.fspath(self.directory), self.user]
            argv = ["nsenter", f"--net=/run/netns/{self.network}", *argv] if self.network else argv
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._await()

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(ENDED)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(ENDED)
        self.process = None

    def destroy_guests(self) -> None:
        """QEMU outlives its libvirtd, so whatever a failed test left is ended before that."""
        library = quiet_library()
        connection = library.open(self.uri)
        for domain in connection.listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            with contextlib.suppress(library.libvirtError):  # it has just ended by itself
                domain.destroy()
        assert [] == connection.listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        connection.close()

    def _await(self) -> None:
        library = quiet_library()
        deadline = time.monotonic() + READY
        while True:
            assert self.process is not None
            assert self.process.poll() is None, (self.directory / "output.log").read_text()
            try:
                library.open(self.uri).close()
            except library.libvirtError:
                assert time.monotonic() < deadline, (self.directory / "libvirtd.log").read_text()
                time.sleep(0.1)
            else:
                return


def quiet_library() -> Any:
    library = import_module("libvirt")
    library.registerErrorHandler(lambda _context, _error: None, None)
    return library


def ensure_account() -> None:
    """libvirt's QEMU driver does not start without this account, whatever user it is told to run QEMU as."""
    try:
        grp.getgrnam("libvirt-qemu")
    except KeyError:
        subprocess.run(["groupadd", "--system", "libvirt-qemu"], check=True)
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        argv = ["useradd", "--system", "--gid", "libvirt-qemu", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        subprocess.run([*argv, "libvirt-qemu"], check=True)


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")
