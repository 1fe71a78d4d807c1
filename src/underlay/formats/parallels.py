"""Parallels' expanding disk images, of which ploop disks are made: what a header says, one written from a raw file, one grown.

By QEMU's docs/interop/parallels.rst: a header, a table (BAT) with an entry for each cluster of the disk, and the clusters that
are there, in any order. Images are written as the ``ploop`` tool wants them: whole clusters, and no hole in the file, because
that driver reads and writes the blocks of the file behind the file system's back. All numbers are little-endian.
"""

import os
import struct
import sys
from array import array
from collections.abc import Iterator

import msgspec

from underlay.errors import DiskInUse, DiskUnrecorded, InvalidSize, Unsupported
from underlay.files import copy_range, data_extents, fill_holes, read_full, read_padded, write_at, write_zeros

CLUSTER_BYTES = 1 << 20
"""Of the images that are written, and of which their sizes are multiples, as those of every ploop device."""
MAX_BYTES = (1 << 40) - CLUSTER_BYTES
"""Of an image that is written or grown: QEMU 7.2 counts the sectors of a run of absent clusters in 31 bits, then fails."""

# magic, version, heads, cylinders, tracks, entries, sectors, in_use, data_off, flags, ext_off
_HEADER = struct.Struct("<16s5IQ3IQ")
HEADER_BYTES = _HEADER.size
_MAGIC, _OLD_MAGIC = b"WithouFreSpacExt", b"WithoutFreeSpace"  # the old one counts sectors in its table
_VERSION = 2
_HEADS, _SECTORS_PER_TRACK = 16, 32  # of the geometry, which nobody uses
_SECTOR = 512
_ENTRY = 4
_CLOSED = frozenset({0, 0x312E3276})  # the second by whoever writes extensions too; while it is open, there is 0x746F6E59
_EMPTY = 1  # a flag that nobody needs, and that the tool sets wrongly on images that it grows
_LARGEST_CLUSTER = 64 << 20
_MOST_ENTRIES = 64 << 20  # of a table that is read or grown
_MOST_CLUSTERS = 2 * _MOST_ENTRIES  # of an image that is grown


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What an image's first bytes say.

    Attributes:
        cluster: bytes of one. entries: of the table. size: bytes that a guest sees.
        first: where the data begin, in clusters. is_old: of the older form, whose table counts sectors; it is not grown here.
        extension: where there is more, such as bitmaps of changed blocks, in sectors; 0: nowhere.
        in_use: what who has it open for writing leaves there, which is 0 mostly. flags: as they are.
    """

    cluster: int
    entries: int
    size: int
    first: int
    is_old: bool
    in_use: int
    flags: int
    extension: int


def parse_header(beginning: bytes, *, what: str) -> Header:
    """Read a header.

    Args:
        beginning: the first `HEADER_BYTES` of the image. what: how the error calls it.

    Raises:
        DiskUnrecorded: it is none, or contradicts itself.
    """
    if len(beginning) < HEADER_BYTES:
        raise _none(what, "it is cut short")
    magic, version, _, _, tracks, entries, sectors, in_use, offset, flags, extension = _HEADER.unpack_from(beginning)
    is_old, cluster = magic == _OLD_MAGIC, tracks * _SECTOR
    if magic not in (_MAGIC, _OLD_MAGIC) or version != _VERSION:
        raise _none(what, "its header is another's")
    sectors &= 0xFFFFFFFF if is_old else sectors
    if not 0 < cluster <= _LARGEST_CLUSTER:
        raise _none(what, f"its clusters of {cluster} bytes cannot be")
    if not is_old and (offset == 0 or offset % tracks):
        raise _none(what, f"its data begin at sector {offset}")
    if not is_old and offset // tracks < _clusters_of_table(entries, cluster):
        raise _none(what, f"its data begin at sector {offset}, within its table of {entries} clusters")
    if not 0 < sectors <= entries * tracks:
        raise _none(what, f"its table of {entries} clusters is not for its {sectors} sectors")
    return Header(
        cluster=cluster,
        entries=entries,
        size=sectors * _SECTOR,
        first=offset // tracks,
        is_old=is_old,
        in_use=in_use,
        flags=flags,
        extension=extension,
    )


def _none(what: str, why: str) -> DiskUnrecorded:
    return DiskUnrecorded(
        f"{what} is recorded as parallels, and is none: {why}", hint="look at it with qemu-img check -f parallels"
    )


def refuse_size(size: int) -> None:
    """Refuse an image that would be larger than any.

    Raises:
        InvalidSize
    """
    if size > MAX_BYTES:
        raise InvalidSize(f"no ploop disk has {size} bytes", hint=f"use at most {MAX_BYTES} bytes, a little under 1 TiB")


# -------------------------------------------------------------------------------------------------------------------- writing


def write(source: int, target: int, *, length: int, size: int, share: bool = True) -> None:
    """Make an empty file an image with the content of a raw file, and zeros behind it. Durability is the caller's.

    Clusters in which the raw file has nothing but holes are not there. Where the file system can share blocks, the two do,
    unless they are not to: who writes to blocks that a file has, as ploop's driver does, writes to all files that share them.

    Args:
        length: bytes of the raw file. size: bytes of the disk: whole clusters, `MAX_BYTES` at most.
        share: whether the two may have blocks in common.

    Raises:
        OSError
    """
    table = array("I", bytes(size // CLUSTER_BYTES * _ENTRY))
    first = end = _clusters_of_table(len(table), CLUSTER_BYTES)
    for start, stop in _cluster_runs(source, length):
        begin = start * CLUSTER_BYTES
        copy_range(source, target, begin, min(stop * CLUSTER_BYTES, length) - begin, to=end * CLUSTER_BYTES, share=share)
        table[start:stop] = array("I", range(end, end + stop - start))
        end += stop - start
    header = Header(
        cluster=CLUSTER_BYTES, entries=len(table), size=size, first=first, is_old=False, in_use=0, flags=0, extension=0
    )
    os.ftruncate(target, end * CLUSTER_BYTES)
    write_at(target, (_packed(header) + _little(table).tobytes()).ljust(first * CLUSTER_BYTES, b"\0"), 0)
    fill_holes(target, end * CLUSTER_BYTES)


def _cluster_runs(source: int, length: int) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` numbers of the clusters in which the file has data, in order, none of them twice."""
    done = 0
    for begin, end in data_extents(source, length):
        start, stop = max(begin // CLUSTER_BYTES, done), -(-end // CLUSTER_BYTES)
        if start < stop:
            yield start, stop
            done = stop


def _clusters_of_table(entries: int, cluster: int) -> int:
    """Clusters that a header and its table take."""
    return -(-(HEADER_BYTES + entries * _ENTRY) // cluster)


def _packed(header: Header) -> bytes:
    tracks, sectors = header.cluster // _SECTOR, header.size // _SECTOR
    cylinders = min(sectors // (_HEADS * _SECTORS_PER_TRACK), 0xFFFFFFFF)
    geometry = (_HEADS, cylinders, tracks, header.entries, sectors)
    return _HEADER.pack(_MAGIC, _VERSION, *geometry, header.in_use, header.first * tracks, header.flags, header.extension)


def _little(table: "array[int]") -> "array[int]":
    """A table as the file has it, or as we have it: the same on most machines."""
    if sys.byteorder == "big":
        table.byteswap()
    return table


# -------------------------------------------------------------------------------------------------------------------- growing


def grow(fd: int, size: int, *, what: str) -> None:
    """Give an image room for a larger disk, in its place and durably; the new part is zeros. One that has it is left as it is.

    Whatever happens at any moment, the image is the old one or the new one: the header's sector changes last. What a crash
    leaves besides are clusters that no entry names, which the next guest's writes take.

    The caller has seen to it that nobody opens the image meanwhile. Its table is believed no more than its header: tools
    disagree about one in which two entries name one cluster, or one names the table, and would show a guest different things.

    Args:
        fd: of the image, open for writing. size: bytes, `MAX_BYTES` at most.

    Raises:
        Unsupported: it is of a kind that is not grown here. DiskUnrecorded: its header or its table is damaged.
        DiskInUse: who had it open last did not close it. OSError
    """
    header = parse_header(os.pread(fd, HEADER_BYTES, 0), what=what)
    if size <= header.size:
        return
    entries = -(-size // header.cluster)
    _refuse_to_grow(header, entries, what)
    table = _read_table(fd, header, what)
    first = max(header.first, _clusters_of_table(entries, header.cluster))
    if first > header.first:
        _make_room(fd, header, table, first)
    _clear_entries(fd, header, entries, first)
    os.fsync(fd)  # crash: zeros where no entry counts
    flags = header.flags & ~_EMPTY
    write_at(fd, _packed(msgspec.structs.replace(header, entries=entries, size=size, first=first, flags=flags)), 0)
    os.fsync(fd)


def _refuse_to_grow(header: Header, entries: int, what: str) -> None:
    _refuse_in_use(header, what)
    if header.is_old:
        raise Unsupported("ploop", f"grow {what}, which has the old form", hint="ploop convert -v 2 gives it the new one")
    if header.extension:
        raise Unsupported("ploop", f"grow {what}, which has bitmaps or other extensions", hint="remove its bitmaps first")
    if max(entries, header.entries) > _MOST_ENTRIES:
        raise Unsupported("ploop", f"grow {what}, whose clusters are so small that its table would be too large")


def _refuse_in_use(header: Header, what: str) -> None:
    """Refuse an image that somebody has open for writing, or had when the machine went down."""
    if header.in_use not in _CLOSED:
        how = "stop its instance; if that is stopped: qemu-img check -r all -f parallels"
        raise DiskInUse(f"{what} is open, or was not closed by who had it open last", hint=how)


def _read_table(fd: int, header: Header, what: str) -> "array[int]":
    """The entries that count, of which each names a cluster of its own: those behind them are a larger disk's of old.

    Raises:
        DiskUnrecorded, OSError
    """
    table = array("I", bytes(-(-header.size // header.cluster) * _ENTRY))
    content, length = memoryview(table).cast("B"), os.fstat(fd).st_size
    is_whole = header.first * header.cluster <= length and read_full(fd, content, HEADER_BYTES) == len(content)
    if not is_whole or not _is_sound(_little(table), header, length):
        raise DiskUnrecorded(f"the table of {what} is damaged", hint="look at it with qemu-img check -f parallels")
    return table


def _is_sound(table: "array[int]", header: Header, length: int) -> bool:
    """Whether each entry names a cluster of the file, behind the table, that no other names."""
    end = min(-(-length // header.cluster), _MOST_CLUSTERS)
    named = bytearray(end)
    for cluster in filter(None, table):
        if not header.first <= cluster < end or named[cluster]:
            return False
        named[cluster] = 1
    return True


def _make_room(fd: int, header: Header, table: "array[int]", first: int) -> None:
    """Move the clusters in the way of a longer table to the end of the file."""
    length = os.fstat(fd).st_size
    end = max(max(table) + 1, first)  # behind it there is at most what a crash left
    try:
        for index, cluster in enumerate(table):
            if 0 < cluster < first:
                content = read_padded(fd, header.cluster, cluster * header.cluster)
                write_at(fd, memoryview(content), end * header.cluster)  # crash: a cluster at the end that no entry names
                table[index], end = end, end + 1
        os.fsync(fd)
    except BaseException:
        os.ftruncate(fd, length)
        raise
    write_at(fd, _little(table).tobytes(), HEADER_BYTES)  # crash: each entry names the old cluster or its copy
    os.fsync(fd)


def _clear_entries(fd: int, header: Header, entries: int, first: int) -> None:
    """Have every entry name nothing that is new: where a table of old had some, and where clusters were that have moved.

    What lies between a table and the data is not ours, and stays; but who makes the table longer next may take it for zeros.
    """
    end = HEADER_BYTES + entries * _ENTRY if first == header.first else first * header.cluster
    write_zeros(fd, HEADER_BYTES + -(-header.size // header.cluster) * _ENTRY, end)
