"""The error tree: what its picture promises to programs and to people."""

import inspect
import re
from collections import Counter

import pytest

from underlay import errors
from underlay.errors import (
    DigestMismatch,
    DiskTooSmall,
    InsufficientSpace,
    ToolFailed,
    UnderlayError,
    UnsafeImage,
)

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, UnderlayError)]
LEAVES = [error for error in CLASSES if not error.__subclasses__()]


def drawn() -> dict[str, tuple[str, bool]]:
    """The picture in the module's docstring: each leaf's parent, and whether it has a star."""
    assert errors.__doc__ is not None
    picture = errors.__doc__.split("::\n\n", 1)[1].split("\n\nA star", 1)[0]
    found, parent = {}, ""
    for line in picture.splitlines()[1:]:
        if branch := re.match(r" {4}[├└]── (\w+)", line):
            parent = branch[1]
        else:
            for name, star in re.findall(r"(\w+)(\*?)", line.partition("── ")[2]):
                found[name] = (parent, bool(star))
    return found


def test_the_picture_shows_every_leaf_under_its_parent_and_stars_what_is_worth_another_try() -> None:
    assert {error.__name__: (error.__bases__[0].__name__, error.transient) for error in LEAVES} == drawn()


def test_every_class_has_one_parent_and_belongs_to_the_tree() -> None:
    assert [] == [error for error in CLASSES if len(error.__bases__) != 1]
    assert {UnderlayError} == {error for error in CLASSES if error.__bases__ == (Exception,)}


@pytest.mark.parametrize("attribute", ["code", "exit_code"])
def test_every_class_has_a_code_and_an_exit_code_of_its_own(attribute: str) -> None:
    counted = Counter(getattr(error, attribute) for error in CLASSES)

    assert [] == [value for value, times in counted.items() if times > 1]


def test_a_code_is_the_classes_name_in_small_letters() -> None:
    def dashed(name: str) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()

    assert {error.__name__: dashed(error.__name__) for error in LEAVES} == {error.__name__: error.code for error in LEAVES}


def test_exit_codes_leave_the_shells_own_alone() -> None:
    assert all(1 <= error.exit_code < 126 for error in CLASSES)


def test_http_statuses_are_those_of_failures() -> None:
    assert all(400 <= error.http_status < 600 for error in CLASSES)
    assert all(error.http_status < 500 for error in CLASSES if issubclass(error, errors.BadInput))


def test_a_message_is_one_line() -> None:
    error = ToolFailed("qemu-img said:\n\tno such   file\r\n", hint="look")

    assert ("qemu-img said: no such file", "look") == (str(error), error.hint)
    assert error.message == str(error)


def test_a_hint_is_not_part_of_the_message() -> None:
    assert ToolFailed("x").hint is None
    assert "install" not in str(ToolFailed("x", hint="install it"))


def test_a_wrong_digest_is_told_with_both_digests() -> None:
    error = DigestMismatch("https://x", expected="sha256:aa", actual="sha256:bb")

    assert "https://x has the digest sha256:bb, expected sha256:aa" == str(error)
    assert ("sha256:aa", "sha256:bb") == (error.expected, error.actual)


def test_a_refusal_names_the_rule_and_the_image() -> None:
    error = UnsafeImage("https://x", rule="backing-file", why="it names a backing file")

    assert "https://x is refused by rule backing-file: it names a backing file" == str(error)
    assert "backing-file" == error.rule


def test_missing_space_is_told_in_numbers() -> None:
    error = InsufficientSpace("/cache", needed=5, free=3, reclaimable={"/cache": 1, "/other": 0})

    assert "/cache has no room: needed 5 bytes, free 3 bytes, reclaimable 1 bytes in /cache, 0 bytes in /other" == str(error)
    assert (5, 3, 1) == (error.needed, error.free, error.reclaimable["/cache"])


def test_space_that_ran_out_unforeseen_has_no_number() -> None:
    assert "needed more than that, free 0 bytes, reclaimable nothing" in str(
        InsufficientSpace("/cache", needed=None, free=0, reclaimable={})
    )


def test_a_disk_too_small_is_told_with_both_sizes() -> None:
    error = DiskTooSmall("the disk /d", size=1, virtual_size=2)

    assert "the disk /d of 1 bytes is too small: the image's virtual size is 2 bytes" == str(error)
    assert (1, 2, "ask for at least 2 bytes") == (error.size, error.virtual_size, error.hint)


def test_a_disk_below_the_least_that_the_source_allows_is_told_with_the_image() -> None:
    error = DiskTooSmall("the disk /d", size=3, virtual_size=2, min_disk=4, image="glance:x")

    assert "the disk /d of 3 bytes is too small: glance:x's min_disk is 4 bytes" == str(error)
    assert (4, "ask for at least 4 bytes") == (error.min_disk, error.hint)
