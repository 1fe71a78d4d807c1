"""What becomes of a disk that is there: written out, flattened, put on another base. The real qemu-img is the judge."""

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from machine import MIB, Machine, qemu_img_json
from underlay.errors import (
    DiskExists,
    DiskInUse,
    DiskNotFound,
    DiskUnrecorded,
    InsufficientSpace,
    InvalidForm,
    InvalidName,
    OverlayRefused,
    Unsupported,
)
from underlay.files import read_attribute
from underlay.formats.qcow2 import write_overlay
from underlay.host import Host
from underlay.model import BaseImage, InstanceDisk
from underlay.store import roots
from underlay.testing.disk_suite import guest_bytes, guest_writes

pytestmark = [pytest.mark.component("qemu-img"), pytest.mark.component("qemu-io")]

WRITTEN = b"\x05" * 4096


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


@pytest.fixture
def base(machine: Machine, host: Host) -> BaseImage:
    return host.ensure(machine.raw_image())


@pytest.fixture
def other(machine: Machine, host: Host) -> BaseImage:
    return host.ensure(machine.raw_image("other.raw", size=20 * MIB, payload=2 * MIB, message="another"))


def written(host: Host, base: BaseImage, path: Path | None = None) -> tuple[InstanceDisk, bytes]:
    """A disk that its guest has written to, and what it sees then."""
    disk = host.create_disk("web-1", base, size=32 * MIB, path=path)
    guest_writes(disk, 8 * MIB, WRITTEN)
    return disk, guest_bytes(disk)


def kept(host: Host, base: BaseImage) -> bool:
    """Whether a prune in a month would keep the image."""
    plan = host.plan_prune(now=datetime.now(UTC) + timedelta(days=30))
    [verdict] = [verdict for verdict in plan.verdicts if verdict.file.name == base.name]
    return not verdict.removes


# ------------------------------------------------------------------------------------------------------------------ flattened


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_flattened_disk_keeps_its_content_and_no_base(
    host: Host, base: BaseImage, machine: Machine, *, elsewhere: bool
) -> None:
    disk, before = written(host, base, machine.root / "disk.img" if elsewhere else None)
    assert kept(host, base)

    flattened = host.flatten_disk("web-1", path=disk.path if elsewhere else None)

    assert not kept(host, base)
    base.path.unlink()
    assert before == guest_bytes(flattened)
    assert "backing-filename" not in qemu_img_json("info", "-f", "qcow2", disk.path)
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", disk.path], check=True)
    assert [flattened] == host.disks()


def test_a_flat_disk_is_flat(host: Host, base: BaseImage) -> None:
    disk = host.create_disk("web-1", base, backend="flat")

    assert disk == host.flatten_disk("web-1")


# -------------------------------------------------------------------------------------------------------------------- rebased


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_rebased_disk_keeps_the_new_base_and_not_the_old(
    host: Host, base: BaseImage, other: BaseImage, machine: Machine, *, elsewhere: bool
) -> None:
    disk, before = written(host, base, machine.root / "disk.img" if elsewhere else None)

    rebased = host.rebase_disk("web-1", other, path=disk.path if elsewhere else None)

    assert (False, True) == (kept(host, base), kept(host, other))
    base.path.unlink()
    assert before == guest_bytes(rebased)
    info = qemu_img_json("info", "-f", "qcow2", disk.path)
    assert (str(other.path), "raw") == (info["full-backing-filename"], info["backing-filename-format"])
    assert (other.name, rebased) == (rebased.base, host.disks()[0])
    expected = [(other.name, disk.path)] if elsewhere else []
    assert expected == roots.disks(host.config.caches["base"])
    assert rebased == host.create_disk("web-1", other, size=32 * MIB, path=disk.path if elsewhere else None)


def test_a_disk_is_rebased_onto_a_ref_that_is_fetched_first(host: Host, base: BaseImage, machine: Machine) -> None:
    _, before = written(host, base)

    rebased = host.rebase_disk("web-1", machine.qcow2_image())

    info = qemu_img_json("info", "-f", "qcow2", rebased.path)
    assert ("qcow2", before) == (info["backing-filename-format"], guest_bytes(rebased))


