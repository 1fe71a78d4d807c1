"""Cases about places that fail, and about refs that must lead nowhere: what each error is, and that it says enough."""

from random import Random

from underlay.errors import (
    BadInput,
    BodyTooLong,
    BodyTruncated,
    ImageNotFound,
    NotAuthorized,
    SourceChanged,
    SourceError,
    SourceRefused,
    SourceUnavailable,
    UnderlayError,
)
from underlay.refs import parse_ref
from underlay.testing.source_suite.case import (
    Case,
    case,
    described,
    expect,
    expect_beginning,
    expect_equal,
    expect_error,
    expect_whole,
    in_time,
    pieces,
    refused,
    transfer,
)
from underlay.testing.source_suite.stage import Announced, Away, Cut, Forbidden, Silent, Slow, Stage, Stalled, Withdrawn

_CONTENT = Random(10).randbytes(300_007)
_AFTER = 100_000
_CONTROLS = ("\0", "\n", "\r\n", "\x1b[2J", "\x7f")


@case(Withdrawn)
def a_missing_image_is_not_found(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    with stage.trouble(ref, Withdrawn()):
        for _ in range(2):
            error = _description_error(stage, ref, ImageNotFound)
            expect(not error.transient, "a missing image is said to be worth another try")
            _expect_named(ref, error)


@case(Forbidden)
def a_forbidden_image_is_not_authorized(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    with stage.trouble(ref, Forbidden()):
        error = _description_error(stage, ref, NotAuthorized)
        expect(not error.transient, "a forbidden image is said to be worth another try")
        expect(error.hint, "the error about missing rights has no hint")
        _expect_named(ref, error)


@case(Forbidden)
def an_image_that_is_forbidden_after_its_description_is_not_authorized(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    version = described(stage, ref)
    with stage.trouble(ref, Forbidden()):
        for offset in (0, _AFTER):
            found = transfer(stage, version, offset=offset)
            expect_error(stage, found.error, NotAuthorized)
            expect_equal(b"", found.content, "what is given of a forbidden image")


@case(Away)
def a_place_that_is_away_is_unavailable_and_named_with_the_reason(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    version = described(stage, ref)
    with stage.trouble(ref, Away()), in_time(stage):
        found = transfer(stage, version)
        for error in (_description_error(stage, ref, SourceUnavailable), found.error):
            expect_error(stage, error, SourceUnavailable)
            assert error is not None
            expect(error.transient, "an absent place is said not to be worth another try")
            _expect_named(ref, error)
            expect(stage.place in error.message, f"the error does not name {stage.place}: {error.message}")
            why = error.message.replace(parse_ref(ref).canonical, "").replace(stage.place, "")
            expect(any(character.isalpha() for character in why), f"the error has no reason: {error.message}")


@case(Away)
def a_place_that_is_back_serves_as_before(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    version = described(stage, ref)
    with stage.source.open(version) as stream:
        next(pieces(stream, buffer=1))  # which leaves a connection behind that is dead later
    expect_whole(_CONTENT, transfer(stage, version), "the image before")
    with stage.trouble(ref, Away()), refused(stage, SourceUnavailable):
        described(stage, ref)
    expect_equal(version.validator, described(stage, ref).validator, "the validator after the place is back")
    expect_whole(_CONTENT, transfer(stage, version), "the image after the place is back")


@case(Silent)
def a_place_that_says_nothing_is_given_up(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    version = described(stage, ref)
    with stage.trouble(ref, Silent()):
        with in_time(stage):
            _expect_named(ref, _description_error(stage, ref, SourceUnavailable))
        with in_time(stage):
            found = transfer(stage, version)
        expect_error(stage, found.error, SourceUnavailable)
        expect_equal(b"", found.content, "what is given by a place that says nothing")


@case(Stalled)
def a_transfer_that_stalls_is_given_up(stage: Stage) -> None:
    for after in (0, _AFTER):
        ref = stage.put(_CONTENT)
        version = described(stage, ref)
        with stage.trouble(ref, Stalled(after=after)), in_time(stage):
            found = transfer(stage, version)
        expect_error(stage, found.error, SourceUnavailable)
        expect_beginning(_CONTENT[:after], found, "the stalled transfer")
        assert found.error is not None
        _expect_named(ref, found.error)


@case(Slow)
def what_is_slow_and_comes_steadily_comes_whole(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    version = described(stage, ref)
    with stage.trouble(ref, Slow(rate=len(_CONTENT))):
        expect_whole(_CONTENT, transfer(stage, version), "the slow image")


@case(Cut)
def a_transfer_that_is_cut_off_is_truncated(stage: Stage) -> None:
    for after in (0, 1, _AFTER, len(_CONTENT) - 1):
        ref = stage.put(_CONTENT)
        version = described(stage, ref)
        with stage.trouble(ref, Cut(after=after)):
            found = transfer(stage, version)
        expect_beginning(_CONTENT, found, "the transfer that is cut off")
        if found.error is not None:
            expect_error(stage, found.error, BodyTruncated, SourceUnavailable)
            expect(found.error.transient, "a broken transfer is said not to be worth another try")
            _expect_named(ref, found.error)
        elif version.size is not None:  # a source may ask for an image in parts that are too small to be cut off
            expect_equal(_CONTENT, found.content, "the image that is cut off without an error")


@case(Cut)
def what_is_cut_off_again_and_again_can_be_resumed_to_its_end(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    version, content = described(stage, ref), b""
    with stage.trouble(ref, Cut(after=_AFTER)):
        while len(content) < len(_CONTENT):
            found = transfer(stage, version, offset=len(content))
            if found.error is not None:
                expect_error(stage, found.error, BodyTruncated, SourceUnavailable)
            expect(found.content, f"resuming at byte {len(content)} brings nothing: {found.error}")
            content += found.content
    expect_equal(_CONTENT, content, "the resumed image")


@case(Announced)
def what_is_longer_than_announced_is_never_other_bytes(stage: Stage) -> None:
    found = _announced(stage, len(_CONTENT) - 1_000)
    expect(found is None or isinstance(found, SourceError), f"it is {found!r}")


@case(Announced)
def what_is_shorter_than_announced_is_never_other_bytes(stage: Stage) -> None:
    found = _announced(stage, len(_CONTENT) + 1_000)
    expect(found is None or isinstance(found, BodyTruncated | SourceUnavailable | SourceChanged), f"it is {found!r}")


@case()
def a_ref_with_control_characters_is_none(stage: Stage) -> None:
    ref = stage.put(_CONTENT)
    for control in _CONTROLS:
        for text in (f"{ref[:-1]}{control}{ref[-1]}", ref.replace(":", f":{control}", 1)):
            with refused(stage, BadInput):
                parse_ref(text)


@case()
def an_unsafe_ref_leads_nowhere(stage: Stage) -> None:
    """By `parse_ref`, or by the source: nothing is described, so nothing can be opened."""
    expect(stage.unsafe_refs, "the stage names no unsafe ref")
    for text in stage.unsafe_refs:
        with refused(stage, BadInput, SourceRefused, ImageNotFound, NotAuthorized):
            version = described(stage, text)
            raise AssertionError(f"{version.ref} is described")


def _description_error(stage: Stage, ref: str, *errors: type[UnderlayError]) -> UnderlayError:
    try:
        described(stage, ref)
    except UnderlayError as error:
        expect_error(stage, error, *errors)
        return error
    raise AssertionError("it is described")


def _expect_named(ref: str, error: UnderlayError) -> None:
    named = parse_ref(ref).canonical
    expect(named in error.message, f"the error does not name {named}: {error.message}")


def _announced(stage: Stage, size: int) -> SourceError | None:
    """Read an image that is announced with another size than it has, and return the error, if there was one.

    A source may give what there is, for the ingest compares; or it may say itself what is wrong.
    """
    ref = stage.put(_CONTENT)
    with stage.trouble(ref, Announced(size=size)):
        version = described(stage, ref)
        expect(version.size in (None, size), f"the description says {version.size}, although {size} is announced")
        found = transfer(stage, version)
    expect_beginning(_CONTENT, found, "an image that is announced with another size")
    if found.error is None:
        expect(len(found.content) >= min(size, len(_CONTENT)), "less comes than there is, and nothing says so")
    else:
        expect_error(stage, found.error, BodyTooLong, BodyTruncated, SourceUnavailable, SourceChanged, SourceRefused)
    return found.error


CASES: tuple[Case, ...] = (
    a_missing_image_is_not_found,
    a_forbidden_image_is_not_authorized,
    an_image_that_is_forbidden_after_its_description_is_not_authorized,
    a_place_that_is_away_is_unavailable_and_named_with_the_reason,
    a_place_that_is_back_serves_as_before,
    a_place_that_says_nothing_is_given_up,
    a_transfer_that_stalls_is_given_up,
    what_is_slow_and_comes_steadily_comes_whole,
    a_transfer_that_is_cut_off_is_truncated,
    what_is_cut_off_again_and_again_can_be_resumed_to_its_end,
    what_is_longer_than_announced_is_never_other_bytes,
    what_is_shorter_than_announced_is_never_other_bytes,
    a_ref_with_control_characters_is_none,
    an_unsafe_ref_leads_nowhere,
)
