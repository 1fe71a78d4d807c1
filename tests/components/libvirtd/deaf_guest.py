"""A guest that stays and never notices that its power button is pressed."""

from pathlib import Path

from underlay.testing.bootimage import SMALLEST, write_raw

_IS_PRESSED = b"\xf6\xc4\x01"  # test ah, 1: whether the button was pressed
_NEVER = b"\xf6\xc4\x00"  # test ah, 0: which nothing is


def write_deaf(path: Path, *, message: str) -> None:
    """Write its image, as the shipped one that stays but for that look."""
    write_raw(path, size=SMALLEST, message=message, stays=True)
    content = path.read_bytes()
    assert 1 == content.count(_IS_PRESSED)
    path.write_bytes(content.replace(_IS_PRESSED, _NEVER))
