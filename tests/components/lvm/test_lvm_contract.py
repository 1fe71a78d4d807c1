"""The lvm backend passes the shipped conformance suite, on a real lvm2 in a micro virtual machine.

A program of LVM takes longer in that machine than on any other, and all cases on all kinds of disks took many minutes. So each
case is tried on the kind whose code it puts to the hardest test, as the table says, and on thick disks where it says nothing.
Three are tried on none: they kill somebody at moments that a clock chooses, and test_lvm.py kills before each program of LVM
instead, on the kinds that differ there. Those that take longest, and of which test_lvm.py shows the like, are tried with
UNDERLAY_LONG_TESTS=1 only.
"""

import os

import pytest
from lvm_stage import LvmStage

from underlay.testing.disk_suite import Case, cases

pytest_plugins = ["lvm_fixtures"]
pytestmark = [pytest.mark.component("microvm"), pytest.mark.component("qemu-img")]

_TRIED = {
    # What is not zero is written into a pool that has room for it, and read back beside holes.
    "thin": (
        "a-disk-holds-the-image-and-zeros-behind-it",
        "a-disk-for-which-there-is-no-room-is-not-made",
        "a-disk-is-encrypted-or-refused",
        "a-disk-is-extracted-whole",
        "a-disk-that-is-no-overlay-needs-its-base-no-more",
    ),
    # A snapshot in a pool is smaller than its disk at first, and several wait for one volume of their image.
    "snapshot": (
        "a-disk-grows-and-keeps-its-content",
        "a-base-image-is-only-read",
        "a-disk-that-several-ask-for-is-made-once",
        "several-disks-may-be-made-at-once",
    ),
    # Disks read from one volume, until they stand alone or go.
    "thick-snapshot": (
        "disks-of-one-image-do-not-touch-each-other",
        "an-instance-may-have-several-disks",
        "a-flattened-disk-needs-no-other-file",
        "a-disk-goes-alone",
        "a-disk-goes-without-leaving-anything",
    ),
}
_KILLED_ELSEWHERE = (
    "a-maker-that-is-killed-leaves-the-whole-disk-or-nothing",
    "who-is-killed-while-a-disk-grows-leaves-it-readable",
    "who-is-killed-while-a-disk-goes-leaves-it-whole-or-nothing",
)
_LONG = (
    "a-disk-goes-alone",
    "a-disk-goes-without-leaving-anything",
    "a-disk-is-encrypted-or-refused",
    "a-disk-is-extracted-whole",
    "a-flattened-disk-needs-no-other-file",
    "a-storage-that-does-not-answer-is-told-in-time",
    "an-image-that-is-elsewhere-is-not-cloned",
    "an-instance-may-have-several-disks",
    "several-disks-may-be-made-at-once",
    "what-a-guest-writes-is-never-taken-for-a-header",
)
_SOMEWHERE_ELSE = {*_KILLED_ELSEWHERE, *(name for tried in _TRIED.values() for name in tried)}
_ALL = cases(LvmStage)
_NOW = [case for case in _ALL if case.name not in _LONG or os.environ.get("UNDERLAY_LONG_TESTS")]


@pytest.mark.parametrize("case", [case for case in _NOW if case.name not in _SOMEWHERE_ELSE], ids=str)
@pytest.mark.parametrize("stage", ["thick"], indirect=True)
def test_the_backend_keeps_its_contract(case: Case, stage: LvmStage) -> None:
    case.run(stage)


@pytest.mark.parametrize(
    ("stage", "case"),
    [(kind, case) for kind, tried in _TRIED.items() for case in _NOW if case.name in tried],
    ids=str,
    indirect=["stage"],
)
def test_other_disks_keep_it_too(case: Case, stage: LvmStage) -> None:
    case.run(stage)


def test_each_of_these_cases_is_there() -> None:
    assert {case.name for case in _ALL} >= {*_SOMEWHERE_ELSE, *_LONG}
