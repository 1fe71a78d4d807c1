"""The values that every part of Underlay speaks in: frozen, keyword-built, knowing nothing but themselves.

Sizes are bytes, times are aware datetimes in UTC. Nothing here does I/O.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

import msgspec

from underlay.errors import InvalidDigest
from underlay.values import hiding

LAYOUT = 1
"""Number of the on-disk layout that this version reads and writes (docs/design)."""

DEFAULT_VIRTUAL_SIZE_LIMIT = 10 << 40
"""Bytes that an image may show a guest where nothing else is configured: 10 TiB."""

DIGEST_LENGTHS: Mapping[str, int] = MappingProxyType(
    {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}
)
"""Hexadecimal digits of each digest algorithm that sources publish."""


class Digest(msgspec.Struct, frozen=True):
    """A content digest, written ``algorithm:hex`` in lower case."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read ``ALGORITHM:HEX`` in any case.

        Raises:
            InvalidDigest: the algorithm is not one of `DIGEST_LENGTHS`, or the digits are not its.
        """
        algorithm, colon, digits = text.strip().lower().partition(":")
        if not colon or algorithm not in DIGEST_LENGTHS:
            known = ", ".join(DIGEST_LENGTHS)
            raise InvalidDigest(f"{text!r} is no digest", hint=f"write ALGORITHM:HEX, the algorithm one of {known}")
        length = DIGEST_LENGTHS[algorithm]
        if not re.fullmatch(f"[0-9a-f]{{{length}}}", digits):
            raise InvalidDigest(f"{text!r} is no {algorithm} digest", hint=f"{algorithm} has {length} hexadecimal digits")
        return cls(algorithm, digits)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class ImageRef(msgspec.Struct, frozen=True, kw_only=True):
    """What a user names an image by.

    Attributes:
        scheme: in lower case, without the colon.
        canonical: the one spelling that names and records use; carries no credentials and no signature.
        location: what the source opens; may carry credentials, so it is never printed or stored.
    """

    scheme: str
    canonical: str
    location: str

    __repr__, __rich_repr__ = hiding("location")

    def __str__(self) -> str:
        return self.canonical


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """What proves by whom the bytes as served are; `underlay.signatures` verifies it.

    Attributes:
        value: the signature. algorithm: of the digest that was signed, one of `DIGEST_LENGTHS`.
        key_type: how it was signed: RSA-PSS, DSA, or ECC_ and the name of a curve.
        certificate: with the key that signed, in DER. signer: how messages call the certificate.
    """

    value: bytes
    algorithm: str
    key_type: str
    certificate: bytes
    signer: str

    __repr__, __rich_repr__ = hiding("value", "certificate")


class ImageVersion(msgspec.Struct, frozen=True, kw_only=True):
    """What a source says that a ref is now.

    Attributes:
        id: the immutable version id, or None when only the bytes can tell (docs/design, names).
        size: bytes as served, or None when the source does not announce it.
        locations: URLs of the same bytes in the storage behind the source, such as ``rbd://fsid/pool/image/snapshot``, from
            which a backend may clone a disk; may carry credentials, so they are never printed or stored.
        disk_format: the source's label (Glance's words: raw, qcow2, vmdk …), or None.
        digests: what the source promises of the bytes as served. content_digests: of what they are decompressed to, when they
            are compressed.
        validator: opaque; two equal validators mean the same bytes. None: the source has none.
        min_disk: the smallest disk in bytes that the source allows.
        resumable: a transfer that breaks may go on from the byte that it got to. Not so where nothing that is known before
            proves the bytes, and the source proves those of one whole stream itself as it gives them.
        signature: what has to verify over the bytes as served; None: nothing has.
        no_store: the source asks that nobody keep a copy (RFC 9111, 5.2.2.5).
        found_at: where the source found it, when that is not the ref's own location; may carry a signature, so it is never
            printed or stored.
    """

    ref: ImageRef
    id: str | None = None
    size: int | None = None
    disk_format: str | None = None
    digests: tuple[Digest, ...] = ()
    content_digests: tuple[Digest, ...] = ()
    validator: str | None = None
    min_disk: int = 0
    resumable: bool = True
    signature: Signature | None = None
    no_store: bool = False
    properties: Mapping[str, str] = msgspec.field(default_factory=dict)
    found_at: str | None = None
    locations: tuple[str, ...] = ()

    __repr__, __rich_repr__ = hiding("found_at", "locations")


class Form(StrEnum):
    """How a cache keeps an image's bytes."""

    RAW = "raw"
    AS_SERVED = "as-served"


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What inspection found the bytes to be.

    Attributes:
        format: as QEMU's ``-f`` wants it said: raw, qcow2, vmdk, vdi, vpc, vhdx.
        label: the format's name as image services say it (gpt and iso are raw to QEMU; vhd is vpc).
        virtual_size: bytes that a guest sees; None until it is known.
    """

    format: str
    label: str
    virtual_size: int | None


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a base image says of itself: the JSON value of its inode's ``user.underlay`` attribute.

    Attributes:
        digests: of the bytes as served; sha256 always among them.
        stored: digest of the stored form (see `underlay.stream`), as ``sha256:hex``.
        as_served: the stored bytes are the image as served: any digest can be computed from them, unless it was compressed.
        compression: what the bytes as served were compressed with (gzip, xz, zstd, bzip2); None: nothing.
        served_format: what inspection found the served bytes to be, as image services say it; aki, ari or ami: a kernel or
            ramdisk by its source's word, which was not inspected; None: nothing is known.
        size: bytes of the stored file. mtime_ns: of a master, unchanged since publication.
        min_disk: the smallest disk in bytes that its source allowed when it was fetched; 0: any.
    """

    layout: int
    version_id: str
    ref: str
    format: str
    size: int
    virtual_size: int
    digests: tuple[str, ...]
    stored: str
    as_served: bool
    fetched_at: datetime
    underlay: str
    served_format: str | None = None
    mtime_ns: int | None = None
    compression: str | None = None
    min_disk: int = 0


class DiskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a disk that we made says of itself: the JSON value of its inode's ``user.underlay`` attribute.

    A disk that is no file carries the same value where its storage keeps such: a volume's tags, an image's metadata. A guest
    cannot reach it, so the format recorded here is trusted before any header on the disk.

    Attributes:
        base, cache: the base image that it was made from, and the directory of its cache; None when it was cloned from what
            its storage had already. version_id: of the image, either way; None when that is not known.
        parent: what its storage has it read from, such as ``rbd:pool/image@snapshot``; None: nothing.
        maker: as `DiskSpec` has it.
    """

    layout: int
    instance: str
    name: str
    backend: str
    format: str
    base: str | None
    cache: str | None
    version_id: str | None
    parent: str | None = None
    maker: str | None = None


class Damage(msgspec.Struct, frozen=True, kw_only=True):
    """What a scrub found to be the matter with an image, which is never served again.

    Attributes:
        code: ``content-differs``, ``size-differs`` or ``unreadable`` (docs/reference/reasons.md).
        detail: a sentence's rest, with both digests or the file system's error. found_at: when.
    """

    code: str
    detail: str
    found_at: datetime


class BaseImage(msgspec.Struct, frozen=True, kw_only=True):
    """A verified, immutable, published file in a cache.

    Attributes:
        name: its file name in the cache. cache: the directory that holds it.
        record: what its attribute says; None for an *unrecorded* image (made by Nova or Ironic alone, or on a file system
            without user attributes), which was inspected before it was returned.
        size: bytes of the file. allocated: bytes that it occupies. virtual_size: bytes that a guest sees.
        last_used: the newer of its mtime and its ``used`` marker.
        served_format: what inspection found the bytes as served to be, as image services say it; None: nothing tells.
        damage: what a scrub has found; only who asks for damaged images sees one.
    """

    name: str
    cache: Path
    format: str
    size: int
    virtual_size: int
    allocated: int
    last_used: datetime
    record: ImageRecord | None
    served_format: str | None = None
    damage: Damage | None = None

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.cache / self.name

    @property
    def ref(self) -> str | None:
        """The canonical ref that it was fetched by, when recorded."""
        return self.record.ref if self.record else None


class DiskSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The instance disk that is wanted.

    Attributes:
        size: bytes, or None for the image's virtual size.
        path: where the disk goes: a file, a directory, or the device that it is on this host. A disk that is none of these on
            this host, such as a Ceph image, is called by the device that it would be (``/dev/rbd/POOL/IMAGE``).
        key: with which the disk is encrypted at rest; None: it is not. Never printed or stored.
        grow_filesystem: a file system that fills the image without partitions is grown to the disk's size.
        origin_stays: False when the disk is made from a file that goes then, so that its record names none.
        maker: who makes it, by a text that nobody else uses; a disk that is there is the wanted one only if the same maker made
            it. None: whoever made it.
    """

    instance: str
    name: str
    path: Path
    size: int | None = None
    key: bytes | None = None
    grow_filesystem: bool = False
    origin_stays: bool = True
    maker: str | None = None

    __repr__, __rich_repr__ = hiding("key")


class InstanceDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk made for one instance.

    Attributes:
        path: as `DiskSpec` has it; no two disks of a host share one.
        format: recorded format, or None when nothing trustworthy says it.
        size: bytes that the guest sees, or None when the format is not known. allocated: bytes that the disk itself occupies.
        base: name of its base image; None when it has or names none. base_path: the backing or source file.
        parent: what its storage has it read from, such as ``rbd:pool/image@snapshot``; None: nothing.
        maker: who made it, if its maker said so; see `DiskSpec`.
    """

    instance: str
    name: str
    path: Path
    backend: str
    format: str | None
    size: int | None
    allocated: int
    base: str | None
    base_path: Path | None
    parent: str | None = None
    maker: str | None = None


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """How a hypervisor is to open a disk, in libvirt's words (its domain XML, ``disk``).

    Attributes:
        type: ``file``, ``block`` or ``network``: how it is reached.
        source: the file, the device, or what the protocol calls it (``pool/image``).
        format: the driver's type, such as raw or qcow2; never to be guessed.
        cache, io, discard: of the driver; None: as the hypervisor does by itself.
        protocol: of a network disk, such as rbd. servers: host names or addresses with their ports; none: as the protocol's
            client is configured on the host. user, secret: who asks, and the UUID of the hypervisor's secret that has the key.
    """

    type: str
    source: str
    format: str
    cache: str | None = None
    io: str | None = None
    discard: str | None = None
    protocol: str | None = None
    servers: tuple[tuple[str, int], ...] = ()
    user: str | None = None
    secret: str | None = None


class Extraction(msgspec.Struct, frozen=True, kw_only=True):
    """What a disk's content is to be written as.

    Attributes:
        format: raw or qcow2. compressed: whether its clusters are; of a raw file they cannot be.
    """

    format: str
    compressed: bool = False


class Ephemeral(msgspec.Struct, frozen=True, kw_only=True):
    """An ephemeral disk that an instance was given.

    Attributes:
        guest_format: the file system that was asked for, or None for the host's default.
    """

    size_gib: int
    guest_format: str | None = None


class KnownDisk(msgspec.Struct, frozen=True):
    """A file that an inventory says an instance's disks are made of.

    Attributes:
        format: as QEMU's ``-f`` wants it said, or None when the inventory does not know.
    """

    path: Path
    format: str | None = None


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One instance as its inventory has it. What is absent or not known claims nothing; the disks then decide.

    Attributes:
        name: of its domain or directory; an instance's directory is called by it or by the uuid.
        host: that it is on, or None.
        image_ref, kernel_id, ramdisk_id: refs of images; a bare UUID is Glance's.
        swap_mib: each swap disk. ephemerals: each ephemeral disk.
        disks: files that its disks are made of, whole backing chains where the inventory knows them.
    """

    uuid: str
    name: str
    host: str | None = None
    image_ref: str | None = None
    kernel_id: str | None = None
    ramdisk_id: str | None = None
    vm_state: str | None = None
    task_state: str | None = None
    os_type: str | None = None
    swap_mib: tuple[int, ...] = ()
    ephemerals: tuple[Ephemeral, ...] = ()
    disks: tuple[KnownDisk, ...] = ()


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A hold on base images of one cache.

    Attributes:
        id: what it is released by. holder: who needs the images, in their own words.
        names: of the images. refs: what they were asked for by.
        expires: when it ends; None for a pin.
    """

    id: str
    holder: str
    names: tuple[str, ...]
    refs: tuple[str, ...]
    made_at: datetime
    expires: datetime | None

    def holds_at(self, now: datetime) -> bool:
        """Whether it still keeps its images."""
        return self.expires is None or self.expires > now


class Reason(msgspec.Struct, frozen=True, gc=False):
    """Why something was decided: a code for programs (docs/reference/reasons.md lists them), a detail for people."""

    code: str
    detail: str


class Problem(msgspec.Struct, frozen=True):
    """Something that is wrong with one path: a code for programs, a detail for people (docs/reference/reasons.md)."""

    code: str
    path: Path
    detail: str


class Level(StrEnum):
    """How much an event matters."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    PROBLEM = "problem"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened, for logs and reports."""

    code: str
    level: Level
    detail: str
    fields: Mapping[str, str | int | float | None] = msgspec.field(default_factory=dict)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far long work has come.

    Attributes:
        stage: ``fetch``, ``convert``, ``scrub`` or ``wait`` (for another's fetch).
        done, total: bytes; total is None when it is not known.
    """

    ref: str
    stage: str
    done: int
    total: int | None
