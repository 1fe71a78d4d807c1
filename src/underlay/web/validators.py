"""What tells two bodies of one URL apart: a strong ETag, else a date that is old enough to tell (RFC 9110, 8.8).

A *validator* is our text for one: ``etag:"…"``, or ``modified:DATE;length:N;WEAK-ETAG``. Two equal ones mean the same bytes.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from email.utils import parsedate_to_datetime

ETAG, MODIFIED = "etag:", "modified:"
_LONGEST_LENGTH = 18  # digits of a length in bytes that we take for one


def validator_of(headers: Mapping[str, str], *, size: int | None) -> str | None:
    """The validator that an answer brings; None when it brings none that is strong."""
    etag = headers.get("ETag", "")
    if etag.startswith('"'):
        return f"{ETAG}{etag}"
    modified = headers.get("Last-Modified")
    if modified is None or not _is_settled(modified, headers.get("Date")):
        return None
    return f"{MODIFIED}{modified};length:{size};{etag}"


def condition(known: Sequence[str]) -> dict[str, str]:
    """The fields that ask whether what these validators meant has changed. A strong ETag tells more than a date."""
    if etags := [validator.removeprefix(ETAG) for validator in known if validator.startswith(ETAG)]:
        return {"If-None-Match": ", ".join(etags)}
    # Where a length is known, a plain question is answered with it too, and costs no more.
    dates = [date_of(one) for one in known if one.startswith(MODIFIED) and ";length:None;" in one]
    return {"If-Modified-Since": dates[-1]} if dates else {}


def range_condition(validator: str | None) -> dict[str, str]:
    """The field that binds a range to one version (RFC 9110, 13.1.5)."""
    if validator is None:
        return {}
    return {"If-Range": validator.removeprefix(ETAG) if validator.startswith(ETAG) else date_of(validator)}


def unchanged_validator(headers: Mapping[str, str], known: Sequence[str]) -> str | None:
    """The known validator that a 304 means; None when it names no ETag and no date that is known here."""
    etags = [validator for validator in known if validator.startswith(ETAG)]
    named = headers.get("ETag")
    if etags:
        # A server shall name the ETag (RFC 9110, 15.4.5). Where it does not, all of those asked about meant one version.
        meant = etags[-1] if named is None else f"{ETAG}{named}"
        return meant if meant in etags else None
    modified = headers.get("Last-Modified")
    found = [validator for validator in known if validator.startswith(MODIFIED) and date_of(validator) == modified]
    return found[-1] if found else None


def is_other(validator: str | None, headers: Mapping[str, str], *, size: int | None) -> bool:
    """Whether an answer tells by a validator of the same kind that it is another version.

    Its length is not compared: a HEAD may leave it out, and one that is wrong shows when the body has another.
    """
    sent = validator_of(headers, size=size)
    if validator is None or sent is None or sent.partition(":")[0] != validator.partition(":")[0]:
        return False
    return sent != validator


def date_of(validator: str) -> str:
    """The date in a validator that has one."""
    return validator.removeprefix(MODIFIED).partition(";")[0]


def body_length(headers: Mapping[str, str]) -> int | None:
    """Bytes of the body that are announced."""
    # A body that comes in chunks has no other length (RFC 9112, 6.3).
    return None if "Transfer-Encoding" in headers else _number(headers.get("Content-Length", ""))


def whole_length(headers: Mapping[str, str]) -> int | None:
    """Bytes of the whole of which a part is sent (RFC 9110, 14.4)."""
    return _number(headers.get("Content-Range", "").rpartition("/")[2])


def first_byte(headers: Mapping[str, str]) -> int | None:
    """Where in the whole body this answer begins (RFC 9110, 14.4)."""
    unit, _, span = headers.get("Content-Range", "bytes 0-").strip().partition(" ")
    return _number(span.partition("-")[0].strip()) if unit.lower() == "bytes" else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LONGEST_LENGTH else None


def _is_settled(modified: str, date: str | None) -> bool:
    """Whether a Last-Modified is strong: older than the answer by more than its own resolution (RFC 9110, 8.8.2.2)."""
    try:
        return date is not None and parsedate_to_datetime(date) - parsedate_to_datetime(modified) > timedelta(seconds=1)
    except (TypeError, ValueError, OverflowError):
        return False
