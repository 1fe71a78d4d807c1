"""Base images that no source has: swap, and empty file systems for ephemeral disks, made on this host by mkswap and mkfs.

Each is made once, under its lock, and shared: overlays stand on it, and other disks are copied from it. It is sparse, so it
occupies what its metadata does. Its name says what is really in it: the hash in the name of an ephemeral image is that of the
command or the file system that it was made with, so that a guest never gets another's (Nova's names leave the system out).
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

import msgspec

from underlay.contracts import Observer
from underlay.errors import ConfigError, InvalidForm, InvalidSize, OverlayRefused, UnderlayError
from underlay.files import create, translated
from underlay.model import LAYOUT, BaseImage, Event, ImageRecord, ImageRef, Level
from underlay.naming import CacheKind, ephemeral_name, swap_name
from underlay.run import Limits, run
from underlay.store import Store, images, staging as stagings
from underlay.store.staging import Staging
from underlay.stream import stored_digest
from underlay.version import __version__

# What Nova takes by itself (nova/virt/disk/api.py).
_BY_SYSTEM: Mapping[str, str] = MappingProxyType({"linux": "ext4", "windows": "ntfs"})
_OTHERWISE = "vfat"
_MIB, _GIB = 1 << 20, 1 << 30
_LABEL = "ephemeral0"  # by which Nova's guests find it
_MAKE = Limits(seconds=600, dies_with_caller=True)
_MODE = 0o600

# Each fills the file that is given last, asks nothing, and says nothing.
_COMMANDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "ext2": ("mkfs.ext2", "-F", "-q", "-L", "%(fs_label)s", "%(target)s"),
        "ext3": ("mkfs.ext3", "-F", "-q", "-L", "%(fs_label)s", "%(target)s"),
        "ext4": ("mkfs.ext4", "-F", "-q", "-L", "%(fs_label)s", "%(target)s"),
        "xfs": ("mkfs.xfs", "-f", "-q", "-L", "%(fs_label)s", "%(target)s"),
        "vfat": ("mkfs.vfat", "-n", "%(fs_label)s", "%(target)s"),
        "ntfs": ("mkfs.ntfs", "--force", "--fast", "--quiet", "--label", "%(fs_label)s", "%(target)s"),
    }
)
FILE_SYSTEMS = frozenset(_COMMANDS)
"""Those that can be asked for by name."""


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is made here.

    Attributes:
        name: its file name. size: bytes. command: what makes it, with ``%(target)s`` for the file and ``%(fs_label)s``.
    """

    name: str
    size: int
    command: tuple[str, ...]

    @property
    def ref(self) -> ImageRef:
        """What its record calls it."""
        text = f"generated:{self.name}"
        return ImageRef(scheme="generated", canonical=text, location=text)

    def argv(self, target: Path) -> list[str]:
        """The command that makes it in a file."""
        return [word % {"target": target, "fs_label": _LABEL} for word in self.command]


def swap(size: int) -> Generated:
    """Swap space.

    Args:
        size: bytes, a whole number of MiB.

    Raises:
        InvalidSize
    """
    return Generated(name=swap_name(_whole(size, _MIB, "MiB")), size=size, command=("mkswap", "%(target)s"))


def ephemeral(
    size: int,
    *,
    file_system: str | None = None,
    os_type: str | None = None,
    default: str | None = None,
    commands: Mapping[str, str] = MappingProxyType({}),
) -> Generated:
    """An empty file system.

    Args:
        size: bytes, a whole number of GiB.
        file_system: what is asked for; None: as the next three say.
        os_type: the guest's system. commands: ``virt_mkfs``, the command by system, or of ``default``.
        default: ``default_ephemeral_format``; without it, ext4 for linux, ntfs for windows, else vfat.

    Raises:
        InvalidSize; InvalidForm: no such file system. ConfigError: of a command.
    """
    count = _whole(size, _GIB, "GiB")
    command = None if file_system else commands.get(os_type or "") or commands.get("default")
    if command is not None:
        return Generated(name=ephemeral_name(count, command), size=size, command=tuple(_words(command)))
    kind = file_system or default or _BY_SYSTEM.get(os_type or "", _OTHERWISE)
    if kind not in _COMMANDS:
        known = ", ".join(sorted(FILE_SYSTEMS))
        raise InvalidForm(f"no ephemeral disk has the file system {kind!r}", hint=f"known file systems: {known}")
    return Generated(name=ephemeral_name(count, kind), size=size, command=tuple(_COMMANDS[kind]))


def _whole(size: int, unit: int, called: str) -> int:
    if size <= 0 or size % unit:
        raise InvalidSize(f"{size} bytes are no whole number of {called}", hint=f"the image's name counts {called}")
    return size // unit


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
        for word in words:
            word % {"target": "", "fs_label": ""}
    except (ValueError, KeyError, TypeError) as error:
        what = f"disks.virt_mkfs: {command!r} is no command: {error}"
        raise ConfigError(what, hint="use %(target)s and %(fs_label)s, and %% for a percent sign") from error
    if not any("%(target)s" in word for word in words[1:]):
        raise ConfigError(f"disks.virt_mkfs: {command!r} does not say where %(target)s goes")
    return words


def ensure(store: Store, wanted: Generated, observer: Observer) -> BaseImage:
    """Make the image present, and mark it used. Safe from any number of threads and processes: one of them makes it.

    One of this name that Nova made is taken as it is, like any other unrecorded image.

    Raises:
        OverlayRefused: a cache of masters, which keeps no such images. ToolMissing, ToolFailed, ToolTimedOut;
        CacheError, LockError, ImageRefused
    """
    if store.kind is not CacheKind.BASE:
        raise OverlayRefused(f"{store.root} keeps masters, no generated images", hint="name a cache of kind base")
    store.prepare()
    found = images.find(store, wanted.name)
    if found is None:
        with stagings.turn(store, wanted.ref, observer) as staging:
            found = images.find(store, wanted.name) or _make(store, wanted, staging, observer)
    images.mark_used(store, wanted.name)
    return found


def _make(store: Store, wanted: Generated, staging: Staging, observer: Observer) -> BaseImage:
    stagings.restart(staging)
    try:
        record = _record(wanted, stored=_fill(staging.download, wanted))
        image = images.publish(store, staging.download, wanted.name, record)
    finally:
        with suppress(UnderlayError):
            stagings.discard(staging)
    fields: dict[str, str | int | float | None] = {"name": wanted.name, "size": wanted.size}
    detail = " ".join(wanted.argv(Path(wanted.name)))
    observer.event(Event(code="generated", level=Level.INFO, detail=detail, fields=fields))
    return image


def _fill(path: Path, wanted: Generated) -> str:
    """Make the file, in a directory that nobody else may enter; its stored digest. Whoever publishes it makes it durable."""
    with translated(path):
        fd = create(path, _MODE)  # crash: an ingest's directory, which the next maker replaces
        try:
            os.ftruncate(fd, wanted.size)
            run(wanted.argv(path), limits=_MAKE)
            return stored_digest(fd)
        finally:
            os.close(fd)


def _record(wanted: Generated, *, stored: str) -> ImageRecord:
    return ImageRecord(
        layout=LAYOUT,
        version_id=wanted.ref.canonical,
        ref=wanted.ref.canonical,
        format="raw",
        size=wanted.size,
        virtual_size=wanted.size,
        digests=(),  # nobody has served it, so nobody else knows one
        stored=stored,
        as_served=True,
        served_format="raw",
        fetched_at=datetime.now(UTC).replace(microsecond=0),
        underlay=__version__,
    )
