"""Base images that are made here: each by the real tool, once, under a name that says what is in it."""

import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from machine import GIB, MIB, Machine
from storing import laid_out
from underlay import generated
from underlay.errors import (
    ConfigError,
    DiskExists,
    InvalidForm,
    InvalidSize,
    OverlayRefused,
    ToolFailed,
    ToolMissing,
    UnknownCache,
)
from underlay.naming import CacheKind
from underlay.store import images
from underlay.testing.fakes import Recorder

MAKERS = {
    "ext2": "mkfs.ext4",
    "ext3": "mkfs.ext4",
    "ext4": "mkfs.ext4",
    "xfs": "mkfs.xfs",
    "vfat": "mkfs.vfat",
    "ntfs": "mkfs.ntfs",
}
COMMAND = "mkfs.ext2 -F -q -b 1024 -L %(fs_label)s %(target)s"


def content_of(path: Path) -> tuple[str, str]:
    """The kind and the label of what is really in a file, as blkid sees it."""
    argv = ["blkid", "-p", "-o", "export", os.fspath(path)]
    told = subprocess.run(
        argv, capture_output=True, text=True, check=True, env=os.environ | {"PATH": "/usr/sbin:/sbin:/usr/bin"}
    )
    found = dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)
    return found["TYPE"], found.get("LABEL", "")


def hashed(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:7]


def test_a_swap_image_is_swap_and_named_after_its_size(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "base")

    image = generated.ensure(store, generated.swap(64 * MIB), Recorder())

    assert ("swap_64", "raw", 64 * MIB, 64 * MIB) == (image.name, image.format, image.size, image.virtual_size)
    assert "swap" == content_of(image.path)[0]
    assert image.allocated < MIB


@pytest.mark.parametrize(
    "file_system", [pytest.param(name, marks=pytest.mark.component(program)) for name, program in MAKERS.items()]
)
def test_an_ephemeral_image_has_its_file_system_and_is_named_after_it(tmp_path: Path, file_system: str) -> None:
    store = laid_out(tmp_path / "base")

    image = generated.ensure(store, generated.ephemeral(GIB, file_system=file_system), Recorder())

    assert (f"ephemeral_1_{hashed(file_system)}", GIB) == (image.name, image.size)
    assert (file_system, "ephemeral0") == content_of(image.path)
    assert image.allocated < GIB // 8


@pytest.mark.parametrize(
    ("wanted", "made_with"),
    [
        ({"os_type": "linux"}, "ext4"),
        ({"os_type": "windows"}, "ntfs"),
        ({"os_type": "bsd"}, "vfat"),
        ({}, "vfat"),
        ({"os_type": "linux", "default": "xfs"}, "xfs"),
        ({"os_type": "windows", "default": "xfs", "file_system": "ext3"}, "ext3"),
        ({"os_type": "linux", "default": "xfs", "commands": {"linux": COMMAND}}, COMMAND),
        ({"os_type": "bsd", "commands": {"linux": "mkfs %(target)s", "default": COMMAND}}, COMMAND),
        ({"os_type": "bsd", "commands": {"linux": COMMAND}}, "vfat"),
        ({"os_type": "linux", "file_system": "ext4", "commands": {"linux": COMMAND}}, "ext4"),
    ],
)
def test_what_decides_is_what_the_name_says(wanted: dict[str, object], made_with: str) -> None:
    assert f"ephemeral_20_{hashed(made_with)}" == generated.ephemeral(20 * GIB, **wanted).name  # type: ignore[arg-type]


@pytest.mark.component("mkfs.ext4")
def test_a_configured_command_makes_the_image(tmp_path: Path) -> None:
    recorder = Recorder()

    wanted = generated.ephemeral(GIB, os_type="linux", commands={"linux": COMMAND})
    image = generated.ensure(laid_out(tmp_path / "base"), wanted, recorder)

    assert ("ext2", "ephemeral0") == content_of(image.path)
    assert f"mkfs.ext2 -F -q -b 1024 -L ephemeral0 {image.name}" == recorder.wait_for_event("generated").detail


@pytest.mark.component("mkfs.ext4")
def test_an_image_is_made_once_however_many_ask_at_once(tmp_path: Path) -> None:
    store, recorder = laid_out(tmp_path / "base", lock_timeout=60.0), Recorder()
    wanted = generated.ephemeral(GIB, file_system="ext4")

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: generated.ensure(store, wanted, recorder), range(8)))

    assert 1 == recorder.codes.count("generated")
    assert {os.stat(made[0].path).st_ino} == {os.stat(image.path).st_ino for image in made}
    assert [] == os.listdir(store.paths.tmp)


def test_an_image_that_is_there_is_marked_used(tmp_path: Path) -> None:
    store = laid_out(tmp_path / "base")
    image = generated.ensure(store, generated.swap(MIB), Recorder())
    os.utime(store.paths.used_marker(image.name), (1, 1))
    os.utime(image.path, (1, 1))

    generated.ensure(store, generated.swap(MIB), Recorder())

    found = images.find(store, image.name)
    assert found is not None
    assert found.last_used.timestamp() > 1


