"""Encryption at rest: LUKS2 on a volume, whose opened side is a device in ``/dev/mapper``. A key is given to cryptsetup on its
standard input, and kept nowhere.

A key slot is derived by Argon2id with the parameters that RFC 9106 recommends where memory is short (64 MiB, four lanes), and a
pass more, as cryptsetup has four at least: its own choice takes a gigabyte for each disk that is opened.
"""

import os
from pathlib import Path

from underlay.disks.lvm import names
from underlay.disks.lvm.looking import HEADER_BYTES
from underlay.errors import DiskExists, DiskInUse, DiskNotFound
from underlay.run import Ended, Limits, failed, run, run_to_end

_LIMITS = Limits(seconds=300)
_WRONG_KEY, _NOT_ACTIVE, _BUSY = 2, 4, 5  # what cryptsetup(8) returns
_DERIVED = ["--pbkdf", "argon2id", "--pbkdf-memory", "65536", "--pbkdf-parallel", "4", "--pbkdf-force-iterations", "4"]
_SECTOR = 512


def encrypt(device: Path, key: bytes) -> None:
    """Make a volume one that is encrypted.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut
    """
    offset = ["--offset", str(HEADER_BYTES // _SECTOR)]
    words = ["luksFormat", "--batch-mode", "--type", "luks2", *offset, *_DERIVED]
    argv = ["cryptsetup", *words, "--key-file", "-", os.fspath(device)]
    ended = run_to_end(argv, limits=_LIMITS, content=key)
    if ended.status != 0:
        raise failed("cryptsetup", ended)


def is_opened(volume: str) -> bool:
    """Whether a volume's opened side is there."""
    return names.mapped(volume).exists()


def open_side(device: Path, volume: str, key: bytes) -> None:
    """Open a volume; one that is open already, and was made with this key, is a success.

    Raises:
        DiskExists: the key is not the one that it was made with. ToolMissing, ToolFailed, ToolTimedOut
    """
    is_there = ["--test-passphrase"] if is_opened(volume) else []
    # Without the kernel's keyring, so that it can be grown by who has not the key.
    words = ["open", "--type", "luks2", "--disable-keyring", *is_there, "--key-file", "-"]
    argv = ["cryptsetup", *words, os.fspath(device), *([] if is_there else [names.mapping(volume)])]
    ended = run_to_end(argv, limits=_LIMITS, content=key)
    if ended.status == _WRONG_KEY:
        raise DiskExists(f"the disk {device} exists, and the key given for it is not the one that it was made with")
    if ended.status != 0:
        raise failed("cryptsetup", ended)


def close_side(volume: str) -> None:
    """Close a volume's opened side; one that is not open is a success.

    Raises:
        DiskInUse; ToolMissing, ToolFailed, ToolTimedOut
    """
    if is_opened(volume):
        _settle(run_to_end(["cryptsetup", "close", names.mapping(volume)], limits=_LIMITS), volume)


def _settle(ended: Ended, volume: str) -> None:
    if ended.status == _BUSY:
        raise DiskInUse(f"{names.mapped(volume)} is in use", hint="stop who uses it: lsof, dmsetup info")
    if ended.status not in (0, _NOT_ACTIVE):
        raise failed("cryptsetup", ended)


def is_in_use(volume: str) -> bool:
    """Whether somebody has a volume's opened side open.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut
    """
    argv = ["dmsetup", "info", "--columns", "--noheadings", "-o", "open", names.mapping(volume)]
    return is_opened(volume) and int(run(argv, limits=_LIMITS)) > 0


def grow_side(volume: str) -> None:
    """Have a volume's opened side be as large as the volume.

    Raises:
        DiskNotFound: it is not open. ToolMissing, ToolFailed, ToolTimedOut
    """
    if not is_opened(volume):
        raise DiskNotFound(f"there is no {names.mapped(volume)}")
    run(["cryptsetup", "resize", names.mapping(volume)], limits=_LIMITS)


def erase(device: Path) -> None:
    """Destroy every key slot of a volume: from then on no key opens it. One that has no header any more is a success.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut
    """
    if run_to_end(["cryptsetup", "isLuks", device], limits=_LIMITS).status != 0:
        return
    run(["cryptsetup", "erase", "--batch-mode", device], limits=_LIMITS)
