"""Which other files a disk needs, read from its header alone: backing file, parent, external data file, extents.

A prune asks this of every disk on a host, so the common cases cost one `pread` and a few microseconds. Everything distrusts its
input: what is read is bounded, and a header that cannot be is an answer (`References.malformed`), never an exception.

`read_references` says what is recorded; `targets` says which local files QEMU may mean by a recorded name. Both rather name a
file too many than one too few. Numbers follow QEMU's docs/interop/qcow2.txt and qed_spec, its block/qcow.c and block/vmdk.c,
VMware's "Virtual Disk Format" 1.1 and 5.0, Microsoft's [MS-VHDX] 2.0 and "Virtual Hard Disk Image Format Specification" 1.0.
"""

import json
import os
import re
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from underlay.formats import qcow2, vdi, vhd, vhdx, vmdk

BEGINNING = 4096
"""Bytes that one read takes; more is only read when the header says that the name lies beyond."""


@dataclass(frozen=True, slots=True)
class References:
    """What a disk's header says.

    Attributes:
        format: qcow, qcow2, qed, vmdk, vhdx, vpc, vdi (QEMU's names), or None: no header that we know, so raw.
        names: each file name as recorded (external data file, backing file, parents, extents), in order, unresolved.
        malformed: why the header cannot be believed, or None; `names` then holds what could still be read.
    """

    format: str | None
    names: tuple[str, ...] = ()
    malformed: str | None = None


NOTHING = References(None)


@dataclass(frozen=True, slots=True)
class Target:
    """One place that a recorded name may mean.

    Attributes:
        path: absolute, with symlinks and ``..`` as they are. sure: False when the name is only possibly that file.
    """

    path: str
    sure: bool


def read_references(fd: int) -> References:
    """Which files the header of an open disk names.

    Raises:
        OSError: the file cannot be read.
    """
    beginning = os.pread(fd, BEGINNING, 0)
    reader = _READERS.get(beginning[:4])
    if reader is not None:
        return reader(fd, beginning)
    if beginning[vdi.MAGIC_OFFSET : _VDI_MAGIC_END] == vdi.MAGIC:
        return _read_vdi(beginning)
    if _LIKE_TEXT(beginning) and vmdk.is_descriptor(beginning):
        return _read_descriptor(fd, beginning)
    return NOTHING


# --------------------------------------------------------------------------------------------------------------- what all share

_BOUND = 64 << 10  # of any text or table that is read
_FARTHEST = 1 << 62  # offsets beyond it are no file's, and no system call takes them
_LONGEST_NAME = 4095  # PATH_MAX, with its NUL: as long a name as QEMU reads from anything but a qcow2
_SECTOR = 512
_CUT_SHORT = "it is cut short"
_OUTSIDE = "its backing file's name lies outside the file"


def _piece(fd: int, beginning: bytes, offset: int, length: int) -> bytes:
    """Up to ``length`` bytes of the file, fewer at its end; read only when the beginning does not hold them."""
    end = offset + length
    if end <= len(beginning):
        return beginning[offset:end]
    if end > _FARTHEST:
        return b""
    return os.pread(fd, length, offset)


def _text(name: bytes) -> str:
    """A name as the C string that QEMU takes it for."""
    return os.fsdecode(name.partition(b"\0")[0])


def _found(kind: str, names: Iterable[str], malformed: str | None = None) -> References:
    """References without empty names, each one once."""
    return References(kind, tuple(dict.fromkeys(name for name in names if name)), malformed)


# --------------------------------------------------------------------------------------------------------------- qcow and qcow2

_QCOW = struct.Struct(">IQII")  # behind the magic: version, backing offset, backing length, cluster bits (version 1: a time)
_QCOW_BYTES = (0, 48, 72, 104)  # of a header at least, by version
_CLUSTER_BITS = range(9, 22)
_INCOMPATIBLE = 79  # version 3: where the low byte of the incompatible features is
_HEADER_LENGTH = struct.Struct(">100xI")  # version 3
_EXTENSION = struct.Struct(">II")
_EXTENSION_END, _EXTENSION_DATA_FILE = 0x00000000, 0x44415441

_PLAIN_QCOW2 = References("qcow2")


