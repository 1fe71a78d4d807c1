"""A tar archive as it streams by, against what tarfile and GNU tar write, and against what they would not."""

import io
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Literal

import pytest

from corpus import noise
from underlay.errors import SourceRefused
from underlay.sources.oci.tar import BLOCK, Entry, TarReader

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
LONG = "/".join(["directory" * 5] * 5) + "/" + "name" * 20


class Dripping(io.BytesIO):
    """A stream that gives little at a time."""

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        return super().readinto(buffer[:100])


def packed(entries: list[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def entries_of(archive: bytes, *, dripping: bool = False) -> list[tuple[Entry, bytes]]:
    """Every entry with its bytes."""
    reader = TarReader("an archive", Dripping(archive) if dripping else io.BytesIO(archive))
    found = []
    while (entry := reader.next()) is not None:
        content, buffer = bytearray(), memoryview(bytearray(1000))
        while length := reader.readinto(buffer):
            content += buffer[:length]
        found.append((entry, bytes(content)))
    return found


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize("dripping", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_what_tarfile_writes_is_read(form: int, *, dripping: bool) -> None:
    contents = [b"", b"x", noise(BLOCK), noise(BLOCK + 1), noise(100_000)]
    files = [(info(f"directory/{number}"), content) for number, content in enumerate(contents)]
    others = [(info("directory", tarfile.DIRTYPE), b""), (info("link", tarfile.SYMTYPE, "directory/1"), b"")]

    found = entries_of(packed([*others, *files], form), dripping=dripping)

    assert [("a directory", "directory"), ("a symlink", "link")] == [(one.kind, one.name.rstrip("/")) for one, _ in found[:2]]
    assert [(f"directory/{n}", len(content), content) for n, content in enumerate(contents)] == [
        (entry.name, entry.size, content) for entry, content in found[2:] if entry.is_file
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_a_long_name_is_read(form: int) -> None:
    name = LONG[-200:].lstrip("/") if form == tarfile.USTAR_FORMAT else LONG

    [(entry, content), (last, _)] = entries_of(packed([(info(name), b"content"), (info("last"), b"")], form))

    assert (name, b"content", "last") == (entry.name, content, last.name)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_in_unicode_and_a_long_link_are_read(form: int) -> None:
    found = entries_of(packed([(info("link", tarfile.SYMTYPE, LONG), b""), (info("größe/\u6771"), b"x")], form))

    assert ["link", "größe/\u6771"] == [entry.name for entry, _ in found]


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, form: str) -> None:
    content = noise(70_000)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "disk.img").write_bytes(content)

    done = subprocess.run(["tar", "-C", tmp_path, f"--format={form}", "-cf", "-", "./disk"], check=True, capture_output=True)

    assert [("./disk/", "a directory", b""), ("./disk/disk.img", "a file", content)] == [
        (entry.name, entry.kind, found) for entry, found in entries_of(done.stdout)
    ]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_size_beyond_what_octal_digits_hold_is_read(form: Literal[1, 2]) -> None:
    entry = info("large")
    entry.size = 9 << 30
    archive = entry.tobuf(form) + b"the beginning"
    reader = TarReader("an archive", io.BytesIO(archive))

    assert Entry("large", "a file", 9 << 30) == reader.next()


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=0.0"]])
def test_a_sparse_entry_is_refused(tmp_path: Path, options: list[str]) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 << 20)
        file.write(b"x")
    done = subprocess.run(["tar", "-C", tmp_path, "-S", *options, "-cf", "-", "sparse"], check=True, capture_output=True)

    with pytest.raises(SourceRefused, match="has a sparse entry"):
        entries_of(done.stdout)


def test_zeros_after_the_end_do_not_matter_and_a_missing_end_does_not_either() -> None:
    archive = packed([(info("a"), b"x")], tarfile.USTAR_FORMAT)

    assert entries_of(archive[: 2 * BLOCK]) == entries_of(archive[: 3 * BLOCK]) == entries_of(archive + bytes(100_000))


@pytest.mark.parametrize("length", [1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK - 1])
def test_an_archive_that_is_cut_off_is_refused(length: int) -> None:
    archive = packed([(info("a"), noise(2 * BLOCK - 1))], tarfile.USTAR_FORMAT)

    with pytest.raises(SourceRefused, match="cut off in the middle"):
        entries_of(archive[:length])


@pytest.mark.parametrize("at", [0, 99, 124, 148, 156, 300, 500])
def test_a_damaged_header_is_refused(at: int) -> None:
    archive = bytearray(packed([(info("a" * 100), b"x")], tarfile.USTAR_FORMAT))
    archive[at] ^= 0x15

    with pytest.raises(SourceRefused, match="no tar archive, or it is damaged"):
        entries_of(bytes(archive))


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(SourceRefused, match="no tar archive, or it is damaged"):
        entries_of(noise(4096))
    assert [] == entries_of(b"")
    assert [] == entries_of(bytes(10 * BLOCK))


def pax(content: bytes, *, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An archive whose one entry has this pax header."""
    header = info("PaxHeaders/a", kind)
    header.size = len(content)
    padded = content + bytes(-len(content) % BLOCK)
    return header.tobuf(tarfile.USTAR_FORMAT) + padded + packed([(info("a"), b"12345")], tarfile.USTAR_FORMAT)


def test_a_pax_header_has_a_name_and_a_size() -> None:
    [(entry, content)] = entries_of(pax(b"9 path=b\n10 size=3\n28 comment=a = b\nand a line\n"))

    assert (Entry("b", "a file", 3), b"123") == (entry, content)


@pytest.mark.parametrize(
    "content",
    [
        b"path=b\n", b"x path=b\n", b"8 path=b\n", b"11 path=b\n", b"99 path=b\n", b"9 path=b ", b"0 path=b\n", b"-9 path=b\n",
        b"8 pathb\n", b"11 size=-1\n", b"11 size=0x\n", b"30 size=99999999999999999999999\n", b"9" * 100,
    ],
)  # fmt: skip
def test_a_damaged_pax_header_is_refused(content: bytes) -> None:
    with pytest.raises(SourceRefused, match="damaged pax header"):
        entries_of(pax(content))


def test_a_pax_header_for_all_entries_may_have_comments_only() -> None:
    [(entry, _)] = entries_of(pax(b"13 comment=x\n", kind=tarfile.XGLTYPE))
    assert "a" == entry.name

    with pytest.raises(SourceRefused, match="a name or a size for all of its entries"):
        entries_of(pax(b"9 path=b\n", kind=tarfile.XGLTYPE))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_an_enormous_header_is_refused_before_it_is_read(kind: bytes) -> None:
    header = info("a", kind)
    header.size = 2 << 20

    with pytest.raises(SourceRefused, match="more than 64 KiB of headers"):
        entries_of(header.tobuf(tarfile.USTAR_FORMAT) + bytes(BLOCK))


def test_headers_without_end_are_refused() -> None:
    header = pax(b"9 path=b\n")[: 2 * BLOCK]
    with pytest.raises(SourceRefused, match="more than 64 KiB of headers"):
        entries_of(header * 200)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_the_headers_of_an_entry_are_bounded_together(kind: bytes) -> None:
    lines = b"20014 comment=" + b"x" * 19_999 + b"\n"
    header = pax(lines, kind=kind)[: -(-len(lines) // BLOCK) * BLOCK + BLOCK]
    entry = packed([(info("a"), b"12345")], tarfile.USTAR_FORMAT)
    assert b"12345" == entries_of(header * 3 + entry)[0][1]

    with pytest.raises(SourceRefused, match="more than 64 KiB of headers"):
        entries_of(header * 4 + entry)


@pytest.mark.parametrize("extension", [b"", b"x" * 60_000])
def test_entries_without_end_are_refused_by_their_headers(extension: bytes) -> None:
    name = pax(extension, kind=tarfile.GNUTYPE_LONGLINK)[: -(-len(extension) // BLOCK) * BLOCK + BLOCK]
    one = name + info("a").tobuf(tarfile.USTAR_FORMAT)

    with pytest.raises(SourceRefused, match="more than 32 MiB of headers"):
        entries_of(one * ((33 << 20) // len(one)))


def test_a_header_of_many_lines_is_read_in_their_time() -> None:
    lines = b"6 a=b\n" * 10_000
    began = time.process_time()
    assert "b" == entries_of(pax(lines + b"9 path=b\n"))[0][0].name
    assert time.process_time() - began < 2


def test_what_stands_beside_the_disk_is_bounded() -> None:
    header = info("a", tarfile.REGTYPE)
    header.size = 3 << 30
    reader = TarReader("an archive", io.BytesIO(header.tobuf(tarfile.GNU_FORMAT) + bytes(BLOCK)))
    assert reader.next() is not None
    with pytest.raises(SourceRefused, match="more than 2 GiB beside"):
        reader.next()


def test_a_header_that_no_entry_follows_is_refused() -> None:
    archive = pax(b"9 path=b\n")[: 2 * BLOCK]

    with pytest.raises(SourceRefused, match="ends after a header"):
        entries_of(archive)


def test_a_negative_size_is_refused() -> None:
    header = bytearray(info("a").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:BLOCK])

    with pytest.raises(SourceRefused, match="negative number"):
        entries_of(bytes(header))


def test_links_and_devices_have_no_bytes_whatever_their_headers_say() -> None:
    link = info("link", tarfile.LNKTYPE, "a")
    link.size = 1000
    archive = link.tobuf(tarfile.USTAR_FORMAT) + packed([(info("a"), b"x")], tarfile.USTAR_FORMAT)

    assert [("link", 0), ("a", 1)] == [(entry.name, entry.size) for entry, _ in entries_of(archive)]
