"""A Linux guest that runs QEMU's guest agent: a kernel, a ramdisk with the agent in it, and a disk with a file system.

It writes to its serial line what a test wants to know: that it is up, each number that it has written to its disk, each word
that the agent's hook hears, the interfaces that it has, where on PCI it finds them and its disks on virtio (those with a serial
number by the part of that which virtio tells), and the line of root in its shadow file.
"""

import gzip
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guest_environment import unpacked

UP = "LINUX UP"
WROTE, HOOK, LINKS, SHADOW, PLACES = "WROTE", "HOOK", "LINKS", "SHADOW", "PLACES"
WITHOUT_AGENT, SLOW = "agent=no", "hook=slow"
"""Words of the kernel's command line: no agent is started; the hook takes its time before file systems are frozen."""

SLOWNESS = 8
"""Seconds that a slow hook takes."""

_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_net")
_DISK = 32 << 20  # bytes
_PROGRAMS = ("/usr/sbin/chpasswd", "/lib/x86_64-linux-gnu/security/pam_unix.so")
_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod "/lib/modules/$module"; done
mkdir -p /mnt /run /var/run /tmp
mount -t ext4 /dev/vda /mnt
place() {{
    echo "$1=$(basename "$(dirname "$(readlink -f "$2/device")")")"
}}
said=
shadow=
placed=
number=0
while :; do
    number=$((number + 1))
    echo "$number" >/mnt/number && sync && echo "{WROTE} $number"
    sleep 0.2
done &
while :; do
    links=$(ls /sys/class/net | tr '\\n' ' ')
    [ "$links" = "$said" ] || echo "{LINKS} $links"
    said=$links
    places=$(
        for one in /sys/class/net/eth*; do [ -e "$one" ] && place "$(cat "$one/address")" "$one"; done
        for one in /sys/block/vd*; do
            name=$(cat "$one/serial")
            place "${{name:-$(basename "$one")}}" "$one"
        done
    )
    places=$(echo $places)
    [ "$places" = "$placed" ] || echo "{PLACES} $places"
    placed=$places
    line=$(head -n 1 /etc/shadow)
    [ "$line" = "$shadow" ] || echo "{SHADOW} $line"
    shadow=$line
    sleep 0.2
done &
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && device=/dev/$(basename "$port")
done
if [ -n "$device" ] && ! grep -q {WITHOUT_AGENT} /proc/cmdline; then
    qemu-ga -m virtio-serial -p "$device" -t /run -F/hook &
fi
echo "{UP}"
while :; do sleep 60; done
"""
_FREEZE_HOOK = f"""#!/bin/sh
[ "$1" = freeze ] && grep -q {SLOW} /proc/cmdline && sleep {SLOWNESS}
echo "{HOOK} $1" >/dev/console
"""


@dataclass(frozen=True, slots=True)
class LinuxGuest:
    """The files of which it is made."""

    kernel: Path
    ramdisk: Path
    disk: Path


def linked(guest: LinuxGuest, directory: Path) -> LinuxGuest:
    """The same files in another directory."""
    here = LinuxGuest(directory / "kernel", directory / "ramdisk", directory / "disk.raw")
    for there, link in ((guest.kernel, here.kernel), (guest.ramdisk, here.ramdisk), (guest.disk, here.disk)):
        os.link(there, link)
    return here


def make(directory: Path) -> LinuxGuest:
    """Write them into a directory."""
    root = unpacked()
    [kernel] = (root / "boot").glob("vmlinuz-*")
    made = LinuxGuest(directory / "kernel", directory / "ramdisk", directory / "disk.raw")
    shutil.copyfile(kernel, made.kernel)
    made.ramdisk.write_bytes(_ramdisk(root, kernel.name.removeprefix("vmlinuz-")))
    with made.disk.open("wb") as file:
        file.truncate(_DISK)
    subprocess.run(["mkfs.ext4", "-q", made.disk], check=True, capture_output=True)
    return made


def _ramdisk(root: Path, version: str) -> bytes:
    modules = _modules(root, version)
    archive = _Archive()
    archive.add("init", _INIT.encode(), mode=0o755)
    archive.add("hook", _FREEZE_HOOK.encode(), mode=0o755)
    archive.add("modules", "\n".join(module.name for module in modules).encode())
    for module in modules:
        archive.add(f"lib/modules/{module.name}", module.read_bytes())
    archive.add("bin/busybox", next(root.glob("*bin/busybox")).read_bytes(), mode=0o755)
    archive.add("bin/sh", b"busybox", mode=0o120777)
    agent = root / "usr/sbin/qemu-ga"
    archive.add("bin/qemu-ga", agent.read_bytes(), mode=0o755)
    for path in (*(Path(one) for one in _PROGRAMS), *_libraries((agent, *_PROGRAMS))):
        archive.add(os.fspath(path).lstrip("/"), path.read_bytes(), mode=0o755)
    archive.add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")
    archive.add("etc/group", b"root:x:0:\n")
    archive.add("etc/shadow", b"root:*:20000:0:99999:7:::\n", mode=0o600)
    archive.add("etc/login.defs", b"")
    archive.add("etc/pam.d/chpasswd", b"password required pam_unix.so sha512\n")
    return archive.packed()


def _modules(root: Path, version: str) -> list[Path]:
    """The files of the modules, each behind those that it needs."""
    found: dict[str, None] = {}
    for module in _MODULES:
        argv = ["modprobe", "-d", os.fspath(root), "-S", version, "--show-depends", module]
        told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        found |= dict.fromkeys(line.split()[1] for line in told.splitlines() if line.startswith("insmod"))
    return [Path(path) for path in found]


def _libraries(programs: Iterable[str | Path]) -> list[Path]:
    """The host's own: the packages are of its release, and its QEMU needs the same ones."""
    found: dict[str, None] = {}
    for program in programs:
        told = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        found |= dict.fromkeys(_LIBRARY.findall(told))
    return [Path(path) for path in found]


class _Archive:
    """An initial file system in the kernel's format (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self) -> None:
        self._written = io.BytesIO()
        self._known: set[str] = set()

    def add(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        for parent in reversed(Path(path).parents):
            if (name := os.fspath(parent)) not in (".", *self._known):
                self._known.add(name)
                self._entry(name, b"", 0o040755)
        self._entry(path, content, mode if mode > 0o7777 else 0o100000 | mode)

    def packed(self) -> bytes:
        for name in ("proc", "sys", "dev"):
            self._entry(name, b"", 0o040755)
        self._entry("TRAILER!!!", b"", 0)
        return gzip.compress(self._written.getvalue(), compresslevel=1)

    def _entry(self, name: str, content: bytes, mode: int) -> None:
        encoded = name.encode() + b"\0"
        numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(f"{number:08X}".encode() for number in numbers)
        for part in (header + encoded, content):
            self._written.write(part.ljust(-(-len(part) // 4) * 4, b"\0"))