def _read_qcow(fd: int, beginning: bytes) -> References:
    if len(beginning) < _QCOW_BYTES[1]:
        return References("qcow2", malformed=_CUT_SHORT)
    version, offset, length, bits = _QCOW.unpack_from(beginning, 4)
    wrong = _wrong_qcow(version, offset, length, bits, len(beginning))
    needs_data_file = (
        version >= 3 and len(beginning) >= _QCOW_BYTES[3] and beginning[_INCOMPATIBLE] & qcow2.INCOMPATIBLE_DATA_FILE
    )
    if not (offset or needs_data_file or wrong):
        return _PLAIN_QCOW2 if version > 1 else References("qcow")
    names = []
    if needs_data_file:
        data_file = _data_file(fd, beginning, min(offset or _BOUND, _BOUND))
        wrong = wrong or (None if data_file else "it needs an external data file and does not name it")
        names.append(data_file)
    if offset and length <= _LONGEST_NAME:
        name = _piece(fd, beginning, offset, length)
        if len(name) < length:
            wrong = wrong or _OUTSIDE
        names.append(_text(name))
    return _found("qcow2" if version > 1 else "qcow", names, wrong)


def _wrong_qcow(version: int, offset: int, length: int, bits: int, known: int) -> str | None:
    if not 1 <= version <= 3:
        return f"qcow version {version} is not known"
    if known < _QCOW_BYTES[version]:
        return _CUT_SHORT
    if version > 1 and bits not in _CLUSTER_BITS:
        return f"its clusters of 2^{bits} bytes cannot be"
    if offset and length > qcow2.MAX_BACKING_NAME:
        return f"its backing file's name of {length} bytes is too long"
    if offset and version > 1 and offset + length > 1 << bits:
        return "its backing file's name lies outside the first cluster"
    return None


def _data_file(fd: int, beginning: bytes, end: int) -> str:
    """The external data file's name, or nothing; ``end``: where the header extensions end at the latest."""
    (offset,) = _HEADER_LENGTH.unpack_from(beginning)
    header = _piece(fd, beginning, 0, end)
    while offset + _EXTENSION.size <= len(header):
        kind, length = _EXTENSION.unpack_from(header, offset)
        offset += _EXTENSION.size
        if kind == _EXTENSION_END or offset + length > len(header):
            break
        if kind == _EXTENSION_DATA_FILE:
            return _text(header[offset : offset + length])
        offset += (length + 7) // 8 * 8
    return ""


# -------------------------------------------------------------------------------------------------------------------------- QED

_QED = struct.Struct("<4sIIIQ32xII")  # magic, cluster, table and header size, features, …, size, backing offset and length
_QED_BACKING_FILE = 1 << 0
_QED_CLUSTERS = range(1 << 12, (1 << 26) + 1)


def _read_qed(fd: int, beginning: bytes) -> References:
    if len(beginning) < _QED.size:
        return References("qed", malformed=_CUT_SHORT)
    _, cluster, _, clusters, features, offset, length = _QED.unpack_from(beginning)
    wrong = None
    if cluster not in _QED_CLUSTERS or cluster & (cluster - 1):
        wrong = f"its clusters of {cluster} bytes cannot be"
    if not features & _QED_BACKING_FILE:
        return References("qed", malformed=wrong)
    if length > _LONGEST_NAME:
        return References("qed", malformed=wrong or f"its backing file's name of {length} bytes is too long")
    name = _piece(fd, beginning, offset, length)
    if len(name) < length or offset + length > cluster * clusters:
        wrong = wrong or "its backing file's name lies outside its header"
    return _found("qed", [_text(name)], wrong)


# ------------------------------------------------------------------------------------------------------------------------- VMDK

_VMDK = struct.Struct("<12xQ8xQQ")  # capacity, …, descriptor's offset and size (sectors)
_VMDK_DESCRIPTOR = _SECTOR, 20 * _SECTOR  # where QEMU looks for a parent's name whatever the header says
_COWD_PARENT = 32, 1024  # of a child: the C string where a root disk has its geometry
_COWD_GEOMETRY = 2  # bytes that a number of cylinders takes
_HINT = b"parentFileNameHint"
_ANY_HINT = re.compile(rb'parentfilenamehint\s*+=\s*+"([^"]*+)"', re.IGNORECASE)
_PARENT_ID = re.compile(rb"parentcid\s*+=\s*+([0-9a-f]++)", re.IGNORECASE)
_NO_PARENT = b"ffffffff"
_EXTENT = re.compile(rb'^[ \t]*+(?:rw|rdonly|noaccess)\s++[-+]?\d++\s*+\w++\s*+"([^"\r\n]*+)', re.IGNORECASE | re.MULTILINE)


