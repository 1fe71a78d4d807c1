"""Images to measure with."""

import os
from itertools import cycle
from pathlib import Path

from underlay.testing.bootimage import write_raw

_PIECE = 4 << 20


def write_dense(image: Path, size: int) -> Path:
    """Random bytes, without a hole; the same ones each time."""
    image.parent.mkdir(parents=True, exist_ok=True)
    write_raw(image, size=size, message="bench", payload=size - (1 << 20))
    return image


def write_small(image: Path) -> Path:
    """1 MiB, nearly all of it a hole, for rows whose time has nothing to do with the size."""
    image.parent.mkdir(parents=True, exist_ok=True)
    write_raw(image, size=1 << 20, message="bench")
    return image


def write_files(image: Path, size: int) -> None:
    """As a system's image is: half of it programs and text, for which this Python's own files stand; then nothing."""
    files = sorted(path for path in Path(os.__file__).parent.rglob("*") if path.is_file())
    with image.open("wb") as file:
        for path in cycle(files):
            if file.tell() >= size // 2:
                break
            file.write(path.read_bytes()[: size // 2 - file.tell()])
        file.truncate(size)


def write_with_holes(image: Path, size: int) -> None:
    """Three tenths of it data, in pieces of 4 MiB at even distances."""
    piece, number = os.urandom(_PIECE), max(1, size * 3 // 10 // _PIECE)
    with image.open("wb") as file:
        for turn in range(number):
            file.seek(turn * (size // number) // 4096 * 4096)
            file.write(piece)
        file.truncate(size)
