"""Disks that are files: what is believed of them, how they come whole or not at all, how they grow."""

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from children import NOBODY, start, tell
from machine import GIB, MIB, Machine, qemu_img_json
from underlay import filedisk
from underlay.contracts import BackendTraits
from underlay.errors import DiskExists, DiskNotFound, DiskUnrecorded, ShrinkRefused, ToolFailed
from underlay.files import ATTRIBUTE
from underlay.host import Host
from underlay.model import BaseImage, DiskSpec
from underlay.values import replace

RAW = BackendTraits(name="flat", needs_raw=True, overlays=False, disk_format="raw")


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
def want(tmp_path: Path) -> DiskSpec:
    (tmp_path / "vm").mkdir()
    return DiskSpec(instance="web-1", name="disk", path=tmp_path / "vm" / "disk")


def make(base: BaseImage, want: DiskSpec, content: bytes = b"content") -> None:
    with filedisk.publishing(base, want, RAW) as fd:
        os.write(fd, content)


def write_qcow2_header(path: Path, *, size: int, backing: str | None = None) -> None:
    """A qcow2 header by the letter of QEMU's docs/interop/qcow2.txt, version 2."""
    name = (backing or "").encode()
    fields = (2, 72 if name else 0, len(name), 16, size, 0, 0, 1 << 16, 1 << 17, 1, 0, 0)
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", *fields)
    path.write_bytes((header + name).ljust(3 << 16, b"\0"))


def note(disk: Path, disk_format: str) -> None:
    """Record a disk as Nova does."""
    (disk.parent / "disk.info").write_text(json.dumps({str(disk): disk_format}))


# ------------------------------------------------------------------------------------------------------------ what is believed


def test_a_disk_that_is_not_there_is_not_found(want: DiskSpec) -> None:
    with pytest.raises(DiskNotFound, match=str(want.path)):
        filedisk.describe(want)


def test_a_disk_below_a_file_is_not_found(want: DiskSpec) -> None:
    want.path.write_bytes(b"")

    with pytest.raises(DiskNotFound):
        filedisk.describe(replace(want, path=want.path / "disk"))


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo"])
def test_what_is_no_plain_file_is_never_taken_for_a_disk(base: BaseImage, want: DiskSpec, kind: str) -> None:
    match kind:
        case "symlink":
            want.path.symlink_to(base.path)
        case "directory":
            want.path.mkdir()
        case _:
            os.mkfifo(want.path)

    with pytest.raises(DiskExists, match="not a plain file"):
        filedisk.describe(want)
    with pytest.raises(DiskExists, match="not a plain file"):
        filedisk.existing(base, want, RAW)


def test_a_disk_that_nothing_records_has_no_format_and_no_size(want: DiskSpec) -> None:
    write_qcow2_header(want.path, size=GIB, backing="/etc/passwd")

    disk = filedisk.describe(want)

    assert (None, None, "unknown", None) == (disk.format, disk.size, disk.backend, disk.base_path)


def test_novas_record_alone_tells_the_format(want: DiskSpec) -> None:
    want.path.write_bytes(bytes(MIB))
    note(want.path, "raw")

    disk = filedisk.describe(want)

    assert ("raw", MIB, "flat", None) == (disk.format, disk.size, disk.backend, disk.base_path)


def test_a_disk_of_novas_shows_its_base_from_its_header(want: DiskSpec) -> None:
    write_qcow2_header(want.path, size=GIB, backing="/var/lib/nova/instances/_base/abc")
    note(want.path, "qcow2")

    disk = filedisk.describe(want)

    assert ("qcow2", GIB, "qcow2") == (disk.format, disk.size, disk.backend)
    assert ("abc", Path("/var/lib/nova/instances/_base/abc")) == (disk.base, disk.base_path)


def test_a_relative_backing_name_means_a_file_beside_the_disk(want: DiskSpec) -> None:
    write_qcow2_header(want.path, size=GIB, backing="base.raw")
    note(want.path, "qcow2")

    assert want.path.parent / "base.raw" == filedisk.describe(want).base_path


@pytest.mark.parametrize("name", ['json:{"driver":"raw"}', "nbd://server/export", "rbd:pool/image"])
def test_a_backing_name_that_is_no_path_is_no_base(want: DiskSpec, name: str) -> None:
    write_qcow2_header(want.path, size=GIB, backing=name)
    note(want.path, "qcow2")

    disk = filedisk.describe(want)

    assert (GIB, None, None) == (disk.size, disk.base, disk.base_path)


def test_the_attribute_is_believed_before_novas_record_and_both_before_the_content(base: BaseImage, want: DiskSpec) -> None:
    make(base, want)
    write_qcow2_header(want.path, size=GIB, backing="/etc/passwd")
    note(want.path, "qcow2")

    disk = filedisk.describe(want)

    assert ("raw", 3 << 16, base.path) == (disk.format, disk.size, disk.base_path)


