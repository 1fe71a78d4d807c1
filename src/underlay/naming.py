"""File names and their meaning, both grammars, and every path inside a cache directory. Nothing else knows one.

Kind ``base`` is Nova's grammar (an original is the sha1 of its version id), kind ``masters`` is Ironic's (a UUID); the field
guide to both is in docs/design/layout.md. Pure: names in, names out; no file is looked at.
"""

import hashlib
import re
import uuid
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import msgspec

from underlay.errors import InvalidName
from underlay.model import ImageRef

STORED_FORMATS = ("raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx")
"""Formats that a base cache keeps originals in, as QEMU calls them."""

_STEM = "[0-9a-f]{40}"
_ORIGINAL = rf"{_STEM}(?:\.(?:{'|'.join(STORED_FORMATS)}))?"
_RESIZED = rf"{_STEM}_(?:\d{{1,80}}|sm)"
_SWAP = r"swap_\d{1,80}"
_EPHEMERAL = r"ephemeral_\d{1,80}_[A-Za-z0-9.+-]{7}"
_BASE_NAME = re.compile(
    rf"(?P<original>{_ORIGINAL})|(?P<resized>{_RESIZED})|(?P<swap>{_SWAP})|(?P<ephemeral>{_EPHEMERAL})"
    rf"|(?P<leftover>(?:{_ORIGINAL}|{_RESIZED}|{_SWAP}|{_EPHEMERAL})(?:\.part)?(?:\.part|\.converted))",
    re.ASCII,
)
_MASTERS_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.converted)?")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}", re.ASCII)


class CacheKind(StrEnum):
    """What a cache directory is for: bases beneath overlays, or masters that are delivered as hard links."""

    BASE = "base"
    MASTERS = "masters"


def content_version_id(ref: ImageRef, sha256: str) -> str:
    """Version id of an image that its source does not number itself: the ref and the digest of the bytes as served."""
    return f"{ref.canonical}#sha256:{sha256}"


def original_name(version_id: str, *, ref: ImageRef, stored_format: str) -> str:
    """Name of an original in a base cache.

    A raw Glance image has exactly the name that Nova itself would give it; every other original carries its format as a
    suffix, which Nova's manager leaves alone.
    """
    digest = stem_of_version(version_id)
    return digest if ref.scheme == "glance" and stored_format == "raw" else f"{digest}.{stored_format}"


def master_name(version_id: str, *, ref: ImageRef, raw: bool) -> str:
    """Name of a master: the Glance UUID, else uuid5 of the ref; ``.converted`` when it is stored raw."""
    stem = version_id if ref.scheme == "glance" else str(uuid.uuid5(uuid.NAMESPACE_URL, ref.canonical))
    return f"{stem}.converted" if raw else stem


def candidate_names(version_id: str, *, ref: ImageRef, kind: CacheKind, raw_only: bool) -> Sequence[str]:
    """The names under which a version may be stored, best first."""
    if kind is CacheKind.MASTERS:
        # Whatever was wanted when it came, an image that came raw is the raw form as well.
        names = [master_name(version_id, ref=ref, raw=True), master_name(version_id, ref=ref, raw=False)]
        return names if raw_only else names[::-1]
    formats = STORED_FORMATS[:1] if raw_only else (*STORED_FORMATS[1:], STORED_FORMATS[0])
    return [original_name(version_id, ref=ref, stored_format=stored) for stored in formats]


def kind_of_name(name: str, *, kind: CacheKind) -> str | None:
    """What a file name in a cache means: original, resized, swap, ephemeral, master or leftover; None when it is not ours."""
    if kind is CacheKind.MASTERS:
        return "master" if _MASTERS_NAME.fullmatch(name) else None
    match = _BASE_NAME.fullmatch(name)
    return match.lastgroup if match else None


def is_image_name(name: str, *, kind: CacheKind) -> bool:
    """Whether a file of this name is a base image, as opposed to a leftover or a stranger."""
    return kind_of_name(name, kind=kind) not in (None, "leftover")


