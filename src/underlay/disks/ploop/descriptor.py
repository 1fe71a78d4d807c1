"""``DiskDescriptor.xml``: what the files of a ploop disk are, written and read.

By QEMU's docs/interop/prl-xml.rst, and as the ``ploop`` tool writes it. What is read may be anybody's: its length, its depth
and the names in it are bounded, and a document that declares anything (a DTD, with which entities come) is refused unread.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers.expat import ExpatError, ParserCreate

from underlay.errors import DiskUnrecorded

NAME = "DiskDescriptor.xml"
LONGEST = 64 << 10
"""Bytes of one that is read; that of a disk without snapshots has less than one thousand."""

_DEEPEST = 16
_MOST_SECTORS = 1 << 55  # so that they have a number of bytes
_SECTOR = 512
_TOP = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"  # the image that the guest writes to, by convention
_NONE = "{00000000-0000-0000-0000-000000000000}"
_HEADS, _SECTORS_PER_TRACK = 16, 32
_DRIVERS = {"Compressed": "parallels", "Plain": "raw"}  # QEMU's words for the types of images

_TEXT = """\
<?xml version="1.0"?>
<Parallels_disk_image Version="1.0">
  <Disk_Parameters>
    <Disk_size>{sectors}</Disk_size>
    <Cylinders>{cylinders}</Cylinders>
    <Heads>{heads}</Heads>
    <Sectors>{track}</Sectors>
    <Padding>0</Padding>
  </Disk_Parameters>
  <StorageData>
    <Storage>
      <Start>0</Start>
      <End>{sectors}</End>
      <Blocksize>{block}</Blocksize>
      <Image>
        <GUID>{top}</GUID>
        <Type>Compressed</Type>
        <File>{file}</File>
      </Image>
    </Storage>
  </StorageData>
  <Snapshots>
    <TopGUID>{top}</TopGUID>
    <Shot>
      <GUID>{top}</GUID>
      <ParentGUID>{none}</ParentGUID>
    </Shot>
  </Snapshots>
</Parallels_disk_image>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a descriptor says.

    Attributes:
        size: bytes of the disk. cluster: bytes of a cluster of its images.
        files: of its images, each beside the descriptor: one, unless snapshots were made. format: of the first, in QEMU's word.
    """

    size: int
    cluster: int
    files: tuple[str, ...]
    format: str


def render(*, size: int, cluster: int, file: str) -> bytes:
    """The descriptor of a disk with one expanding image; its size is a multiple of 256 KiB, so that the geometry holds."""
    sectors = size // _SECTOR
    return _TEXT.format(
        sectors=sectors,
        cylinders=sectors // (_HEADS * _SECTORS_PER_TRACK),
        heads=_HEADS,
        track=_SECTORS_PER_TRACK,
        block=cluster // _SECTOR,
        top=_TOP,
        none=_NONE,
        file=file,
    ).encode()


def resized(content: bytes, size: int, *, where: Path) -> bytes:
    """A descriptor that was read, for another size: what else it says, and others may know of, stays as it is.

    Raises:
        DiskUnrecorded: it is written in a way in which the size cannot be told from other text.
    """
    sectors = size // _SECTOR
    cylinders = sectors // (_HEADS * _SECTORS_PER_TRACK)
    numbers = {"Disk_size": sectors, "End": sectors, "Cylinders": cylinders, "Heads": _HEADS, "Sectors": _SECTORS_PER_TRACK}
    for name, number in numbers.items():
        content = re.sub(rf"(<{name}>)\s*\d+\s*(</{name}>)".encode(), rf"\g<1>{number}\g<2>".encode(), content)
    if parse(content, where=where).size != size:
        raise DiskUnrecorded(f"{where} is written in a way that cannot be changed", hint="restore it: ploop restore-descriptor")
    return content


def parse(content: bytes, *, where: Path) -> Descriptor:
    """Read a descriptor.

    Args:
        content: `LONGEST` bytes, or one more if there are more. where: how the error calls it.

    Raises:
        DiskUnrecorded: it is none, or says what no disk of one storage can be.
    """
    try:
        return _understood(_tree(content))
    except _Wrong as error:
        raise DiskUnrecorded(
            f"{where} is no description of a ploop disk: {error}", hint="restore it, or remove the disk"
        ) from error


class _Wrong(Exception):
    """Why a descriptor is none."""


@dataclass(frozen=True, slots=True)
class _Element:
    name: str
    text: list[str] = field(default_factory=list)
    below: list["_Element"] = field(default_factory=list)

    def each(self, name: str) -> Iterator["_Element"]:
        return (element for element in self.below if element.name == name)

    def one(self, name: str) -> "_Element":
        found = list(self.each(name))
        if len(found) != 1:
            raise _Wrong(f"{self.name or 'it'} has {len(found)} elements {name}")
        return found[0]

    def word(self, name: str) -> str:
        return "".join(self.one(name).text).strip()

    def number(self, name: str) -> int:
        word = self.word(name)
        if not (word.isascii() and word.isdigit() and len(word) <= 20):
            raise _Wrong(f"{name} is no number")
        return int(word)


def _tree(content: bytes) -> _Element:
    if len(content) > LONGEST:
        raise _Wrong(f"it has over {LONGEST} bytes")
    path = [_Element("")]

    def start(name: str, _: dict[str, str]) -> None:
        if len(path) > _DEEPEST:
            raise _Wrong("its elements are nested too deep")
        path[-1].below.append(_Element(name))
        path.append(path[-1].below[-1])

    def end(_: str) -> None:
        path.pop()

    def text(piece: str) -> None:
        path[-1].text.append(piece)

    def refuse(*_: object) -> None:
        raise _Wrong("it has a document type declaration")

    parser = ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)  # noqa: FBT003 - it takes no keyword
    except (ExpatError, ValueError, LookupError) as error:  # the last two: of an encoding that Python does not know
        raise _Wrong(f"it is no XML: {error}") from error
    return path[0]


def _understood(root: _Element) -> Descriptor:
    disk = root.one("Parallels_disk_image")
    parameters, storage = disk.one("Disk_Parameters"), disk.one("StorageData").one("Storage")
    sectors, block = parameters.number("Disk_size"), storage.number("Blocksize")
    if not 0 < sectors < _MOST_SECTORS or not 0 < block < _MOST_SECTORS:
        raise _Wrong(f"no disk has {sectors} sectors in blocks of {block}")
    if (storage.number("Start"), storage.number("End")) != (0, sectors):
        raise _Wrong("its storage is not the whole disk")
    if parameters.number("Padding") != 0:
        raise _Wrong("it has padding")
    images = list(storage.each("Image"))
    if not images:
        raise _Wrong("it names no image")
    formats = [_driver(image.word("Type")) for image in images]
    files = tuple(_plain(image.word("File")) for image in images)
    return Descriptor(size=sectors * _SECTOR, cluster=block * _SECTOR, files=files, format=formats[0])


def _driver(kind: str) -> str:
    if kind not in _DRIVERS:
        raise _Wrong(f"images of the type {kind[:40]!r} are not known")
    return _DRIVERS[kind]


def _plain(name: str) -> str:
    """A file's name that stays in the directory."""
    if not name.isprintable() or "/" in name or name in ("", ".", "..") or len(name.encode(errors="replace")) > 255:
        raise _Wrong(f"{name[:60]!r} is no file beside it")
    return name
