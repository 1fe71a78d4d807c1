"""Images for tests: real ones, made by qemu-img, and the few that no tool makes, put together byte by byte.

A function makes one file and returns its path. What a function patches, it patches where the format's own description says.
"""

import os
import random
import struct
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from underlay.formats.qcow2 import DEFAULT_CLUSTER_BYTES, write_overlay

SECTOR = 512
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_SECRET = ("--object", "secret,id=s,data=abc")


def qemu_img(*arguments: str | Path) -> None:
    """Run qemu-img to a good end."""
    subprocess.run(["qemu-img", *[os.fspath(argument) for argument in arguments]], check=True, capture_output=True)


def qemu_io(path: Path, *commands: str, format: str = "qcow2") -> str:  # noqa: A002
    """Read and write an image as a guest would; what qemu-io prints."""
    argv = ["qemu-io", "-f", format, *(part for command in commands for part in ("-c", command)), os.fspath(path)]
    done = subprocess.run(argv, check=True, capture_output=True)
    assert b"rror" not in done.stdout + done.stderr, done
    assert b"failed" not in done.stdout, done
    return done.stdout.decode()


def noise(size: int, *, seed: int = 0) -> bytes:
    """Bytes that no compression makes smaller, the same every time."""
    return random.Random(seed).randbytes(size)