@pytest.mark.parametrize("attribute", [b"", b"{", b'{"layout": 99}', b"\xff\xfe", b"[]"])
def test_an_attribute_that_is_not_ours_leaves_the_word_to_novas_record(want: DiskSpec, attribute: bytes) -> None:
    want.path.write_bytes(bytes(MIB))
    os.setxattr(want.path, ATTRIBUTE, attribute)

    assert None is filedisk.describe(want).format
    note(want.path, "raw")
    assert "raw" == filedisk.describe(want).format


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": 1}', b"\xff", b"null"])
def test_a_record_of_novas_that_cannot_be_read_says_nothing(want: DiskSpec, content: bytes) -> None:
    want.path.write_bytes(bytes(MIB))
    (want.path.parent / "disk.info").write_bytes(content)

    disk = filedisk.describe(want)

    assert (None, None) == (disk.format, disk.size)
    with pytest.raises(DiskUnrecorded, match=r"disk\.info cannot be read"):
        filedisk.grow(disk, 2 * MIB)


def test_an_empty_record_of_novas_is_one_that_has_not_been_written_yet(want: DiskSpec) -> None:
    want.path.write_bytes(bytes(MIB))
    (want.path.parent / "disk.info").touch()

    with pytest.raises(DiskUnrecorded, match="nothing says what format"):
        filedisk.grow(filedisk.describe(want), 2 * MIB)


def test_a_disk_recorded_as_qcow2_whose_header_is_none_has_no_size(want: DiskSpec) -> None:
    want.path.write_bytes(bytes(MIB))
    note(want.path, "qcow2")

    disk = filedisk.describe(want)

    assert ("qcow2", None) == (disk.format, disk.size)
    with pytest.raises(DiskUnrecorded, match="recorded as qcow2"):
        filedisk.grow(disk, 2 * MIB)


@pytest.mark.component("root")
def test_of_a_disk_that_may_not_be_read_novas_record_and_its_blocks_are_known(short_directory: Path) -> None:
    short_directory.chmod(0o755)
    disk = short_directory / "disk"
    disk.write_bytes(bytes(MIB))
    disk.chmod(0o600)
    note(disk, "raw")

    with start(seen_by_a_stranger, disk, user=NOBODY) as child:
        assert ["raw", None, MIB] == json.loads(child.hear())


def seen_by_a_stranger(path: str) -> None:
    disk = filedisk.describe(DiskSpec(instance="web-1", name="disk", path=Path(path)))
    tell(json.dumps([disk.format, disk.size, disk.allocated]))


# -------------------------------------------------------------------------------------------------------------------- making


def test_a_disk_appears_whole_with_its_record_its_mode_and_its_directorys_owner(base: BaseImage, want: DiskSpec) -> None:
    with filedisk.publishing(base, want, RAW) as fd:
        os.write(fd, b"half ")
        assert not want.path.exists()
        os.write(fd, b"whole")

    assert b"half whole" == want.path.read_bytes()
    assert 0o640 == want.path.stat().st_mode & 0o7777
    record = json.loads(os.getxattr(want.path, ATTRIBUTE))
    assert ("web-1", "disk", "flat", "raw") == (record["instance"], record["name"], record["backend"], record["format"])
    assert (base.name, str(base.cache)) == (record["base"], record["cache"])
    assert base.record is not None
    assert base.record.version_id == record["version_id"]
    assert [want.path] == list(want.path.parent.iterdir())


@pytest.mark.component("root")
def test_a_disk_that_root_makes_belongs_to_its_directorys_owner_whatever_the_umask(base: BaseImage, want: DiskSpec) -> None:
    os.chown(want.path.parent, 1234, 2345)
    umask = os.umask(0o077)
    try:
        make(base, want)
    finally:
        os.umask(umask)

    status = want.path.stat()
    assert (1234, 2345, 0o640) == (status.st_uid, status.st_gid, status.st_mode & 0o7777)


def test_what_a_crash_left_is_replaced(base: BaseImage, want: DiskSpec) -> None:
    want.path.with_name(".disk.underlay").write_bytes(b"torn")

    make(base, want, b"new")

    assert b"new" == want.path.read_bytes()
    assert [want.path] == list(want.path.parent.iterdir())


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt(), ToolFailed("no")])
def test_a_failure_while_it_is_made_leaves_nothing(base: BaseImage, want: DiskSpec, error: BaseException) -> None:
    with pytest.raises(BaseException), filedisk.publishing(base, want, RAW) as fd:  # noqa: B017, PT012
        os.write(fd, b"half")
        raise error

    assert [] == list(want.path.parent.iterdir())


def test_a_disk_that_appears_meanwhile_is_not_replaced(base: BaseImage, want: DiskSpec) -> None:
    with pytest.raises(DiskExists, match="appeared"), filedisk.publishing(base, want, RAW) as fd:  # noqa: PT012
        os.write(fd, b"ours")
        want.path.write_bytes(b"theirs")

    assert b"theirs" == want.path.read_bytes()
    assert [want.path] == list(want.path.parent.iterdir())