def _read_sparse(fd: int, beginning: bytes) -> References:
    """A hosted sparse extent, whose descriptor may lie inside."""
    if len(beginning) < _VMDK.size:
        return References("vmdk", malformed=_CUT_SHORT)
    capacity, sector, sectors = _VMDK.unpack_from(beginning)
    texts = [_piece(fd, beginning, *_VMDK_DESCRIPTOR)]
    length = min(max(sectors * _SECTOR, _VMDK_DESCRIPTOR[1]), _BOUND) if capacity else _BOUND
    if sector and (sector * _SECTOR, length) != _VMDK_DESCRIPTOR:
        texts.append(_piece(fd, beginning, sector * _SECTOR, length))
    wrong = _CUT_SHORT if sector and not texts[-1] else None
    return _described(texts, is_extent=capacity > 0, wrong=wrong)


def _read_cowd(fd: int, beginning: bytes) -> References:
    """An extent of an ESX server; a child's header has the name that a root's has not."""
    parent = _piece(fd, beginning, *_COWD_PARENT).partition(b"\0")[0]
    names = [os.fsdecode(parent)] if len(parent) > _COWD_GEOMETRY and min(parent) >= ord(" ") else []
    found = _described([_piece(fd, beginning, *_VMDK_DESCRIPTOR)], is_extent=True)
    return _found("vmdk", [*names, *found.names], found.malformed)


def _read_descriptor(fd: int, beginning: bytes) -> References:
    """A descriptor that is the whole file."""
    text = beginning
    if len(beginning) == BEGINNING and b"\0" not in beginning:
        text = os.pread(fd, _BOUND + 1, 0)
    too_long = len(text) > _BOUND and b"\0" not in text
    return _described(
        [text[:_BOUND]], is_extent=False, wrong=f"its descriptor is over {_BOUND} bytes long" if too_long else None
    )


def _described(texts: Iterable[bytes], *, is_extent: bool, wrong: str | None = None) -> References:
    names: list[str] = []
    for descriptor in texts:
        text = descriptor.partition(b"\0")[0]
        parents = [name for name in _parents(text) if 0 < len(name) <= _LONGEST_NAME]
        extents = _EXTENT.findall(text.replace(b"\r", b"\n"))
        names += [os.fsdecode(parent) for parent in parents]
        if not is_extent or len(extents) > 1:  # the one extent of a file that holds data is that file, under an old name maybe
            names += [_literal(extent) for extent in extents]
        said = _PARENT_ID.search(text)
        if said and said[1].lower() != _NO_PARENT and not parents:
            wrong = wrong or "it has a parent and does not name it"
    return _found("vmdk", names, wrong)


def _parents(text: bytes) -> Iterator[bytes]:
    """The name as QEMU finds it: behind the first mention, in a comment too; then as a careful reader would."""
    start = text.find(_HINT)
    if start >= 0:
        start += len(_HINT) + len('="')
        end = text.find(b'"', start)
        if end >= 0:
            yield text[start:end]
    yield from _ANY_HINT.findall(text)


def _literal(extent: bytes) -> str:
    """An extent's name is a path whatever it looks like; in front of a colon, ``./`` keeps it from being a protocol."""
    name = os.fsdecode(extent)
    return name if _protocol(name) is None else f"./{name}"


# ------------------------------------------------------------------------------------------------------------- VHD (QEMU's vpc)

_VHD_FOOTER = struct.Struct(">16xQ36xI")  # offset of the dynamic header, disk type
_VHD_DIFFERENCING = 4
_VHD_HEADER = b"cxsparse"
_VHD_HEADER_BYTES = 1024
_VHD_PARENT = slice(64, 576)
_VHD_LOCATORS = range(576, 768, 24)
_VHD_LOCATOR = struct.Struct(">4sII4xQ")  # platform, space, length, offset
_VHD_ENCODINGS = {b"W2ru": "utf-16-le", b"W2ku": "utf-16-le", b"MacX": "utf-8"}


