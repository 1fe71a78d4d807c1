"""VMDK: the one kind that is safe to open, and the text by which the others make QEMU open any file.

A VMDK is described by a text that names the files of its extents, and perhaps a parent. Where that text is the whole file, or
where the binary header says that the file holds no data of its own, QEMU opens what the text names. So only a *hosted sparse
extent* that describes itself passes: a header with a capacity, then a descriptor of one extent. Numbers and names follow
VMware's "Virtual Disk Format 5.0" and what QEMU's block/vmdk.c makes of it; oslo.utils' inspector checks too little of both.
"""

import os
import re
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from underlay.errors import UnsafeImage

MAGIC = b"KDMV"
FOOTER_BYTES = 1536
"""A stream-optimised file ends with a footer's marker, the footer and an end marker, of one sector each."""

# magic, version, flags, capacity, grain size, descriptor offset, descriptor size (sectors), grain table entries per table,
# offsets of the redundant grain directory, of the grain directory, and of the first grain (overhead)
_HEADER = struct.Struct("<4sIIQQQQIQQQ")
_MARKER = struct.Struct("<QII")  # value, size, type
_SECTOR = 512
_COMPRESSED = 1 << 16  # flag: grains are compressed, and of no fixed length
_MOST_ENTRIES = 512  # of a grain table
_LEAST_GRAIN = 2  # grain table entries below it mean: not there, and all zeros
_MARKER_END, _MARKER_FOOTER = 0, 3
_DIRECTORY_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_DESCRIPTOR_OFFSET = 1
_QEMU_READS = 20  # sectors of the descriptor, whatever the header says of its size

