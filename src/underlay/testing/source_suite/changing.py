"""Cases about images that change under way: what comes is the described version, or an error; never a mix."""

from random import Random

from underlay.errors import ImageNotFound, SourceChanged, SourceError
from underlay.testing.source_suite.case import (
    Case,
    Transfer,
    case,
    described,
    expect,
    expect_error,
    expect_whole,
    pieces,
    transfer,
)
from underlay.testing.source_suite.stage import Replaced, Stage, Withdrawn

_OLD = Random(5).randbytes(300_007)
_OTHERS = {
    "of the same length": Random(6).randbytes(300_007),
    "that is longer": Random(7).randbytes(400_009),
    "that is shorter": Random(8).randbytes(200_003),
    "that begins alike": _OLD[:150_000] + Random(9).randbytes(150_007),
}
_OFFSETS = (0, 1, 100_000, len(_OLD) - 1, len(_OLD))


@case(Replaced)
def what_was_described_is_given_or_changed_and_never_something_else(stage: Stage) -> None:
    for what, other in _OTHERS.items():
        ref = stage.put(_OLD)
        version = described(stage, ref)
        with stage.trouble(ref, Replaced(other)):
            for offset in _OFFSETS:
                found = transfer(stage, version, offset=offset)
                _expect_old_or(stage, found, SourceChanged, offset=offset, what=f"after a replacement {what}")
            now = described(stage, ref)
            expect_whole(other, transfer(stage, now), "the new image")


@case(Replaced)
def an_image_that_is_back_as_it_was_is_given_whole_or_changed(stage: Stage) -> None:
    ref = stage.put(_OLD)
    version = described(stage, ref)
    with stage.trouble(ref, Replaced(_OTHERS["of the same length"])):
        described(stage, ref)
    with stage.trouble(ref, Replaced(_OLD)):
        _expect_old_or(stage, transfer(stage, version), SourceChanged, offset=0, what="after it came back")
        expect_whole(_OLD, transfer(stage, described(stage, ref)), "the image that came back")


@case(Replaced)
def a_change_in_the_middle_of_a_transfer_never_gives_a_mix(stage: Stage) -> None:
    for what, other in _OTHERS.items():
        for offset in (0, 50_000):
            ref = stage.put(_OLD)
            found = _read_around(stage, ref, Replaced(other), offset=offset)
            _expect_old_or(stage, found, SourceError, offset=offset, what=f"with a replacement {what} under way")


@case(Withdrawn)
def an_image_that_is_withdrawn_after_its_description_is_not_found(stage: Stage) -> None:
    ref = stage.put(_OLD)
    version = described(stage, ref)
    with stage.trouble(ref, Withdrawn()):
        for offset in _OFFSETS[:-1]:
            found = transfer(stage, version, offset=offset)
            expect_error(stage, found.error, ImageNotFound, SourceChanged)


@case(Withdrawn)
def a_withdrawal_in_the_middle_of_a_transfer_gives_all_or_an_error(stage: Stage) -> None:
    ref = stage.put(_OLD)
    found = _read_around(stage, ref, Withdrawn(), offset=0)
    _expect_old_or(stage, found, SourceError, offset=0, what="with a withdrawal under way")


def _read_around(stage: Stage, ref: str, trouble: Replaced | Withdrawn, *, offset: int) -> Transfer:
    """Read some of the image, let the trouble come, and read the rest."""
    version, content = described(stage, ref), bytearray()
    try:
        with stage.source.open(version, offset=offset) as stream:
            content += next(pieces(stream, buffer=5_000))
            with stage.trouble(ref, trouble):
                for piece in pieces(stream):
                    content += piece
    except SourceError as error:
        return Transfer(bytes(content), error)
    return Transfer(bytes(content), None)


def _expect_old_or(stage: Stage, found: Transfer, *errors: type[SourceError], offset: int, what: str) -> None:
    if found.error is None:
        expect(found.content == _OLD[offset:], f"from byte {offset} on, {what}, other bytes come than the described ones")
    else:
        expect_error(stage, found.error, *errors)


CASES: tuple[Case, ...] = (
    what_was_described_is_given_or_changed_and_never_something_else,
    an_image_that_is_back_as_it_was_is_given_whole_or_changed,
    a_change_in_the_middle_of_a_transfer_never_gives_a_mix,
    an_image_that_is_withdrawn_after_its_description_is_not_found,
    a_withdrawal_in_the_middle_of_a_transfer_gives_all_or_an_error,
)