def _read_vhd(fd: int, beginning: bytes) -> References:
    if not beginning.startswith(vhd.COOKIE):
        return NOTHING
    if len(beginning) < vhd.FOOTER_BYTES:
        return References("vpc", malformed=_CUT_SHORT)
    offset, disk_type = _VHD_FOOTER.unpack_from(beginning)
    if disk_type != _VHD_DIFFERENCING:
        return References("vpc")
    header = _piece(fd, beginning, offset, _VHD_HEADER_BYTES)
    if len(header) < _VHD_HEADER_BYTES or not header.startswith(_VHD_HEADER):
        return References("vpc", malformed="it has a parent, and its dynamic header is not where it should be")
    names = [_decoded(header[_VHD_PARENT], "utf-16-be")]
    wrong = None
    for position in _VHD_LOCATORS:
        platform, _, length, start = _VHD_LOCATOR.unpack_from(header, position)
        if platform in _VHD_ENCODINGS:
            name = _piece(fd, beginning, start, length) if length <= _LONGEST_NAME else b""
            wrong = wrong or (_CUT_SHORT if len(name) < length else None)
            names.append(_decoded(name, _VHD_ENCODINGS[platform]))
    return _found("vpc", names, wrong or (None if any(names) else "it has a parent and does not name it"))


def _decoded(name: bytes, encoding: str) -> str:
    return name.decode(encoding, errors="replace").partition("\0")[0]


# ------------------------------------------------------------------------------------------------------------------------- VHDX

_VHDX_TABLES = (192 << 10, 256 << 10)  # two copies of the region table
_VHDX_REGIONS = struct.Struct("<4s4xI4x")  # signature, entries
_VHDX_REGION = struct.Struct("<16sQ8x")  # GUID, file offset
_VHDX_ITEMS = struct.Struct("<8s2xH20x")  # signature, entries
_VHDX_ITEM = struct.Struct("<16sII8x")  # GUID, offset in the region, length
_VHDX_MOST_REGIONS, _VHDX_MOST_ITEMS = 2047, 1023
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_PARENT = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_VHDX_HAS_PARENT = 1 << 1
_VHDX_LOCATOR = struct.Struct("<18xH")  # entries
_VHDX_ENTRY = struct.Struct("<IIHH")  # offsets of key and value, their lengths
_VHDX_MOST_KEYS = 64
_VHDX_KEYS = {key.encode("utf-16-le") for key in ("relative_path", "volume_path", "absolute_win32_path")}


def _read_vhdx(fd: int, beginning: bytes) -> References:
    if not beginning.startswith(vhdx.MAGIC):
        return NOTHING
    for table in _VHDX_TABLES:
        metadata = _vhdx_metadata(os.pread(fd, _BOUND, table))
        if metadata is not None:
            return _vhdx_references(fd, metadata)
    return References("vhdx", malformed="its region table is not one, or names no metadata")


def _vhdx_metadata(table: bytes) -> int | None:
    """Where the metadata region is."""
    if len(table) < _VHDX_REGIONS.size:
        return None
    signature, count = _VHDX_REGIONS.unpack_from(table)
    if signature != b"regi" or count > _VHDX_MOST_REGIONS:
        return None
    for position in _positions(table, _VHDX_REGIONS.size, _VHDX_REGION, count):
        guid, offset = _VHDX_REGION.unpack_from(table, position)
        if guid == _VHDX_METADATA:
            return int(offset)
    return None


def _vhdx_references(fd: int, metadata: int) -> References:
    table = _piece(fd, b"", metadata, _BOUND)
    signature, count = _VHDX_ITEMS.unpack_from(table) if len(table) >= _VHDX_ITEMS.size else (b"", 0)
    if signature != b"metadata" or count > _VHDX_MOST_ITEMS:
        return References("vhdx", malformed="its metadata table is not one")
    entries = (_VHDX_ITEM.unpack_from(table, at) for at in _positions(table, _VHDX_ITEMS.size, _VHDX_ITEM, count))
    items = {guid: (metadata + offset, length) for guid, offset, length in entries}
    flags = _piece(fd, b"", items[_VHDX_PARAMETERS][0] + 4, 1) if _VHDX_PARAMETERS in items else b""
    if _VHDX_PARENT not in items:
        if not flags:
            return References("vhdx", malformed="its metadata lacks its parameters")
        return References("vhdx", malformed="it has a parent and does not name it" if flags[0] & _VHDX_HAS_PARENT else None)
    offset, length = items[_VHDX_PARENT]
    names = list(_vhdx_parents(_piece(fd, b"", offset, min(length, _BOUND))))
    return _found("vhdx", names, None if names else "it has a parent and does not name it")


