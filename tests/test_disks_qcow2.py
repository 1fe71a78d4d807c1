"""qcow2 disks: overlays that QEMU finds in order, on the base that was meant, bootable by whoever owns them."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import GIB, MESSAGE, MIB, NOBODY, Machine, qemu_img_json
from underlay.errors import BackingPathTooLong, DiskExists, DiskTooSmall
from underlay.host import Host
from underlay.model import BaseImage
from underlay.testing.bootimage import boot, boot_line

pytestmark = pytest.mark.component("qemu-img")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


def assert_clean(disk: Path) -> None:
    answer = qemu_img_json("check", "-f", "qcow2", disk)
    assert (0, 0, 0) == (answer["check-errors"], answer.get("corruptions", 0), answer.get("leaks", 0))


@pytest.mark.parametrize("stored", ["raw", "qcow2"])
def test_an_overlay_names_its_base_by_absolute_path_and_with_its_format(machine: Machine, host: Host, stored: str) -> None:
    ref = machine.raw_image() if stored == "raw" else machine.qcow2_image()
    base = host.ensure(ref)

    disk = host.create_disk("web-1", base, size=GIB)

    info = qemu_img_json("info", "-f", "qcow2", disk.path)
    assert os.fspath(base.path) == info["backing-filename"]
    assert Path(info["backing-filename"]).is_absolute()
    assert stored == base.format == info["backing-filename-format"]
    assert GIB == info["virtual-size"] == disk.size
    assert_clean(disk.path)


def test_an_overlay_shows_the_bases_content_and_zeros_behind_it(machine: Machine, host: Host, tmp_path: Path) -> None:
    ref = machine.raw_image(size=16 * MIB)
    disk = host.create_disk("web-1", ref, size=20 * MIB)

    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk.path, tmp_path / "seen"], check=True)

    assert (tmp_path / "image.raw").read_bytes() + bytes(4 * MIB) == (tmp_path / "seen").read_bytes()


def test_without_a_size_an_overlay_has_the_images_virtual_size(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.qcow2_image(size=3 * GIB))

    assert 3 * GIB == disk.size == qemu_img_json("info", "-f", "qcow2", disk.path)["virtual-size"]


def test_an_overlay_smaller_than_its_base_is_refused_with_both_numbers(machine: Machine, host: Host) -> None:
    base = host.ensure(machine.raw_image(size=16 * MIB))

    with pytest.raises(DiskTooSmall) as refused:
        host.create_disk("web-1", base, size=16 * MIB - 1)

    assert (16 * MIB - 1, 16 * MIB) == (refused.value.size, refused.value.virtual_size)
    assert str(16 * MIB - 1) in refused.value.message
    assert str(16 * MIB) in refused.value.message
    assert [] == list(machine.instances.iterdir())


def test_a_size_is_rounded_up_to_whole_sectors_and_asking_again_finds_the_same_disk(machine: Machine, host: Host) -> None:
    base = host.ensure(machine.raw_image(size=16 * MIB))

    disk = host.create_disk("web-1", base, size=20 * MIB + 1)

    assert 20 * MIB + 512 == disk.size
    assert disk == host.create_disk("web-1", base, size=20 * MIB + 1)
    assert_clean(disk.path)


@pytest.mark.parametrize("backend", ["qcow2", "flat"])
def test_a_disk_of_an_image_that_ends_amid_a_sector_has_the_whole_sector(machine: Machine, host: Host, backend: str) -> None:
    (machine.root / "odd.raw").write_bytes(b"a bootloader" * 1000)
    ref = f"file://{machine.root}/odd.raw"

    disk = host.create_disk("web-1", ref, backend=backend)

    assert 12288 == disk.size
    assert disk == host.create_disk("web-1", ref, backend=backend)


def test_the_same_overlay_asked_for_again_is_left_as_it_is(machine: Machine, host: Host) -> None:
    base = host.ensure(machine.raw_image())
    disk = host.create_disk("web-1", base, size=GIB)
    before = disk.path.stat()

    assert disk == host.create_disk("web-1", base, size="1GiB")

    after = disk.path.stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (after.st_ino, after.st_mtime_ns, after.st_ctime_ns)


@pytest.mark.parametrize("wanted", [{"size": 2 * GIB}, {"size": None}, {"backend": "flat", "size": GIB}])
def test_a_disk_of_another_size_or_format_is_left_alone(machine: Machine, host: Host, wanted: dict[str, object]) -> None:
    base = host.ensure(machine.raw_image())
    disk = host.create_disk("web-1", base, size=GIB, backend="qcow2")
    content = disk.path.read_bytes()

    with pytest.raises(DiskExists, match=f"qcow2 of {GIB} bytes from {base.path}"):
        host.create_disk("web-1", base, **wanted)  # type: ignore[arg-type]

    assert content == disk.path.read_bytes()
    assert disk == host.disk("web-1")


def test_a_disk_of_another_base_is_left_alone(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image("one.raw"), size=GIB)

    with pytest.raises(DiskExists, match=r"one|from"):
        host.create_disk("web-1", machine.raw_image("two.raw", message="another"), size=GIB)

    assert disk == host.disk("web-1")


def test_a_disk_of_an_equal_image_in_another_cache_is_another_disk(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    second = f'[caches.second]\nkind = "base"\npath = "{tmp_path}/second"\n'
    machine = Machine.make(tmp_path, extra=second)
    host, ref = machine.host(), machine.raw_image()
    disk = host.create_disk("web-1", ref, cache="base")

    with pytest.raises(DiskExists):
        host.create_disk("web-1", ref, cache="second")

    assert disk == host.disk("web-1")


# --------------------------------------------------------------------------------------------------------- the longest path


@pytest.fixture
def deep() -> Iterator[Path]:
    """A directory in which a cache's images can have a path of exactly 1023 bytes."""
    with tempfile.TemporaryDirectory(prefix="ul-") as directory:
        yield Path(directory)


