"""One body by several ranges at once: for far servers, each of whose connections is slow. In order, within bounded memory.

A range that takes much longer than the others is asked for once more on another connection, and the first to be whole counts.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from underlay.contracts import ByteStream
from underlay.errors import (
    BodyTruncated,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceError,
    SourceRefused,
    SourceUnavailable,
)
from underlay.threads import submit
from underlay.web.client import Answer, Web
from underlay.web.status import check_status
from underlay.web.validators import first_byte, is_other, range_condition, validator_of, whole_length

_STRAGGLES = 3.0  # times as long as the others
_PATIENCE = 0.5  # seconds at least before a range is called a straggler
MEMORY = 9 << 20
"""Bytes that all ranges under way may hold together: what the pipeline and a conversion behind them leave of 16 MiB."""
_READ = 128 << 10  # bytes at once: the client makes bytes of them before they get to where they belong
_REMEMBERED = 16  # ranges whose durations tell how long one takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A body that is wanted: see `underlay.web.body.open_body`."""

    what: str
    url: str = field(repr=False)
    size: int | None
    validator: str | None
    headers: Mapping[str, str] = field(repr=False)
    given_for: str = field(repr=False)


def check_version(wanted: Wanted, answer: Answer, *, start: int) -> None:
    """Make sure that an answer with content is of the version that is wanted, and from byte ``start`` on if it is a part.

    Raises:
        SourceChanged, SourceRefused
    """
    answer.check_encoding()
    if is_other(wanted.validator, answer.headers, size=wanted.size):
        raise SourceChanged(f"{wanted.what} changed after it was described", hint="try again")
    # What is put together of several answers must be of one version by each one's own word (RFC 9110, 15.3.7.3).
    is_part = start > 0 or answer.status == 206
    if is_part and wanted.validator not in (None, validator_of(answer.headers, size=wanted.size)):
        raise SourceChanged(f"{wanted.what} no longer says which version it is", hint="try again")
    if answer.status == 200:
        return
    if first_byte(answer.headers) != start or "Content-Range" not in answer.headers:
        raise SourceChanged(f"{wanted.what} is not served from byte {start} on")
    if wanted.size is not None and whole_length(answer.headers) not in (None, wanted.size):
        raise SourceChanged(f"{wanted.what} has another length than when it was described", hint="try again")


@contextmanager
def open_ranges(web: Web, wanted: Wanted, offset: int) -> Iterator[ByteStream | None]:
    """The bytes from ``offset`` on; None when the server does not answer with a range: then the whole tells why.

    Raises:
        as `underlay.web.body.open_body`
    """
    length = range_length(web)
    attempt = _Attempt(offset, offset + length)
    try:
        first = _range(web, wanted, attempt)
    except (ImageNotFound, NotAuthorized, SourceRefused):  # another place may have it, or the whole may be asked for
        first = None
    if first is None:
        yield None
        return
    # Not a context: that would wait for threads whose server has not answered yet, though nobody wants them any more.
    pool = ThreadPoolExecutor(web.parallel + 1, "underlay-range")
    ranges = _Ranges(web, wanted, pool, length, position=attempt.stop, piece=first)
    ranges.durations.append(first.seconds)
    try:
        yield ranges
    finally:
        ranges.end()


