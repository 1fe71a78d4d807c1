"""What is done to volumes: made, renamed, grown, removed. Each is one program of LVM, which does it whole or not at all."""

from collections.abc import Iterable, Sequence

from underlay.disks.lvm import names
from underlay.disks.lvm.commands import Group
from underlay.disks.lvm.looking import Volume, volumes
from underlay.errors import BackendUnavailable, DiskInUse, InsufficientSpace

_CHUNKS = 4 << 20  # bytes: the header of a snapshot, its first table and what is rounded, in chunks of up to 512 KiB


def spoken(group: Group, volume: str) -> str:
    """A volume as messages call it."""
    return f"volume {group.name}/{volume}"


def _tagged(tags: Iterable[str]) -> list[str]:
    return [word for tag in tags for word in ("--addtag", tag)]


def make_plain(group: Group, volume: str, *, size: int, tags: Sequence[str]) -> None:
    """Make a volume of its own extents, which hold what was there before.

    Raises:
        DiskExists, BackendUnavailable, InsufficientSpace
    """
    fresh = ["--wipesignatures", "n", "--zero", "n"]
    words = ["--name", volume, "--size", f"{size}b", *fresh, *_tagged(tags), group.name]
    group.change("lvcreate", *words, of=spoken(group, volume))


def make_plain_over(group: Group, volume: str, extents: Sequence[str], *, tags: Sequence[str]) -> None:
    """Make a volume of exactly these extents, said as by `extents_of`, which hold what was there before.

    Raises:
        InsufficientSpace: somebody has some of them. DiskExists, BackendUnavailable
    """
    count = sum(map(_length, extents))
    fresh = ["--wipesignatures", "n", "--zero", "n"]
    words = ["--name", volume, "--extents", str(count), *fresh, *_tagged(tags), group.name, *extents]
    group.change("lvcreate", *words, of=spoken(group, volume))


def make_thin(group: Group, volume: str, *, pool: str, size: int, tags: Sequence[str]) -> None:
    """Make a volume in a thin pool.

    Raises:
        as `make_plain`
    """
    words = ["--name", volume, "--virtualsize", f"{size}b", "--thinpool", pool, *_tagged(tags), group.name]
    group.change("lvcreate", *words, of=spoken(group, volume))


def make_snapshot(group: Group, volume: str, *, origin: Volume, is_thin: bool, tags: Sequence[str]) -> None:
    """Make a snapshot. Outside a pool it has room for all that may be written to it, because one without room is lost.

    Raises:
        DiskNotFound: there is no such origin. As `make_plain`
    """
    room = ["--setactivationskip", "n"] if is_thin else ["--size", f"{_room_for_all(origin.size)}b"]
    words = ["--snapshot", "--name", volume, *room, *_tagged(tags), f"{group.name}/{origin.name}"]
    group.change("lvcreate", *words, of=spoken(group, origin.name))


def _room_for_all(size: int) -> int:
    """Bytes of a snapshot in which every chunk of its origin has place, with the tables that say where.

    A table's entry has 16 bytes, a chunk 4 KiB at least (the kernel's ``dm-snap-persistent.c``). LVM makes it no larger than is
    of use. It is said in bytes, because of the extents of an origin ``lvcreate`` takes what it can get (lvcreate(8)).
    """
    return size + size // 128 + _CHUNKS


def rename(group: Group, old: str, new: str) -> None:
    """Give a volume its name.

    Raises:
        DiskExists: another has it. DiskNotFound
    """
    group.change("lvrename", group.name, old, new, of=spoken(group, new))


def tag(group: Group, volume: str, *tags: str) -> None:
    """Have a volume say something more."""
    group.change("lvchange", *_tagged(tags), f"{group.name}/{volume}", of=spoken(group, volume))


def untag(group: Group, volume: str, tag: str) -> None:
    """Have a volume say something no more."""
    group.change("lvchange", "--deltag", tag, f"{group.name}/{volume}", of=spoken(group, volume))


