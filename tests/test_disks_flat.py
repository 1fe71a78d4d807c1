"""Flat disks: raw files that hold the whole image, cost little, stand alone, and stay raw whatever the guest writes."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from machine import GIB, MESSAGE, MIB, Machine, qemu_img_json
from underlay.errors import DiskTooSmall, FormatMismatch, InsufficientSpace
from underlay.host import Host
from underlay.model import DiskSpec
from underlay.testing.bootimage import boot, boot_line


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


def test_a_flat_disk_holds_the_images_content_and_zeros_behind_it(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(size=16 * MIB), backend="flat", size=20 * MIB)

    assert ("flat", "raw", 20 * MIB) == (disk.backend, disk.format, disk.size)
    assert (machine.root / "image.raw").read_bytes() + bytes(4 * MIB) == disk.path.read_bytes()


def test_a_flat_disk_keeps_the_images_holes(machine: Machine, host: Host) -> None:
    ref = machine.raw_image(size=256 * MIB, payload=5 * MIB)

    disk = host.create_disk("web-1", ref, backend="flat", size=8 * GIB)

    assert 8 * GIB == disk.path.stat().st_size
    assert 5 * MIB <= disk.allocated < 7 * MIB
    assert disk.allocated == disk.path.stat().st_blocks * 512


def test_a_flat_disk_needs_its_base_no_more(machine: Machine, host: Host) -> None:
    base = host.ensure(machine.raw_image())
    disk = host.create_disk("web-1", base, backend="flat")
    content = base.path.read_bytes()

    base.path.unlink()

    assert content == disk.path.read_bytes()
    assert disk == host.disk("web-1")


def test_a_flat_disk_smaller_than_its_image_is_refused_with_both_numbers(machine: Machine, host: Host) -> None:
    with pytest.raises(DiskTooSmall) as refused:
        host.create_disk("web-1", machine.raw_image(size=16 * MIB), backend="flat", size="1MiB")

    assert (MIB, 16 * MIB) == (refused.value.size, refused.value.virtual_size)
    assert [] == list(machine.instances.iterdir())


def test_the_same_flat_disk_asked_for_again_keeps_what_the_guest_wrote(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()
    disk = host.create_disk("web-1", ref, backend="flat")
    with disk.path.open("r+b") as file:
        file.write(b"written by the guest")

    assert disk == host.create_disk("web-1", ref, backend="raw")

    assert disk.path.read_bytes().startswith(b"written by the guest")


@pytest.mark.component("qemu-img")
def test_a_flat_disk_of_a_qcow2_image_is_converted_for_it(machine: Machine, host: Host) -> None:
    ref = machine.qcow2_image(size=16 * MIB)
    machine.raw_image("same.raw", size=16 * MIB)

    disk = host.create_disk("web-1", ref, backend="flat")

    assert (machine.root / "same.raw").read_bytes() == disk.path.read_bytes()


@pytest.mark.component("qemu-img")
def test_a_qcow2_base_is_refused_by_the_backend_itself(machine: Machine, host: Host) -> None:
    base = host.ensure(machine.qcow2_image())
    want = DiskSpec(instance="web-1", name="disk", path=machine.instances / "disk")

    with pytest.raises(FormatMismatch, match="qcow2"):
        host.parts.backend("flat").create(base, want)

    assert [] == list(machine.instances.iterdir())


@pytest.mark.component("qemu-system-x86_64")
def test_a_flat_disk_boots(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(), backend="flat", size="1GiB")

    assert boot_line(MESSAGE) in boot(disk.path, format="raw")


@pytest.mark.component("qemu-img")
def test_a_guest_cannot_turn_its_raw_disk_into_a_qcow2(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(), backend="flat")
    evil = machine.root / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", evil, "1M"], check=True)
    with disk.path.open("r+b") as file:
        file.write(evil.read_bytes())
    written = disk.path.read_bytes()
    assert "qcow2" == qemu_img_json("info", "-U", disk.path)["format"]  # what a tool that guesses takes it for

    described, listed = host.disk("web-1"), host.disks()
    grown = host.resize_disk("web-1", "32MiB")

    assert ("raw", 16 * MIB, disk.base) == (described.format, described.size, described.base)
    assert [described] == listed
    assert ("raw", 32 * MIB) == (grown.format, grown.size)
    assert written + bytes(16 * MIB) == disk.path.read_bytes()
    assert "raw" == machine.run("disk", "list", "--json").json["disks"][0]["format"]


@pytest.mark.component("root", "tmpfs")
def test_a_full_file_system_leaves_nothing_of_a_flat_disk(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    machine = Machine.make(tmp_path)
    small = mounted("tmpfs", 4 * MIB)
    machine.config.write_text(machine.config.read_text().replace(f'"{machine.instances}"', f'"{small}"'))
    free = os.statvfs(small).f_bavail
    ref = machine.raw_image(payload=12 * MIB)

    with pytest.raises(InsufficientSpace) as refused:
        machine.host().create_disk("web-1", ref, backend="flat")

    assert str(small) in refused.value.message
    assert [] == list(small.iterdir())
    assert free == os.statvfs(small).f_bavail


@pytest.mark.component("root")
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=pytest.mark.component(kind)) for kind in ("xfs", "btrfs")])
def test_where_the_file_system_can_a_flat_disk_shares_the_images_blocks(mounted: Callable[..., Path], kind: str) -> None:
    machine = Machine.make(mounted(kind))
    host = machine.host()
    base = host.ensure(machine.raw_image(size=128 * MIB, payload=64 * MIB))
    os.sync()
    free = os.statvfs(machine.root).f_bfree * os.statvfs(machine.root).f_frsize

    disk = host.create_disk("web-1", base, backend="flat", size=2 * GIB)

    os.sync()
    assert free - os.statvfs(machine.root).f_bfree * os.statvfs(machine.root).f_frsize < 4 * MIB
    extents = subprocess.run(["filefrag", "-v", disk.path], capture_output=True, text=True, check=True).stdout
    flags = [line.split(":")[-1] for line in extents.splitlines() if re.match(r"\s*\d+:", line)]
    assert flags
    assert all("shared" in flag for flag in flags), extents
    with disk.path.open("r+b") as file:
        file.write(b"a guest")
    assert not base.path.read_bytes().startswith(b"a guest")
    assert 2 * GIB == disk.path.stat().st_size
