"""A body as it is sent, from any byte on, of exactly the version that was described; one that stalls is given up.

Where a server does not serve from a byte on, the body is read from its beginning and what comes before that byte is dropped.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from underlay.contracts import ByteStream
from underlay.errors import SourceChanged, SourceUnavailable
from underlay.values import replace
from underlay.web.client import Answer, Web
from underlay.web.ranges import Wanted, check_version, open_ranges, range_length
from underlay.web.status import check_status
from underlay.web.validators import range_condition, validator_of, whole_length

_NOTHING: Mapping[str, str] = MappingProxyType({})
_PIECE = 1 << 20
_NOT_SATISFIABLE = 416


@contextmanager
def open_body(
    web: Web,
    what: str,
    url: str,
    *,
    offset: int = 0,
    size: int | None = None,
    validator: str | None = None,
    headers: Mapping[str, str] = _NOTHING,
    given_for: str | None = None,
    otherwise: str | None = None,
    proves_itself: bool = False,
) -> Iterator[ByteStream]:
    """The bytes of a body from ``offset`` on.

    Args:
        size: bytes of the whole body, when they are known.
        validator: of the version that is wanted (`underlay.web.validators`), when there is one.
        headers, given_for: as for `Web.answer`.
        otherwise: a URL to ask when ``url`` answers with an error, or not at all.
        proves_itself: the caller knows a digest of the whole, which tells bytes of two versions from those of one.

    Raises:
        SourceChanged: the server has another version. As `Web.answer` and `check_status`; while it is read:
        SourceUnavailable, BodyTruncated.
    """
    wanted = Wanted(what=what, url=url, size=size, validator=validator, headers=headers, given_for=given_for or url)
    is_one_version = proves_itself or validator is not None
    by_ranges = web.parallel > 1 and is_one_version and size is not None and size - offset > range_length(web)
    with ExitStack() as begun:
        yield _begun(begun, web, wanted, offset, by_ranges=by_ranges, otherwise=otherwise)


def _begun(begun: ExitStack, web: Web, wanted: Wanted, offset: int, *, by_ranges: bool, otherwise: str | None) -> ByteStream:
    try:
        if by_ranges and (ranges := begun.enter_context(open_ranges(web, wanted, offset))) is not None:
            return ranges
        answer = begun.enter_context(_answered(web, wanted, offset))
        if otherwise is None or answer.status < 400 or answer.status == _NOT_SATISFIABLE:
            return _stream(wanted, answer, offset)
    except SourceUnavailable:
        if otherwise is None:
            raise
    begun.close()
    return _stream(wanted, begun.enter_context(_answered(web, replace(wanted, url=otherwise), offset)), offset)


@contextmanager
def _answered(web: Web, wanted: Wanted, offset: int) -> Iterator[Answer]:
    ranged = {"Range": f"bytes={offset}-", **range_condition(wanted.validator)} if offset else {}
    headers = {**wanted.headers, **ranged}
    with web.answer(wanted.what, "GET", wanted.url, headers=headers, given_for=wanted.given_for) as answer:
        yield answer


def _stream(wanted: Wanted, answer: Answer, offset: int) -> ByteStream:
    if answer.status == _NOT_SATISFIABLE:
        if offset and offset in (wanted.size, whole_length(answer.headers)):
            return _Nothing()
        raise SourceChanged(f"{wanted.what} is not served from byte {offset} on any more", hint="try again")
    check_status(wanted.what, answer)
    if answer.status == 206 and not offset:
        raise SourceChanged(f"{wanted.what} is served in part only, although all of it was asked for")
    check_version(wanted, answer, start=offset)
    if answer.status == 200:
        _drop(answer, offset, wanted.what)
    is_named = wanted.validator in (None, validator_of(answer.headers, size=wanted.size))
    return answer if is_named else _Unconfirmed(answer)


def _drop(answer: Answer, length: int, what: str) -> None:
    buffer = memoryview(bytearray(min(length, _PIECE)))
    while length:
        received = answer.readinto(buffer[:length])
        if not received:
            raise SourceChanged(f"{what} has become shorter than it was", hint="try again")
        length -= received


@dataclass(frozen=True, slots=True)
class _Unconfirmed:
    """A body whose answer does not name the version that was described; see `underlay.contracts.UnconfirmedStream`."""

    answer: Answer
    is_unconfirmed: bool = True

    def readinto(self, buffer: memoryview, /) -> int:
        return self.answer.readinto(buffer)


@dataclass(frozen=True, slots=True)
class _Nothing:
    def readinto(self, _buffer: memoryview, /) -> int:
        return 0
