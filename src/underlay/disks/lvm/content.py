"""The bytes of a volume: filled from a file or another volume, and cleared.

What a volume of its own extents held before is another's, so all that is not written is overwritten with zeros. A thin volume
reads as zeros where nobody wrote, so zeros are left out.
"""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from underlay.files import device_bytes, open_regular, read_full, write_at, zero_out
from underlay.run import Limits, run
from underlay.stream import BLOCK_BYTES, block_ranges, filled_runs

_PIECE = 4 << 20
_SECTORS = 4096  # bytes: no disk has larger ones
_SHRED = Limits(seconds=7 * 24 * 3600, dies_with_caller=True)


def write_file(source: Path, device: Path, *, size: int, skips_zeros: bool) -> int:
    """Fill a volume with the first ``size`` bytes of a raw file, and zeros behind them; on return they are durable.

    Returns:
        How many bytes were written that are of the file.

    Args:
        skips_zeros: the volume reads as zeros where nobody wrote.

    Raises:
        OSError
    """
    fd = open_regular(source)
    try:
        return _write(fd, block_ranges(fd, 0, size), device, skips_zeros=skips_zeros)
    finally:
        os.close(fd)


def write_volume(source: Path, device: Path) -> None:
    """Fill a volume of its own extents with what another one shows, and zeros behind that; on return they are durable.

    Raises:
        OSError
    """
    with opened(source, os.O_RDONLY) as fd:
        _write(fd, _filled(fd), device, skips_zeros=False)


def _filled(fd: int) -> Iterator[tuple[int, int]]:
    """Where a device has blocks that are not all zero: nothing tells it but reading."""
    buffer = memoryview(bytearray(_PIECE))
    position = 0
    while length := read_full(fd, buffer, position):
        yield from ((position + start, position + end) for start, end in filled_runs(buffer[:length]))
        position += length


def _write(source: int, ranges: Iterable[tuple[int, int]], device: Path, *, skips_zeros: bool) -> int:
    with opened(device, os.O_RDWR) as target:
        done = written = 0
        for start, end in ranges:
            if not skips_zeros:
                zero_out(target, done, start)
            written += _copy(source, target, start, end, skips_zeros=skips_zeros)
            done = _whole_sectors(end)
        if not skips_zeros:
            zero_out(target, done, device_bytes(target))
        os.fsync(target)
        return written


def _whole_sectors(size: int) -> int:
    return -(-size // _SECTORS) * _SECTORS


def _copy(source: int, target: int, start: int, end: int, *, skips_zeros: bool) -> int:
    """Copy a range, with zeros up to the end of its last sector; the bytes that were written."""
    written = 0
    buffer = memoryview(bytearray(min(_PIECE, -(-(end - start) // BLOCK_BYTES) * BLOCK_BYTES)))
    while start < end:
        length = read_full(source, buffer[: end - start], start)
        if length == 0:
            raise OSError(errno.EIO, f"the source ended at byte {start} while it was copied")
        padded = _whole_sectors(length)
        buffer[length:padded] = bytes(padded - length)
        for first, last in filled_runs(buffer[:padded]) if skips_zeros else [(0, padded)]:
            write_at(target, buffer[first:last], start + first)
            written += last - first
        start += padded
    return written


def allocated(source: Path, *, size: int) -> int:
    """Bytes that a thin volume takes at most for the first ``size`` bytes of a raw file.

    Raises:
        OSError
    """
    fd = open_regular(source)
    try:
        return sum(end - start for start, end in block_ranges(fd, 0, size))
    finally:
        os.close(fd)


def write_zeros(device: Path, start: int) -> None:
    """Have a device hold zeros from a byte on; on return that is durable.

    Raises:
        OSError
    """
    with opened(device, os.O_RDWR) as fd:
        zero_out(fd, start, device_bytes(fd))
        os.fsync(fd)


def clear(device: Path, *, uuid: str, how: str, size: int | None) -> None:
    """Overwrite what a guest wrote.

    Args:
        uuid: of the volume; the device of another one is left alone.
        how: zero or shred. size: bytes from the beginning; None: all.

    Raises:
        OSError: EBUSY: somebody claims the device. ESTALE: it is another's; ToolMissing, ToolFailed
    """
    with opened(device, os.O_RDWR | os.O_EXCL) as fd:
        _check_uuid(fd, uuid)
        whole = device_bytes(fd)
        length = whole if size is None else min(whole, _whole_sectors(size))
        if how == "zero":
            zero_out(fd, 0, length)
            os.fsync(fd)
        if how == "shred":  # by what is open here: the name may become another's
            run(["shred", "-n3", f"-s{length}", f"/proc/{os.getpid()}/fd/{fd}"], limits=_SHRED)


def _check_uuid(fd: int, uuid: str) -> None:
    """See to it that a device is the volume's: LVM calls it ``LVM-``, and both uuids, of the group and of the volume."""
    number = os.fstat(fd).st_rdev
    told = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/dm/uuid").read_text(encoding="ascii")
    if not told.strip().endswith(uuid.replace("-", "")):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@contextmanager
def opened(device: Path, flags: int) -> Iterator[int]:
    """A device, open while the block lasts.

    Raises:
        OSError
    """
    fd = os.open(device, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