def prose(size: int) -> bytes:
    """Bytes that compress well and have no zeros."""
    return (b"a line of text which compresses well\n" * (size // 37 + 1))[:size]


def raw(path: Path, size: int, pieces: Sequence[tuple[int, bytes]] = ()) -> Path:
    """A sparse raw file with some pieces of data."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, piece in pieces:
            file.seek(offset)
            file.write(piece)
    return path


def scattered(path: Path, size: int = 8 * MIB) -> Path:
    """A raw disk with data in many places: small and large, aligned and not, and some that compresses."""
    pieces = [(offset, noise(700, seed=offset)) for offset in range(0, size // 2, 300_000)]
    pieces += [(size // 2, noise(200_000)), (size // 2 + MIB + 4096, prose(500_000)), (size - 5000, noise(5000))]
    return raw(path, size, pieces)


def create(path: Path, format: str, size: int, *, options: str = "", backing: Path | None = None) -> Path:  # noqa: A002
    """An empty image."""
    more = ["-o", options] if options else []
    if backing is not None:
        more += ["-b", os.fspath(backing), "-F", "raw" if format in ("qcow2", "qed") else format]
    qemu_img("create", "-q", "-f", format, *more, path, str(size))
    return path


def overlay(path: Path, *, backing: Path, backing_format: str, size: int, cluster_bytes: int = DEFAULT_CLUSTER_BYTES) -> Path:
    """An empty qcow2 on a base, by our own writer."""
    with path.open("xb") as file:
        write_overlay(file.fileno(), backing=backing, backing_format=backing_format, size=size, cluster_bytes=cluster_bytes)
    return path


def convert(source: Path, path: Path, format: str, *, options: str = "", compressed: bool = False) -> Path:  # noqa: A002
    """An image of the same content as a raw file."""
    more = ["-c"] if compressed else []
    more += ["-o", options] if options else []
    qemu_img("convert", "-f", "raw", "-O", format, *more, source, path)
    return path


def to_raw(source: Path, path: Path, format: str) -> Path:  # noqa: A002
    """What qemu-img makes of an image."""
    qemu_img("convert", "-f", format, "-O", "raw", source, path)
    return path


def small(path: Path, format: str, *, options: str = "") -> Path:  # noqa: A002
    """An image of 3 MiB with a little data in it."""
    source = raw(path.with_name(f"{path.name}.source"), 3 * MIB, [(0, noise(5000)), (2 * MIB, prose(70_000))])
    return convert(source, path, format, options=options)


def encrypted_qcow2(path: Path) -> Path:
    """A qcow2 with the old AES encryption."""
    qemu_img("create", "-q", "-f", "qcow2", *_SECRET, "-o", "encrypt.format=aes,encrypt.key-secret=s", path, "1M")
    return path


def luks(*, version: int = 1) -> bytes:
    """The beginning of a LUKS container; qemu-img makes one only where it can time its own key derivation."""
    header = struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", version, b"aes", b"xts-plain64", b"sha256", 4096, 64)
    return header.ljust(MIB, b"\0")


def with_snapshot(path: Path) -> Path:
    """A qcow2 whose internal snapshot shares clusters with it."""
    small(path, "qcow2")
    qemu_img("snapshot", "-c", "before", path)
    qemu_io(path, "write -P 5 1M 128k", "write -P 6 2M 4k")
    return path


def patched(path: Path, *patches: tuple[int, bytes]) -> Path:
    """The file with some bytes overwritten; a negative offset counts from its end."""
    with path.open("r+b") as file:
        for offset, content in patches:
            file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
            file.write(content)
    return path


def cut(path: Path, size: int) -> Path:
    """The file without what lies behind ``size`` bytes."""
    os.truncate(path, size)
    return path


# ------------------------------------------------------------------------------------------------------------------------ qcow2

QCOW2_VERSION, QCOW2_BACKING_OFFSET, QCOW2_CLUSTER_BITS, QCOW2_SIZE, QCOW2_CRYPT, QCOW2_L1_ENTRIES = 4, 8, 20, 24, 32, 36
QCOW2_REFCOUNT_OFFSET, QCOW2_REFCOUNT_CLUSTERS, QCOW2_SNAPSHOTS, QCOW2_SNAPSHOTS_OFFSET = 48, 56, 60, 64
QCOW2_L1_OFFSET, QCOW2_INCOMPATIBLE, QCOW2_REFCOUNT_ORDER, QCOW2_HEADER_LENGTH, QCOW2_COMPRESSION = 40, 72, 96, 100, 104


def u32(value: int) -> bytes:
    """Big-endian, as in a qcow2."""
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    """Big-endian, as in a qcow2."""
    return struct.pack(">Q", value)


def l1_table(path: Path) -> tuple[int, list[int]]:
    """A qcow2's L1 table: its offset, and its entries."""
    content = path.read_bytes()
    (entries,), (offset,) = (
        struct.unpack_from(">I", content, QCOW2_L1_ENTRIES),
        struct.unpack_from(">Q", content, QCOW2_L1_OFFSET),
    )
    return offset, list(struct.unpack_from(f">{entries}Q", content, offset))


# ---------------------------------------------------------------------------------------------------------- what is raw to QEMU


def _partition(kind: int, start: int, sectors: int, *, boot: int = 0) -> bytes:
    return struct.pack("<B3sB3sII", boot, b"\x00\x02\x00", kind, b"\xff\xff\xff", start, sectors)


def _boot_record(*partitions: bytes) -> bytes:
    return b"".join(partitions).ljust(64, b"\0").rjust(510, b"\0") + b"\x55\xaa"


def mbr_disk() -> bytes:
    """A disk with a master boot record of one Linux partition."""
    return _boot_record(_partition(0x83, 2048, 2048, boot=0x80)).ljust(2 * MIB, b"\0")


def gpt_disk(*, hybrid: bool = False) -> bytes:
    """A disk with a GUID partition table, whose protective record names one more partition when it is a hybrid one."""
    partitions = [_partition(0xEE, 1, 4095)] + ([_partition(0x0C, 2048, 1024, boot=0x80)] if hybrid else [])
    header = struct.pack("<8sIII", b"EFI PART", 0x10000, 92, 0).ljust(SECTOR, b"\0")
    return (_boot_record(*partitions) + header).ljust(2 * MIB, b"\0")


def fat_disk() -> bytes:
    """A FAT file system without a partition table."""
    parameters = struct.pack("<3s8sHBHBHHBHHHII", b"\xeb\x3c\x90", b"mkfs.fat", 512, 4, 4, 2, 512, 4096, 0xF8, 4, 32, 2, 0, 0)
    return (parameters.ljust(510, b"\x90") + b"\x55\xaa").ljust(2 * MIB, b"\0")


def bare_signature() -> bytes:
    """A boot sector without partitions: code, and the signature."""
    return (b"\xfa\xf4\xeb\xfc".ljust(510, b"\x90") + b"\x55\xaa").ljust(MIB, b"\0")


def iso_disk(*, beginning: bytes = b"") -> bytes:
    """An ISO 9660 volume; its first 32 KiB are anybody's."""
    volume = b"\x01CD001\x01\0" + b"LINUX".ljust(32) + b"A VOLUME".ljust(32)
    return (beginning.ljust(32 * KIB, b"\0") + volume.ljust(2 * KIB, b"\0") + b"\xffCD001\x01").ljust(128 * KIB, b"\0")


# ------------------------------------------------------------------------------------------------------------------------- VMDK

_VMDK = struct.Struct("<4sIIQQQQIQQQB4sH")
VMDK_AT_END = 0xFFFF_FFFF_FFFF_FFFF


def vmdk_descriptor(
    *,
    create_type: str = "monolithicSparse",
    extents: Sequence[str] = ('RW 4096 SPARSE "disk.vmdk"',),
    more: Sequence[str] = (),
    parent_cid: str = "ffffffff",
) -> bytes:
    """A descriptor's text."""
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        "CID=fffffffe",
        f"parentCID={parent_cid}",
        f'createType="{create_type}"',
        *more,
        "",
        "# Extent description",
        *extents,
        "",
        "# The Disk Data Base",
        'ddb.adapterType = "ide"',
        "",
    ]
    return "\n".join(lines).encode()


def vmdk_sparse(descriptor: bytes, *, capacity: int = 4096, version: int = 1, descriptor_at: int = 1) -> bytes:
    """A hosted sparse extent that holds no grain: header, descriptor, empty grain directory and table."""
    grain, entries, directory, table = 128, 512, 24, 25
    header = _VMDK.pack(b"KDMV", version, 1, capacity, grain, descriptor_at, 20, entries, 0, directory, 128, 0, b"\n \r\n", 0)
    head = header.ljust(SECTOR, b"\0") + descriptor.ljust(20 * SECTOR, b"\0")
    directories = struct.pack("<I", table).ljust(SECTOR, b"\0")
    return (head.ljust(directory * SECTOR, b"\0") + directories).ljust(128 * SECTOR, b"\0")


def with_vmdk_footer(content: bytes, *, capacity: int | None = None) -> bytes:
    """A sparse extent in the form that VMware streams: the header that counts stands at the end."""
    fields = list(_VMDK.unpack_from(content))
    footer = list(fields)
    fields[9] = VMDK_AT_END
    if capacity is not None:
        footer[3] = capacity
    marker = struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0")
    end = bytes(SECTOR)
    return _VMDK.pack(*fields) + content[_VMDK.size :] + marker + _VMDK.pack(*footer).ljust(SECTOR, b"\0") + end


# ----------------------------------------------------------------------------------------------------------------- VHD and VHDX

VHD_DISK_TYPE = 60
VHD_DIFFERENCING = 4


def vhd_footer(*, size: int, disk_type: int = 2) -> bytes:
    """A VHD's footer."""
    fields = struct.pack(
        ">8sIIQI4sI4sQQHBBI", b"conectix", 2, 0x10000, 2**64 - 1, 0, b"win ", 0x60001, b"Wi2k", size, size, 16, 4, 17, disk_type
    )
    checksum = ~sum(fields) & 0xFFFF_FFFF
    return (fields + struct.pack(">I", checksum)).ljust(SECTOR, b"\0")


_VHDX_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
VHDX_FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
VHDX_VIRTUAL_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
VHDX_PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le


def vhdx_item(content: bytes, item: bytes) -> int:
    """Where a metadata item's value is in a real VHDX."""
    region_entry = content.index(_VHDX_METADATA_REGION, 192 * KIB)
    (region,) = struct.unpack_from("<Q", content, region_entry + 16)
    item_entry = content.index(item, region)
    (offset,) = struct.unpack_from("<I", content, item_entry + 16)
    return int(region + offset)


def bare_vhdx(
    *, size: int = MIB, flags: int = 0, metadata_at: int = MIB, item_at: int = 64 * KIB, items: Sequence[bytes] = ()
) -> bytes:
    """The parts of a VHDX that inspection reads."""
    table = struct.pack("<4sIII16sQII", b"regi", 0, 1, 0, _VHDX_METADATA_REGION, metadata_at, MIB, 1)
    offsets = [(VHDX_FILE_PARAMETERS, item_at), (VHDX_VIRTUAL_SIZE, item_at + 8), *((item, item_at + 16) for item in items)]
    metadata = struct.pack("<8sHH", b"metadata", 0, len(offsets)).ljust(32, b"\0")
    metadata += b"".join(struct.pack("<16sIIII", item, offset, 8, 4, 0) for item, offset in offsets)
    values = struct.pack("<IIQ", MIB, flags, size)
    content = bytearray(max(metadata_at + item_at + 64 * KIB, 2 * MIB))
    for offset, part in ((0, b"vhdxfile"), (192 * KIB, table), (metadata_at, metadata), (metadata_at + item_at, values)):
        content[offset : offset + len(part)] = part
    return bytes(content)
