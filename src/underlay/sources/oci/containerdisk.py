"""A containerdisk: a container image whose layers are tar archives, with the disk as the one file in ``disk/`` of one of them.

KubeVirt has it so. The disk is taken from the uppermost layer that has one, as it streams by. What promises the disk's bytes is
the layer's digest, and that is of the whole layer: the end of the disk is said only when all of the layer has been read, has
that digest, and has no second disk.
"""

import hashlib
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

from underlay.contracts import ByteStream
from underlay.errors import BodyTooLong, DigestMismatch, SourceRefused, UnsafeImage
from underlay.formats.compressed import Decompressor
from underlay.naming import printable
from underlay.sources.oci.manifest import Descriptor, parse_digest
from underlay.sources.oci.tar import Entry, TarReader

_DIRECTORY = "disk"
_DELETED = ".wh."  # what the names of a layer's deletions begin with (image specification, layer.md, "Whiteouts")
LARGEST_LAYER = 1 << 40
"""Bytes of a layer as it is served. All of a layer is read and hashed, whatever the size of the disk in it; this is far above
any container image that is known, and ends what a manifest could have us read without end."""
_BUFFER = 256 << 10
_SCRATCH = 1 << 20

# The compression of a layer's archive, by the layer's media type.
_COMPRESSIONS = {
    "application/vnd.oci.image.layer.v1.tar": None,
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": None,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
}


def check_layer(what: str, layer: Descriptor) -> None:
    """Make sure that a layer is of a kind that is read here, and that reading it comes to an end.

    Raises:
        SourceRefused
    """
    if layer.media_type not in _COMPRESSIONS:
        raise SourceRefused(f"{what}: a layer is no tar archive in gzip, zstd or plain: {printable(layer.media_type[:80])}")
    if layer.size > LARGEST_LAYER:
        why = f"a layer of {layer.size} bytes is over the limit of {LARGEST_LAYER} bytes"
        raise SourceRefused(f"{what}: {why}", hint="push a disk of that size as an artifact, whose layer is the disk itself")


@dataclass(slots=True)
class DiskInLayer:
    """The disk that a layer has, if it has one; a stream of its bytes once it is found.

    Attributes:
        what: how messages call the image.
        blob: the layer as it is served.
        name: of the file in ``disk/``; None: there must be one only.
    """

    what: str
    layer: Descriptor
    blob: ByteStream
    name: str | None = None
    _served: "_Checked" = field(init=False)
    _archive: TarReader = field(init=False)
    _ended: bool = False

    def __post_init__(self) -> None:
        check_layer(self.what, self.layer)
        compression = _COMPRESSIONS[self.layer.media_type]
        self._served = _Checked(self.what, self.layer, self.blob)
        content: ByteStream = self._served
        if compression is not None:
            content = _Pieces(_decompressed(self._served, Decompressor(self.what, compression)))
        self._archive = TarReader(self.what, content)

    def find(self) -> bool:
        """Go to the disk; False when the whole layer has none.

        Raises:
            SourceRefused: ``disk/`` holds something that is no plain file, or the archive is not whole. UnsafeImage: broken
            compression. DigestMismatch, BodyTooLong; as the blob.
        """
        try:
            if self._next_disk() is not None:
                return True
        except (SourceRefused, UnsafeImage):
            self._served.finish()  # what was damaged on its way is said to be so
            raise
        self._served.finish()
        return False

    def skip(self, length: int) -> None:
        """Go on by so many bytes, or to the disk's end.

        Raises:
            as `readinto`
        """
        scratch = memoryview(bytearray(min(length, _SCRATCH)))
        while length and (skipped := self.readinto(scratch[:length])):
            length -= skipped

    def readinto(self, buffer: memoryview, /) -> int:
        """Some of the disk; 0 when all of the layer is known to be right.

        Raises:
            as `find`
        """
        if self._ended or not len(buffer):
            return 0
        try:
            if length := self._archive.readinto(buffer):
                return length
            if second := self._next_disk():
                hint = f"choose one by its name: oci://…#{posixpath.basename(second.name)}"
                raise SourceRefused(f"{self.what} has more than one file in {_DIRECTORY}/", hint=hint)
        except (SourceRefused, UnsafeImage):
            self._served.finish()
            raise
        self._served.finish()
        self._ended = True
        return 0

    def _next_disk(self) -> Entry | None:
        while (entry := self._archive.next()) is not None:
            if self._is_disk(entry):
                return entry
        return None

    def _is_disk(self, entry: Entry) -> bool:
        """Whether an entry is the disk.

        Only a plain file of a plain name is taken. An entry that may come to lie in the directory in another way, or stands
        for it, is refused: to other programs it could be another disk.
        """
        plain = entry.name.removeprefix("./").rstrip("/")
        path = posixpath.normpath("/" + entry.name).lstrip("/")
        if path != _DIRECTORY and not path.startswith(f"{_DIRECTORY}/"):
            return False
        if path != plain or entry.name.startswith("/"):
            raise self._no_disk(entry, "its name is not plain")
        if entry.is_directory:
            return False
        name = path.removeprefix(f"{_DIRECTORY}/")
        if not entry.is_file or path == _DIRECTORY:
            raise self._no_disk(entry, f"it is {entry.kind}")
        if name.startswith(_DELETED):
            raise self._no_disk(entry, "it takes away files of the layers below")
        if "/" in name:
            raise self._no_disk(entry, "it lies in a directory of its own")
        return self.name is None or name == self.name

    def _no_disk(self, entry: Entry, why: str) -> SourceRefused:
        return SourceRefused(
            f"{self.what}: {printable(entry.name[:80])!r} cannot be the disk: {why}",
            hint=f"a containerdisk has one plain file in {_DIRECTORY}/",
        )


@dataclass(slots=True)
class _Checked:
    """A layer as it is served, hashed on its way."""

    what: str
    layer: Descriptor
    blob: ByteStream
    _received: int = 0
    _hash: "hashlib._Hash" = field(init=False)

    def __post_init__(self) -> None:
        algorithm = parse_digest(self.what, self.layer.digest).algorithm
        self._hash = hashlib.new(algorithm, usedforsecurity=False)

    def readinto(self, buffer: memoryview, /) -> int:
        length = self.blob.readinto(buffer)
        self._hash.update(buffer[:length])
        self._received += length
        if self._received > self.layer.size:
            raise BodyTooLong(f"{self.what}: more bytes arrive than the {self.layer.size} of its layer")
        return length

    def finish(self) -> None:
        """Read what is left, and make sure that all of it was right."""
        scratch = memoryview(bytearray(_SCRATCH))
        while self.readinto(scratch):
            pass
        actual = f"{self._hash.name}:{self._hash.hexdigest()}"
        if actual != self.layer.digest:
            raise DigestMismatch(f"the layer of {self.what}", expected=self.layer.digest, actual=actual)


@dataclass(slots=True)
class _Pieces:
    """A stream that comes in pieces."""

    pieces: Iterator[memoryview]
    _piece: memoryview = field(default_factory=lambda: memoryview(b""))

    def readinto(self, buffer: memoryview, /) -> int:
        while not self._piece:
            piece = next(self.pieces, None)
            if piece is None:
                return 0
            self._piece = piece
        length = min(len(buffer), len(self._piece))
        buffer[:length], self._piece = self._piece[:length], self._piece[length:]
        return length


def _decompressed(stream: ByteStream, decompressor: Decompressor) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_BUFFER))
    while length := stream.readinto(buffer):
        yield from decompressor.feed(buffer[:length])
    yield from decompressor.finish()
