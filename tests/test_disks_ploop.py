"""Ploop disks: directories that stand alone, are whole or not there, and are believed no more than they deserve."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from machine import GIB, MIB, PATIENCE, Machine
from underlay import locks
from underlay.attributes import decode_disk_record
from underlay.disks.ploop import PloopBackend, descriptor
from underlay.errors import (
    DiskExists,
    DiskInUse,
    DiskNotFound,
    DiskTooSmall,
    DiskUnrecorded,
    FormatMismatch,
    InsufficientSpace,
    InvalidSize,
    ShrinkRefused,
    UnderlayError,
    Unsupported,
)
from underlay.files import read_attribute
from underlay.host import Host
from underlay.model import DiskSpec, Extraction, InstanceDisk

pytestmark = pytest.mark.component("qemu-img")

IMAGE, DESCRIPTOR = "root.hds", "DiskDescriptor.xml"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    return machine.host()


@pytest.fixture
def disk(machine: Machine, host: Host) -> InstanceDisk:
    return host.create_disk("web-1", machine.raw_image(), backend="ploop", size=20 * MIB)


def expect_content(source: Path, disk: InstanceDisk) -> None:
    """What QEMU reads is the raw file, and zeros behind it."""
    argv = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "parallels", os.fspath(source), os.fspath(disk.path / IMAGE)]
    subprocess.run(argv, check=True, timeout=PATIENCE)


def spec(disk: InstanceDisk) -> DiskSpec:
    return DiskSpec(instance=disk.instance, name=disk.name, path=disk.path)


# --------------------------------------------------------------------------------------------------------------------- making


def test_a_ploop_disk_is_a_directory_with_an_image_and_its_description(machine: Machine, disk: InstanceDisk) -> None:
    assert ("ploop", "parallels", 20 * MIB) == (disk.backend, disk.format, disk.size)
    assert {DESCRIPTOR, IMAGE} == set(os.listdir(disk.path))
    expect_content(machine.root / "image.raw", disk)
    said = descriptor.parse((disk.path / DESCRIPTOR).read_bytes(), where=disk.path)
    assert (20 * MIB, MIB, (IMAGE,), "parallels") == (said.size, said.cluster, said.files, said.format)
    assert f'{{"{disk.path}":"ploop"}}' == (disk.path.parent / "disk.info").read_text()  # Nova's word
    record = decode_disk_record(read_attribute(disk.path))
    assert record is not None
    assert ("web-1", "disk", "ploop", "parallels") == (record.instance, record.name, record.backend, record.format)


@pytest.mark.component("root")
def test_the_directory_and_its_files_belong_to_who_has_the_one_above(machine: Machine, host: Host) -> None:
    directory = machine.instances / "web-1"
    directory.mkdir()
    os.chown(directory, 12345, 23456)

    disk = host.create_disk("web-1", machine.raw_image(), backend="ploop")

    found = [os.stat(path) for path in (disk.path, disk.path / IMAGE, disk.path / DESCRIPTOR)]
    assert {(12345, 23456)} == {(status.st_uid, status.st_gid) for status in found}
    assert [0o750, 0o640, 0o640] == [stat.S_IMODE(status.st_mode) for status in found]


def test_a_size_is_rounded_to_whole_clusters(machine: Machine, host: Host) -> None:
    ref = machine.raw_image(size=16 * MIB + 512)

    assert 17 * MIB == host.create_disk("web-1", ref, backend="ploop").size
    assert 19 * MIB == host.create_disk("web-2", ref, backend="ploop", size=18 * MIB + 1).size


def test_only_clusters_with_data_are_there(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(size=512 * MIB, payload=4 * MIB), backend="ploop", size=100 * GIB)

    assert 5 * MIB <= disk.allocated < 9 * MIB
    expect_content(machine.root / "image.raw", disk)


def test_a_disk_needs_its_base_no_more(machine: Machine, host: Host, disk: InstanceDisk) -> None:
    assert disk.base_path is not None
    disk.base_path.unlink()

    assert disk == host.disk("web-1")
    expect_content(machine.root / "image.raw", disk)
    assert "base-missing" not in machine.run("check", "--json").out


def test_a_qcow2_image_is_converted_for_it(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.qcow2_image(), backend="ploop")

    machine.raw_image("same.raw")
    expect_content(machine.root / "same.raw", disk)


def test_a_qcow2_base_is_refused_by_the_backend_itself(machine: Machine, host: Host) -> None:
    base = host.ensure(machine.qcow2_image())

    with pytest.raises(FormatMismatch, match="qcow2"):
        PloopBackend().create(base, DiskSpec(instance="web-1", name="disk", path=machine.instances / "disk"))

    assert [] == os.listdir(machine.instances)


def test_what_cannot_be_leaves_nothing(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()
    for error, wanted in (
        (DiskTooSmall, {"size": MIB}),
        (InvalidSize, {"size": 1 << 40}),
        (Unsupported, {"key": bytes(64)}),
        (Unsupported, {"grow_filesystem": True}),
    ):
        with pytest.raises(error):
            host.create_disk("web-1", ref, backend="ploop", **wanted)
        assert [] == os.listdir(machine.instances), error


def test_the_same_disk_asked_for_again_keeps_what_the_guest_wrote(machine: Machine, host: Host, disk: InstanceDisk) -> None:
    argv = ["qemu-io", "-f", "parallels", "-c", "write -P 7 18M 1M", os.fspath(disk.path / IMAGE)]
    subprocess.run(argv, check=True, capture_output=True, timeout=PATIENCE)
    written = (disk.path / IMAGE).read_bytes()

    again = host.create_disk("web-1", f"file://{machine.root}/image.raw", backend="ploop", size=20 * MIB)

    assert (disk.path, disk.size, disk.base) == (again.path, again.size, again.base)
    assert written == (disk.path / IMAGE).read_bytes()


@pytest.mark.parametrize("backend", ["ploop", "flat", "qcow2"])
def test_another_disk_in_its_place_is_left_alone(machine: Machine, host: Host, disk: InstanceDisk, backend: str) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in disk.path.iterdir())

    with pytest.raises(DiskExists):
        host.create_disk("web-1", f"file://{machine.root}/image.raw", backend=backend, size=30 * MIB)

    assert before == sorted((path, path.stat().st_mtime_ns) for path in disk.path.iterdir())
    assert disk == host.disk("web-1")


@pytest.mark.parametrize("what", ["file", "directory", "full directory", "symlink", "dangling symlink", "fifo"])
def test_something_else_in_its_place_is_left_alone(machine: Machine, host: Host, what: str) -> None:
    path = machine.instances / "web-1" / "disk"
    path.parent.mkdir()
    match what:
        case "file":
            path.write_bytes(b"a disk of old")
        case "directory":
            path.mkdir()
        case "full directory":
            path.mkdir()
            (path / IMAGE).touch()
        case "symlink":
            path.symlink_to(machine.root)
        case "dangling symlink":
            path.symlink_to("nowhere")
        case "fifo":
            os.mkfifo(path)
    before = os.lstat(path)

    with pytest.raises(DiskExists, match=str(path)):
        host.create_disk("web-1", machine.raw_image(), backend="ploop")

    assert (before.st_ino, before.st_mode) == (os.lstat(path).st_ino, os.lstat(path).st_mode)
    assert ["disk"] == os.listdir(path.parent)


def test_what_a_crash_left_goes_whichever_backend_comes_next(machine: Machine, host: Host) -> None:
    ref = machine.raw_image()
    for number, backend in enumerate(("ploop", "flat", "qcow2", "ploop")):
        directory = machine.instances / f"web-{number}"
        directory.mkdir()
        if number:
            (directory / ".disk.underlay").mkdir()
            (directory / ".disk.underlay" / IMAGE).write_bytes(b"half a disk")
        else:
            (directory / ".disk.underlay").write_bytes(b"half a disk")

        host.create_disk(f"web-{number}", ref, backend=backend)

        assert {"disk", "disk.info"} == set(os.listdir(directory))


def test_a_symlink_under_the_temporary_name_leads_nowhere(machine: Machine, host: Host) -> None:
    directory, theirs = machine.instances / "web-1", machine.root / "theirs"
    directory.mkdir()
    theirs.mkdir()
    (theirs / "file").touch()
    (directory / ".disk.underlay").symlink_to(theirs)

    disk = host.create_disk("web-1", machine.raw_image(), backend="ploop")

    assert {IMAGE, DESCRIPTOR} == set(os.listdir(disk.path))
    assert ["file"] == os.listdir(theirs)


# ------------------------------------------------------------------------------------------ looking, growing, going, elsewhere


def test_the_commands_know_it(machine: Machine) -> None:
    ref = machine.raw_image()

    command = ["disk", "create", "web-1", "--image", ref, "--backend", "ploop", "--size", "20MiB"]
    made = machine.run(*command, "--json").json["disk"]
    assert ("ploop", "parallels", 20 * MIB) == tuple(made[key] for key in ("backend", "format", "size"))
    assert ["ploop"] == [one["backend"] for one in machine.run("disk", "list", "--json").json["disks"]]
    assert 40 * MIB == machine.run("disk", "resize", "web-1", "40MiB", "--json").json["disk"]["size"]
    told = machine.run("disk", "attachment", "web-1", "--json").json["attachment"]
    assert ("file", f"{made['path']}/{IMAGE}", "ploop") == (told["type"], told["source"], told["format"])
    target = machine.root / "out.raw"
    assert 0 == machine.run("disk", "extract", "web-1", target, "--format", "raw").status
    assert 40 * MIB == target.stat().st_size
    assert (machine.root / "image.raw").read_bytes() == target.read_bytes()[: 16 * MIB]
    assert 0 == machine.run("disk", "flatten", "web-1").status
    assert "unsupported" == machine.run("disk", "rebase", "web-1", "--image", ref, "--json").error["code"]
    assert 0 == machine.run("disk", "remove", "web-1").status
    assert [] == os.listdir(machine.instances)


def test_a_hypervisor_is_told_what_the_configuration_says(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, disks='disk_cachemodes = ["file=none"]\nhw_disk_discard = "unmap"')
    host = machine.host()
    disk = host.create_disk("web-1", machine.raw_image(), backend="ploop")

    told = host.parts.backend("ploop").attachment(disk)

    assert ("ploop", "none", "unmap", None) == (told.format, told.cache, told.discard, told.io)


def test_a_disk_grows_with_its_description_and_never_shrinks(machine: Machine, host: Host, disk: InstanceDisk) -> None:
    assert 300 * GIB == host.resize_disk("web-1", "300GiB").size
    assert 300 * GIB == host.resize_disk("web-1", "300GiB").size
    with pytest.raises(ShrinkRefused, match=str(300 * GIB)):
        host.resize_disk("web-1", "299GiB")
    with pytest.raises(InvalidSize):
        host.resize_disk("web-1", "2TiB")

    assert 300 * GIB == descriptor.parse((disk.path / DESCRIPTOR).read_bytes(), where=disk.path).size
    expect_content(machine.root / "image.raw", disk)
    assert {IMAGE, DESCRIPTOR} == set(os.listdir(disk.path))


def test_an_image_that_is_not_of_whole_clusters_is_left_at_its_own_size(host: Host, disk: InstanceDisk) -> None:
    sectors = 20 * MIB // 512 - 8
    with (disk.path / IMAGE).open("r+b") as file:
        file.seek(36)
        file.write(sectors.to_bytes(8, "little"))
    path = disk.path / DESCRIPTOR
    path.write_text(path.read_text().replace(str(20 * MIB // 512), str(sectors)))
    before = (disk.path / IMAGE).read_bytes()

    assert 512 * sectors == host.resize_disk("web-1", 512 * sectors).size

    assert before == (disk.path / IMAGE).read_bytes()
    with pytest.raises(ShrinkRefused):
        host.resize_disk("web-1", 19 * MIB)
    assert 20 * MIB == host.resize_disk("web-1", 512 * sectors + 1).size


def test_a_growth_that_was_cut_off_before_the_description_is_completed(host: Host, disk: InstanceDisk) -> None:
    before = (disk.path / DESCRIPTOR).read_bytes()
    host.resize_disk("web-1", "40MiB")
    (disk.path / DESCRIPTOR).write_bytes(before)

    assert 40 * MIB == host.disk("web-1").size
    assert 40 * MIB == host.resize_disk("web-1", "40MiB").size

    assert 40 * MIB == descriptor.parse((disk.path / DESCRIPTOR).read_bytes(), where=disk.path).size


@pytest.mark.component("root", "tmpfs")
def test_without_room_for_its_description_a_disk_does_not_grow(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    machine, small = Machine.make(tmp_path), mounted("tmpfs", 8 * MIB)
    machine.config.write_text(machine.config.read_text().replace(f'"{machine.instances}"', f'"{small}"'))
    host = machine.host()
    disk = host.create_disk("web-1", machine.raw_image(), backend="ploop")
    for path in (small / "ballast", small / "more"):
        with suppress(OSError), path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    with pytest.raises(InsufficientSpace):
        host.resize_disk("web-1", "40MiB")

    assert disk == host.disk("web-1")
    assert {IMAGE, DESCRIPTOR} == set(os.listdir(disk.path))
    (small / "ballast").unlink()
    assert 40 * MIB == host.resize_disk("web-1", "40MiB").size


@pytest.mark.component("root", "tmpfs")
def test_a_full_file_system_leaves_nothing(tmp_path: Path, mounted: Callable[..., Path]) -> None:
    machine, small = Machine.make(tmp_path), mounted("tmpfs", 4 * MIB)
    machine.config.write_text(machine.config.read_text().replace(f'"{machine.instances}"', f'"{small}"'))
    free = os.statvfs(small).f_bavail

    with pytest.raises(InsufficientSpace, match=str(small)):
        machine.host().create_disk("web-1", machine.raw_image(payload=12 * MIB), backend="ploop")

    assert [] == os.listdir(small)
    assert free == os.statvfs(small).f_bavail


def test_several_who_ask_for_one_disk_at_once_get_it(machine: Machine, host: Host) -> None:
    base = host.ensure(machine.raw_image())

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: host.create_disk("web-1", base, backend="ploop", size=20 * MIB), range(6)))

    assert [host.disk("web-1")] * 6 == made
    expect_content(machine.root / "image.raw", made[0])


def test_what_else_a_description_says_stays_when_the_disk_grows(host: Host, disk: InstanceDisk) -> None:
    path = disk.path / DESCRIPTOR
    path.write_text(path.read_text().replace("<Padding>", "<Name>of my own</Name>\n    <Padding>"))

    host.resize_disk("web-1", "40MiB")

    assert "<Name>of my own</Name>" in path.read_text()
    assert 2 == path.read_text().count(f">{40 * MIB // 512}<")


def test_a_disk_that_is_open_is_left_alone(host: Host, disk: InstanceDisk) -> None:
    with (disk.path / IMAGE).open("rb"):
        with pytest.raises(DiskInUse, match=str(disk.path)):
            host.resize_disk("web-1", GIB)
        with pytest.raises(DiskInUse, match=str(disk.path)):
            host.remove_disk("web-1")

    assert disk == host.disk("web-1")


def test_a_machine_that_starts_while_its_disk_grows_waits_or_keeps_it_from_growing(host: Host, disk: InstanceDisk) -> None:
    """By the locks that QEMU takes on its images: who looked before may have looked too early."""
    image = disk.path / IMAGE
    before = image.read_bytes()
    argv = ["qemu-io", "-f", "parallels", os.fspath(image)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdin is not None
        assert machine.stdout is not None
        machine.stdin.write("length\n")
        machine.stdin.flush()
        assert "20 MiB" in machine.stdout.readline()
        with pytest.raises(DiskInUse, match=str(disk.path)):
            PloopBackend().resize(disk, 40 * MIB)
        machine.stdin.close()
        machine.wait(PATIENCE)
    assert before[52:] == image.read_bytes()[52:]  # QEMU says in the header that it has it open, then that it has not
    with image.open("r+b") as file, locks.image_held(file.fileno()) as is_ours:
        assert is_ours
        ended = subprocess.run([*argv, "-c", "length"], capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert "lock" in ended.stderr
    assert 40 * MIB == PloopBackend().resize(disk, 40 * MIB).size


@pytest.mark.component("strace")
def test_a_disk_grows_in_the_directory_that_was_opened_whatever_takes_its_name(disk: InstanceDisk) -> None:
    argv = ["strace", "-f", "-qq", "-o", "/dev/stdout", "-e", "trace=%file", sys.executable, "-c", _GROW, os.fspath(disk.path)]

    calls = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.splitlines()

    assert [] == [call for call in calls if f'"{disk.path}/' in call]
    assert 2 == sum(f'"{disk.path}"' in call for call in calls if "O_DIRECTORY" in call)  # to describe it, and to grow it


@pytest.mark.component("strace")
def test_qemu_does_not_open_an_image_while_it_grows(disk: InstanceDisk) -> None:
    argv = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/stdout",
        "-e",
        "trace=fcntl,pwrite64",
        sys.executable,
        "-c",
        _GROW,
        str(disk.path),
    ]

    calls = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.splitlines()

    held = [number for number, call in enumerate(calls) if "F_OFD_SETLK" in call and "l_start=100, l_len=200" in call]
    written = [number for number, call in enumerate(calls) if "pwrite64" in call]
    assert 2 == len(held)
    assert held[0] < min(written) <= max(written) < held[1]


_GROW = """
import sys
from pathlib import Path
from underlay.disks.ploop import PloopBackend
from underlay.model import DiskSpec
backend = PloopBackend()
backend.resize(backend.describe(DiskSpec(instance="web-1", name="disk", path=Path(sys.argv[1]))), 40 << 20)
"""


def test_a_disk_whose_machine_went_down_is_left_alone_until_it_was_checked(disk: InstanceDisk) -> None:
    image = disk.path / IMAGE
    with image.open("r+b") as file:
        file.seek(44)
        file.write(0x746F6E59.to_bytes(4, "little"))

    with pytest.raises(DiskInUse, match="not closed"):
        PloopBackend().resize(disk, 40 * MIB)

    assert {IMAGE, DESCRIPTOR} == set(os.listdir(disk.path))
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", "-f", "parallels", image], check=False, timeout=PATIENCE)
    assert 40 * MIB == PloopBackend().resize(disk, 40 * MIB).size


def test_a_disk_with_a_strange_directory_in_it_is_not_removed(host: Host, disk: InstanceDisk) -> None:
    (disk.path / "photos").mkdir()

    with pytest.raises(Unsupported, match="directory"):
        host.remove_disk("web-1")

    assert {IMAGE, DESCRIPTOR, "photos"} == set(os.listdir(disk.path))
    (disk.path / "photos").rmdir()
    host.remove_disk("web-1")


def test_a_plain_file_is_never_removed_for_a_disk(machine: Machine, disk: InstanceDisk) -> None:
    PloopBackend().remove(disk)
    disk.path.write_bytes(b"a file of somebody's")

    with pytest.raises(DiskExists):
        PloopBackend().remove(disk)

    assert b"a file of somebody's" == disk.path.read_bytes()


def test_a_disk_elsewhere_is_known_by_its_root_and_keeps_no_base(machine: Machine, host: Host) -> None:
    path = machine.root / "elsewhere" / "web.hdd"
    path.parent.mkdir()

    disk = host.create_disk("web-1", machine.raw_image(), backend="ploop", path=path)

    assert [("web-1", "disk", path)] == [(one.instance, one.name, one.path) for one in host.disks()]
    assert disk == host.disk("web-1", path=path)
    [verdict] = machine.run("prune", "--now", "4102444800", "--dry-run", "--json").json["plan"]
    assert "remove" == verdict["action"], verdict
    assert ["no-inventory"] == [one["code"] for one in machine.run("prune", "--dry-run", "--json").json["problems"]]
    host.remove_disk("web-1", path=path)
    assert [] == host.disks()
    assert [] == os.listdir(path.parent)


@pytest.mark.component("root", "ramfs")
def test_where_no_attributes_are_kept_novas_record_says_what_it_is(mounted: Callable[..., Path]) -> None:
    machine = Machine.make(mounted("ramfs"))
    host = machine.host()

    disk = host.create_disk("web-1", machine.raw_image(), backend="ploop")

    assert ("ploop", "parallels", None) == (disk.backend, disk.format, disk.base)
    assert [disk] == host.disks()
    assert 40 * MIB == host.resize_disk("web-1", "40MiB").size
    with pytest.raises(DiskExists, match="not recorded"):
        host.create_disk("web-1", f"file://{machine.root}/image.raw", backend="ploop", size=40 * MIB)
    host.remove_disk("web-1")
    assert [] == os.listdir(machine.instances)


@pytest.mark.component("root")
def test_another_user_sees_that_it_is_there(short_directory: Path) -> None:
    machine = Machine.make(short_directory)
    disk = machine.host().create_disk("web-1", machine.raw_image(), backend="ploop")
    for path in (short_directory, machine.instances, disk.path.parent):
        path.chmod(0o755)
    for mode in (0o700, 0o755):
        disk.path.chmod(mode)

        with start(seen_by_a_stranger, disk.path, user=NOBODY) as child:
            assert ["ploop", "parallels", None] == json.loads(child.hear())


def seen_by_a_stranger(path: str) -> None:
    disk = PloopBackend().describe(DiskSpec(instance="web-1", name="disk", path=Path(path)))
    tell(json.dumps([disk.backend, disk.format, disk.size]))


# ------------------------------------------------------------------------------------------------ what others made, or broke


def nova_made(machine: Machine, disk: InstanceDisk, kind: str) -> None:
    """As Nova leaves a disk: no attribute, its own record, an image of either type."""
    os.removexattr(disk.path, "user.underlay")
    if kind == "Plain":
        path = disk.path / DESCRIPTOR
        path.write_text(path.read_text().replace("Compressed", "Plain"))
        content = (machine.root / "image.raw").read_bytes()
        (disk.path / IMAGE).write_bytes(content + bytes(20 * MIB - len(content)))


@pytest.mark.parametrize("kind", ["Compressed", "Plain"])
def test_a_disk_that_nova_made_is_listed_written_out_and_removed(
    machine: Machine, host: Host, disk: InstanceDisk, kind: str
) -> None:
    nova_made(machine, disk, kind)

    [found] = host.disks()
    assert ("web-1", "disk", "ploop", 20 * MIB, None) == (found.instance, found.name, found.backend, found.size, found.base)
    told = host.parts.backend("ploop").attachment(found)
    assert ("ploop" if kind == "Compressed" else "raw") == told.format
    for want in (Extraction(format="raw"), Extraction(format="qcow2")):
        target = machine.root / f"out.{want.format}"
        host.extract_disk("web-1", target, format=want.format)
        argv = ["qemu-img", "compare", "-q", "-f", "raw", "-F", want.format, f"{machine.root}/image.raw", os.fspath(target)]
        subprocess.run(argv, check=True, timeout=PATIENCE)
    if kind == "Compressed":
        assert 40 * MIB == host.resize_disk("web-1", "40MiB").size
    else:
        with pytest.raises(Unsupported, match="raw"):
            host.resize_disk("web-1", "40MiB")
    host.remove_disk("web-1")
    assert [] == os.listdir(machine.instances)


def test_a_disk_with_snapshots_is_listed_and_removed_and_nothing_else(machine: Machine, host: Host, disk: InstanceDisk) -> None:
    path = disk.path / DESCRIPTOR
    text = path.read_text()
    image = text[text.index("<Image>") : text.index("</Image>") + len("</Image>")]
    path.write_text(text.replace(image, image + image.replace(IMAGE, f"{IMAGE}.1")))
    (disk.path / f"{IMAGE}.1").touch()

    assert 20 * MIB == host.disk("web-1").size
    for refused in (
        lambda: host.resize_disk("web-1", GIB),
        lambda: host.extract_disk("web-1", machine.root / "out", format="raw"),
        lambda: host.parts.backend("ploop").attachment(disk),
    ):
        with pytest.raises(Unsupported, match="snapshots"):
            refused()
    host.remove_disk("web-1")
    assert [] == os.listdir(machine.instances)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
GOOD = descriptor.render(size=20 * MIB, cluster=MIB, file=IMAGE).decode()
BODY = GOOD.removeprefix('<?xml version="1.0"?>\n')
BROKEN = {
    "billion laughs": f'<!DOCTYPE lolz [<!ENTITY l0 "ha">{LAUGHS}]>{BODY.replace(IMAGE, "&l9;")}',
    "an external entity": f'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>{BODY.replace(IMAGE, "&e;")}',
    "an external document type": f'<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">{BODY}',
    "a document type": f"<!DOCTYPE x>{BODY}",
    "a parameter entity": f'<!DOCTYPE x [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]>{BODY}',
    "an undeclared entity": GOOD.replace(IMAGE, "&nothing;"),
    "the directory above": GOOD.replace(IMAGE, "../../../secret"),
    "a path": GOOD.replace(IMAGE, "/etc/passwd"),
    "the directory itself": GOOD.replace(IMAGE, "."),
    "no name": GOOD.replace(IMAGE, ""),
    "a name of two lines": GOOD.replace(IMAGE, "root&#10;hds"),
    "a long name": GOOD.replace(IMAGE, "r" * 256),
    "an image that is not there": GOOD.replace(IMAGE, "other.hds"),
    "an image that is a symlink": GOOD.replace(IMAGE, "link"),
    "an image that is a directory": GOOD.replace(IMAGE, "below"),
    "nothing": "",
    "no XML": "root.hds",
    "an element that is not closed": GOOD.removesuffix("</Parallels_disk_image>\n"),
    "two documents": GOOD + BODY,
    "another root": BODY.replace("Parallels_disk_image", "Parallels_image"),
    "too long": GOOD + " " * descriptor.LONGEST,
    "too deep": "<a>" * 10_000,
    "an unknown encoding": GOOD.replace('"1.0"?', '"1.0" encoding="utf-7"?'),
    "no storage": GOOD.replace("Storage>", "Store>"),
    "two storages": GOOD.replace("</StorageData>", "<Storage/></StorageData>"),
    "a part of the disk": GOOD.replace("<Start>0", "<Start>8"),
    "an end before the disk's": GOOD.replace(f"<End>{20 * MIB // 512}", "<End>8"),
    "padding": GOOD.replace("<Padding>0", "<Padding>1"),
    "no image": GOOD.replace("Image>", "Picture>"),
    "an unknown type": GOOD.replace("Compressed", "Magic"),
    "no size": GOOD.replace("<Disk_size>40960</Disk_size>", ""),
    "a negative size": GOOD.replace("40960", "-40960"),
    "an endless size": GOOD.replace("40960", "9" * 5000),
    "a size with more sectors than there are": GOOD.replace("40960", "9" * 19),
    "a size in other digits": GOOD.replace("40960", "٤٠٩٦٠"),
    "more than the image has": GOOD.replace("40960", "81920"),
    "other clusters than the image has": GOOD.replace("<Blocksize>2048", "<Blocksize>4096"),
    "no clusters": GOOD.replace("<Blocksize>2048", "<Blocksize>0"),
}


OF_THE_DISK = [
    "billion laughs",
    "an external entity",
    "the directory above",
    "a path",
    "an image that is not there",
    "an image that is a symlink",
    "an image that is a directory",
    "more than the image has",
    "other clusters than the image has",
]


@pytest.mark.parametrize("broken", sorted(BROKEN.keys() - OF_THE_DISK[4:]))
def test_a_broken_description_is_none(broken: str) -> None:
    with pytest.raises(DiskUnrecorded, match="/a/disk is no description of a ploop disk: "):
        descriptor.parse(BROKEN[broken].encode(), where=Path("/a/disk"))


@pytest.mark.parametrize("broken", OF_THE_DISK)
def test_a_disk_with_a_broken_description_is_listed_and_removed_and_nothing_else(
    machine: Machine, host: Host, disk: InstanceDisk, broken: str
) -> None:
    (disk.path / "link").symlink_to(IMAGE)
    (machine.root / "secret").write_bytes((disk.path / IMAGE).read_bytes())
    (disk.path / DESCRIPTOR).write_text(BROKEN[broken])
    image = (disk.path / IMAGE).read_bytes()

    found = host.disk("web-1")
    assert (None, "ploop") == (found.size, found.backend)
    assert [found] == host.disks()
    for refused in (
        lambda: host.resize_disk("web-1", GIB),
        lambda: host.extract_disk("web-1", machine.root / "out", format="raw"),
        lambda: host.parts.backend("ploop").attachment(disk),
    ):
        with pytest.raises(DiskUnrecorded, match=str(disk.path)):
            refused()

    assert image == (disk.path / IMAGE).read_bytes()
    assert (machine.root / "secret").read_bytes() == image
    host.remove_disk("web-1")
    assert [] == os.listdir(machine.instances)


def test_a_good_description_is_believed_in_other_encodings_too(host: Host, disk: InstanceDisk) -> None:
    for encoding in ("utf-16", "latin-1"):
        text = GOOD.replace('"1.0"?', f'"1.0" encoding="{encoding}"?')
        (disk.path / DESCRIPTOR).write_bytes(text.encode(encoding))
        assert 20 * MIB == host.disk("web-1").size


@pytest.mark.parametrize("kind", ["Compressed", "Plain"])
@pytest.mark.parametrize("broken", ["nothing", "zeros", "a symlink", "a directory", "a fifo", "not there", "not described"])
def test_a_broken_image_is_not_believed(machine: Machine, host: Host, disk: InstanceDisk, broken: str, kind: str) -> None:
    image = disk.path / IMAGE
    if kind == "Plain":
        nova_made(machine, disk, kind)
    match broken:
        case "nothing":
            image.write_bytes(b"")
        case "zeros":
            image.write_bytes(bytes(MIB))
        case "a symlink":
            image.rename(machine.root / "elsewhere")
            image.symlink_to(machine.root / "elsewhere")
        case "a directory":
            image.unlink()
            image.mkdir()
        case "a fifo":
            image.unlink()
            os.mkfifo(image)
        case "not there":
            image.unlink()
        case "not described":
            (disk.path / DESCRIPTOR).unlink()

    assert host.disk("web-1").size is None
    for refused in (
        lambda: PloopBackend().resize(disk, GIB),
        lambda: PloopBackend().attachment(disk),
        lambda: PloopBackend().extract(disk, machine.root / "out", Extraction(format="raw")),
    ):
        with pytest.raises(DiskUnrecorded):
            refused()
    assert not (machine.root / "out").exists()
    if broken == "a directory":
        image.rmdir()
    host.remove_disk("web-1")


@pytest.mark.component("strace")
@pytest.mark.parametrize("name", [IMAGE, DESCRIPTOR])
def test_a_file_that_cannot_be_opened_now_is_not_called_damaged(disk: InstanceDisk, name: str) -> None:
    """Too many open files, or a network file system that is away, say nothing of the disk."""
    argv = ["strace", "-qq", "-o", "/dev/stdout", "-e", "trace=openat"]
    child = [sys.executable, "-B", "-c", _DESCRIBE, os.fspath(disk.path)]
    calls = subprocess.run([*argv, *child], check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.splitlines()
    [number] = [number for number, call in enumerate(calls, 1) if f'/{name}"' in call]

    for fault in ("EIO", "EMFILE", "ESTALE"):
        inject = ["-e", f"inject=openat:error={fault}:when={number}"]
        ended = subprocess.run([*argv, *inject, *child], capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert f"StorageFailed: {disk.path}/{name}: " in ended.stderr, ended.stderr


_DESCRIBE = """
import sys
from pathlib import Path
from underlay.disks.ploop import PloopBackend
from underlay.model import DiskSpec
PloopBackend().describe(DiskSpec(instance="web-1", name="disk", path=Path(sys.argv[1])))
"""


def test_a_disk_that_is_gone_is_not_found(host: Host, disk: InstanceDisk) -> None:
    host.remove_disk("web-1")

    for gone in (
        lambda: PloopBackend().describe(spec(disk)),
        lambda: PloopBackend().resize(disk, GIB),
        lambda: PloopBackend().attachment(disk),
    ):
        with pytest.raises(DiskNotFound):
            gone()
    PloopBackend().remove(disk)


def test_errors_of_a_disk_have_codes(machine: Machine, disk: InstanceDisk) -> None:
    (disk.path / DESCRIPTOR).write_text(BROKEN["billion laughs"])

    error = machine.run("disk", "resize", "web-1", "1GiB", "--json").error

    assert "disk-unrecorded" == error["code"]
    assert "document type" in str(error["message"])
    assert issubclass(DiskUnrecorded, UnderlayError)
