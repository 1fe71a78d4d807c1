"""The project's own bootable image: what it is, and that it boots wherever a test will want it to."""

import os
import struct
import subprocess
import time
from pathlib import Path

import pytest

import corpus
from underlay import qemuimg
from underlay.errors import ToolFailed, ToolMissing, ToolTimedOut
from underlay.testing.bootimage import (
    PAYLOAD_OFFSET,
    PREFIX,
    SECTOR,
    SMALLEST,
    boot,
    boot_line,
    boot_sector,
    write_qcow2,
    write_raw,
)

MIB = 1 << 20
NOBODY = 65534

boots = pytest.mark.component("qemu-system-x86_64")
needs_qemu_img = pytest.mark.component("qemu-img")

POWER_OFF = b"\xba\x04\x06\xb8\x00\x20\xef"  # mov dx, 0x604; mov ax, 0x2000; out dx, ax
HANGS = b"\xfa\xf4\xeb\xfc"  # cli; hlt; jmp back to the cli
BABBLES = b"\xba\xf8\x03\xb0\x78\xee\xeb\xfd"  # mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp back to the out


def write_guest(path: Path, code: bytes) -> Path:
    """A disk whose guest is this program."""
    path.write_bytes((code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa").ljust(MIB, b"\0"))
    return path


def write_staying_guest(path: Path, *, message: str) -> Path:
    """A disk whose guest says its line and then hangs, where the usual one powers off."""
    sector = boot_sector(message)
    assert 1 == sector.count(POWER_OFF)
    return write_guest(path, sector[: SECTOR - 2].replace(POWER_OFF, HANGS.ljust(len(POWER_OFF), b"\x90")))


def content_of(path: Path, *, target: Path) -> bytes:
    qemuimg.convert_to_raw(path, target, format="qcow2")
    return target.read_bytes()


def running_with(path: Path) -> list[int]:
    """Processes that have a path in their arguments."""
    found = []
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(path) in arguments.read_bytes():
                found.append(int(arguments.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
    return found


# --------------------------------------------------------------------------------------------------------- the boot sector


def test_a_boot_sector_is_one_sector_with_the_signature() -> None:
    sector = boot_sector("hello")
    assert 512 == len(sector)
    assert b"\x55\xaa" == sector[-2:]
    assert b"UNDERLAY BOOTED hello\r\n\0" in sector


def test_a_boot_sector_alone_has_an_empty_partition_table() -> None:
    assert bytes(64) == boot_sector("hello")[446:510]


@pytest.mark.parametrize(("size", "sectors"), [(MIB, 2047), (SECTOR * 2, 1), (10 << 40, 0xFFFFFFFF)])
def test_one_active_partition_spans_what_follows_the_sector(size: int, sectors: int) -> None:
    table = boot_sector("hello", size=size)[446:510]
    flag, kind, start, length = struct.unpack("<B3xB3xII", table[:16])
    assert (0x80, 0x83, 1, sectors) == (flag, kind, start, length)
    assert bytes(48) == table[16:]


def test_a_line_begins_with_the_prefix() -> None:
    assert "UNDERLAY BOOTED web-1" == boot_line("web-1")
    assert boot_line("x").startswith(PREFIX)


@pytest.mark.parametrize("message", ["two\nlines", "tab\there", "nul\0", "grün", "…"])
def test_a_message_that_is_not_one_line_of_ascii_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        boot_sector(message)


def test_a_message_that_does_not_fit_is_refused_and_the_error_says_by_how_much(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is (\d+) bytes too long") as caught:
        boot_sector("x" * 1000)
    excess = int(str(caught.value).split(" is ")[1].split()[0])
    assert 512 == len(boot_sector("x" * (1000 - excess)))
    with pytest.raises(ValueError, match="is 1 bytes too long"):
        boot_sector("x" * (1001 - excess))


# -------------------------------------------------------------------------------------------------------------- the images


def test_a_raw_image_is_sparse_and_has_the_size_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    write_raw(image, size=64 * MIB, message="hello")
    assert 64 * MIB == image.stat().st_size
    assert image.stat().st_blocks * 512 <= MIB
    assert boot_sector("hello", size=64 * MIB) == image.read_bytes()[:SECTOR]


def test_a_payload_is_there_is_not_compressible_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.img", "b.img"):
        write_raw(tmp_path / name, size=8 * MIB, message="hello", payload=3 * MIB + 17)
    content = (tmp_path / "a.img").read_bytes()
    assert content == (tmp_path / "b.img").read_bytes()
    payload = content[PAYLOAD_OFFSET : PAYLOAD_OFFSET + 3 * MIB + 17]
    pieces = {payload[start : start + 4096] for start in range(0, 3 * MIB, 4096)}
    assert 3 * MIB // 4096 == len(pieces)
    assert not any(content[PAYLOAD_OFFSET + len(payload) :])
    assert not any(content[SECTOR:PAYLOAD_OFFSET])


def test_a_payload_ends_where_a_raw_image_ends_at_the_latest(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    write_raw(image, size=PAYLOAD_OFFSET + SECTOR, message="hello", payload=SECTOR)
    assert PAYLOAD_OFFSET + SECTOR == image.stat().st_size
    with pytest.raises(ValueError, match="no room for a payload"):
        write_raw(image, size=PAYLOAD_OFFSET + SECTOR, message="hello", payload=SECTOR + 1)


@pytest.mark.parametrize("size", [0, 511, 513, -512])
def test_a_size_that_is_no_number_of_sectors_is_refused_and_nothing_is_written(tmp_path: Path, size: int) -> None:
    for write in (write_raw, write_qcow2):
        with pytest.raises(ValueError, match="sectors"):
            write(tmp_path / "a.img", size=size, message="hello")
    assert [] == list(tmp_path.iterdir())


@needs_qemu_img
@pytest.mark.parametrize("compressed", [False, True])
def test_a_qcow2_holds_what_the_raw_image_holds_and_leaves_nothing_beside_it(tmp_path: Path, *, compressed: bool) -> None:
    raw, image = tmp_path / "a.img", tmp_path / "a.qcow2"
    write_raw(raw, size=16 * MIB, message="hello", payload=MIB)
    write_qcow2(image, size=16 * MIB, message="hello", payload=MIB, compressed=compressed)
    assert {raw, image} == set(tmp_path.iterdir())
    assert raw.read_bytes() == content_of(image, target=tmp_path / "out.img")


@needs_qemu_img
def test_a_qcow2_is_the_same_each_time_byte_for_byte(tmp_path: Path) -> None:
    for compressed in (False, True):
        for name in ("a", "b"):
            write_qcow2(tmp_path / name, size=16 * MIB, message="hello", payload=2 * MIB, compressed=compressed)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@needs_qemu_img
def test_a_qcow2_is_small_whatever_its_virtual_size(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    write_qcow2(image, size=10 << 40, message="hello")
    assert 10 << 40 == qemuimg.info(image, format="qcow2").virtual_size
    assert image.stat().st_blocks * 512 < MIB


@needs_qemu_img
def test_a_qcow2_has_the_cluster_size_asked_for(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    write_qcow2(image, size=MIB, message="hello", cluster_size=4096)
    (bits,) = struct.unpack_from(">I", image.read_bytes(), 20)
    assert 12 == bits


@needs_qemu_img
def test_compression_makes_a_qcow2_smaller_by_the_holes_of_its_clusters(tmp_path: Path) -> None:
    plain, compressed = tmp_path / "plain", tmp_path / "compressed"
    write_qcow2(plain, size=16 * MIB, message="hello")
    write_qcow2(compressed, size=16 * MIB, message="hello", compressed=True)
    assert compressed.stat().st_size < plain.stat().st_size


# ----------------------------------------------------------------------------------------------------------------- booting


@boots
def test_a_raw_image_boots_and_says_its_line(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    write_raw(image, size=MIB, message="raw one")
    assert "UNDERLAY BOOTED raw one\r\n" == boot(image, format="raw")


@boots
def test_the_longest_message_arrives_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too long") as caught:
        boot_sector("x" * 1000)
    longest = 1000 - int(str(caught.value).split(" is ")[1].split()[0])
    message = "".join(chr(0x21 + number % 94) for number in range(longest))
    write_raw(tmp_path / "a.img", size=MIB, message=message)
    assert f"{boot_line(message)}\r\n" == boot(tmp_path / "a.img", format="raw")


@boots
def test_the_smallest_bootable_image_boots(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.img", size=SMALLEST, message="tiny")
    assert "UNDERLAY BOOTED tiny\r\n" == boot(tmp_path / "a.img", format="raw")


@boots
@needs_qemu_img
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("size", [MIB, 10 << 40])
def test_a_qcow2_boots_and_says_its_line(tmp_path: Path, size: int, *, compressed: bool) -> None:
    image = tmp_path / "a.qcow2"
    write_qcow2(image, size=size, message="qcow2 one", compressed=compressed)
    assert "UNDERLAY BOOTED qcow2 one\r\n" == boot(image, format="qcow2")


@boots
@needs_qemu_img
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_overlay_boots_what_its_base_holds(tmp_path: Path, format: str) -> None:  # noqa: A002
    base, overlay = tmp_path / "base", tmp_path / "disk"
    write = write_raw if format == "raw" else write_qcow2
    write(base, size=MIB, message="from the base")
    corpus.overlay(overlay, backing=base, backing_format=format, size=20 << 30)
    before = base.read_bytes()
    assert "UNDERLAY BOOTED from the base\r\n" == boot(overlay, format="qcow2")
    assert before == base.read_bytes()


@boots
def test_no_character_of_a_path_means_anything_to_qemu(tmp_path: Path) -> None:
    image = tmp_path / 'json:{"a, b=c": "…"},readonly=on'
    write_raw(image, size=MIB, message="oddly named")
    assert "UNDERLAY BOOTED oddly named\r\n" == boot(image, format="raw")


@boots
def test_a_relative_path_boots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_raw(Path("a.img"), size=MIB, message="here")
    assert "UNDERLAY BOOTED here\r\n" == boot(Path("a.img"), format="raw")


@boots
def test_a_disk_from_which_nothing_boots_ends_at_once_and_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.img").write_bytes(bytes(MIB))
    started = time.monotonic()
    assert "" == boot(tmp_path / "a.img", format="raw", seconds=30)
    assert time.monotonic() - started < 15


@boots
def test_a_guest_that_never_ends_is_killed(tmp_path: Path) -> None:
    disk = write_guest(tmp_path / "hangs.img", HANGS)
    with pytest.raises(ToolTimedOut, match="killed after 1 s"):
        boot(disk, format="raw", seconds=1)
    assert [] == running_with(disk)


@boots
def test_a_guest_that_never_ends_is_left_as_soon_as_it_has_said_enough(tmp_path: Path) -> None:
    disk = write_staying_guest(tmp_path / "stays.img", message="and stays")
    assert "UNDERLAY BOOTED and stays" in boot(disk, format="raw", until="and stays")
    assert [] == running_with(disk)


@boots
def test_a_time_out_says_how_far_the_guest_came(tmp_path: Path) -> None:
    disk = write_staying_guest(tmp_path / "stays.img", message="and stays")
    with pytest.raises(ToolTimedOut, match="UNDERLAY BOOTED and stays"):
        boot(disk, format="raw", seconds=3, until="never said")
    assert [] == running_with(disk)


@boots
def test_a_guest_that_writes_without_end_is_stopped(tmp_path: Path) -> None:
    disk = write_guest(tmp_path / "babbles.img", BABBLES)
    with pytest.raises(ToolFailed, match="wrote more than"):
        boot(disk, format="raw", seconds=120)
    assert [] == running_with(disk)


@boots
def test_what_qemu_has_to_say_about_a_disk_is_the_error(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.img", size=MIB, message="raw")
    with pytest.raises(ToolFailed, match="not in qcow2 format"):
        boot(tmp_path / "a.img", format="qcow2")
    with pytest.raises(ToolFailed, match="No such file"):
        boot(tmp_path / "missing.img", format="raw")


def test_a_missing_qemu_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ToolMissing, match="qemu-system-x86_64 is not installed") as caught:
        boot(tmp_path / "a.img", format="raw")
    assert caught.value.hint is not None
    assert "apt-get install qemu-system-x86" in caught.value.hint


@boots
@needs_qemu_img
@pytest.mark.component("root")
def test_qemu_runs_as_the_user_asked_for(short_directory: Path) -> None:
    short_directory.chmod(0o755)
    base, disk = short_directory / "base", short_directory / "disk"
    write_raw(base, size=MIB, message="for nobody")
    corpus.overlay(disk, backing=base, backing_format="raw", size=MIB)
    os.chown(disk, NOBODY, NOBODY)
    assert "UNDERLAY BOOTED for nobody\r\n" == boot(disk, format="qcow2", user=NOBODY)
    base.chmod(0o600)
    with pytest.raises(ToolFailed, match="Permission denied"):
        boot(disk, format="qcow2", user=NOBODY)


@boots
@needs_qemu_img
@pytest.mark.component("qemu-io")
def test_two_machines_do_not_open_one_disk(tmp_path: Path) -> None:
    """QEMU's own image locks hold for the disk that `boot` opens, as for an operator's."""
    disk = tmp_path / "disk.qcow2"
    write_qcow2(disk, size=MIB, message="locked")
    io = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", os.fspath(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with io:
        assert io.stdin is not None
        assert io.stdout is not None
        try:
            io.stdin.write(b"length\n")
            io.stdin.flush()
            io.stdout.readline()  # it has answered, so it has the disk open
            with pytest.raises(ToolFailed, match="another process"):
                boot(disk, format="qcow2")
        finally:
            io.kill()
