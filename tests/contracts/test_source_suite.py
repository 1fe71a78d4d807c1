"""The conformance suite itself: sources that do one thing wrong each, and what finds it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from source_stages import FakeStage

from underlay.contracts import ByteStream
from underlay.errors import BodyTruncated, ImageNotFound, NotAuthorized, SourceUnavailable, UnderlayError
from underlay.model import Digest, ImageRef, ImageVersion
from underlay.testing.fakes import FakeSource
from underlay.testing.source_suite import ABILITIES, CASES, Cut, Stalled, Trouble, Withdrawn, cases, impossible
from underlay.values import replace


def case_of(name: str) -> Any:
    (found,) = (case for case in CASES if str(case) == name)
    return found


class TooLong(FakeSource):
    """Announces a byte more than there is."""

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        version = super().describe(ref)
        return replace(version, size=(version.size or 0) + 1)


class Promising(FakeSource):
    """Promises a digest that the content does not have."""

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        return replace(super().describe(ref), digests=(Digest("md5", "0" * 32),))


class Restless(FakeSource):
    """Has another validator each time."""

    count = 0

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        self.count += 1
        return replace(super().describe(ref), validator=str(self.count))


class Immovable(FakeSource):
    """Has the same validator for everything."""

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        return replace(super().describe(ref), validator="same")


class Agreeing(FakeSource):
    """Says that whatever is known is still true."""

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        version = super().describe(ref)
        return replace(version, validator=known[-1]) if known else version


class Nameless(FakeSource):
    """Names every version of a ref alike."""

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        return ref.canonical


class Asking(FakeSource):
    """Cannot tell an id without asking the place."""

    def version_id(self, ref: ImageRef, sha256: str) -> str:
        self.describe(ref)
        return super().version_id(ref, sha256)


class Generous(FakeSource):
    """Describes what does not exist."""

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        try:
            return super().describe(ref)
        except ImageNotFound:
            return ImageVersion(ref=ref)


class Beginning(FakeSource):
    """Begins at the first byte whatever is asked for."""

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[Any]:
        with super().open(version) as stream:
            yield stream


class Endless(FakeSource):
    """Fails where nothing is left to give."""

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[Any]:
        if offset == version.size:
            raise NotAuthorized(f"{version.ref} has no byte {offset}")
        with super().open(version, offset=offset) as stream:
            yield stream


class Current(FakeSource):
    """Gives what there is now in place of what was described."""

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[Any]:
        with super().open(super().describe(version.ref), offset=offset) as stream:
            yield stream


class Soothing(FakeSource):
    """Swallows what its reader raises."""

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[Any]:
        with suppress(Exception), super().open(version, offset=offset) as stream:
            yield stream


@dataclass(slots=True)
class Spoiled:
    """A stream that goes through somebody's hands."""

    stream: ByteStream

    def readinto(self, buffer: memoryview, /) -> int:
        length = self.stream.readinto(buffer)
        if length:
            buffer[length - 1] ^= 1
        return length


@dataclass(slots=True)
class Ended:
    """A stream that takes every error for the end."""

    stream: ByteStream

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self.stream.readinto(buffer)
        except (BodyTruncated, SourceUnavailable):
            return 0


@dataclass(slots=True)
class Copied:
    """A stream that says it has been cloned when it has not."""

    stream: ByteStream

    def readinto(self, buffer: memoryview, /) -> int:
        return self.stream.readinto(buffer)

    def clone_into(self, target: int) -> bool:
        return os.write(target, b"something") > 0


class Cloning(FakeSource):
    """Clones something else."""

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[Any]:
        with super().open(version, offset=offset) as stream:
            yield Copied(stream)


class Spoiling(FakeSource):
    """Changes a byte of each piece."""

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[Any]:
        with super().open(version, offset=offset) as stream:
            yield Spoiled(stream)


class Content(FakeSource):
    """Ends quietly where the transfer breaks off."""

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[Any]:
        with super().open(version, offset=offset) as stream:
            yield Ended(stream)


class Shared(FakeSource):
    """Has one stream for everybody."""

    stream: ByteStream | None = None

    @contextmanager
    def open(self, version: ImageVersion, *, offset: int = 0) -> Iterator[Any]:
        with super().open(version, offset=offset) as stream:
            self.stream = self.stream or stream
            yield self.stream


class Failing(FakeSource):
    """Fails in its own way: see `meant`."""

    @classmethod
    def meant(cls, error: UnderlayError) -> BaseException:
        raise NotImplementedError

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        try:
            return super().describe(ref)
        except UnderlayError as error:
            raise self.meant(error) from error


class Vague(Failing):
    """Does not say of which image."""

    @classmethod
    def meant(cls, error: UnderlayError) -> BaseException:
        return type(error)("something went wrong", hint="try again")


class Confused(Failing):
    """Takes what is missing for what is forbidden, and the other way round."""

    @classmethod
    def meant(cls, error: UnderlayError) -> BaseException:
        return (NotAuthorized if isinstance(error, ImageNotFound) else ImageNotFound)(error.message, hint=error.hint)


class Foreign(Failing):
    """Lets its library's errors through."""

    @classmethod
    def meant(cls, error: UnderlayError) -> BaseException:
        return ConnectionError(error.message)


