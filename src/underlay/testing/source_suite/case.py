"""One case of the suite, and how cases look at a source: what they read, what they expect to be refused, and what may be told.

A contract that is broken is an AssertionError, whose message says what the contract wants.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from underlay.contracts import ByteStream
from underlay.errors import SourceError, UnderlayError
from underlay.model import ImageVersion
from underlay.refs import parse_ref
from underlay.testing.expecting import expect as expect, expect_equal as expect_equal
from underlay.testing.source_suite.stage import Stage

_BUFFER = 64 << 10
_LEEWAY = 5.0  # seconds that a busy machine may add to a time-out


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that every source must do.

    Attributes:
        name: what must hold, in words.
        needs: what the place must be able to, of `underlay.testing.source_suite.stage.ABILITIES`.
    """

    name: str
    needs: frozenset[type]
    check: Callable[[Stage], None]

    def __str__(self) -> str:
        return self.name

    def run(self, stage: Stage) -> None:
        """Try it.

        Raises:
            AssertionError: the source breaks its contract.
            ValueError: the case needs what the stage says that it cannot.
        """
        if missing := self.needs & stage.cannot.keys():
            raise ValueError(f"{self.name} needs {_names(missing)}, which {type(stage).__name__} cannot")
        self.check(stage)


def case(*needs: type) -> Callable[[Callable[[Stage], None]], Case]:
    """Make a function the check of a case, which is called as the function is."""
    return lambda check: Case(check.__name__.replace("_", "-"), frozenset(needs), check)


# ------------------------------------------------------------------------------------------------------------ expectations


def expect_kept(stage: Stage, texts: Sequence[str], what: str) -> None:
    """None of the stage's secrets stands in one of these texts."""
    for text in texts:
        expect(not any(secret in text for secret in stage.secrets), f"{what} tells a secret")


@contextmanager
def refused(stage: Stage, *errors: type[UnderlayError]) -> Iterator[None]:
    """The block ends with one of these errors, and that tells no secret."""
    try:
        yield
    except UnderlayError as error:
        expect_error(stage, error, *errors)
        return
    raise AssertionError(f"expected {_names(errors)}, and nothing was raised")


def expect_error(stage: Stage, error: UnderlayError | None, *errors: type[UnderlayError]) -> None:
    """The error is one of these kinds, and tells no secret: neither itself nor what it came from."""
    if not isinstance(error, errors):
        raise AssertionError(f"expected {_names(errors)}, found {error!r}") from error
    expect_kept(stage, _told_by(error), f"the error {type(error).__name__}")


@contextmanager
def in_time(stage: Stage) -> Iterator[None]:
    """The block ends within the source's patience."""
    started = time.monotonic()
    yield
    elapsed = time.monotonic() - started
    expect(elapsed < stage.patience + _LEEWAY, f"the source gives up after {elapsed:.1f} s, not {stage.patience:g} s")


# ------------------------------------------------------------------------------------------------------------- looking on


@dataclass(frozen=True, slots=True)
class Transfer:
    """What came of a version's bytes, and the error that ended them, if one did."""

    content: bytes
    error: SourceError | None


def transfer(stage: Stage, version: ImageVersion, *, offset: int = 0, buffer: int = _BUFFER) -> Transfer:
    """Open a version and read it to its end or to its error, by so many bytes at a time."""
    content = bytearray()
    try:
        with stage.source.open(version, offset=offset) as stream:
            for piece in pieces(stream, buffer=buffer):
                content += piece
    except SourceError as error:
        expect_error(stage, error, SourceError)
        return Transfer(bytes(content), error)
    return Transfer(bytes(content), None)


def pieces(stream: ByteStream, *, buffer: int = _BUFFER) -> Iterator[bytes]:
    """What the stream gives, read by read, to its end."""
    view = memoryview(bytearray(buffer))
    while length := stream.readinto(view):
        expect(0 < length <= buffer, f"readinto returns {length} for a buffer of {buffer} bytes")
        yield bytes(view[:length])


def expect_whole(expected: bytes, found: Transfer, what: str) -> None:
    """The transfer ended well, with these bytes."""
    if found.error is not None:
        raise AssertionError(f"{what} is not given: {found.error}") from found.error
    expect_equal(expected, found.content, what)


def expect_beginning(whole: bytes, found: Transfer, what: str) -> None:
    """The transfer gave nothing but the first of these bytes."""
    expect(whole.startswith(found.content), f"{what} begins with other bytes than the image's")


def described(stage: Stage, ref: str) -> ImageVersion:
    """What the source says of the ref now."""
    return stage.source.describe(parse_ref(ref))


def sha256(content: bytes) -> str:
    """Its hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _told_by(error: BaseException | None) -> list[str]:
    """Everything that a log with a traceback would have of an error."""
    told: list[str] = []
    while error is not None:
        hint = cast("str | None", getattr(error, "hint", None))
        told += [str(error), repr(error), hint or ""]
        error = error.__cause__ or error.__context__
    return told


def _names(kinds: Sequence[type] | frozenset[type]) -> str:
    return " or ".join(sorted(kind.__name__ for kind in kinds))
