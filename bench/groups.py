"""Every group of rows: what makes them, and what they are called. A group is measured and kept as one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.ceph import ceph_disks
from bench.conversions import conversions
from bench.decompression import decompression
from bench.deliveries import deliveries
from bench.diskchanges import changes
from bench.disks import flat, overlays
from bench.growth import instances, masters, sizes
from bench.locking import locking
from bench.lvm import lvm_disks
from bench.measure import Things
from bench.misses import misses
from bench.onepass import one_pass
from bench.ploop import ploop_disks
from bench.prunes import prunes
from bench.scans import scans
from bench.scrubs import scrubs
from bench.setting import Setting
from bench.spawns import spawns
from bench.starts import starts
from bench.transfers import transfers


@dataclass(frozen=True, slots=True)
class Group:
    """Some rows that share what they need.

    Attributes:
        rows: makes them in turn. names: theirs, all of which a run has to say something about.
    """

    name: str
    rows: Callable[[Setting], Things]
    names: tuple[str, ...]

    def asked(self, beginnings: Sequence[str]) -> tuple[str, ...]:
        """The names that begin so; all of them when the group's own name is among the beginnings, or none is given."""
        if not beginnings or self.name in beginnings:
            return self.names
        return tuple(name for name in self.names if name.startswith(tuple(beginnings)))


def _named(group: str, *rows: str) -> tuple[str, ...]:
    return tuple(f"{group}, {row}" for row in rows)


GROUPS = (
    Group(
        "miss",
        misses,
        _named("miss", "raw", "over curl alone", "over curl and sync", "over its slowest part", "two digests", "sparse"),
    ),
    Group("transfer", transfers, _named("transfer", "http", "file", "oci", "s3", "gs", "glance")),
    Group("decompress", decompression, _named("decompress", "gzip", "zstd", "xz", "bzip2")),
    Group(
        "convert",
        conversions,
        _named(
            "convert",
            "plain, ext4",
            "compressed, ext4",
            "compressed over -W, ext4",
            "zstd, ext4",
            "zstd over -W, ext4",
            "plain, xfs",
            "plain over -C, xfs",
            "plain, btrfs",
            "plain over -C, btrfs",
        ),
    ),
    Group(
        "hit",
        overlays,
        _named(
            "hit",
            "qcow2 overlay",
            "qcow2 over Nova's way",
            "the overlay alone",
            "alone over Nova's way",
            "alone over the least",
            "the least",
        ),
    ),
    Group("flat", flat, _named("flat", "xfs, the copy alone", "xfs, copy over FICLONE", "xfs", "ext4, the copy alone", "ext4")),
    Group("disk", changes, _named("disk", "preallocated overlay", "swap", "extracted as raw", "flattened")),
    Group("lvm", lvm_disks, _named("lvm", "thick", "thin", "snapshot")),
    Group("rbd", ceph_disks, _named("rbd", "cloned", "a large image cloned", "imported")),
    Group("ploop", ploop_disks, _named("ploop", "made on xfs", "made on ext4", "grown")),
    Group("spawn", spawns, _named("spawn", "defined", "to the first byte", "twenty at once")),
    Group("one-pass", one_pass, _named("one-pass", "at 200 MB/s", "after the last byte")),
    Group("scrub", scrubs, _named("scrub", "dense", "dense, over memory", "a third full")),
    Group("start-up", starts, _named("start-up", "list", "list --json", "show", "disk create")),
    Group("lock", locking, ("lock, one cycle",)),
    Group("prune", prunes, _named("prune", "backing file of a disk", "memory")),
    Group(
        "deliver",
        deliveries,
        _named("deliver", "a hit", "at a path never used", "there already", "over the disk's part"),
    ),
    Group("scan", scans, _named("scan", "100k masters", "in process", "100k masters, marked")),
    Group("instances", instances.instances, instances.PASS.names),
    Group("masters", masters.masters, tuple(name for curve in masters.CURVES for name in curve.names)),
    Group("size", sizes.sizes, tuple(name for curve in sizes.CURVES for name in curve.names)),
)


def asked_for(beginnings: Sequence[str]) -> Iterator[tuple[Group, tuple[str, ...]]]:
    """The groups that have rows whose names begin so, and those names."""
    for group in GROUPS:
        if names := group.asked(beginnings):
            yield group, names