def _vhdx_parents(locator: bytes) -> Iterator[str]:
    if len(locator) < _VHDX_LOCATOR.size:
        return
    (count,) = _VHDX_LOCATOR.unpack_from(locator)
    for position in _positions(locator, _VHDX_LOCATOR.size, _VHDX_ENTRY, min(count, _VHDX_MOST_KEYS)):
        key, value, key_length, value_length = _VHDX_ENTRY.unpack_from(locator, position)
        if locator[key : key + key_length] in _VHDX_KEYS:
            name = _decoded(locator[value : value + min(value_length, 2 * _LONGEST_NAME)], "utf-16-le")
            if name:
                yield name


def _positions(table: bytes, start: int, entry: struct.Struct, count: int) -> range:
    """Where the entries of a table stand, as far as the table is there."""
    return range(start, min(start + count * entry.size, len(table) - entry.size + 1), entry.size)


# ------------------------------------------------------------------------------------------------ VDI, text, and who reads what

_VDI_TYPE = struct.Struct("<76xI")
_VDI_LINKS = slice(0x1A8, 0x1C8)  # UUIDs of the linked and of the parent image
_VDI_KINDS = (1, 2)  # dynamic and static
_VDI_MAGIC_END = vdi.MAGIC_OFFSET + len(vdi.MAGIC)
_LIKE_TEXT = re.compile(rb"[\s#]|[!-~]{4}").match  # boot code is seldom: this spares it the look for a descriptor


def _read_vdi(beginning: bytes) -> References:
    """A VDI names its parent by a UUID, which only VirtualBox's registry can tell; QEMU refuses it."""
    if len(beginning) < _VDI_LINKS.stop:
        return References("vdi", malformed=_CUT_SHORT)
    differencing = _VDI_TYPE.unpack_from(beginning)[0] not in _VDI_KINDS or any(beginning[_VDI_LINKS])
    return References("vdi", malformed="differencing" if differencing else None)


_READERS: Mapping[bytes, Callable[[int, bytes], References]] = {
    qcow2.MAGIC: _read_qcow,
    b"QED\0": _read_qed,
    vmdk.MAGIC: _read_sparse,
    b"COWD": _read_cowd,
    vhdx.MAGIC[:4]: _read_vhdx,
    vhd.COOKIE[:4]: _read_vhd,
}


# --------------------------------------------------------------------------------------------------------- what a name may mean

_REMOTE = re.compile(
    r"nbd(\+(tcp|unix))?|rbd|https?|ftps?|tftp|curl|ssh|iscsi|iser|nfs|gluster(\+\w+)?|sheepdog(\+\w+)?|vxhs|nvme|null-\w+"
)
_LOCAL = ("file", "host_device", "host_cdrom")  # protocols whose rest is a path
_MOST_COLONS = 16
_STRING = re.compile(r'"((?:[^"\\]|\\.)*+)"|\'((?:[^\'\\]|\\.)*+)\'', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)|\"", re.DOTALL)
_QUOTED = re.compile("(?:%[0-9A-Fa-f]{2})++")
_DEEPEST = 64  # keys, one inside the other


def targets(name: str, *, directory: str) -> list[Target]:
    """The local files that a recorded name may mean to QEMU; none when it is a remote one.

    One is beyond knowing: QEMU looks for a relative external data file where it runs, not where the disk that names it lies.

    Args:
        directory: absolute; where the file that has the name in its header was opened, symlinks and all.
    """
    name = name.partition("\0")[0]
    if not name:
        return []
    if name.startswith("json:"):
        return _tidy(_described_in_json(name.removeprefix("json:")), directory)
    return _tidy(_meant_by(name), directory)


def is_remote(name: str) -> bool:
    """Whether a recorded name is that of something which is no file of this host."""
    if name.startswith("json:"):
        try:
            leaves = list(_leaves(_parsed(name.removeprefix("json:")), ()))
        except (ValueError, RecursionError):
            return False
        return any(key[-1:] == ("driver",) and _REMOTE.fullmatch(value) for key, value in leaves)
    protocol = _protocol(name)
    return protocol is not None and _REMOTE.fullmatch(protocol) is not None


def _tidy(meant: Iterable[tuple[str, bool]], directory: str) -> list[Target]:
    """Absolute paths, each one once and as sure as any mention, which system calls take."""
    found: dict[str, bool] = {}
    for path, sure in meant:
        if path and _is_path(path):
            path = os.path.join(directory, path)
            found[path] = found.get(path, False) or sure
    return [Target(path, sure) for path, sure in found.items()]


