"""What Hypothesis draws our values from: refs, names, records, qcow2 headers, VMDK descriptors, any bytes and their pieces."""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime

from hypothesis import strategies as st

from underlay.model import DIGEST_LENGTHS, LAYOUT, Digest, DiskRecord, ImageRecord

hexadecimal = "0123456789abcdef"


@st.composite
def digests(draw: st.DrawFn) -> Digest:
    """A digest of a known algorithm."""
    algorithm = draw(st.sampled_from(sorted(DIGEST_LENGTHS)))
    length = DIGEST_LENGTHS[algorithm]
    return Digest(algorithm, draw(st.text(hexadecimal, min_size=length, max_size=length)))


uuids = st.uuids().map(str)
version_ids = st.one_of(uuids, st.text(min_size=1, max_size=60))

hosts = st.one_of(
    st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9](\.[a-z]{2,6}){0,2}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
_segments = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/?#@\\"), min_size=1, max_size=8
)
_queries = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True), st.from_regex(r"[A-Za-z0-9%._-]{0,8}", fullmatch=True)
    ),
    max_size=4,
)
SIGNATURES = ("X-Amz-Signature", "x-amz-credential", "X-Goog-Signature", "sig", "Signature", "AWSAccessKeyId", "temp_url_sig")


@st.composite
def http_urls(draw: st.DrawFn) -> str:
    """A URL with everything that one may have, in any case of its scheme and host."""
    scheme = draw(st.sampled_from(["http", "https", "HTTP", "Https"]))
    user = draw(st.sampled_from(["", "user@", "user:secret@"]))
    host = draw(hosts)
    host = host.upper() if draw(st.booleans()) else host
    port = draw(st.sampled_from(["", ":80", ":443", ":8080"]))
    path = "".join(f"/{segment}" for segment in draw(st.lists(_segments, max_size=4)))
    query = "&".join(f"{name}={value}" for name, value in draw(_queries))
    fragment = draw(st.sampled_from(["", "#", "#part"]))
    return f"{scheme}://{user}{host}{port}{path}{'?' + query if query else ''}{fragment}"


path_bytes = st.lists(
    st.binary(min_size=1, max_size=12).filter(
        lambda part: b"/" not in part and b"\0" not in part and part not in (b".", b"..")
    ),
    min_size=1,
    max_size=5,
).map(lambda parts: b"/" + b"/".join(parts))
"""Absolute paths as the system knows them."""


@st.composite
def image_records(draw: st.DrawFn) -> ImageRecord:
    """What an image may say of itself."""
    return ImageRecord(
        layout=LAYOUT,
        version_id=draw(st.text(max_size=200)),
        ref=draw(st.text(max_size=200)),
        format=draw(st.sampled_from(["raw", "qcow2", "vmdk"])),
        size=draw(st.integers(0, 2**63 - 1)),
        virtual_size=draw(st.integers(0, 2**63 - 1)),
        digests=tuple(str(digest) for digest in draw(st.lists(digests(), max_size=4))),
        stored=f"sha256:{draw(st.text(hexadecimal, min_size=64, max_size=64))}",
        as_served=draw(st.booleans()),
        fetched_at=draw(st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1))),
        underlay="0.1",
        mtime_ns=draw(st.none() | st.integers(0, 2**63 - 1)),
        min_disk=draw(st.integers(0, 2**63 - 1)),
    )


@st.composite
def disk_records(draw: st.DrawFn) -> DiskRecord:
    """What a disk may say of itself."""
    texts = [draw(st.text(max_size=60)) for _ in range(6)]
    instance, name, backend, disk_format, base, cache = texts
    return DiskRecord(
        layout=LAYOUT,
        instance=instance,
        name=name,
        backend=backend,
        format=disk_format,
        base=base,
        cache=cache,
        version_id=draw(st.none() | st.text(max_size=60)),
    )


# ------------------------------------------------------------------------------------------------------------------------ bytes


def _near(*values: int) -> st.SearchStrategy[int]:
    return st.sampled_from([0, 1, *values, 2**31, 2**32 - 1])


