"""Ploop disks beside the ``ploop`` tool itself: what we make passes its check, and what it writes is read.

The tool wants the kernel's driver before it describes an image of today's form. All that it looks for is a file in sysfs, so
some tests show it such a file, in a mount namespace of their own; no block device is ever made.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from machine import GIB, MIB, PATIENCE, Machine
from underlay.disks.ploop import descriptor
from underlay.errors import ToolFailed
from underlay.extents import own_bytes
from underlay.host import Host
from underlay.model import InstanceDisk

pytestmark = [pytest.mark.component("ploop", "qemu-img", "root")]

DESCRIPTOR, IMAGE = "DiskDescriptor.xml", "root.hds"
WITH_DRIVER = """
mount -t tmpfs none /sys/module && mkdir -p /sys/module/ploop/parameters
echo 1 >/sys/module/ploop/parameters/large_disk_support
exec "$@"
"""
_CREATE = """
import sys
from underlay.errors import UnderlayError
from underlay.host import Host
try:
    Host.open(sys.argv[1]).create_disk("web-1", sys.argv[2], size=sys.argv[3], backend="ploop")
except UnderlayError as error:
    print(type(error).__name__, error)
"""


def run(*argv: str | Path) -> str:
    """What a program says, all of it; it has to end well."""
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert 0 == ended.returncode, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def with_driver(*argv: str | Path) -> str:
    """As `run`, where the tool believes that the kernel has its driver."""
    return run("unshare", "--mount", "sh", "-c", WITH_DRIVER, "sh", *argv)


def made_with_driver(machine: Machine, ref: str, size: str) -> str:
    """What a process says that makes a disk there."""
    return with_driver(sys.executable, "-c", _CREATE, machine.config, ref, size)


def expect_sound(disk: InstanceDisk) -> None:
    """The tool finds nothing wrong: no hole, no cluster twice, no entry that leads nowhere, and a description that fits."""
    said = run("ploop", "check", "--force", "--check", "--ro", disk.path / IMAGE)
    assert "sparse" not in said
    assert "rror" not in said, said
    run("ploop", "check", disk.path / DESCRIPTOR)
    (disk.path / f"{DESCRIPTOR}.lck").unlink(missing_ok=True)
    assert 0 == subprocess.run(["qemu-img", "check", "-q", "-f", "parallels", disk.path / IMAGE], check=False).returncode


@pytest.fixture
def machine(mounted: Callable[..., Path]) -> Machine:
    return Machine.make(mounted("ext4"))  # on no other file system does the tool look for holes


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


@pytest.mark.component("ext4")
@pytest.mark.parametrize("payload", [MIB, 5 * MIB + 4096, 40 * MIB])
def test_the_tool_finds_a_disk_sound_and_one_that_has_grown(machine: Machine, host: Host, payload: int) -> None:
    disk = host.create_disk("web-1", machine.raw_image(size=64 * MIB + 512, payload=payload), backend="ploop", size="100MiB")

    expect_sound(disk)
    assert 200 * MIB == host.resize_disk("web-1", "200MiB").size
    expect_sound(disk)
    assert f"size:\t\t{200 * MIB // 512}\n" in run("ploop", "info", "-s", disk.path / DESCRIPTOR)
    assert 600 * GIB == host.resize_disk("web-1", "600GiB").size  # whose table does not fit before the data
    expect_sound(disk)
    assert disk.path / IMAGE == Path(run("ploop", "snapshot-list", "-H", "-o", "fname", disk.path / DESCRIPTOR).strip())


@pytest.mark.component("ext4")
def test_qemus_own_image_is_not_sound_to_the_tool(machine: Machine) -> None:
    """Which is why images are not made by qemu-img."""
    machine.raw_image(size=64 * MIB, payload=5 * MIB + 4096)
    image = machine.root / "theirs"
    run("qemu-img", "convert", "-f", "raw", "-O", "parallels", machine.root / "image.raw", image)

    ended = subprocess.run(["ploop", "check", "--force", "--ro", image], capture_output=True, text=True, check=False)

    assert 0 != ended.returncode
    assert "sparse" in ended.stderr


@pytest.mark.component("ext4")
def test_a_disk_that_the_tool_grew_is_as_large_as_it_says(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(), backend="ploop")

    run("ploop", "grow", "-s", "300G", disk.path / DESCRIPTOR)

    assert 300 * GIB == host.disk("web-1").size
    assert 301 * GIB == host.resize_disk("web-1", "301GiB").size
    expect_sound(disk)
    host.remove_disk("web-1")
    assert [] == os.listdir(machine.instances)


@pytest.mark.component("ext4")
def test_where_the_kernel_has_the_driver_the_tool_describes_the_disk(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()

    assert "" == made_with_driver(machine, ref, "40MiB")

    disk = host.disk("web-1")
    assert ("ploop", 40 * MIB) == (disk.backend, disk.size)
    assert {DESCRIPTOR, IMAGE} == set(os.listdir(disk.path))
    text = (disk.path / DESCRIPTOR).read_text()
    assert "<Parallels_disk_image>" in text  # as the tool has it, without a version
    assert descriptor.render(size=40 * MIB, cluster=MIB, file=IMAGE).decode().replace(' Version="1.0"', "") == text
    assert {0o640} == {path.stat().st_mode & 0o7777 for path in disk.path.iterdir()}
    expect_sound(disk)
    assert 50 * MIB == host.resize_disk("web-1", "50MiB").size
    expect_sound(disk)


@pytest.mark.component("btrfs")
def test_where_the_kernel_has_the_driver_no_blocks_are_shared(mounted: Callable[..., Path]) -> None:
    """Into which it would write for all who have them."""
    machine = Machine.make(mounted("btrfs"))
    ref = machine.raw_image(payload=8 * MIB)

    assert "" == made_with_driver(machine, ref, "40MiB")
    machine.host().create_disk("web-2", ref, backend="ploop", size="40MiB")

    own = [own_bytes_of(machine.instances / name / "disk" / IMAGE) for name in ("web-1", "web-2")]
    assert own[0] >= 8 * MIB > 2 * MIB > own[1]


def own_bytes_of(path: Path) -> int:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return own_bytes(file.fileno())


@pytest.mark.component("ext4")
def test_what_the_tool_refuses_is_no_disk(machine: Machine) -> None:
    ref = machine.raw_image()
    tool = machine.root / "ploop"
    tool.write_text("#!/bin/sh\necho 'the image is not sound' >&2; exit 39\n")
    tool.chmod(0o755)
    script = f'mount --bind {tool} /usr/sbin/ploop && exec "$@"'

    said = with_driver("sh", "-c", script, "sh", sys.executable, "-c", _CREATE, machine.config, ref, "40MiB")

    assert f"{ToolFailed.__name__} ploop failed (status 39): the image is not sound" in said
    assert [] == os.listdir(machine.instances)


@pytest.mark.component("ext4")
def test_a_snapshot_of_the_tools_own_is_seen(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(), backend="ploop")
    with_driver("ploop", "snapshot", disk.path / DESCRIPTOR)

    assert 16 * MIB == host.disk("web-1").size
    ended = machine.run("disk", "resize", "web-1", "40MiB", "--json")
    assert "unsupported" == ended.error["code"]
    assert "snapshots" in str(ended.error["message"])
    host.remove_disk("web-1")
    assert [] == os.listdir(machine.instances)
