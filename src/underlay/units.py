"""Sizes and durations as people write them. A number without a unit is refused: nobody has to guess what was meant."""

import re

from underlay.errors import InvalidSize

_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_DECIMAL_SIZES = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of ``20GiB``, ``1.5 MiB``, ``512B`` or ``10GB``.

    Raises:
        InvalidSize: no unit, an unknown unit, or no number.
    """
    return int(_parse(text, _SIZES | _DECIMAL_SIZES, what="size", example="20GiB"))


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
    """Bytes for people, three digits at most: ``1.4 GiB``."""
    value, unit = float(size), "B"
    for unit in _SIZES:
        if value < 1000 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Seconds for people: ``45 s``, ``3 min``, ``5 h``, ``12 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
