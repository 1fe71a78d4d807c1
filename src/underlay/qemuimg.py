"""qemu-img: arguments in, values out. The format of every file is always given; qemu-img never probes.

Used for what is rare. Limits hold each call, because a crafted image can make it allocate or spin without end.
"""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from underlay.errors import ToolFailed, UnsafeImage
from underlay.run import Limits, failed, run, run_to_end

_LOOK = Limits(seconds=60, memory=2 << 30, cpu_seconds=30)
_CHANGE = Limits(seconds=120, memory=2 << 30, cpu_seconds=60, dies_with_caller=True)
_CONVERT = Limits(seconds=6 * 3600, memory=4 << 30, dies_with_caller=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """What ``qemu-img info`` says.

    Attributes:
        virtual_size: bytes. backing: the recorded backing file's name, or None. data_file: an external data file, or None.
        extents: the files that hold a VMDK's data.
    """

    virtual_size: int
    backing: str | None
    data_file: str | None
    encrypted: bool
    extents: tuple[str, ...] = ()


def info(path: Path, *, format: str) -> ImageInfo:  # noqa: A002 - QEMU's own word
    """Look at one image, not at its backing chain.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut
    """
    output = run(["qemu-img", "info", "--output", "json", "-U", "-f", format, _plain(path)], limits=_LOOK)
    answer = json.loads(output)
    data = answer.get("format-specific", {}).get("data", {})
    return ImageInfo(
        virtual_size=answer["virtual-size"],
        backing=answer.get("backing-filename"),
        data_file=data.get("data-file"),
        encrypted=bool(answer.get("encrypted", False)),
        extents=tuple(extent["filename"] for extent in data.get("extents", ())),
    )


def convert_to_raw(source: Path, target: Path, *, format: str) -> None:  # noqa: A002
    """Write the guest's view of ``source`` into the new sparse file ``target``. Durability is the caller's.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut; OSError when the file system is full
    """
    _write(["qemu-img", "convert", "-f", format, "-O", "raw", _plain(source), _plain(target)], limits=_CONVERT)


Node = dict[str, object]
"""A file, or a whole backing chain, with the format of each file: what QEMU's ``json:`` names hold."""


def node(path: Path, *, format: str) -> Node:  # noqa: A002
    """A file of a format that nothing guesses."""
    return {"driver": format, "file": {"driver": "file", "filename": _plain(path)}}


def convert(source: Node, target: Path, *, format: str, compressed: bool = False) -> None:  # noqa: A002
    """Write the guest's view of a chain into the new file ``target``. Durability is the caller's.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut; OSError when the file system is full
    """
    compress = ["-c"] if compressed else []
    _write(["qemu-img", "convert", *compress, "-O", format, _named(source), _plain(target)], limits=_CONVERT)


def shows_the_same(one: Node, other: Node) -> bool:
    """Whether a guest sees the same on two disks; what only one of them has at its end is to be zeros.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut
    """
    argv = ["qemu-img", "compare", "-q", _named(one), _named(other)]
    ended = run_to_end(argv, limits=_CONVERT)
    if ended.status not in (0, 1):  # qemu-img(1), compare: above these, it could not tell
        raise failed("qemu-img", ended)
    return ended.status == 0


def create_overlay(
    target: Path,
    *,
    backing: str,
    backing_format: str,
    size: int,
    cluster_bytes: int | None = None,
    preallocation: str | None = None,
) -> None:
    """Make a file an empty overlay. Durability is the caller's.

    Args:
        target: its file, which is there or not; what it holds is replaced. backing: the name that is recorded as it is.
        preallocation: metadata, falloc or full, for which subclusters tell what the guest still reads from the backing file
            (QEMU 5.2; docs/interop/qcow2.rst, "Extended L2 Entries").

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut; OSError when the file system is full
    """
    options = [f"backing_file={backing.replace(',', ',,')}", f"backing_fmt={backing_format}"]
    if cluster_bytes is not None:
        options.append(f"cluster_size={cluster_bytes}")
    if preallocation is not None:
        options += ["extended_l2=on", f"preallocation={preallocation}"]
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(options), _plain(target), str(size)]
    _write(argv, limits=_CONVERT)


def create(path: Path, *, format: str, size: int) -> None:  # noqa: A002
    """Make an empty image that needs no other, of so many bytes to its guest. Durability is the caller's.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut; OSError when the file system is full
    """
    _write(["qemu-img", "create", "-q", "-f", format, _plain(path), str(size)], limits=_CHANGE)


def rebase(disk: Node, backing: tuple[Path, str] | None) -> None:
    """Give an overlay another backing file, or none, and what it then lacks of what its guest sees.

    Args:
        backing: the file, whose name is recorded as it is, and its format.

    Raises:
        ToolMissing, ToolFailed (also when QEMU has it open), ToolTimedOut; OSError when the file system is full
    """
    named = ["-b", ""] if backing is None else ["-b", _plain(backing[0]), "-F", backing[1]]
    _write(["qemu-img", "rebase", *named, _named(disk)], limits=_CONVERT)


def _named(source: Node) -> str:
    return f"json:{json.dumps(source)}"


def resize(path: Path, *, format: str, size: int) -> None:  # noqa: A002
    """Grow a disk to ``size`` bytes. Only its own file is opened: its backing chain may hold what nobody inspected.

    Raises:
        ToolMissing, ToolFailed (also when QEMU has it open), ToolTimedOut
    """
    alone = node(path, format=format) | ({"backing": None} if format == "qcow2" else {})
    run(["qemu-img", "resize", "-q", _named(alone), str(size)], limits=_CHANGE)


def _write(argv: Sequence[str], *, limits: Limits) -> None:
    """Run a command that writes; what it says of a full file system is the OSError that a write of our own would be."""
    try:
        run(argv, limits=limits)
    except ToolFailed as error:
        if os.strerror(errno.ENOSPC) in error.message:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def refuse_references(path: Path, *, format: str, what: str = "the image") -> ImageInfo:  # noqa: A002
    """Look at an untrusted image and refuse it when it names another file.

    A last line behind inspection, which refuses such an image before any tool opens it.

    Args:
        what: how messages call the image.

    Raises:
        UnsafeImage, ToolMissing, ToolFailed, ToolTimedOut
    """
    found = info(path, format=format)
    if found.backing is not None:
        raise UnsafeImage(what, rule="backing-file", why=f"it names the backing file {found.backing!r}")
    if found.data_file is not None:
        raise UnsafeImage(what, rule="data-file", why=f"it names the data file {found.data_file!r}")
    if strange := [name for name in found.extents if name != str(path)]:
        raise UnsafeImage(what, rule="vmdk-descriptor", why=f"it names the extent {strange[0]!r}")
    if found.encrypted:
        raise UnsafeImage(what, rule="encrypted", why="encrypted images are not supported")
    return found


def _plain(path: Path) -> str:
    # A relative name with a colon, or one that starts with "json:", would be read as a protocol; an absolute path never is.
    assert path.is_absolute()
    return str(path)