def named_format(name: str, *, kind: CacheKind) -> str | None:
    """The format that a name of ours claims for its file; None when it leaves that open."""
    stem, _, suffix = name.rpartition(".")
    if kind is CacheKind.MASTERS:
        return "raw" if suffix == "converted" else None
    return suffix if stem and suffix in STORED_FORMATS else None


STEM_LENGTH = 40
"""Characters of a base name that tell its image; what follows says which form of it this is."""


def stem_of_version(version_id: str) -> str:
    """The beginning that all names of a version share in a base cache: originals of any format, and resized ones."""
    return hashlib.sha1(version_id.encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()


def swap_name(size_mib: int) -> str:
    """Name of a swap image."""
    return f"swap_{size_mib}"


def ephemeral_name(size_gib: int, made_with: str) -> str:
    """Name of an ephemeral image, by the mkfs command or the file system that it was made with."""
    return f"ephemeral_{size_gib}_{hashlib.md5(made_with.encode(), usedforsecurity=False).hexdigest()[:7]}"


def lock_name(name: str) -> str:
    """Under whose lock a file of a base cache is made and removed: a leftover's is that of the image it was to become."""
    for suffix in (".converted", ".part"):
        name = name.removesuffix(suffix)
    return name


def ref_key(canonical: str) -> str:
    """Key of a ref's record and ingest: 64 hexadecimal digits."""
    return hashlib.sha256(canonical.encode()).hexdigest()


def path_key(path: Path) -> str:
    """Key of a disk's lock and root: 64 hexadecimal digits."""
    return hashlib.sha256(bytes(path)).hexdigest()


def printable(text: str) -> str:
    """A path or name for people: what does not print, or is not UTF-8, is escaped."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def plain_name(name: str, *, what: str) -> str:
    """A name from outside that is about to become a path component, unchanged.

    Raises:
        InvalidName: anything but letters, digits and ``._+-``, starting with a letter or digit, at most 128 characters.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise InvalidName(
            f"{name!r} is no name for {what}",
            hint="use letters, digits, '.', '_', '+' and '-', starting with a letter or digit, at most 128 of them",
        )
    return name


class CachePaths(msgspec.Struct, frozen=True, dict=True):
    """Every path inside one cache directory; each directory's is put together once."""

    root: Path

    @cached_property
    def private(self) -> Path:
        """Our directory beside the images, which Nova and Ironic leave alone."""
        return self.root / ".underlay"

    @cached_property
    def format(self) -> Path:
        """The layout's own record."""
        return self.private / "format"

    @property
    def ballast(self) -> Path:
        """Room that is given up when there is none left."""
        return self.private / "ballast"

    @cached_property
    def locks(self) -> Path:
        """Lock files; never removed by anyone."""
        return self.private / "locks"

    @cached_property
    def refs(self) -> Path:
        """What each ref was last seen to mean."""
        return self.private / "refs"

    @cached_property
    def used(self) -> Path:
        """Empty files whose mtime is a last use."""
        return self.private / "used"

    @cached_property
    def disks(self) -> Path:
        """Symlinks to disks outside the scanned roots, by base image."""
        return self.private / "disks"

    @cached_property
    def volumes(self) -> Path:
        """Records of disks that are no files."""
        return self.private / "volumes"

    def volume(self, path: Path) -> Path:
        """The record of a disk that is no file, by the path that it would have as one."""
        return self.volumes / f"{path_key(path)}.json"

    @cached_property
    def leases(self) -> Path:
        """Pins and leases."""
        return self.private / "leases"

    def lease(self, lease_id: str) -> Path:
        """One pin or lease."""
        return self.leases / f"{plain_name(lease_id, what='a lease')}.json"

    @cached_property
    def instances(self) -> Path:
        """Symlinks to the directories of instances for which disks were made from this cache."""
        return self.private / "instances"

    @cached_property
    def hosts(self) -> Path:
        """What each host that shares the storage uses."""
        return self.private / "hosts"

    def host(self, host: str) -> Path:
        """What one host uses."""
        return self.hosts / f"{plain_name(host, what='a host')}.json"

    @property
    def instance_roots(self) -> Path:
        """What each directory of instances was when it was last looked at."""
        return self.private / "roots.json"

    @cached_property
    def tmp(self) -> Path:
        """Ingests in progress."""
        return self.private / "tmp"

    @cached_property
    def trash(self) -> Path:
        """Images on their way out."""
        return self.private / "trash"

    def trashed(self, name: str) -> Path:
        """An image on its way out."""
        return self.trash / plain_name(name, what="an image")

    @cached_property
    def quarantine(self) -> Path:
        """What is the matter with the images that are damaged."""
        return self.private / "quarantine"

    def quarantined(self, name: str) -> Path:
        """What is the matter with one image."""
        return self.quarantine / f"{plain_name(name, what='an image')}.json"

    @cached_property
    def scrubs(self) -> Path:
        """When each image was last read and verified, and how far the scrub of one has come."""
        return self.private / "scrubs"

    def scrub(self, name: str) -> Path:
        """The scrub of one image."""
        return self.scrubs / f"{plain_name(name, what='an image')}.json"

    @cached_property
    def copies(self) -> Path:
        """Images that were delivered as copies."""
        return self.private / "copies"

    def copy(self, key: str) -> Path:
        """The record of one copy."""
        return self.copies / f"{key}.json"

    def image(self, name: str) -> Path:
        """A base image's file."""
        return self.root / plain_name(name, what="an image")

    def image_lock(self, name: str) -> Path:
        """The lock of one image's name."""
        return self.locks / plain_name(name, what="an image")

    # A thread takes the locks of one cache in name order: an ingest's sorts before every image name, a disk's after. All
    # image names begin with a hexadecimal digit, "ephemeral" or "swap".

    def ingest_lock(self, key: str) -> Path:
        """The lock under which one ref is fetched once."""
        return self.locks / f".ingest-{key}"

    @property
    def scrub_lock(self) -> Path:
        """The lock under which one at a time reads a cache's images again. A scrub may fetch, so it sorts before ingests."""
        return self.locks / ".digests"

    @property
    def layout_lock(self) -> Path:
        """The lock under which the directory is laid out."""
        return self.locks / ".layout"

    @property
    def space_lock(self) -> Path:
        """The lock that spans a reservation's check and its write."""
        return self.locks / ".space"

    @property
    def room_lock(self) -> Path:
        """The lock under which one at a time makes room on the file system."""
        return self.locks / ".room"

    @property
    def records_lock(self) -> Path:
        """The lock under which leases and what a prune notes are written; held last, so it sorts last."""
        return self.locks / "vrecords"

    # Lock files stay for ever and disks come and go, so disks share a bounded number of them. A thread holds one of each kind
    # at most, so sharing can make it wait but never deadlock.

    def disk_lock(self, path: Path) -> Path:
        """The lock of one instance disk; one in 4096 disks shares it."""
        return self.locks / f"vdisk-{path_key(path)[:3]}"

    def disk_info_lock(self, directory: Path) -> Path:
        """The lock of one instance directory's ``disk.info``; one in 4096 directories shares it."""
        return self.locks / f"vinfo-{path_key(directory)[:3]}"

    def ref_record(self, key: str) -> Path:
        """What one ref was last seen to mean."""
        return self.refs / f"{key}.json"

    def used_marker(self, name: str) -> Path:
        """An image's last use."""
        return self.used / plain_name(name, what="an image")

    def disk_root(self, name: str, path: Path) -> Path:
        """The symlink that keeps an image for a disk outside the scanned roots."""
        return self.disks / plain_name(name, what="an image") / path_key(path)

    def ingest(self, key: str) -> Path:
        """An ingest's own directory."""
        return self.tmp / key


def nova_lock(locks: Path, *, prefix: str, name: str) -> Path:
    """The lock file that Nova takes for one image in its cache."""
    return locks / f"{prefix}{plain_name(name, what='an image')}"