def test_a_file_that_is_put_in_the_temporarys_place_is_not_taken_for_the_disk(base: BaseImage, want: DiskSpec) -> None:
    with pytest.raises(DiskExists, match="was replaced while it was made"), filedisk.publishing(base, want, RAW) as fd:  # noqa: PT012
        os.write(fd, b"ours")
        (temporary,) = want.path.parent.iterdir()
        temporary.unlink()
        temporary.write_bytes(b"theirs")

    assert [] == os.listxattr(want.path)


def test_a_link_that_is_put_in_the_temporarys_place_is_not_followed(base: BaseImage, want: DiskSpec, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"of another")

    with pytest.raises(DiskExists), filedisk.publishing(base, want, RAW) as fd:  # noqa: PT012
        (temporary,) = want.path.parent.iterdir()
        temporary.unlink()
        temporary.symlink_to(precious)
        os.write(fd, b"ours")

    assert (b"of another", []) == (precious.read_bytes(), os.listxattr(precious))


def test_a_copy_has_the_content_the_holes_the_mode_and_the_record(base: BaseImage, want: DiskSpec) -> None:
    make(base, want, b"content")
    os.truncate(want.path, GIB)
    want.path.chmod(0o600)
    target = want.path.with_name("disk.copy")
    target.with_name(".disk.copy.underlay").write_bytes(b"torn")

    filedisk.copy(filedisk.describe(want), target)

    with target.open("rb") as file:
        assert (b"content\0", GIB) == (file.read(8), os.fstat(file.fileno()).st_size)
    assert (0o600, True) == (target.stat().st_mode & 0o7777, target.stat().st_blocks * 512 < MIB)
    assert os.getxattr(want.path, ATTRIBUTE) == os.getxattr(target, ATTRIBUTE)
    assert {want.path, target} == set(want.path.parent.iterdir())


def test_a_copy_takes_nobodys_place(base: BaseImage, want: DiskSpec) -> None:
    make(base, want)
    target = want.path.with_name("disk.copy")
    target.write_bytes(b"theirs")

    with pytest.raises(DiskExists):
        filedisk.copy(filedisk.describe(want), target)
    assert b"theirs" == target.read_bytes()
    disk = filedisk.describe(want)
    want.path.unlink()
    with pytest.raises(DiskNotFound):
        filedisk.copy(disk, target)


def test_a_disk_made_from_another_version_of_a_master_is_another_disk(base: BaseImage, want: DiskSpec) -> None:
    make(base, want, bytes(base.size))
    assert base.record is not None
    newer = replace(base, record=replace(base.record, version_id="another"))

    assert None is not filedisk.existing(base, want, RAW)
    with pytest.raises(DiskExists):
        filedisk.existing(newer, want, RAW)


def test_a_disk_whose_base_nothing_tells_is_not_taken_for_the_wanted_one(base: BaseImage, want: DiskSpec) -> None:
    want.path.write_bytes(bytes(base.size))
    note(want.path, "raw")

    with pytest.raises(DiskExists, match="from a base that is not recorded"):
        filedisk.existing(base, want, RAW)


# ------------------------------------------------------------------------------------------------------------------- growing


@pytest.mark.component("qemu-img")
def test_a_disk_grows_and_keeps_its_content(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(), backend="flat")
    before = disk.path.read_bytes()

    filedisk.grow(disk, 20 * MIB)

    assert before + bytes(4 * MIB) == disk.path.read_bytes()


@pytest.mark.component("qemu-img")
def test_a_disk_grows_to_whole_sectors(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image())

    filedisk.grow(disk, 20 * MIB + 1)

    assert 20 * MIB + 512 == qemu_img_json("info", "-f", "qcow2", disk.path)["virtual-size"]


@pytest.mark.component("qemu-img")
def test_a_disk_that_nova_alone_recorded_grows_too(want: DiskSpec) -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", want.path, "1M"], check=True)
    note(want.path, "qcow2")

    filedisk.grow(filedisk.describe(want), 2 * MIB)

    assert 2 * MIB == filedisk.describe(want).size


def test_growing_a_disk_to_its_own_size_is_a_success_that_touches_nothing(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(), backend="flat")
    before = disk.path.stat()

    assert disk.size is not None
    filedisk.grow(disk, disk.size)

    assert before.st_mtime_ns == disk.path.stat().st_mtime_ns


@pytest.mark.parametrize("size", [0, 1, 16 * MIB - 512])
def test_a_disk_is_never_made_smaller(machine: Machine, host: Host, size: int) -> None:
    disk = host.create_disk("web-1", machine.raw_image(size=16 * MIB), backend="flat")

    with pytest.raises(ShrinkRefused, match=str(16 * MIB)):
        filedisk.grow(disk, size)

    assert 16 * MIB == disk.path.stat().st_size


def test_removing_a_disk_that_is_gone_is_a_success(machine: Machine, host: Host) -> None:
    disk = host.create_disk("web-1", machine.raw_image(), backend="flat")

    filedisk.remove(disk)
    filedisk.remove(disk)

    assert not disk.path.exists()
