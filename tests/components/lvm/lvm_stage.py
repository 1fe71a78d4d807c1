"""The stage on which the shipped conformance suite tries the lvm backend: a volume group of a real lvm2."""

import fcntl
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from underlay.disks.lvm import LvmBackend
from underlay.model import ImageVersion, InstanceDisk
from underlay.testing.disk_suite import Cloned, Full, Trouble

MIB = 1 << 20
EXTENT = MIB
_TIMEOUT, _SHORT = 20.0, 1.0  # seconds, of the volume group's lock; on a busy machine a program of LVM takes some
_POOL = 160 * MIB
_PIECES = 4

TYPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "thick": {"type": "thick"},
        "thin": {"type": "thin", "thin_pool": "pool"},
        "snapshot": {"type": "snapshot", "thin_pool": "pool"},
        "thick-snapshot": {"type": "snapshot"},
    }
)


def call(program: str, *arguments: str | os.PathLike[str]) -> str:
    """What a program prints."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{program} {' '.join(map(str, arguments))}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Lvm:
    """A volume group and its thin pool."""

    group: str
    pool: str

    def make(self, device: Path) -> None:
        call("pvcreate", "-q", device)
        call("vgcreate", "-q", "-s", f"{EXTENT}b", self.group, device)
        call("lvcreate", "-q", "-y", "--type", "thin-pool", "-n", self.pool, "-L", f"{_POOL}b", self.group)

    def names(self) -> frozenset[str]:
        """Every volume but the pool."""
        return frozenset(call("lvs", "--noheadings", "-o", "lv_name", self.group).split()) - {self.pool}

    def field(self, volume: str, field: str) -> str:
        return call("lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", field, f"{self.group}/{volume}").strip()

    def device(self, volume: str) -> Path:
        return Path("/dev") / self.group / volume

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While the block lasts, somebody has the volume group's lock."""
        with open(f"/run/lock/lvm/V_{self.group}", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def without_room(self, *, in_pool: bool, but: int = 0) -> Iterator[None]:
        """While the block lasts, everything is taken but so many extents."""
        if in_pool:
            call("lvcreate", "-q", "-y", "-n", "filler", "-V", f"{_POOL}b", "--thinpool", self.pool, self.group)
            self._fill(int(self.field(self.pool, "lv_size")) - but * EXTENT)
        else:
            self._take("filler", self._free() - but)
        try:
            yield
        finally:
            call("lvremove", "-q", "-y", f"{self.group}/filler")

    @contextmanager
    def in_pieces(self, extents: int) -> Iterator[None]:
        """While the block lasts, all that is free is in a few pieces of so many extents."""
        free = call("pvs", "--noheadings", "--segments", "-o", "pvseg_start,pvseg_size,segtype", "/dev/ubda").split()
        spans = [
            (int(at), int(size)) for at, size, kind in zip(free[::3], free[1::3], free[2::3], strict=True) if kind == "free"
        ]
        (start, size) = max(spans, key=lambda span: span[1])
        walls = [(start + number * (extents + 1) - 1, 1) for number in range(1, _PIECES)]
        behind = start + _PIECES * (extents + 1) - 1
        taken = [*(span for span in spans if span[0] != start), *walls, (behind, start + size - behind)]
        places = [f"/dev/ubda:{at}-{at + length - 1}" for at, length in taken]
        count = str(sum(length for _, length in taken))
        call("lvcreate", "-q", "-y", "-n", "filler", "-l", count, "-Zn", "-Wn", self.group, *places)
        try:
            yield
        finally:
            call("lvremove", "-q", "-y", f"{self.group}/filler")

    def next_extents(self, extents: int) -> str:
        """Those that the next volume of this length gets."""
        self._take("next", extents)
        try:
            return self.field("next", "seg_pe_ranges")
        finally:
            call("lvremove", "-q", "-y", f"{self.group}/next")

    def _take(self, name: str, extents: int) -> None:
        call("lvcreate", "-q", "-y", "-n", name, "-l", str(extents), "-Zn", "-Wn", self.group)

    def _free(self) -> int:
        return int(call("vgs", "--noheadings", "-o", "vg_free_count", self.group))

    def _fill(self, size: int) -> None:
        """Write until the pool is full: what others have of it is not written twice."""
        free = int(size * (100 - float(self.field(self.pool, "data_percent"))) / 100)
        with self.device("filler").open("r+b", buffering=0) as file:
            for position in range(0, free // MIB * MIB, MIB):
                os.pwrite(file.fileno(), b"\x01" * MIB, position)
            os.fsync(file.fileno())


@dataclass(slots=True)
class LvmStage:
    """A volume group.

    Attributes:
        kind: of `TYPES`.
    """

    lvm: Lvm
    directory: Path
    kind: str
    cannot: ClassVar[Mapping[type, str]] = MappingProxyType({Cloned: "no image comes in a volume group"})
    granularity: int = EXTENT
    patience: float = 2 * _SHORT
    timeout: float = _TIMEOUT
    volume_clear: str = "none"

    @property
    def backend(self) -> LvmBackend:
        return self.configured()

    def configured(self, **options: Any) -> LvmBackend:
        usual = {"volume_group": self.lvm.group, "lock_timeout": self.timeout, "volume_clear": self.volume_clear}
        return LvmBackend(**{**usual, **TYPES[self.kind], **options})

    def read(self, disk: InstanceDisk) -> bytes:
        return Path(self.backend.attachment(disk).source).read_bytes()

    def write(self, disk: InstanceDisk, offset: int, content: bytes) -> None:
        with open(self.backend.attachment(disk).source, "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), content, offset)
            os.fsync(file.fileno())

    def left(self) -> frozenset[str]:
        mapped = (path.name for path in Path("/dev/mapper").iterdir() if path.name.endswith("-dmcrypt"))
        return self.lvm.names() | frozenset(mapped)

    @contextmanager
    def opened(self, disk: InstanceDisk) -> Iterator[None]:
        with open(self.backend.attachment(disk).source, "rb"):
            yield

    @contextmanager
    def trouble(self, trouble: Trouble) -> Iterator[None]:
        if isinstance(trouble, Full):
            with self.lvm.without_room(in_pool="thin_pool" in TYPES[self.kind]):
                yield
        else:
            self.timeout = _SHORT
            with self.lvm.locked():
                yield
            self.timeout = _TIMEOUT

    def cloneable(self, content: bytes) -> ImageVersion:
        raise NotImplementedError