def _is_path(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half a surrogate pair, which no file's name has
        return False


def _meant_by(name: str) -> Iterator[tuple[str, bool]]:
    """Paths and whether they are sure; relative ones to the directory."""
    protocol = _protocol(name)
    if protocol is None:
        yield name, name.startswith("/") or "\\" not in name
    elif protocol in _LOCAL:
        yield from _behind_local(name.partition(":")[2])
    elif not _REMOTE.fullmatch(protocol):
        yield from _behind_unknown(name)
    else:
        return
    if "\\" in name:
        yield from _windows(name)


def _protocol(name: str) -> str | None:
    """What QEMU takes for a protocol: what stands before a colon that comes before any slash."""
    before, colon, _ = name.partition(":")
    return before if colon and "/" not in before else None


def _behind_local(rest: str) -> Iterator[tuple[str, bool]]:
    """Behind ``file:``. A relative path is one to QEMU's working directory, so ours is a guess; so is a URL with a host."""
    host, _, path = rest[2:].partition("/") if rest.startswith("//") else ("", "", "")
    yield rest, rest.startswith("/") and not host
    for each in (path, _unquoted(path)) if path else ():
        yield (each if host == "." else f"/{each}"), False


def _unquoted(path: str) -> str:
    """A URL's path without its percent signs."""
    return _QUOTED.sub(lambda found: os.fsdecode(bytes.fromhex(found[0].replace("%", ""))), path)


def _behind_unknown(name: str) -> Iterator[tuple[str, bool]]:
    """Any protocol of QEMU's that we do not know (blkdebug, blkverify, fat), or a file whose name has a colon."""
    yield name, False
    rest = name
    for _ in range(_MOST_COLONS):
        _, colon, rest = rest.partition(":")
        if not colon:
            break
        yield rest, False
        yield rest.partition(":")[0], False
    yield name.rpartition(":")[2], False


def _windows(name: str) -> Iterator[tuple[str, bool]]:
    """What another system's path could be here."""
    path = name.replace("\\", "/")
    if not path.startswith("/") and _protocol(path) is None:
        yield path, False
    yield path.rpartition("/")[2], False


def _described_in_json(text: str) -> Iterator[tuple[str, bool]]:
    """Every local file that a description of block devices names, at any depth, with dots in the keys or without."""
    try:
        leaves = list(_leaves(_parsed(text), ()))
    except (ValueError, RecursionError):
        yield from _torn_from_json(text)
        return
    drivers = [(key[:-1], _REMOTE.fullmatch(value)) for key, value in leaves if key[-1:] == ("driver",)]
    remote = {node for node, is_remote in drivers if is_remote} - {node for node, is_remote in drivers if not is_remote}
    for key, value in leaves:
        if any(key[:depth] in remote for depth in range(len(key))):
            continue
        if key[-1:] == ("filename",):
            yield value, value.startswith("/")
            for path, _ in _meant_by(value):
                yield path, False
        elif "/" in value:
            for path, _ in _meant_by(value):
                yield path, False


def _parsed(text: str) -> object:
    """QEMU's JSON: strings may have single quotes. Objects become lists of pairs, so that a key given twice is not lost."""
    return json.loads(_STRING.sub(_double_quoted, text), object_pairs_hook=_Pairs, strict=False)


class _Pairs(list[tuple[str, object]]):
    """The members of a JSON object."""


def _double_quoted(string: re.Match[str]) -> str:
    content = string[2] if string[1] is None else string[1]
    return '"' + _ESCAPE.sub(lambda found: {'"': '\\"', "\\'": "'"}.get(found[0], found[0]), content) + '"'


def _leaves(value: object, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each string with the path of keys that leads to it."""
    if len(key) > _DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(value, _Pairs):
        for name, member in value:
            yield from _leaves(member, (*key, *name.split(".")))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _leaves(member, (*key, str(index)))
    elif isinstance(value, str):
        yield key, value


def _torn_from_json(text: str) -> Iterator[tuple[str, bool]]:
    """What cannot be parsed may still have been a description: its strings with a slash, and the last file name in it."""
    for double, single in _STRING.findall(text):
        string = _ESCAPE.sub(r"\1", double or single)
        if "/" in string:
            yield string, False
    yield text.rpartition("/")[2].rstrip("\"'}] \t\r\n"), False