def range_length(web: Web) -> int:
    """Bytes of each range: less than is configured where so many at once would take more than `MEMORY`."""
    return min(web.range_size, MEMORY // (web.parallel + 2))


@dataclass(slots=True)
class _Piece:
    """What came of a range: from its first byte on, in how long, and why no more of it came if it broke."""

    content: memoryview
    seconds: float
    broke: SourceError | None = None


@dataclass(slots=True, eq=False)
class _Attempt:
    """One request for the bytes from ``start`` up to ``stop``."""

    start: int
    stop: int
    answer: Answer | None = None
    is_over: bool = False
    began: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        """Let it come to nothing; called from another thread than the one that reads."""
        self.is_over = True
        if self.answer is not None:
            self.answer.cut()


_Part = Future[_Piece | None]


@dataclass(slots=True)
class _Ranges:
    web: Web
    wanted: Wanted
    pool: ThreadPoolExecutor
    length: int
    position: int
    piece: _Piece
    under_way: deque[tuple[_Attempt, _Part]] = field(default_factory=deque)
    attempts: list[_Attempt] = field(default_factory=list)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def readinto(self, buffer: memoryview, /) -> int:
        if not self.piece.content and self.piece.broke is not None:
            raise self.piece.broke
        self._ask_ahead()
        if not self.piece.content and self.under_way:
            self.piece = self._next()
            self._ask_ahead()
        length = min(len(buffer), len(self.piece.content))
        buffer[:length] = self.piece.content[:length]
        self.piece.content = self.piece.content[length:]
        return length

    def end(self) -> None:
        for attempt in self.attempts:
            attempt.end()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _ask_ahead(self) -> None:
        assert self.wanted.size is not None
        while self.position < self.wanted.size and len(self.under_way) < self.web.parallel:
            stop = min(self.position + self.length, self.wanted.size)
            self.under_way.append(self._ask(self.position, stop))
            self.position = stop

    def _ask(self, start: int, stop: int) -> tuple[_Attempt, _Part]:
        attempt = _Attempt(start, stop)
        self.attempts.append(attempt)
        return attempt, submit(self.pool, _range, self.web, self.wanted, attempt)

    def _next(self) -> _Piece:
        attempt, part = self.under_way.popleft()
        tries = {part: attempt}
        if not wait([part], timeout=self._patience(attempt)).done:
            again, second = self._ask(attempt.start, attempt.stop)
            tries[second] = again
        piece = self._best(tries)
        for one in tries.values():
            one.end()
            self.attempts.remove(one)
        return piece

    def _best(self, tries: Iterable[_Part]) -> _Piece:
        """The first that is whole; when all of them broke, the one that got furthest."""
        left, broken = set(tries), []
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            for part in done:
                if part.exception() is not None and left:
                    continue
                piece = part.result()
                if piece is None:
                    raise SourceUnavailable(f"{self.wanted.what} is not served by ranges any more", hint="try again later")
                if piece.broke is None:
                    self.durations.append(piece.seconds)
                    return piece
                broken.append(piece)
        return max(broken, key=lambda piece: len(piece.content))

    def _patience(self, attempt: _Attempt) -> float | None:
        if not self.durations:
            return None
        allowed = max(_PATIENCE, _STRAGGLES * median(self.durations))
        return max(0.0, attempt.began + allowed - time.monotonic())


def _range(web: Web, wanted: Wanted, attempt: _Attempt) -> _Piece | None:
    """The bytes of one range; None when the server sends the whole body instead."""
    ranged = {"Range": f"bytes={attempt.start}-{attempt.stop - 1}", **range_condition(wanted.validator)}
    headers = {**wanted.headers, **ranged}
    with web.answer(wanted.what, "GET", wanted.url, headers=headers, given_for=wanted.given_for) as answer:
        attempt.answer = answer
        check_status(wanted.what, answer)
        if answer.status == 200:
            return None
        check_version(wanted, answer, start=attempt.start)
        return _read(wanted, attempt, answer)


def _read(wanted: Wanted, attempt: _Attempt, answer: Answer) -> _Piece:
    content = memoryview(bytearray(attempt.stop - attempt.start))
    done = 0
    try:
        while done < len(content):
            received = answer.readinto(content[done : done + _READ])
            if attempt.is_over:
                raise SourceUnavailable(f"{wanted.what}: the transfer was given up")
            if not received:
                raise BodyTruncated(f"{wanted.what}: a part ended before its announced length", hint="try again")
            done += received
    except (SourceUnavailable, BodyTruncated) as error:
        # What has come is passed on before that is told.
        return _Piece(content[:done], time.monotonic() - attempt.began, error)
    return _Piece(content, time.monotonic() - attempt.began)