def doom(group: Group, volume: Volume) -> None:
    """Have exactly this volume, not another of its name, say that it is being removed; one that is gone is a success."""
    words = [*_tagged([names.GOING]), "--select", this(volume), group.name]
    group.change("lvchange", *words, of=spoken(group, volume.name))


def this(volume: Volume) -> str:
    """The selection (lvmreport(7)) of a volume, as long as it has its name."""
    return f'lv_uuid="{volume.uuid}" && lv_name="{volume.name}"'


def finish_base(group: Group, volume: str) -> None:
    """Have an image's volume be whole, and for reading only."""
    words = ["--permission", "r", "--deltag", names.MAKING, f"{group.name}/{volume}"]
    group.change("lvchange", *words, of=spoken(group, volume))


def activate(group: Group, volume: Volume) -> None:
    """See to it that a volume has a device."""
    if not volume.is_active:
        words = ["--activate", "y", "--ignoreactivationskip", f"{group.name}/{volume.name}"]
        group.change("lvchange", *words, of=spoken(group, volume.name))


def extend(group: Group, volume: str, size: int) -> None:
    """Make a volume larger. What a plain one has more holds what was there before: see `extend_by`.

    Raises:
        InsufficientSpace, BackendUnavailable
    """
    group.change("lvextend", "--size", f"{size}b", f"{group.name}/{volume}", of=spoken(group, volume))


def extend_by(group: Group, volume: Volume, zeros: str) -> None:
    """Give a volume the extents of another one, which goes: what was written there is then behind its end.

    Nobody takes the extents between the one and the other, or it fails and the volume is as it was.

    Raises:
        BackendUnavailable: somebody did. InsufficientSpace
    """
    ranges = extents_of(group, zeros)
    count = sum(_length(one) for one in ranges)
    group.change("lvremove", f"{group.name}/{zeros}", of=spoken(group, zeros))  # crash: extents that nobody has
    try:
        words = ["--extents", f"+{count}", f"{group.name}/{volume.name}", *ranges]
        group.change("lvextend", *words, of=spoken(group, volume.name))
    except InsufficientSpace as error:
        what = f"{group.spoken} was changed while {volume.name} grew"
        raise BackendUnavailable(what, hint="try again") from error


def extents_of(group: Group, volume: str) -> list[str]:
    """Where a volume lies, as lvextend(8) wants it said: ``DEVICE:FIRST-LAST`` each."""
    rows = group.report("lvs", "--segments", "--select", f'lv_name="{volume}"', fields=["seg_pe_ranges"])
    return [part for row in rows for part in row["seg_pe_ranges"].split()]


def _length(extents: str) -> int:
    first, last = extents.rpartition(":")[2].split("-")
    return int(last) - int(first) + 1


def remove(group: Group, volume: Volume, *, is_needed_by_snapshots: bool) -> None:
    """Remove exactly this volume, not another of its name; one that is gone is a success.

    ``lvremove`` takes snapshots along with their origin, unless a selection forbids it: under the group's lock.

    Raises:
        DiskInUse: somebody has it open, or snapshots stand on it.
    """
    alone = ' && lv_descendants=""' if is_needed_by_snapshots else ""
    of = spoken(group, volume.name)
    which = this(volume)
    if "successfully removed" in group.change("lvremove", "--select", which + alone, group.name, of=of):
        return
    for left in volumes(group, which):
        raise DiskInUse(f"{of} is needed by {', '.join(left.snapshots)}", hint="remove them, or flatten them")


def remove_made(group: Group, volume: str, *, tag: str) -> None:
    """Remove a volume that is on its way as long as it says so, and nobody stands on it; one that is gone is a success."""
    which = f'lv_name="{volume}" && lv_tags="{tag}" && lv_descendants=""'
    group.change("lvremove", "--select", which, group.name, of=spoken(group, volume))
