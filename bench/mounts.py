"""File systems of other kinds than the one that is worked on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import command


@contextmanager
def mounted(directory: Path, kind: str, size: int) -> Iterator[Path]:
    """A new file system of this kind, in a file of this size. Needs root."""
    where, device = directory / kind, directory / f"{kind}.device"
    where.mkdir()
    with device.open("wb") as file:
        file.truncate(size)
    command(f"mkfs.{kind}", "-q", device)
    command("mount", "-o", "loop", device, where)
    try:
        yield where
    finally:
        command("umount", where)
        device.unlink()