_COMMENTED_TITLE = re.compile(rb"\s*#\s*disk\s+descriptorfile", re.IGNORECASE)
_VERSION = re.compile(rb"version\s*=\s*\d", re.IGNORECASE)
_CREATE_TYPE = re.compile(rb"^[ \t]*createtype\s*=", re.IGNORECASE | re.MULTILINE)
_EXTENT = re.compile(rb"^[ \t]*(rw|rdonly|noaccess)\s+\d+\s+[a-z]", re.IGNORECASE | re.MULTILINE)
_OWN_TYPE = re.compile(rb'createtype\s*=\s*"(monolithicsparse|streamoptimized)"')
_OWN_EXTENT = re.compile(rb'(rw|rdonly|noaccess)\s+\d+\s+sparse\s+"[^"/\\:]+"(\s+0)?')
_ACCESS = re.compile(rb"(rw|rdonly|noaccess)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparse:
    """A hosted sparse extent.

    Attributes:
        virtual_size: bytes. has_footer: a second header at the end takes the place of the one at the beginning.
    """

    virtual_size: int
    has_footer: bool


def is_descriptor(beginning: bytes) -> bool:
    """Whether a file begins as a VMDK descriptor in plain text does.

    Broader than QEMU's own guess, which wants ``version=`` first and in lower case, because QEMU is not the only reader.
    """
    text = beginning.partition(b"\0")[0].replace(b"\r", b"\n")
    if _COMMENTED_TITLE.match(text):
        return True
    lines = (line.strip() for line in text.split(b"\n"))
    first = next((line for line in lines if line and not line.startswith(b"#")), b"")
    return bool(_VERSION.match(first) or (_CREATE_TYPE.search(text) and _EXTENT.search(text)))


def check_sparse(beginning: bytes, *, what: str) -> Sparse:
    """Refuse every VMDK but a sparse extent that stands for itself.

    Args:
        beginning: the header and the whole descriptor: 64 KiB, or all of a shorter file.
        what: how messages call the image.

    Raises:
        UnsafeImage
    """
    if len(beginning) < _SECTOR:
        raise UnsafeImage(what, rule="cut-short", why="the VMDK header is cut short")
    _, version, _, capacity, _, offset, size, _, _, directory, _ = _HEADER.unpack_from(beginning)
    if version not in (1, 2, 3):
        raise UnsafeImage(what, rule="vmdk-header", why=f"VMDK version {version} is not supported")
    if capacity == 0:
        raise UnsafeImage(what, rule="vmdk-descriptor", why="it holds no data of its own, its descriptor names other files")
    if offset != _DESCRIPTOR_OFFSET:
        raise UnsafeImage(what, rule="vmdk-descriptor", why="its descriptor is missing, or not where a reader looks for it")
    _check_descriptor(beginning[_SECTOR : _SECTOR + max(size, _QEMU_READS) * _SECTOR], what)
    return Sparse(virtual_size=capacity * _SECTOR, has_footer=directory == _DIRECTORY_AT_END)


def _check_descriptor(descriptor: bytes, what: str) -> None:
    text = descriptor.partition(b"\0")[0].lower()
    if b"parentfilenamehint" in text:
        raise UnsafeImage(what, rule="backing-file", why="its descriptor names a parent")
    if not text.count(b"createtype") == len(_OWN_TYPE.findall(text)) == 1:
        raise UnsafeImage(what, rule="vmdk-descriptor", why="it is neither monolithicSparse nor streamOptimized")
    lines = (line.strip() for line in text.replace(b"\r", b"\n").split(b"\n"))
    extents = [line for line in lines if _ACCESS.match(line)]
    if len(extents) != 1 or not _OWN_EXTENT.fullmatch(extents[0]):
        raise UnsafeImage(what, rule="vmdk-descriptor", why="its descriptor does not name itself as its only extent")


def check_footer(beginning: bytes, tail: bytes, *, what: str) -> Sparse:
    """The extent as its footer describes it.

    Args:
        beginning: as for `check_sparse`. tail: the file's last `FOOTER_BYTES`.

    Raises:
        UnsafeImage: the footer is missing, which is how a stream that was cut short shows, or disagrees with the header.
    """
    if len(tail) < FOOTER_BYTES or not _is_footer(tail):
        raise UnsafeImage(what, rule="cut-short", why="the footer that its header promises is missing")
    magic, version, _, capacity, _, offset, size, _, _, directory, _ = _HEADER.unpack_from(tail, _SECTOR)
    header = _HEADER.unpack_from(beginning)
    if (magic, version, offset, size) != (MAGIC, header[1], header[5], header[6]) or directory == _DIRECTORY_AT_END:
        raise UnsafeImage(what, rule="vmdk-header", why="its footer and its header disagree")
    if capacity == 0:
        raise UnsafeImage(what, rule="vmdk-descriptor", why="its footer says that it holds no data of its own")
    return Sparse(virtual_size=capacity * _SECTOR, has_footer=True)


def check_tables(fd: int, *, what: str) -> None:
    """Prove that each grain of a sparse extent lies in its file; QEMU takes what is missing for zeros.

    Raises:
        UnsafeImage
    """
    size = os.fstat(fd).st_size
    _must_reach(FOOTER_BYTES, size, what)
    header = os.pread(fd, _SECTOR, 0)
    if _HEADER.unpack_from(header)[9] == _DIRECTORY_AT_END:
        header = os.pread(fd, _SECTOR, size - 2 * _SECTOR)
    _, _, flags, capacity, grain, _, _, entries, _, directory, _ = _HEADER.unpack_from(header)
    if not grain or not 0 < entries <= _MOST_ENTRIES:
        raise UnsafeImage(what, rule="vmdk-header", why="its grain tables cannot be of that size")
    tables = _sectors(fd, directory * _SECTOR, -(-capacity // (grain * entries)), size, what)
    named = [table for table in tables if table]
    if len(set(named)) != len(named):  # a small file could ask for work without bound
        raise UnsafeImage(what, rule="corrupt", why="two entries of its grain directory share one grain table")
    for index, table in enumerate(tables):
        if table:
            grains = _sectors(fd, table * _SECTOR, entries, size, what)
            ends = _ends(grains, grain, capacity - index * grain * entries, compressed=bool(flags & _COMPRESSED))
            _must_reach(max(ends, default=0) * _SECTOR, size, what)


def _ends(grains: "array[int]", grain: int, capacity: int, *, compressed: bool) -> Iterator[int]:
    """Sector after each grain that is there; the last one need not be whole, and of a compressed one only the first is sure."""
    for index, start in enumerate(grains):
        if start >= _LEAST_GRAIN:
            yield start + (1 if compressed else min(grain, capacity - index * grain))


def _sectors(fd: int, offset: int, count: int, size: int, what: str) -> "array[int]":
    _must_reach(offset + count * 4, size, what)
    table = array("I", os.pread(fd, count * 4, offset))
    if sys.byteorder == "big":
        table.byteswap()
    return table


def _must_reach(end: int, size: int, what: str) -> None:
    if end > size:
        raise UnsafeImage(what, rule="cut-short", why=f"its tables point to byte {end} of a file of {size} bytes")


def _is_footer(tail: bytes) -> bool:
    _, footer_size, footer_type = _MARKER.unpack_from(tail)
    return (footer_size, footer_type) == (0, _MARKER_FOOTER) and _MARKER.unpack_from(tail, 2 * _SECTOR) == (0, 0, _MARKER_END)