@st.composite
def qcow2_headers(draw: st.DrawFn) -> bytes:
    """Something like a qcow2's first bytes: each field sound, at an edge, or anything."""
    u32s, u64s = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
    version = draw(st.sampled_from([2, 3, 3, 3]) | u32s)
    fields = (
        version,
        draw(st.just(0) | u64s),
        draw(st.just(0) | u32s),
        draw(st.integers(9, 21) | u32s),
        draw(st.integers(0, 2**40) | u64s),
        draw(st.just(0) | st.integers(0, 2) | u32s),
        draw(st.integers(0, 1000) | u32s),
        draw(st.sampled_from([512, 65536, 3 * 65536]) | u64s),
        draw(u64s),
        draw(u32s),
        draw(u32s),
        draw(u64s),
    )
    second = (
        draw(st.integers(0, 31) | u64s),
        draw(u64s),
        draw(u64s),
        draw(st.integers(0, 7) | u32s),
        draw(st.sampled_from([104, 112]) | _near(72, 103, 105)),
    )
    extensions = b"".join(
        struct.pack(">II", kind, length) + bytes((length + 7) // 8 * 8 if length < 4096 else 0)
        for kind, length in draw(
            st.lists(st.tuples(st.sampled_from([0xE2792ACA, 0x6803F857, 1]) | u32s, _near(5, 48)), max_size=3)
        )
    )
    compression = bytes([draw(st.integers(0, 2))]) + bytes(7)
    header = b"QFI\xfb" + struct.pack(">IQIIQIIQQIIQ", *fields) + struct.pack(">QQQII", *second) + compression + extensions
    return header.ljust(draw(st.sampled_from([0, 512, 4096, 65536])), b"\0")


_BEGINNINGS = (
    b"QFI\xfb\0\0\0\3",
    b"KDMV\1\0\0\0",
    b"conectix",
    b"vhdxfile",
    b"QED\0",
    b"LUKS\xba\xbe",
    b"# Disk DescriptorFile\n",
    b"",
)


@st.composite
def images(draw: st.DrawFn) -> bytes:
    """Arbitrary bytes that often look like an image at the places where one is recognised."""
    content = bytearray(draw(st.sampled_from(_BEGINNINGS)) + draw(st.binary(max_size=700)))
    for offset, signature in ((0x40, b"\x7f\x10\xda\xbe"), (510, b"\x55\xaa"), (32769, b"CD001"), (192 << 10, b"regi")):
        if draw(st.integers(0, 4)) == 0:
            content = content.ljust(offset + len(signature) + draw(st.sampled_from([0, 100, 70_000])), b"\0")
            content[offset : offset + len(signature)] = signature
    tail = draw(st.sampled_from([b"", b"\0", bytes(512), b"conectix".ljust(60, b"\0") + b"\0\0\0\2" + bytes(448)]))
    return bytes(content) + tail


def pieces(content: bytes) -> st.SearchStrategy[Sequence[bytes]]:
    """The content in pieces, empty ones among them."""
    cuts = st.lists(st.integers(0, len(content)), max_size=8).map(sorted)
    return cuts.map(lambda places: [content[a:b] for a, b in zip([0, *places], [*places, len(content)], strict=True)])


_SOUND = ("# Disk DescriptorFile", "version=1", "CID=fffffffe", "parentCID=ffffffff")
_LINES = (
    'createType="monolithicSparse"',
    'createType="monolithicFlat"',
    'createType="vmfs"',
    '# createType=xmonolithicFlat"',
    'CREATETYPE="monolithicSparse"',
    'parentFileNameHint="base.vmdk"',
    'RW 8 FLAT "other" 0',
    'RW 4096 SPARSE "other"',
    'rdonly 4096 sparse "other"',
    "RW 4096 ZERO",
    'ddb.adapterType = "ide"',
    'ddb.comment = "x"',
    "# a comment",
    "",
)


@st.composite
def vmdk_descriptors(draw: st.DrawFn) -> bytes:
    """A sound descriptor, or one with lines added that try to name something else, or some of its own left out."""
    lines = [
        *_SOUND,
        draw(st.sampled_from(['createType="monolithicSparse"', 'createType="streamOptimized"'])),
        'RW 4096 SPARSE "image"',
    ]
    for _ in range(draw(st.integers(0, 3))):
        lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(_LINES)))
    if draw(st.integers(0, 4)) == 0:
        lines.pop(draw(st.integers(0, len(lines) - 1)))
    ending = draw(st.sampled_from(["\n", "\n", "\r\n", "\0\n"]))
    return ending.join([*lines, ""]).encode()
