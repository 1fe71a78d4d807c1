"""Which files disks are backed by: every name and place that a disk may have, and what one keeps that cannot be read."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import corpus
from children import NOBODY, start, tell
from corpus import MIB, patched
from machine import Machine
from probing import (
    IMAGE,
    IMAGES,
    ORIGINAL,
    OTHER,
    UUID,
    assert_opens,
    backing,
    kept,
    original,
    overlay,
    problems,
    put,
    record,
    users,
    uses,
)
from underlay.host import Host
from underlay.model import KnownDisk

EPHEMERAL, SWAP, RESIZED = "ephemeral_1_40d1d2c", "swap_512", f"{ORIGINAL}_5368709120"
USED = {"backing-file"}

pytestmark = pytest.mark.component("qemu-img")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine.make(tmp_path)
    for name in (ORIGINAL, EPHEMERAL, SWAP, RESIZED, original(OTHER)):
        corpus.raw(machine.base / name, MIB)
    return machine


def disk_on(path: Path, base: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return corpus.create(path, "qcow2", MIB, backing=base)


# ----------------------------------------------------------------------------------------------- names and places of disks


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("disk", ORIGINAL),
        ("disk", RESIZED),
        ("disk.local", EPHEMERAL),
        ("disk.eph0", EPHEMERAL),
        ("disk.eph1", EPHEMERAL),
        ("disk.swap", SWAP),
        ("disk.rescue", original(OTHER)),
        ("vda", ORIGINAL),
        ("root.snap-1", ORIGINAL),
        ("a disk\nwith a line break", ORIGINAL),
        ("0f0e.qcow2.old", ORIGINAL),
        (".hidden", ORIGINAL),
    ],
)
def test_a_disk_of_any_name_keeps_its_base(machine: Machine, name: str, base: str) -> None:
    path = disk_on(machine.instances / UUID / name, machine.base / base)
    found = backing(machine, record(image_ref=None))
    assert {base: USED} == uses(found)
    assert [repr(str(path))[1:-1]] == sorted(users(found, base))
    assert frozenset() == kept(found)


@pytest.mark.parametrize(
    "directory",
    [
        UUID,
        f"{UUID}_resize",
        f"{UUID}_del",
        "instance-00000001",
        "instance-00000001_resize",
        OTHER,  # which no inventory knows
        "banana-42-hamster",
        "snapshots/one/two/three",
        ".",
    ],
)
def test_a_disk_in_any_directory_keeps_its_base(machine: Machine, directory: str) -> None:
    disk_on(machine.instances / directory / "disk", machine.base / ORIGINAL)
    assert {ORIGINAL: USED} == uses(backing(machine, record()))


def test_disks_of_extra_roots_count(machine: Machine, tmp_path: Path) -> None:
    disk_on(tmp_path / "pool/web.qcow2", machine.base / ORIGINAL)
    disk_on(tmp_path / "domain/images/0a/1b2c", machine.base / RESIZED)  # oVirt calls its disks by UUIDs, without a suffix
    assert {} == uses(backing(machine))
    assert {ORIGINAL: USED, RESIZED: USED} == uses(backing(machine, extra=[tmp_path / "pool", tmp_path / "domain"]))


def test_a_directory_and_a_disk_that_are_symlinks_count(machine: Machine, tmp_path: Path) -> None:
    disk_on(tmp_path / "elsewhere/disk", machine.base / ORIGINAL)
    disk_on(tmp_path / "lone", machine.base / RESIZED)
    (machine.instances / UUID).symlink_to(tmp_path / "elsewhere")
    (machine.instances / OTHER).mkdir()
    (machine.instances / OTHER / "disk").symlink_to(tmp_path / "lone")
    found = backing(machine)
    assert {ORIGINAL: USED, RESIZED: USED} == uses(found)
    assert frozenset() == kept(found)


def test_a_symlink_that_leads_back_ends(machine: Machine) -> None:
    disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    for number in range(12):
        (machine.instances / UUID / f"loop-{number}").symlink_to("..")
    found = backing(machine)
    assert {ORIGINAL: USED} == uses(found)
    assert frozenset() == kept(found)


def test_a_disk_deeper_than_is_looked_keeps_everything(machine: Machine) -> None:
    deep = machine.instances.joinpath(*(f"level-{number}" for number in range(12)))
    disk_on(deep / "disk", machine.base / ORIGINAL)
    found = backing(machine)
    assert {"original", "resized", "swap", "ephemeral"} == kept(found)
    assert ["directory-unreadable"] == [code for code, _ in problems(found)]


def test_the_cache_and_the_locks_in_the_instances_path_hold_no_disks(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, base="elsewhere")
    inside = machine.instances / "_base"
    inside.mkdir()
    config = machine.config.read_text(encoding="utf-8").replace(str(machine.base), str(inside))
    machine.config.write_text(config, encoding="utf-8")
    (machine.instances / "locks").mkdir()
    os.mkfifo(inside / "disk")
    os.mkfifo(machine.instances / "locks" / "disk.img")
    found = backing(machine)
    assert ([], frozenset()) == (list(found.problems), kept(found))


# ------------------------------------------------------------------------------------------------------ what qemu-img does


def test_internal_snapshots_change_nothing(machine: Machine) -> None:
    disk = disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    corpus.qemu_img("snapshot", "-c", "before", disk)
    assert {ORIGINAL: USED} == uses(backing(machine))


@pytest.mark.parametrize("unsafe", [True, False])
def test_a_rebased_disk_keeps_its_new_base(machine: Machine, unsafe: bool) -> None:  # noqa: FBT001
    disk = disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    corpus.qemu_img("rebase", *(["-u"] if unsafe else []), "-F", "raw", "-b", machine.base / original(OTHER), disk)
    assert {original(OTHER): USED} == uses(backing(machine))


def test_a_flattened_disk_keeps_nothing(machine: Machine) -> None:
    disk = disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    corpus.qemu_img("rebase", "-b", "", disk)
    assert {} == uses(backing(machine))


@pytest.mark.parametrize("kind", ["qed", "vmdk"])
def test_an_overlay_of_another_format_keeps_its_base(machine: Machine, kind: str) -> None:
    base = machine.base / (f"{ORIGINAL}.vmdk" if kind == "vmdk" else ORIGINAL)
    if kind == "vmdk":
        corpus.create(base, "vmdk", MIB)
    (machine.instances / UUID).mkdir()
    corpus.create(machine.instances / UUID / "disk", kind, MIB, backing=base)
    assert {base.name: USED} == uses(backing(machine))


def test_an_external_data_file_in_the_cache_is_kept(machine: Machine) -> None:
    (machine.instances / UUID).mkdir()
    name = machine.base / ORIGINAL
    corpus.create(machine.instances / UUID / "disk", "qcow2", MIB, options=f"data_file={name},data_file_raw=on")
    assert {ORIGINAL: USED} == uses(backing(machine))


def test_the_old_qcow_and_version_two_are_read(machine: Machine) -> None:
    (machine.instances / UUID).mkdir()
    corpus.create(machine.instances / UUID / "disk", "qcow2", MIB, options="compat=0.10", backing=machine.base / ORIGINAL)
    with (machine.instances / UUID / "disk.old").open("wb") as file:
        name = os.fsencode(machine.base / RESIZED)
        head = b"QFI\xfb" + corpus.u32(1) + corpus.u64(48) + corpus.u32(len(name)) + corpus.u32(0) + corpus.u64(MIB)
        file.write(head.ljust(48, b"\0") + name)
    assert {ORIGINAL: USED, RESIZED: USED} == uses(backing(machine))


# ----------------------------------------------------------------------------------------------- disks that cannot be read


def _dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def _circular(path: Path) -> None:
    path.symlink_to(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(before)


def _failing(path: Path) -> None:
    path.symlink_to("/proc/self/mem")  # a plain file whose first byte cannot be read: EIO


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


UNREADABLE = [_dangling, _circular, _socket, os.mkfifo, _failing, _device]


@pytest.mark.parametrize("make", UNREADABLE)
def test_a_disk_that_cannot_be_read_keeps_every_image_and_is_told_by_path(
    machine: Machine, make: Callable[[Path], None]
) -> None:
    path = machine.instances / OTHER / "disk"
    path.parent.mkdir()
    make(path)
    found = backing(machine, record())
    assert IMAGES == kept(found)
    assert [("disk-unreadable", path)] == problems(found)


@pytest.mark.parametrize("make", [_dangling, _circular])
def test_an_instances_directory_that_cannot_be_reached_keeps_every_image(
    machine: Machine, make: Callable[[Path], None]
) -> None:
    make(machine.instances / OTHER)
    assert kept(backing(machine)) >= IMAGES


@pytest.mark.parametrize(
    ("where", "known", "expected"),
    [
        (f"{UUID}/disk", {}, frozenset()),
        (f"{UUID}_resize/disk", {}, frozenset()),
        ("instance-00000001/disk", {}, frozenset()),
        (f"{UUID}/disk", {"image_ref": None}, IMAGES),
        (f"{UUID}/disk", {"image_ref": ""}, IMAGES),
        (f"{UUID}/disk.swap", {}, {"swap"}),
        (f"{UUID}/disk.swap", {"image_ref": None}, {"original", "resized", "swap"}),
        (f"{UUID}/disk.swap_2", {}, {"swap"}),
        (f"{UUID}/disk.eph0", {}, {"ephemeral"}),
        (f"{UUID}/disk.eph12", {}, {"ephemeral"}),
        (f"{UUID}/disk.local", {}, {"ephemeral"}),
        (f"{UUID}/disk.rescue", {}, IMAGES),
        (f"{OTHER}/disk", {}, IMAGES),
        (f"{OTHER}/disk.swap", {}, {"original", "resized", "swap"}),
        (f"{OTHER}/disk.eph1", {}, {"original", "resized", "ephemeral"}),
        ("disk", {}, IMAGES),
        ("pool.qcow2", {}, IMAGES),
    ],
)
def test_what_an_unreadable_disk_keeps_is_what_it_may_be_made_from(
    machine: Machine, where: str, known: dict[str, object], expected: frozenset[str]
) -> None:
    path = machine.instances / where
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    assert expected == kept(backing(machine, record(**known)))


def test_an_unreadable_disk_of_an_extra_root_keeps_every_image(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "pool" / UUID).mkdir(parents=True)
    os.mkfifo(tmp_path / "pool" / UUID / "disk")
    assert IMAGES == kept(backing(machine, record(), extra=[tmp_path / "pool"]))


def test_an_unreadable_file_that_may_be_a_disk_by_its_kind_keeps_every_image(machine: Machine) -> None:
    (machine.instances / OTHER).mkdir()
    _failing(machine.instances / OTHER / "0a1b2c3d-volume")
    found = backing(machine, record())
    assert IMAGES == kept(found)
    assert [("disk-unreadable", machine.instances / OTHER / "0a1b2c3d-volume")] == problems(found)


def test_what_is_no_disk_for_certain_keeps_nothing(machine: Machine) -> None:
    directory = machine.instances / UUID
    directory.mkdir()
    for name in ("console.log", "libvirt.xml", "qemu.pid", "serial.sock", "disk.info", "disk.config", "monitor", "agent.0"):
        os.mkfifo(directory / name)
    found = backing(machine)
    assert ([], frozenset()) == (list(found.problems), kept(found))


def look_as_another(config: str) -> None:
    machine = Machine(Path(config).parent, Path(), Path(config).parent / "instances", Path(config))
    found = backing(machine, record(name="known"))
    tell(json.dumps([sorted(kept(found)), [[code, os.fspath(path)] for code, path in problems(found)], sorted(uses(found))]))


@pytest.mark.component("root")
def test_what_may_not_be_read_counts_as_unreadable(open_directory: Path) -> None:
    machine = Machine.make(open_directory)
    machine.base.chmod(0o755)
    put(machine, ORIGINAL)
    disk = overlay(machine.instances / OTHER / "disk", machine.base / ORIGINAL)
    disk.chmod(0)
    with start(look_as_another, machine.config, user=NOBODY) as child:
        kinds, wrong, used = json.loads(child.hear())
    assert [["original", "resized"], [["disk-unreadable", str(disk)]], []] == [kinds, wrong, used]

    disk.chmod(0o644)
    disk.parent.chmod(0o700)
    with start(look_as_another, machine.config, user=NOBODY) as child:
        kinds, wrong, _ = json.loads(child.hear())
    assert ["ephemeral", "original", "resized", "swap"] == kinds
    assert [["directory-unreadable", str(disk.parent)]] == wrong


@pytest.mark.component("root", "ext4")
def test_a_disk_on_a_damaged_file_system_is_unreadable(machine: Machine, tmp_path: Path) -> None:
    image, pool = tmp_path / "damaged.img", tmp_path / "pool"
    corpus.raw(image, 16 * MIB)
    pool.mkdir()

    def run(*argv: str | Path) -> None:
        subprocess.run(argv, check=True, capture_output=True)

    run("mkfs.ext4", "-q", image)
    run("mount", "-o", "loop", image, pool)
    overlay(pool / "web.qcow2", machine.base / ORIGINAL)
    run("umount", pool)
    run("debugfs", "-w", "-R", "sif /web.qcow2 links_count 0", image)
    run("mount", "-o", "loop,ro", image, pool)
    try:
        found = backing(machine, extra=[pool])
    finally:
        run("umount", pool)
    assert kept(found) >= IMAGES
    assert pool / "web.qcow2" in [path for _, path in problems(found)]


def test_a_root_that_is_gone_or_no_directory_keeps_everything(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "missing", tmp_path / "file"):
        found = backing(machine, extra=[root])
        assert {"original", "resized", "swap", "ephemeral"} == kept(found)
        assert [("directory-unreadable", root)] == problems(found)


# ------------------------------------------------------------------------------------------------------- malformed and raw


def test_a_malformed_disk_with_a_record_keeps_its_recorded_base_only(machine: Machine) -> None:
    host = machine.host()
    image = host.ensure(machine.raw_image())
    disk = host.create_disk(UUID, image).path
    patched(disk, (corpus.QCOW2_CLUSTER_BITS, corpus.u32(63)))
    found = backing(machine)
    assert {image.name} == set(uses(found))
    assert "recorded-base" in uses(found)[image.name]
    assert frozenset() == kept(found)
    assert ("disk-malformed", disk) in problems(found)


def test_a_malformed_disk_is_believed_as_far_as_it_adds_protection(machine: Machine) -> None:
    disk = disk_on(machine.instances / OTHER / "disk", machine.base / ORIGINAL)
    patched(disk, (corpus.QCOW2_CLUSTER_BITS, corpus.u32(63)))
    found = backing(machine)
    assert ORIGINAL in uses(found)
    assert [("disk-malformed", disk)] == problems(found)


def test_a_chain_that_breaks_keeps_the_recorded_base_only(machine: Machine, tmp_path: Path) -> None:
    host = machine.host()
    image = host.ensure(machine.raw_image())
    disk = host.create_disk(UUID, image).path
    corpus.qemu_img("rebase", "-u", "-F", "qcow2", "-b", tmp_path / "gone", disk)
    found = backing(machine)
    assert {image.name: {"recorded-base"}} == uses(found)
    assert frozenset() == kept(found)
    assert [("disk-unreadable", disk)] == problems(found)


def _say_raw(disk: Path) -> None:
    (disk.parent / "disk.info").write_text(json.dumps({str(disk): "raw"}), encoding="utf-8")


def test_a_guests_header_on_a_raw_disk_adds_protection_and_is_reported(machine: Machine) -> None:
    disk = disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    _say_raw(disk)
    found = backing(machine, record(image_ref=None))
    assert {ORIGINAL: {"backing-name"}} == uses(found)
    assert [use.sure for use in found.uses] == [False]
    assert [("raw-disk-with-header", disk)] == problems(found)


@pytest.mark.parametrize("target", ["/nowhere/at/all", "fifo", "relative", "json:{", "x" * 1000])
def test_a_guest_cannot_stop_a_prune_by_what_it_writes_on_a_raw_disk(machine: Machine, tmp_path: Path, target: str) -> None:
    if target == "fifo":
        os.mkfifo(tmp_path / "fifo")
        target = str(tmp_path / "fifo")
    disk = overlay(machine.instances / UUID / "disk", target)
    _say_raw(disk)
    found = backing(machine, record())
    assert ({}, frozenset()) == (uses(found), kept(found))
    assert [("raw-disk-with-header", disk)] == problems(found)


def test_a_guests_header_on_our_flat_disk_is_told_from_our_record_alone(machine: Machine) -> None:
    host = machine.host()
    disk = host.create_disk(UUID, host.ensure(machine.raw_image()), backend="flat").path
    content = overlay(machine.root / "header", machine.base / ORIGINAL).read_bytes()
    (disk.parent / "disk.info").unlink()
    patched(disk, (0, content))
    found = backing(machine)
    assert "backing-name" in uses(found)[ORIGINAL]
    assert [("raw-disk-with-header", disk)] == problems(found)


@pytest.mark.parametrize("tells", ["our record", "Nova's record"])
def test_a_guests_header_on_the_raw_image_of_a_directory_is_told_from_the_directorys_record(
    machine: Machine, tells: str
) -> None:
    host = machine.host()
    disk = host.create_disk(UUID, host.ensure(machine.raw_image()), backend="ploop").path
    if tells == "our record":
        (disk.parent / "disk.info").unlink()
    else:
        os.removexattr(disk, "user.underlay")
    overlay(disk / "root.hds", machine.base / ORIGINAL)

    found = backing(machine)

    assert {ORIGINAL: {"backing-name"}} == uses(found)
    assert [("raw-disk-with-header", disk / "root.hds")] == problems(found)


def test_an_unreadable_image_in_a_directory_keeps_the_base_that_the_directory_records(machine: Machine) -> None:
    host = machine.host()
    disk = host.create_disk(UUID, host.ensure(machine.raw_image()), backend="ploop")
    (disk.path / "root.hds").unlink()
    _failing(disk.path / "root.hds")

    found = backing(machine)

    assert {disk.base: {"recorded-base"}} == uses(found)
    assert frozenset() == kept(found)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"disk": 1}', b"\xff\xfe", b'{"raw": "raw"}' * 3000])
def test_a_record_of_formats_that_cannot_be_read_says_nothing(machine: Machine, content: bytes) -> None:
    disk = disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    (disk.parent / "disk.info").write_bytes(content)
    assert {ORIGINAL: USED} == uses(backing(machine))


def test_a_record_of_formats_that_is_a_fifo_does_not_make_it_wait(machine: Machine) -> None:
    disk = disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    os.mkfifo(disk.parent / "disk.info")
    assert {ORIGINAL: USED} == uses(backing(machine))


# -------------------------------------------------------------------------------------- disks that something else tells of


def test_a_disk_of_ours_elsewhere_keeps_its_base_there_or_not(machine: Machine, tmp_path: Path) -> None:
    host = machine.host()
    image = host.ensure(machine.raw_image())
    path = tmp_path / "elsewhere.qcow2"
    host.create_disk("web-1", image, path=path)
    assert {"recorded-base", "backing-file"} == uses(backing(machine))[image.name]
    for change in (lambda: path.rename(tmp_path / "away"), lambda: os.mkfifo(path)):
        change()
        assert {"recorded-base"} == uses(backing(machine))[image.name]


@pytest.mark.parametrize("left", [[], ["lost+found", "notes.txt"]])
def test_a_directory_in_place_of_a_disk_elsewhere_says_nothing_of_it(machine: Machine, tmp_path: Path, left: list[str]) -> None:
    """Such as the mount point of a file system that is not mounted."""
    host = machine.host()
    image = host.ensure(machine.raw_image())
    path = tmp_path / "elsewhere"
    host.create_disk("web-1", image, path=path)
    path.unlink()
    path.mkdir()
    for name in left:
        (path / name).write_bytes(b"a plain file")

    assert {image.name: {"recorded-base"}} == uses(backing(machine))
    assert [] == problems(backing(machine))
    [verdict] = [
        one
        for one in machine.run("prune", "--now", "4102444800", "--dry-run", "--json").json["plan"]
        if one["name"] == image.name
    ]
    assert "keep" == verdict["action"], verdict


def test_a_part_of_a_disk_elsewhere_that_is_gone_by_now_keeps_its_base_and_is_no_missing_disk(
    machine: Machine, tmp_path: Path
) -> None:
    host = machine.host()
    image = host.ensure(machine.raw_image())
    disk = host.create_disk("web-1", image, backend="ploop", path=tmp_path / "web.hdd")
    assert {} == uses(backing(machine))

    (disk.path / "root.hds.new").symlink_to("renamed-meanwhile")  # listed, and not there when it is looked at

    assert {image.name: {"recorded-base"}} == uses(backing(machine))
    assert [] == problems(backing(machine))


def test_a_recorded_directory_without_its_files_keeps_its_base(machine: Machine, tmp_path: Path) -> None:
    host = machine.host()
    image = host.ensure(machine.raw_image())
    disk = host.create_disk("web-1", image, backend="ploop", path=tmp_path / "web.hdd")
    for file in disk.path.iterdir():
        file.unlink()

    assert {image.name: {"recorded-base"}} == uses(backing(machine))


def test_a_disk_of_ours_elsewhere_keeps_what_it_was_rebased_to(machine: Machine, tmp_path: Path) -> None:
    host = machine.host()
    image = host.ensure(machine.raw_image())
    path = tmp_path / "elsewhere.qcow2"
    host.create_disk("web-1", image, path=path)
    corpus.qemu_img("rebase", "-u", "-F", "raw", "-b", machine.base / ORIGINAL, path)
    assert USED == uses(backing(machine))[ORIGINAL]


def test_a_flat_disk_elsewhere_needs_no_base(machine: Machine, tmp_path: Path) -> None:
    host = machine.host()
    host.create_disk("web-1", host.ensure(machine.raw_image()), backend="flat", path=tmp_path / "elsewhere.raw")
    assert {} == uses(backing(machine))


def test_a_disk_that_the_inventory_names_counts_wherever_it_lies(machine: Machine, tmp_path: Path) -> None:
    disk = disk_on(tmp_path / "pool/web.qcow2", machine.base / ORIGINAL)
    found = backing(machine, record(image_ref=None, disks=(KnownDisk(disk),)))
    assert {ORIGINAL: USED} == uses(found)
    assert [f"{disk} of instance instance-00000001"] == sorted(users(found, ORIGINAL))


def test_a_file_of_the_cache_that_the_inventory_names_is_used(machine: Machine) -> None:
    found = backing(machine, record(image_ref=None, disks=(KnownDisk(machine.base / ORIGINAL),)))
    assert {ORIGINAL: USED} == uses(found)


def test_a_disk_that_the_inventory_names_and_nobody_finds_keeps_every_image(machine: Machine, tmp_path: Path) -> None:
    gone = tmp_path / "pool/web.qcow2"
    found = backing(machine, record(image_ref=None, disks=(KnownDisk(gone),)))
    assert IMAGES == kept(found)
    assert [("disk-unreadable", gone)] == problems(found)


@pytest.mark.parametrize("inside", [True, False])
def test_a_disk_that_the_inventory_names_and_nobody_finds_leaves_it_to_the_records_image(
    machine: Machine,
    tmp_path: Path,
    inside: bool,  # noqa: FBT001
) -> None:
    gone = (machine.instances if inside else tmp_path / "pool") / UUID / "disk"
    assert frozenset() == kept(backing(machine, record(image_ref=IMAGE, disks=(KnownDisk(gone, "qcow2"),))))


def test_a_disk_that_the_domain_calls_raw_is_a_raw_disk(machine: Machine, tmp_path: Path) -> None:
    disk = overlay(tmp_path / "web.raw", "/nowhere/at/all")
    found = backing(machine, record(image_ref=None, disks=(KnownDisk(disk, "raw"),)))
    assert frozenset() == kept(found)


# ---------------------------------------------------------------------------------------------------- caches by other ways


def _second_cache(machine: Machine, path: Path) -> None:
    with machine.config.open("a", encoding="utf-8") as file:
        file.write(f'[caches.second]\nkind = "base"\npath = "{path}"\nforce_raw_images = false\n')


def test_a_disk_elsewhere_counts_for_a_cache_that_it_was_not_made_from(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    _second_cache(machine, tmp_path / "second")
    host = machine.host()
    image = host.ensure(machine.raw_image(), cache="second")
    path = tmp_path / "elsewhere.qcow2"
    host.create_disk("web-1", image, path=path)
    corpus.qemu_img("rebase", "-u", "-F", "raw", "-b", machine.base / ORIGINAL, path)
    verdicts = host.plan_prune(cache="base").verdicts
    assert ["backing-file"] == [one.reasons[0].code for one in verdicts if one.file.name == ORIGINAL]


def test_a_cache_that_is_configured_by_a_symlink_is_known_by_its_real_path(machine: Machine, tmp_path: Path) -> None:
    disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    link = tmp_path / "link"
    link.symlink_to(machine.base)
    text = machine.config.read_text(encoding="utf-8").replace(f'"{machine.base}"', f'"{link}"')
    machine.config.write_text(text, encoding="utf-8")
    found = backing(machine)
    assert {ORIGINAL: USED} == uses(found)
    assert {link} == {use.root for use in found.uses}


def test_an_instances_path_that_is_a_symlink_is_read(machine: Machine, tmp_path: Path) -> None:
    disk_on(machine.instances / UUID / "disk", machine.base / ORIGINAL)
    machine.instances.rename(tmp_path / "real")
    machine.instances.symlink_to("real")
    found = backing(machine, record())
    assert ({ORIGINAL: USED}, frozenset()) == (uses(found), kept(found))


def test_an_overlay_of_any_name_in_the_cache_keeps_its_base(machine: Machine) -> None:
    disk_on(machine.base / "golden.qcow2", machine.base / ORIGINAL)
    assert ORIGINAL in uses(backing(machine))


def test_a_directory_of_disks_in_the_cache_keeps_their_bases(machine: Machine) -> None:
    (machine.base / "vms" / "one").mkdir(parents=True)
    disk_on(machine.base / "vms" / "one" / "root.img", machine.base / ORIGINAL)
    assert ORIGINAL in uses(backing(machine))


def test_a_disk_of_a_name_that_is_hardly_a_disks_keeps_its_base(machine: Machine) -> None:
    directory = machine.instances / "web-1"
    directory.mkdir()
    for name in ("disk.config", "before.log", "vm.xml", "console.log"):
        (machine.base / ORIGINAL).touch()
        disk = disk_on(directory / name, machine.base / ORIGINAL)
        assert ORIGINAL in uses(backing(machine)), name
        disk.unlink()


def test_a_disk_among_novas_locks_keeps_its_base(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, options=f'nova_locks = "{tmp_path}/instances/locks"')
    put(machine, ORIGINAL)
    disk_on(machine.instances / "locks" / "vm" / "disk", machine.base / ORIGINAL)
    (machine.instances / "locks" / f"nova-{ORIGINAL}").touch()
    assert ORIGINAL in uses(backing(machine))


def test_the_disks_of_another_configuration_of_the_same_cache_keep_their_bases(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path)
    theirs = tmp_path / "theirs.toml"
    (tmp_path / "elsewhere").mkdir()
    theirs.write_text(machine.config.read_text().replace(str(machine.instances), str(tmp_path / "elsewhere")))
    ref = machine.raw_image()
    disk = Host.open(theirs).create_disk("web-1", ref)
    host = machine.host()
    assert disk.base_path is not None
    report = host.apply(host.plan_prune(now=datetime(2100, 1, 1, tzinfo=UTC)))
    assert [("backing-file", False)] == [(one.reasons[0].code, one.removes) for one in report.verdicts]
    assert disk.base_path.exists()
    (tmp_path / "elsewhere").rename(tmp_path / "away")
    unknown = host.plan_prune(now=datetime(2200, 1, 1, tzinfo=UTC)).unknowns
    assert ["directory-unreadable"] == [one.code for one in unknown]
    host.accept()
    assert [] == host.plan_prune(now=datetime(2200, 1, 1, tzinfo=UTC)).unknowns


def test_a_file_that_is_in_use_keeps_the_file_that_it_stands_on(machine: Machine) -> None:
    lower = original(OTHER)
    (machine.base / ORIGINAL).unlink()
    disk_on(machine.base / ORIGINAL, machine.base / lower)
    made = machine.host().plan_prune(instances=[record(image_ref=IMAGE)])
    reasons = {one.file.name: [reason.code for reason in one.reasons] for one in made.verdicts}
    assert "instance-image" in reasons[ORIGINAL]
    assert "backing-file" in reasons[lower]


def test_an_unreadable_disk_is_not_answered_for_by_an_image_that_is_not_here(machine: Machine) -> None:
    directory = machine.instances / OTHER
    directory.mkdir()
    (directory / "disk").symlink_to("/nowhere/at/all")
    known = record(uuid=OTHER, image_ref="11111111-2222-4333-8444-555555555555")
    made = machine.host().plan_prune(instances=[known])
    assert ["disk-unreadable"] == [unknown.code for unknown in made.unknowns]


def test_whole_passes_leave_every_disk_openable(machine: Machine, tmp_path: Path) -> None:
    """Every kind of disk at once, all bases old: what is removed is what nobody needs, and each disk opens afterwards."""
    names = [original(f"image-{number}") for number in range(12)]
    for name in [*names, EPHEMERAL, SWAP]:
        corpus.raw(machine.base / name, MIB)
    middle = disk_on(tmp_path / "elsewhere/middle", machine.base / names[0])
    disks = [
        disk_on(machine.instances / UUID / "disk", machine.base / names[1]),
        disk_on(machine.instances / UUID / "disk.eph1", machine.base / EPHEMERAL),
        disk_on(machine.instances / UUID / "disk.rescue", machine.base / names[2]),
        disk_on(machine.instances / f"{UUID}_resize/disk.swap", machine.base / SWAP),
        disk_on(machine.instances / OTHER / "disk.local", machine.base / names[3]),
    ]
    above = machine.instances / OTHER / "disk"
    corpus.qemu_img("create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2", above)
    relative = machine.instances / OTHER / "disk.eph0"
    corpus.qemu_img("create", "-q", "-f", "qcow2", "-b", f"../../{machine.base.name}/{names[4]}", "-F", "raw", relative)
    for file in machine.base.iterdir():
        if file.is_file():
            os.utime(file, (1e9, 1e9))
    host = machine.host()
    report = host.apply(host.plan_prune(instances=[record(image_ref=None)]))
    gone = {path.name for path in report.removed}
    assert set(names[5:]) | {ORIGINAL, RESIZED, original(OTHER)} == gone
    for disk in [*disks, above, relative]:
        assert_opens(disk)
