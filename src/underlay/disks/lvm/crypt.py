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
from underlay.files import device_bytes
from underlay.run import Ended, Limits, failed, run, run_to_end

_LIMITS = Limits(seconds=300)
_UNDISTURBED = Limits(seconds=300, is_left_to_end=True)  # of what suspends a device: who has it open would wait without end
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


def is_opened(device: Path) -> bool:
    """Whether a volume's opened side is there.

    Raises:
        DiskInUse: another volume's has its name.
    """
    side = names.mapped(device.name)
    try:
        numbers = _number(side)
    except FileNotFoundError:
        return False
    below = {path.read_text(encoding="ascii").strip() for path in Path(f"/sys/dev/block/{numbers}/slaves").glob("*/dev")}
    if not device.exists() or _number(device) not in below:
        hint = "see whose it is: dmsetup ls --tree; and close it: cryptsetup close"
        raise DiskInUse(f"{side} is there, and not of {device}", hint=hint)
    return True


def _number(device: Path) -> str:
    number = device.stat().st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def open_side(device: Path, key: bytes) -> None:
    """Open a volume; one that is open already, and was made with this key, is a success.

    Raises:
        DiskExists: the key is not the one that it was made with. DiskInUse, ToolMissing, ToolFailed, ToolTimedOut
    """
    is_there = ["--test-passphrase"] if is_opened(device) else []
    # Without the kernel's keyring, so that it can be grown by who has not the key.
    words = ["open", "--type", "luks2", "--disable-keyring", *is_there, "--key-file", "-"]
    argv = ["cryptsetup", *words, os.fspath(device), *([] if is_there else [names.mapping(device.name)])]
    ended = run_to_end(argv, limits=_LIMITS, content=key)
    if ended.status == _WRONG_KEY:
        raise DiskExists(f"the disk {device} exists, and the key given for it is not the one that it was made with")
    if ended.status != 0:
        raise failed("cryptsetup", ended)


def close_side(device: Path) -> None:
    """Close a volume's opened side; one that is not open is a success.

    Raises:
        DiskInUse; ToolMissing, ToolFailed, ToolTimedOut
    """
    if is_opened(device):
        _settle(run_to_end(["cryptsetup", "close", names.mapping(device.name)], limits=_UNDISTURBED), device)


def _settle(ended: Ended, device: Path) -> None:
    if ended.status == _BUSY:
        raise DiskInUse(f"{names.mapped(device.name)} is in use", hint="stop who uses it: lsof, dmsetup info")
    if ended.status not in (0, _NOT_ACTIVE):
        raise failed("cryptsetup", ended)


def is_in_use(device: Path) -> bool:
    """Whether somebody has a volume's opened side open.

    Raises:
        DiskInUse, ToolMissing, ToolFailed, ToolTimedOut
    """
    argv = ["dmsetup", "info", "--columns", "--noheadings", "-o", "open", names.mapping(device.name)]
    return is_opened(device) and int(run(argv, limits=_LIMITS)) > 0


def side_bytes(device: Path) -> int:
    """The size of a volume's opened side.

    Raises:
        DiskNotFound: it is not open. DiskInUse
    """
    _check_opened(device)
    fd = os.open(names.mapped(device.name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return device_bytes(fd)
    finally:
        os.close(fd)


def grow_side(device: Path) -> None:
    """Have a volume's opened side be as large as the volume.

    Raises:
        DiskNotFound: it is not open. DiskInUse, ToolMissing, ToolFailed, ToolTimedOut
    """
    _check_opened(device)
    run(["cryptsetup", "resize", names.mapping(device.name)], limits=_UNDISTURBED)


def _check_opened(device: Path) -> None:
    if not is_opened(device):
        raise DiskNotFound(f"there is no {names.mapped(device.name)}")


def erase(device: Path) -> None:
    """Destroy every key slot of a volume: from then on no key opens it. One that has no header any more is a success.

    Raises:
        ToolMissing, ToolFailed, ToolTimedOut
    """
    if run_to_end(["cryptsetup", "isLuks", device], limits=_LIMITS).status != 0:
        return
    run(["cryptsetup", "erase", "--batch-mode", device], limits=_LIMITS)
