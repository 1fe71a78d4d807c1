"""The lvm backend passes the shipped conformance suite, on a real lvm2 in a micro virtual machine.

Every case is tried on thick disks. How the content of the others comes about and goes differs, so what tries that is tried on
each: a program of LVM takes longer in that machine than on any other, and all cases on all of them took many minutes.
"""

import pytest
from lvm_stage import LvmStage

from underlay.testing.disk_suite import Case, cases

pytest_plugins = ["lvm_fixtures"]
pytestmark = [pytest.mark.component("microvm"), pytest.mark.component("qemu-img")]

_EVERY = (
    "a-disk-holds-the-image-and-zeros-behind-it",
    "a-disk-grows-and-keeps-its-content",
    "a-disk-for-which-there-is-no-room-is-not-made",
)
_TRIED = {
    "thin": (*_EVERY, "a-disk-is-encrypted-or-refused"),
    "snapshot": (*_EVERY, "several-disks-may-be-made-at-once"),
    "thick-snapshot": (*_EVERY, "a-flattened-disk-needs-no-other-file"),
}
_ALL = cases(LvmStage)


@pytest.mark.parametrize("case", _ALL, ids=str)
@pytest.mark.parametrize("stage", ["thick"], indirect=True)
def test_the_backend_keeps_its_contract(case: Case, stage: LvmStage) -> None:
    case.run(stage)


@pytest.mark.parametrize(
    ("stage", "case"),
    [(kind, case) for kind, tried in _TRIED.items() for case in _ALL if case.name in tried],
    ids=str,
    indirect=["stage"],
)
def test_other_disks_keep_it_too(case: Case, stage: LvmStage) -> None:
    case.run(stage)


def test_each_of_these_cases_is_there() -> None:
    assert {name for tried in _TRIED.values() for name in tried} <= {case.name for case in _ALL}
