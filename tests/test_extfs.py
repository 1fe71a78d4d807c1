"""The file system that fills a raw disk: grown by the real tools when that is safe, told why when it is not."""

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from machine import MIB, Machine
from underlay import extfs
from underlay.errors import DiskNotFound, Unsupported
from underlay.host import Host

pytestmark = pytest.mark.component("mkfs.ext4")

MAKE = {
    "ext2": ["mkfs.ext2"],
    "ext3": ["mkfs.ext3"],
    "ext4": ["mkfs.ext4"],
    "ext4-64bit": ["mkfs.ext4", "-O", "64bit"],
    "ext4-4k": ["mkfs.ext4", "-b", "4096"],
}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


def image(machine: Machine, kind: str = "ext4") -> str:
    """An image of 16 MiB that a file system with one file fills."""
    path = machine.root / f"{kind}.raw"
    (machine.root / "content").mkdir(exist_ok=True)
    (machine.root / "content" / "hello").write_text("hello, guest")
    path.write_bytes(b"")
    os.truncate(path, 16 * MIB)
    program, *options = MAKE[kind]
    subprocess.run([f"/usr/sbin/{program}", "-q", "-F", *options, "-d", machine.root / "content", path], check=True)
    return f"file://{path}"


def size_of(path: Path) -> int:
    """Bytes of a file system that is sound."""
    subprocess.run(["/usr/sbin/e2fsck", "-f", "-n", path], check=True, capture_output=True)
    told = subprocess.run(["/usr/sbin/dumpe2fs", "-h", path], check=True, capture_output=True, text=True)
    facts = dict(line.split(":", 1) for line in told.stdout.splitlines() if ":" in line)
    return int(facts["Block count"]) * int(facts["Block size"])


def hello_in(path: Path) -> str:
    return subprocess.run(["/usr/sbin/debugfs", "-R", "cat hello", path], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("kind", MAKE)
def test_a_new_disks_file_system_fills_it(machine: Machine, host: Host, kind: str) -> None:
    disk = host.create_disk("web-1", image(machine, kind), size=64 * MIB, backend="flat", grow_filesystem=True)

    assert (64 * MIB, "hello, guest") == (size_of(disk.path), hello_in(disk.path))
    assert ["disk", "disk.info"] == sorted(os.listdir(disk.path.parent))


@pytest.mark.component("qemu-img")
@pytest.mark.parametrize("kind", MAKE)
def test_a_disks_file_system_grows_with_it(machine: Machine, host: Host, kind: str) -> None:
    disk = host.create_disk("web-1", image(machine, kind), backend="flat")

    grown = host.resize_disk("web-1", 48 * MIB, grow_filesystem=True)

    assert (48 * MIB, 48 * MIB, "hello, guest") == (grown.size, size_of(disk.path), hello_in(disk.path))


def test_unasked_it_stays_as_it_is(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", image(machine), size=64 * MIB, backend="flat")

    assert 16 * MIB == size_of(disk.path)


@pytest.mark.component("qemu-img")
def test_one_that_was_interrupted_grows_when_it_is_asked_for_again(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", image(machine), backend="flat")
    host.resize_disk("web-1", 48 * MIB)

    host.resize_disk("web-1", 48 * MIB, grow_filesystem=True)

    assert 48 * MIB == size_of(disk.path)


@pytest.mark.component("qemu-img")
def test_an_overlays_file_system_is_left_to_the_guest(machine: Machine, host: Host) -> None:
    ref = image(machine)
    with pytest.raises(Unsupported, match="only a raw disk's"):
        host.create_disk("web-1", ref, size=64 * MIB, grow_filesystem=True)
    with pytest.raises(DiskNotFound):
        host.disk("web-1")
    disk = host.create_disk("web-1", ref)

    with pytest.raises(Unsupported, match="only a raw disk's"):
        host.resize_disk("web-1", 64 * MIB, grow_filesystem=True)

    assert disk.size == host.disk("web-1").size


def spoil(offset: int, kind: str, change: Callable[[int], int]) -> Callable[[Path], None]:
    """Change a field of the superblock, as a guest may."""

    def spoiled(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(1024 + offset)
            (value,) = struct.unpack(kind, file.read(struct.calcsize(kind)))
            file.seek(1024 + offset)
            file.write(struct.pack(kind, change(value)))

    return spoiled


UNSAFE = {
    "without-partitions": spoil(0x38, "<H", lambda _: 0),
    "larger than it is": spoil(0x4, "<I", lambda blocks: blocks + 8),
    "larger than it is, in blocks": spoil(0x18, "<I", lambda _: 30),
    "journal elsewhere": spoil(0xE0, "<I", lambda _: 0),
    "journal elsewhere, as a device": spoil(0x60, "<I", lambda bits: bits | 0x8),
    "not unmounted cleanly": spoil(0x3A, "<H", lambda _: 0),
    "not unmounted cleanly, with errors": spoil(0x3A, "<H", lambda state: state | 2),
    "not unmounted cleanly, with a journal": spoil(0x60, "<I", lambda bits: bits | 0x4),
}


@pytest.mark.parametrize("why", UNSAFE)
def test_what_is_not_safe_is_refused_before_any_tool_reads_it(machine: Machine, host: Host, why: str) -> None:
    ref = image(machine)
    UNSAFE[why](machine.root / "ext4.raw")

    with pytest.raises(Unsupported, match=why.partition(",")[0].replace("-", " ")):
        host.create_disk("web-1", ref, size=64 * MIB, backend="flat", grow_filesystem=True)
    assert [] == list(machine.instances.iterdir())
    disk = host.create_disk("web-1", ref, backend="flat")
    before = disk.path.read_bytes()
    with pytest.raises(Unsupported):
        host.resize_disk("web-1", 64 * MIB, grow_filesystem=True)

    assert before == disk.path.read_bytes()


@pytest.mark.parametrize("content", [b"", bytes(1500), bytes(MIB)])
def test_what_is_no_file_system_is_told_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "disk").write_bytes(content)
    with (tmp_path / "disk").open("rb") as file, pytest.raises(Unsupported, match="no ext2"):
        extfs.check(file.fileno(), size=len(content), backend="flat", what="the disk")


def test_the_command_grows_it(machine: Machine) -> None:
    argv = ["disk", "create", "web-1", "--image", image(machine), "--size", "64MiB", "--backend", "flat", "--grow-filesystem"]

    assert 0 == machine.call(*argv).status
    assert 64 * MIB == size_of(machine.instances / "web-1" / "disk")
