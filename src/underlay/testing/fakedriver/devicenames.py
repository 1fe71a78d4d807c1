"""The names of a machine's devices: one letter after another."""

from collections.abc import Collection
from string import ascii_lowercase

from underlay.compute.errors import TooManyDiskDevices

MOST = len(ascii_lowercase)


def next_name(taken: Collection[str]) -> str:
    """The first name that is free, with ``/dev/``.

    Raises:
        TooManyDiskDevices
    """
    for letter in ascii_lowercase:
        if (name := f"/dev/vd{letter}") not in taken:
            return name
    raise TooManyDiskDevices(maximum=MOST)
