"""Runs in the micro virtual machine, where lvm2 has a device mapper: makes a volume group, measures, and writes it down."""

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import msgspec

from bench.hosts import configuration
from bench.measure import Contender, Row, command, measure
from bench.results import Goal
from underlay import BaseImage, DiskSpec, Host, InstanceDisk
from underlay.disks.lvm import LvmBackend
from underlay.testing.bootimage import write_raw

_MIB = 1 << 20
_IMAGE, _PAYLOAD, _DISK = 64 * _MIB, 8 * _MIB, 96 * _MIB
_GROUP, _POOL = "bench", "pool"
_JOB = Path("/run/job")


def main() -> None:
    """Measure each row, with as many rounds as the first argument says."""
    command("pvcreate", "-q", "/dev/ubda")
    command("vgcreate", "-q", _GROUP, "/dev/ubda")
    command("lvcreate", "-q", "-y", "--type", "thin-pool", "-n", _POOL, "-L", "320m", _GROUP)
    image = Path("/tmp/image.raw")
    write_raw(image, size=_IMAGE, message="bench", payload=_PAYLOAD)
    base = Host.open(configuration(Path("/tmp"), "lvm")).ensure(f"file://{image}")
    measured = [measure(row, rounds=int(sys.argv[1])) for row in _rows(base)]
    (_JOB / "measured").write_bytes(msgspec.json.encode(measured))


def _rows(base: BaseImage) -> Iterator[Row]:
    def lvcreate_thick(name: str) -> None:
        command("lvcreate", "-q", "-y", "-Wn", "-n", name, "-L", f"{_DISK}b", _GROUP)
        command("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", base.path, f"/dev/{_GROUP}/{name}")
        command("blkdiscard", "-z", "-o", str(_IMAGE), f"/dev/{_GROUP}/{name}")

    def lvcreate_thin(name: str) -> None:
        command("lvcreate", "-q", "-y", "-n", name, "-V", f"{_DISK}b", "--thinpool", _POOL, _GROUP)
        convert = ("qemu-img", "convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw")
        command(*convert, base.path, f"/dev/{_GROUP}/{name}")

    thick, thin = LvmBackend(volume_group=_GROUP), LvmBackend(volume_group=_GROUP, type="thin", thin_pool=_POOL)
    snapshot = LvmBackend(volume_group=_GROUP, type="snapshot", thin_pool=_POOL)
    yield Row(
        name="lvm, thick",
        what="with a record, whole or not at all; both have zeros behind the image",
        ours=_ours(thick, base),
        peer=_theirs("lvcreate, qemu-img convert, blkdiscard -z", lvcreate_thick, volume="thick"),
        goal=Goal(wall=1.0, why="the same bytes are written"),
    )
    yield Row(
        name="lvm, thin",
        what="with a record, whole or not at all; both leave zeros out",
        ours=_ours(thin, base),
        peer=_theirs("lvcreate, qemu-img convert", lvcreate_thin, volume="thin"),
        goal=Goal(wall=1.0, why="the same bytes are written"),
    )
    kept = snapshot.create(base, _spec(snapshot, "kept"))  # so that the image's volume is there
    yield Row(
        name="lvm, snapshot",
        what="of an image that has a volume already, against a thin disk of its own",
        ours=_ours(snapshot, base),
        peer=_theirs("lvcreate, qemu-img convert", lvcreate_thin, volume="copied"),
        goal=Goal(wall=1.0, why="nothing is copied"),
    )
    snapshot.remove(kept)


def _ours(backend: LvmBackend, base: BaseImage) -> Contender:
    """What it made is removed before the next round, untimed."""
    made: list[InstanceDisk] = []
    numbers = count()

    def clear(_: int) -> None:
        while made:
            backend.remove(made.pop())

    def create(_: int) -> None:
        made.append(backend.create(base, _spec(backend, f"ours-{next(numbers)}")))

    return Contender(name=f"LvmBackend.create, {backend.type}", run=create, prepare=clear)


def _theirs(name: str, make: Callable[[str], None], *, volume: str) -> Contender:
    def clear(number: int) -> None:
        if number > 0:
            command("lvremove", "-q", "-y", f"{_GROUP}/{volume}")

    return Contender(name=name, run=lambda _: make(volume), prepare=clear)


def _spec(backend: LvmBackend, instance: str) -> DiskSpec:
    place = backend.place(instance, "disk")
    assert place is not None
    return DiskSpec(instance=instance, name="disk", path=place, size=_DISK)


if __name__ == "__main__":
    main()