def test_an_image_that_nova_made_is_taken_as_it_is(tmp_path: Path) -> None:
    store, recorder = laid_out(tmp_path / "base"), Recorder()
    theirs = store.root / "swap_1"
    theirs.write_bytes(bytes(MIB))

    image = generated.ensure(store, generated.swap(MIB), recorder)

    assert (theirs, None) == (image.path, image.record)
    assert "generated" not in recorder.codes


@pytest.mark.parametrize(
    ("command", "error", "why"),
    [
        ("no-such-program %(target)s", ToolMissing, "no-such-program"),
        ("false %(target)s", ToolFailed, "false failed"),
        ("mkfs.ext4 -q", ConfigError, "where"),
        ("%(target)s", ConfigError, "where"),
        ("mkfs.ext4 %(nonsense)s %(target)s", ConfigError, "nonsense"),
        ("mkfs.ext4 %d %(target)s", ConfigError, "is no command"),
        ("mkfs.ext4 'unclosed %(target)s", ConfigError, "quotation"),
    ],
)
def test_a_command_that_fails_leaves_nothing(tmp_path: Path, command: str, error: type[Exception], why: str) -> None:
    store = laid_out(tmp_path / "base")

    with pytest.raises(error, match=why):
        generated.ensure(store, generated.ephemeral(GIB, os_type="x", commands={"x": command}), Recorder())

    assert [".underlay"] == os.listdir(store.root)
    assert [] == os.listdir(store.paths.tmp)


@pytest.mark.parametrize("size", [0, -MIB, 1, MIB + 1])
def test_a_swap_of_no_whole_mebibytes_is_refused(size: int) -> None:
    with pytest.raises(InvalidSize, match="MiB"):
        generated.swap(size)


@pytest.mark.parametrize("size", [0, MIB, GIB + MIB])
def test_an_ephemeral_disk_of_no_whole_gibibytes_is_refused(size: int) -> None:
    with pytest.raises(InvalidSize, match="GiB"):
        generated.ephemeral(size)


def test_an_unknown_file_system_is_told_with_the_known_ones() -> None:
    with pytest.raises(InvalidForm, match="zfs") as refused:
        generated.ephemeral(GIB, file_system="zfs")

    assert "known file systems: ext2, ext3, ext4, ntfs, vfat, xfs" == refused.value.hint


def test_a_cache_of_masters_keeps_no_generated_images(tmp_path: Path) -> None:
    with pytest.raises(OverlayRefused):
        generated.ensure(laid_out(tmp_path / "masters", kind=CacheKind.MASTERS), generated.swap(MIB), Recorder())


# ----------------------------------------------------------------------------------------------------- disks that stand on them


@pytest.mark.parametrize("backend", ["qcow2", "flat"])
def test_swap_disks_share_one_image(tmp_path: Path, backend: str) -> None:
    machine = Machine.make(tmp_path)
    host = machine.host()

    disks = [host.create_swap(f"web-{number}", "64MiB", backend=backend) for number in range(3)]

    assert {("disk.swap", backend, 64 * MIB, "swap_64")} == {(one.name, one.backend, one.size, one.base) for one in disks}
    assert ["swap_64"] == [image.name for image in host.images()[0]]
    assert disks[0] == host.create_swap("web-0", 64 * MIB, backend=backend)
    if backend == "flat":
        assert "swap" == content_of(disks[0].path)[0]


@pytest.mark.component("mkfs.ext4")
def test_an_ephemeral_disk_is_made_as_the_configuration_says(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, disks='default_ephemeral_format = "ext3"\n')
    host = machine.host()

    disk = host.create_ephemeral("web-1", "1GiB", os_type="linux", backend="flat")

    assert ("disk.eph0", "ext3") == (disk.name, content_of(disk.path)[0])


def test_another_swap_disk_of_the_name_is_left_alone(tmp_path: Path) -> None:
    host = Machine.make(tmp_path).host()
    host.create_swap("web-1", "64MiB")

    with pytest.raises(DiskExists):
        host.create_swap("web-1", "128MiB")

    assert 64 * MIB == host.disk("web-1", name="disk.swap").size


def test_without_a_base_cache_there_is_nothing_to_keep_them_in(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    machine.config.write_text(machine.config.read_text().replace('kind = "base"', 'kind = "masters"'))

    with pytest.raises(UnknownCache, match="kind base"):
        machine.host().create_swap("web-1", "64MiB")


def test_the_commands_say_what_they_made(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)

    swap = machine.call("disk", "swap", "web-1", "64MiB", "--json")
    missing = machine.call("disk", "ephemeral", "web-1", "100MiB", "--json")

    assert ("swap_64", "disk.swap") == (swap.json["disk"]["base"], swap.json["disk"]["name"])
    assert "invalid-size" == missing.error["code"]
