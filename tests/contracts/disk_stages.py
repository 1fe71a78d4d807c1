"""Our backends, each with a storage of its kind behind it, for the shipped conformance suite."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar
from uuid import uuid4

from underlay import qemuimg
from underlay.contracts import DiskBackend
from underlay.model import ImageVersion, InstanceDisk
from underlay.refs import parse_ref
from underlay.testing.disk_suite import Away, Cloned, Full, Killed, Trouble, guest_bytes, guest_writes
from underlay.testing.fakedisks import FakeBackend
from underlay.values import replace

_FILL = 1 << 20


@dataclass(slots=True)
class FakeStage:
    """The shipped fake."""

    directory: Path
    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({Killed: "its disks are in the memory of one process"})
    backend: FakeBackend = field(default_factory=FakeBackend)
    granularity: int = 512
    patience: float = 0.1

    def read(self, disk: InstanceDisk) -> bytes:
        return self.backend.guest_bytes(disk)

    def write(self, disk: InstanceDisk, offset: int, content: bytes) -> None:
        self.backend.guest_writes(disk, offset, content)

    def left(self) -> frozenset[str]:
        return self.backend.names()

    @contextmanager
    def opened(self, disk: InstanceDisk) -> Iterator[None]:
        with self.backend.opened(disk):
            yield

    @contextmanager
    def trouble(self, trouble: Trouble) -> Iterator[None]:
        if isinstance(trouble, Full):
            self.backend.capacity = 0
            yield
            self.backend.capacity = None
        else:
            self.backend.is_away = True
            yield
            self.backend.is_away = False

    def cloneable(self, content: bytes) -> ImageVersion:
        name = uuid4().hex
        self.backend.add_image(f"fake://images/{name}", content)
        locations = ("https://example.org/elsewhere", f"fake://images/{name}")
        return ImageVersion(ref=parse_ref("fake:cloneable"), id=name, disk_format="raw", locations=locations)


_FILES: Mapping[type, str] = MappingProxyType(
    {Away: "a directory does not stop answering", Cloned: "no directory has an image that is in no cache"}
)


@dataclass(slots=True)
class FilesStage:
    """Files in a directory; one on a small file system of its own can be full as well."""

    backend: DiskBackend
    directory: Path
    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({**_FILES, Full: "the file system is shared with others"})
    granularity: int = 512
    patience: float = 1.0

    def read(self, disk: InstanceDisk) -> bytes:
        return guest_bytes(disk)

    def write(self, disk: InstanceDisk, offset: int, content: bytes) -> None:
        guest_writes(disk, offset, content)

    def left(self) -> frozenset[str]:
        root = self.directory / "instances"
        return frozenset(os.fspath(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())

    @contextmanager
    def opened(self, disk: InstanceDisk) -> Iterator[None]:
        with disk.path.open("rb"):
            yield

    @contextmanager
    def trouble(self, trouble: Trouble) -> Iterator[None]:
        assert isinstance(trouble, Full)
        ballast = self.directory / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for piece in (_FILL, 4096, 512):
                with suppress(OSError):
                    while True:
                        file.write(os.urandom(piece))
        yield
        ballast.unlink()

    def cloneable(self, content: bytes) -> ImageVersion:
        raise NotImplementedError(_FILES[Cloned])


@dataclass(slots=True)
class SmallFilesStage(FilesStage):
    """As the other, on a file system of its own."""

    cannot: ClassVar[Mapping[type, str]] = _FILES


@dataclass(slots=True)
class DirectoriesStage(FilesStage):
    """Directories with a Parallels image each, which QEMU reads and writes as it does a guest's."""

    granularity: int = 1 << 20

    def read(self, disk: InstanceDisk) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory) / "raw"
            qemuimg.convert(qemuimg.node(disk.path / "root.hds", format="parallels"), target, format="raw")
            return target.read_bytes()

    def write(self, disk: InstanceDisk, offset: int, content: bytes) -> None:
        guest_writes(replace(disk, path=disk.path / "root.hds"), offset, content)

    def left(self) -> frozenset[str]:
        root = self.directory / "instances"
        return frozenset(os.fspath(path.relative_to(root)) for path in root.rglob("*") if path.parent != root)


@dataclass(slots=True)
class SmallDirectoriesStage(DirectoriesStage):
    """As the other, on a file system of its own."""

    cannot: ClassVar[Mapping[type, str]] = _FILES


@contextmanager
def small_file_system(directory: Path, *, size: int = 64 << 20) -> Iterator[Path]:
    """A new file system; needs root."""
    image, target = directory / "small.img", directory / "small"
    target.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", os.fspath(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", os.fspath(image), os.fspath(target)], check=True, capture_output=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", os.fspath(target)], check=True, capture_output=True)
