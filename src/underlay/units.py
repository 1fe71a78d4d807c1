"""Sizes and durations as people write them. A number without a unit is refused: nobody has to guess what was meant."""

import re

from underlay.errors import InvalidSize

_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_DECIMAL_SIZES = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_NUMBER = re.compile(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)\s*", re.ASCII)
_MOST_BYTES = 2**63 - 1  # a file's length is a signed 64-bit number


def parse_size(text: str) -> int:
    """Bytes of ``20GiB``, ``1.5 MiB``, ``512B`` or ``10GB``.

    Raises:
        InvalidSize: no unit, an unknown unit, no number, or more than a file can have.
    """
    size = int(_parse(text, _SIZES | _DECIMAL_SIZES, what="size", example="20GiB"))
    if size > _MOST_BYTES:
        raise InvalidSize(f"the size {text!r} is larger than any file")
    return size


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``5min``, ``24h``, ``7d`` or ``2w``.

    Raises:
        InvalidSize: no unit, an unknown unit, or no number.
    """
    return _parse(text, _SECONDS, what="duration", example="7d")


def _parse(text: str, units: dict[str, int], *, what: str, example: str) -> float:
    match = _NUMBER.fullmatch(text)
    if not match:
        raise InvalidSize(f"{text!r} is no {what}", hint=f"write a number and a unit, such as {example}")
    number, unit = match.groups()
    if not unit:
        raise InvalidSize(f"the {what} {text!r} has no unit", hint=f"write a unit as well, such as {example}")
    if unit not in units:
        raise InvalidSize(f"{unit!r} is no unit of a {what}", hint=f"use one of {', '.join(units)}")
    # Whole numbers stay exact: a float would lose bytes above 2**53.
    return float(number) * units[unit] if "." in number else int(number) * units[unit]


def format_size(size: int) -> str:
    """Bytes for people, three digits at most up to the largest unit: ``1.4 GiB``."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in list(_SIZES)[1:]:
        value /= 1024
        if value < 99.95:  # else it would be rounded to one digit more
            return f"{value:.1f} {unit}"
        if value < 999.5:
            return f"{value:.0f} {unit}"
    return f"{value:.0f} PiB"


def format_duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``3 min``, ``5 h``, ``12 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
