"""How single values of a configuration are read: paths, sizes, durations, names. A wrong one is told with its key."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from underlay.errors import InvalidName, InvalidSize
from underlay.naming import plain_name
from underlay.units import parse_duration, parse_size

_Parsed = TypeVar("_Parsed", int, float)

ADDRESS = r"(?!-)[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:]{2,39}"
"""What names a host or is its address, as a regular expression: nothing that could be more than that in a URI."""


class WrongValue(Exception):
    """A value that its key cannot have; whoever reads the file adds its name."""

    def __init__(self, key: str, what: str, *, hint: str | None = None) -> None:
        super().__init__(f"{key}: {what}")
        self.hint = hint


def absolute(text: str, key: str) -> Path:
    """A path: absolute and plain, because a service has no directory to start from."""
    path = Path(text)
    if not path.is_absolute() or text.startswith("//") or ".." in path.parts or re.search(r"[\x00-\x1f\x7f]", text):
        raise WrongValue(key, f"{text!r} is not a plain absolute path", hint="begin with '/', and leave '..' out")
    return path


def optional_path(text: str | None, key: str) -> Path | None:
    """As `absolute`; None when there is none."""
    return None if text is None else absolute(text, key)


def web_address(text: str, key: str) -> str:
    """An http or https URL of a service, without credentials."""
    try:
        url = urlsplit(text)
        is_address = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port > 0)
    except ValueError:
        is_address = False
    if not is_address or "@" in text or re.search(r"[\s?#]", text):  # it may hold a password, so it is not repeated
        raise WrongValue(key, "one is no plain http or https URL", hint="write https://HOST:PORT/PATH, without a user")
    return text


def size(value: str | int, key: str) -> int:
    """Bytes, of a text with a unit."""
    return _with_unit(parse_size, value, key)


def optional_size(value: str | int | None, key: str) -> int | None:
    """As `size`; None when there is none."""
    return None if value is None else size(value, key)


def optional_positive_size(value: str | int | None, key: str) -> int | None:
    """As `size`, and more than none; None when there is none."""
    found = optional_size(value, key)
    if found == 0:
        raise WrongValue(key, f"{value!r} is nothing at all", hint="leave it out for all")
    return found


def duration(value: str | int, key: str) -> float:
    """Seconds, of a text with a unit."""
    return _with_unit(parse_duration, value, key)


def positive(value: str | int, key: str) -> float:
    """As `duration`, and more than none."""
    seconds = duration(value, key)
    if seconds <= 0:
        raise WrongValue(key, f"{value!r} leaves no time at all")
    return seconds


def name(text: str, key: str, *, what: str) -> str:
    """A plain name."""
    try:
        return plain_name(text, what=what)
    except InvalidName as error:
        raise WrongValue(key, str(error), hint=error.hint) from error


def _with_unit(parse: Callable[[str], _Parsed], value: str | int, key: str) -> _Parsed:
    try:
        return parse(str(value))  # a bare number has no unit, which the parsers say
    except InvalidSize as error:
        raise WrongValue(key, str(error), hint=error.hint) from error
