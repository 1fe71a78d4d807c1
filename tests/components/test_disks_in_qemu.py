"""A disk that a real QEMU has open is neither resized nor removed, however QEMU opened it."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from machine import GIB, MIB, Machine, qemu_img_json
from underlay.errors import DiskInUse, ShrinkRefused
from underlay.host import Host
from underlay.model import InstanceDisk

pytestmark = pytest.mark.component("qemu-img")

PROGRAMS = [
    pytest.param("qemu-system-x86_64", marks=pytest.mark.component("qemu-system-x86_64")),
    pytest.param("qemu-storage-daemon", marks=pytest.mark.component("qemu-img")),
]


@contextmanager
def qemu_with(disk: InstanceDisk, program: str, *, read_only: bool = False, locking: str = "auto") -> Iterator[None]:
    """A QEMU that has the disk open and runs nothing."""
    file = {"driver": "file", "filename": os.fspath(disk.path), "locking": locking}
    node = json.dumps({"driver": disk.format, "node-name": "disk", "read-only": read_only, "file": file})
    if program == "qemu-system-x86_64":
        options = ["-S", "-accel", "tcg", "-M", "pc", "-m", "64M", "-nodefaults", "-no-user-config", "-display", "none"]
        options += ["-qmp", "stdio", "-blockdev", node]
        if not read_only:
            options += ["-device", "virtio-blk-pci,drive=disk"]
    else:
        options = ["--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor", "--blockdev", node]
    with subprocess.Popen([program, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        try:
            assert qemu.stdin is not None
            assert qemu.stdout is not None
            qemu.stdin.write('{"execute": "qmp_capabilities"}\n{"execute": "query-named-block-nodes"}\n')
            qemu.stdin.flush()
            while '"disk"' not in (line := qemu.stdout.readline()):  # it answers once it has opened what it was told to
                assert line, "QEMU ended"
            yield
        finally:
            qemu.kill()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("backend", ["qcow2", "flat"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_disk_that_qemu_has_open_is_left_alone(
    machine: Machine, host: Host, program: str, backend: str, *, read_only: bool
) -> None:
    disk = host.create_disk("web-1", machine.raw_image(), backend=backend)
    content = disk.path.read_bytes()

    with qemu_with(disk, program, read_only=read_only):
        with pytest.raises(DiskInUse, match=str(disk.path)):
            host.resize_disk("web-1", GIB)
        with pytest.raises(DiskInUse, match=str(disk.path)):
            host.remove_disk("web-1")
        for command in (("disk", "resize", "web-1", "1GiB"), ("disk", "remove", "web-1")):
            ended = machine.run(*command, "--json")
            assert (53, "disk-in-use") == (ended.status, ended.error["code"])
        assert disk == host.disk("web-1") == host.create_disk("web-1", f"file://{machine.root}/image.raw", backend=backend)

    assert content == disk.path.read_bytes()
    assert GIB == host.resize_disk("web-1", GIB).size
    host.remove_disk("web-1")
    assert [] == list(machine.instances.iterdir())


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_qemu_that_takes_no_locks_is_noticed_too(machine: Machine, host: Host, program: str) -> None:
    disk = host.create_disk("web-1", machine.raw_image())

    with qemu_with(disk, program, locking="off"), pytest.raises(DiskInUse):
        host.remove_disk("web-1")

    assert disk == host.disk("web-1")


def test_a_base_may_be_open_while_another_disk_is_made_on_it_and_grown(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()
    running = host.create_disk("web-1", ref)

    with qemu_with(running, "qemu-storage-daemon"):
        host.create_disk("web-2", ref)
        assert GIB == host.resize_disk("web-2", GIB).size
        host.remove_disk("web-2")

    assert [running] == host.disks()


def test_a_grown_overlay_keeps_what_the_guest_wrote(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image())
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0xab 1M 64k", disk.path], check=True, capture_output=True)

    grown = host.resize_disk("web-1", "20MiB")

    assert 20 * MIB == grown.size == qemu_img_json("info", "-f", "qcow2", disk.path)["virtual-size"]
    check = ["qemu-io", "-f", "qcow2", "-c", "read -P 0xab 1M 64k", "-c", "read -P 0 16M 4M", os.fspath(disk.path)]
    answer = subprocess.run(check, check=True, capture_output=True, text=True)
    assert "Pattern verification failed" not in answer.stdout
    assert 0 == qemu_img_json("check", "-f", "qcow2", disk.path)["check-errors"]
    with pytest.raises(ShrinkRefused):
        host.resize_disk("web-1", "16MiB")