def test_only_an_overlay_is_rebased_and_only_onto_a_base(
    host: Host, base: BaseImage, other: BaseImage, machine: Machine
) -> None:
    flat = host.create_disk("web-2", base, backend="flat")
    with pytest.raises(Unsupported, match="flat"):
        host.rebase_disk("web-2", other)
    assert flat == host.disk("web-2")
    masters = machine.root / "masters"
    masters.mkdir()
    machine.config.write_text(machine.config.read_text() + f'[caches.masters]\nkind = "masters"\npath = "{masters}"\n')
    disk, _ = written(host, base)
    with pytest.raises(OverlayRefused):
        machine.host().rebase_disk("web-1", machine.raw_image(), cache="masters")
    assert disk.base_path == host.disk("web-1").base_path


# ------------------------------------------------------------------------------------------------------------------ extracted


@pytest.mark.parametrize(("extension", "compressed"), [("raw", False), ("qcow2", False), ("qcow2", True)])
def test_an_extracted_file_needs_no_other(
    host: Host, base: BaseImage, machine: Machine, extension: str, *, compressed: bool
) -> None:
    _, before = written(host, base)
    target = machine.root / f"out.{extension}"

    host.extract_disk("web-1", target, format=extension, compressed=compressed)

    base.path.unlink()
    assert "backing-filename" not in qemu_img_json("info", "-f", extension, target)
    raw = machine.root / "read.raw"
    subprocess.run(["qemu-img", "convert", "-f", extension, "-O", "raw", target, raw], check=True)
    assert before == raw.read_bytes()
    assert (0o640, None) == (target.stat().st_mode & 0o777, read_attribute(target))
    assert [] == [path.name for path in machine.root.iterdir() if path.name.startswith(".")]


def test_a_compressed_file_is_smaller(host: Host, machine: Machine) -> None:
    (machine.root / "text.raw").write_bytes(b"one line of many\n" * 500_000)
    host.create_disk("web-1", f"file://{machine.root}/text.raw")

    host.extract_disk("web-1", machine.root / "plain")
    host.extract_disk("web-1", machine.root / "packed", compressed=True)

    assert (machine.root / "packed").stat().st_size < (machine.root / "plain").stat().st_size // 4


def test_nothing_is_written_over(host: Host, base: BaseImage, machine: Machine) -> None:
    written(host, base)
    target = machine.root / "precious"
    target.write_text("precious")

    with pytest.raises(DiskExists, match="precious"):
        host.extract_disk("web-1", target)
    target.unlink()
    target.symlink_to(machine.root / "somewhere")
    with pytest.raises(DiskExists):
        host.extract_disk("web-1", target)

    assert not (machine.root / "somewhere").exists()


def test_what_an_interrupted_extraction_left_is_replaced(host: Host, base: BaseImage, machine: Machine) -> None:
    written(host, base)
    left = machine.root / ".out.underlay"
    left.mkdir()
    (left / "content").write_bytes(b"torn")

    host.extract_disk("web-1", machine.root / "out")

    assert not left.exists()
    assert 32 * MIB == qemu_img_json("info", "-f", "qcow2", machine.root / "out")["virtual-size"]


@pytest.mark.parametrize(("wanted", "compressed"), [("vmdk", False), ("", False), ("raw", True)])
def test_a_form_that_cannot_be_extracted_is_refused(
    host: Host, base: BaseImage, machine: Machine, wanted: str, *, compressed: bool
) -> None:
    written(host, base)

    with pytest.raises(InvalidForm):
        host.extract_disk("web-1", machine.root / "out", format=wanted, compressed=compressed)

    assert not (machine.root / "out").exists()


def test_a_target_in_a_cache_is_refused(host: Host, base: BaseImage, machine: Machine) -> None:
    written(host, base)

    with pytest.raises(InvalidName):
        host.extract_disk("web-1", machine.base / "out")
    with pytest.raises(InvalidName):
        host.extract_disk("web-1", Path("out"))


@pytest.mark.component("tmpfs")
def test_an_extraction_without_room_leaves_nothing(host: Host, base: BaseImage, mounted: Callable[..., Path]) -> None:
    disk, before = written(host, base)
    small = mounted("tmpfs", size=1 << 20)

    with pytest.raises(InsufficientSpace, match=str(small)):
        host.extract_disk("web-1", small / "out", format="raw")

    assert [] == list(small.iterdir())
    assert before == guest_bytes(disk)