class Slip(Failing):
    """Has a password in what an error came from, though not in the error."""

    @classmethod
    def meant(cls, error: UnderlayError) -> BaseException:
        made = type(error)(error.message, hint=error.hint)
        made.__cause__ = ConnectionError("GET https://user:hunter2@fake.example/image")
        return made

    def describe(self, ref: ImageRef, *, known: Sequence[str] = ()) -> ImageVersion:
        try:
            return FakeSource.describe(self, ref)
        except UnderlayError as error:
            found = self.meant(error)
        raise found


SPOILED: Sequence[tuple[str, type[FakeSource]]] = (
    ("a-description-tells-the-size-and-only-digests-that-are-right", TooLong),
    ("a-description-tells-the-size-and-only-digests-that-are-right", Promising),
    ("two-descriptions-of-the-same-are-the-same", Restless),
    ("other-content-has-another-validator", Immovable),
    ("a-known-validator-is-told-again-and-an-unknown-one-never", Agreeing),
    ("a-version-has-one-id-and-other-content-another", Nameless),
    ("an-id-is-told-without-asking-anybody", Asking),
    ("an-unsafe-ref-leads-nowhere", Generous),
    ("a-version-is-given-from-any-of-its-bytes-on", Beginning),
    ("at-the-end-there-is-nothing-and-it-is-no-error", Endless),
    ("what-was-described-is-given-or-changed-and-never-something-else", Current),
    ("an-error-of-the-reader-passes-as-it-is", Soothing),
    ("a-version-is-given-whole", Spoiling),
    ("a-transfer-that-is-cut-off-is-truncated", Content),
    ("two-streams-of-one-thread-do-not-disturb-each-other", Shared),
    ("a-stream-that-can-be-cloned-gives-the-version-or-nothing", Cloning),
    ("a-missing-image-is-not-found", Confused),
    ("a-forbidden-image-is-not-authorized", Vague),
    ("a-place-that-is-away-is-unavailable-and-named-with-the-reason", Slip),
)


@pytest.mark.parametrize(("name", "source"), SPOILED, ids=[source.__name__ for _, source in SPOILED])
def test_a_source_that_does_one_thing_wrong_is_found_out(name: str, source: type[FakeSource]) -> None:
    case_of(name).run(FakeStage(secrets=("hunter2",)))
    with pytest.raises((AssertionError, UnderlayError)):
        case_of(name).run(FakeStage(fake=source(), secrets=("hunter2",)))


def test_an_error_that_is_not_of_the_tree_passes_as_what_it_is() -> None:
    with pytest.raises(ConnectionError, match="does not exist"):
        case_of("a-missing-image-is-not-found").run(FakeStage(fake=Foreign()))


def test_a_stall_that_is_taken_for_the_end_is_found_out() -> None:
    with pytest.raises(AssertionError, match="expected SourceUnavailable"):
        case_of("a-transfer-that-stalls-is-given-up").run(FakeStage(fake=Content()))


def test_what_is_broken_is_said_in_words() -> None:
    with pytest.raises(AssertionError, match=r"the size is 100004, not 100003"):
        case_of("a-description-tells-the-size-and-only-digests-that-are-right").run(FakeStage(fake=TooLong()))
    with pytest.raises(AssertionError, match=r"the image: expected 300007 bytes with sha256:\w+…, found 300007 bytes"):
        case_of("a-version-is-given-whole").run(FakeStage(fake=Spoiling()))


# --------------------------------------------------------------------------------------------------- what a stage cannot have


class Narrow(FakeStage):
    """A stage that cannot make two of the troubles."""

    cannot: ClassVar[Mapping[type, str]] = {Cut: "it is never cut off", Stalled: "it never stalls"}


class Unknowing(FakeStage):
    cannot: ClassVar[Mapping[type, str]] = {dict: "what is that?"}


class Silenced(FakeStage):
    cannot: ClassVar[Mapping[type, str]] = {Withdrawn: " "}


def test_cases_that_a_stage_cannot_set_up_are_not_made_and_have_their_reason() -> None:
    left_out = impossible(Narrow)
    assert {case for case in CASES if case.needs & {Cut, Stalled}} == set(left_out)
    assert {"it is never cut off", "it never stalls"} == set(left_out.values())
    assert set(CASES) - set(left_out) == set(cases(Narrow))


def test_a_case_that_a_stage_cannot_set_up_is_no_success() -> None:
    with pytest.raises(ValueError, match="needs Cut, which Narrow cannot"):
        case_of("a-transfer-that-is-cut-off-is-truncated").run(Narrow())


@pytest.mark.parametrize("stage", [Unknowing, Silenced])
def test_what_a_stage_cannot_have_is_known_and_has_a_reason(stage: type[FakeStage]) -> None:
    with pytest.raises(ValueError, match=r"none of the suite's abilities|does not say why"):
        cases(stage)


def test_no_case_is_forgotten_or_there_twice() -> None:
    """A case that its module does not list would never be run."""
    from underlay.testing.source_suite import arriving, changing, describing, failing, opening
    from underlay.testing.source_suite.case import Case

    modules = (describing, opening, changing, failing, arriving)
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Case)]
    assert {case.name for case in found} == {case.name for case in CASES}
    assert len(CASES) == len({case.name for case in CASES})


def test_every_ability_is_needed_by_some_case_and_every_need_is_an_ability() -> None:
    assert set(ABILITIES) == {need for case in CASES for need in case.needs}
    assert set(Trouble.__args__) < set(ABILITIES)