def base_with_path_of(length: int, deep: Path) -> tuple[Host, BaseImage]:
    image_name = len("/" + 40 * "0" + ".raw")
    root = os.fspath(deep)
    while len(root) < length - image_name:
        step = min(200, length - image_name - len(root) - 1)
        root += "/" + "d" * step
    (deep / "host").mkdir()
    Path(root).mkdir(parents=True)
    machine = Machine.make(deep / "host")
    machine.config.write_text(machine.config.read_text().replace(f'"{machine.base}"', f'"{root}"'))
    host = machine.host()
    base = host.ensure(machine.raw_image())
    assert length == len(os.fsencode(base.path))
    return host, base


def test_a_backing_path_of_1023_bytes_is_used(deep: Path) -> None:
    host, base = base_with_path_of(1023, deep)

    disk = host.create_disk("web-1", base, size=GIB)

    assert os.fspath(base.path) == qemu_img_json("info", "-f", "qcow2", disk.path)["backing-filename"]
    assert_clean(disk.path)
    assert base.path == host.disk("web-1").base_path


def test_a_backing_path_of_1024_bytes_is_refused_and_nothing_is_left(deep: Path) -> None:
    host, base = base_with_path_of(1024, deep)

    with pytest.raises(BackingPathTooLong, match=r"1024 bytes.*1023"):
        host.create_disk("web-1", base, size=GIB)

    assert [] == list((deep / "host" / "instances").iterdir())


# ----------------------------------------------------------------------------------------------------------------- booting


@pytest.mark.component("qemu-system-x86_64")
@pytest.mark.parametrize("stored", ["raw", "qcow2"])
def test_an_overlay_boots_and_leaves_its_base_as_it_was(machine: Machine, host: Host, stored: str) -> None:
    base = host.ensure(machine.raw_image() if stored == "raw" else machine.qcow2_image())
    content = base.path.read_bytes()
    disk = host.create_disk("web-1", base, size="1GiB")

    assert boot_line(MESSAGE) in boot(disk.path, format="qcow2")

    assert content == base.path.read_bytes()
    assert_clean(disk.path)


@pytest.mark.component("root", "qemu-system-x86_64")
def test_another_user_boots_an_overlay_of_a_base_that_root_fetched() -> None:
    umask = os.umask(0o077)
    try:
        with tempfile.TemporaryDirectory(prefix="ul-") as directory:
            root = Path(directory)
            machine = Machine.make(root)
            for path in (root, machine.base, machine.instances):
                path.chmod(0o755)
            (machine.instances / "web-1").mkdir()
            os.chown(machine.instances / "web-1", NOBODY, NOBODY)
            (machine.instances / "web-1").chmod(0o700)

            disk = machine.host().create_disk("web-1", machine.qcow2_image(), size="1GiB")

            assert NOBODY == disk.path.stat().st_uid
            assert 0 == machine.base.stat().st_uid
            assert boot_line(MESSAGE) in boot(disk.path, format="qcow2", user=NOBODY)
    finally:
        os.umask(umask)


def test_growing_opens_no_file_but_the_disks_own(machine: Machine) -> None:
    host = machine.host()
    disk = host.create_disk("web-1", machine.raw_image())
    assert disk.base_path is not None
    disk.base_path.unlink()  # so that qemu-img would fail if it looked for the backing file

    assert 64 * MIB == host.resize_disk("web-1", 64 * MIB).size