@pytest.mark.component("root")
@pytest.mark.component("ext4")
def test_a_disk_that_cannot_be_flattened_for_want_of_room_reads_as_before(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    machine = Machine.make(mounted("ext4", size=40 * MIB))
    host = machine.host()
    (machine.root / "image.raw").write_bytes(os.urandom(12 * MIB))
    base = host.ensure(f"file://{machine.root}/image.raw")
    disk, before = written(host, base)
    (machine.root / "ballast").write_bytes(os.urandom(6 * MIB))
    (machine.base / ".underlay" / "ballast").unlink(missing_ok=True)

    with pytest.raises(InsufficientSpace):
        host.flatten_disk("web-1")

    found = host.disk("web-1")
    assert (disk.base_path, before) == (found.base_path, guest_bytes(found))
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", disk.path], check=True)


# --------------------------------------------------------------------------------------------------------- what is left alone


def test_a_disk_that_is_open_is_left_alone(host: Host, base: BaseImage, other: BaseImage, machine: Machine) -> None:
    disk, before = written(host, base)
    touches: list[Callable[[], object]] = [
        lambda: host.flatten_disk("web-1"),
        lambda: host.rebase_disk("web-1", other),
        lambda: host.extract_disk("web-1", machine.root / "out"),
    ]

    with disk.path.open("rb"):
        for touch in touches:
            with pytest.raises(DiskInUse):
                touch()

    assert before == guest_bytes(disk)


def novas(machine: Machine, backing: str, backing_format: str = "raw") -> Path:
    """A disk that Nova alone recorded, with any backing name."""
    disk = machine.instances / "web-1" / "disk"
    disk.parent.mkdir()
    with disk.open("wb") as file:
        write_overlay(file.fileno(), backing=Path(backing), backing_format=backing_format, size=MIB)
    (disk.parent / "disk.info").write_text(f'{{"{disk}": "qcow2"}}')
    return disk


def test_a_chain_that_leaves_a_format_open_is_not_read(host: Host, machine: Machine) -> None:
    """Whoever opened it would have to guess, and might find that the guest has written a header."""
    backing = machine.root / "backing"
    backing.write_bytes(bytes(MIB))
    disk = novas(machine, str(backing))
    disk.write_bytes(disk.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x12\x34\x56\x78", 1))
    touches: list[Callable[[], object]] = [
        lambda: host.flatten_disk("web-1"),
        lambda: host.extract_disk("web-1", machine.root / "out"),
    ]

    for touch in touches:
        with pytest.raises(DiskUnrecorded, match="does not record the format"):
            touch()
    assert not (machine.root / "out").exists()


@pytest.mark.parametrize(
    "name", ["nbd://server/export", 'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}']
)
def test_a_chain_that_leads_off_the_host_is_not_read(host: Host, machine: Machine, name: str) -> None:
    novas(machine, name)

    with pytest.raises(DiskUnrecorded, match="no file of this host"):
        host.extract_disk("web-1", machine.root / "out")


def test_a_chain_in_a_circle_is_not_followed_for_ever(host: Host, machine: Machine) -> None:
    novas(machine, str(machine.instances / "web-1" / "disk"), "qcow2")

    with pytest.raises(DiskUnrecorded, match="no end"):
        host.flatten_disk("web-1")


def test_there_is_nothing_to_change_where_no_disk_is(host: Host, machine: Machine, other: BaseImage) -> None:
    touches: list[Callable[[], object]] = [
        lambda: host.flatten_disk("web-1"),
        lambda: host.rebase_disk("web-1", other),
        lambda: host.extract_disk("web-1", machine.root / "out"),
        lambda: host.attachment("web-1"),
    ]
    for touch in touches:
        with pytest.raises(DiskNotFound):
            touch()


def test_a_hypervisor_is_told_what_the_configuration_says(tmp_path: Path) -> None:
    hints = 'hw_disk_discard = "unmap"\ndisk_cachemodes = ["file=none", "block=writeback"]\npreallocate_images = "space"\n'
    machine = Machine.make(tmp_path, disks=hints)
    host = machine.host()
    disk = host.create_disk("web-1", machine.raw_image(size=2 * MIB, payload=0), backend="flat")

    told = host.attachment("web-1")

    assert ("file", str(disk.path), "raw") == (told.type, told.source, told.format)
    assert ("none", "native", "unmap") == (told.cache, told.io, told.discard)
    assert disk.allocated >= 2 * MIB
    assert f"type=file source={disk.path} format=raw cache=none io=native discard=unmap\n" == (
        machine.call("disk", "attachment", "web-1").out
    )
