"""The rbd backend passes the shipped conformance suite, on a real Ceph."""

import pytest
from ceph_stage import RbdStage

from underlay.testing.disk_suite import CASES, Case, Cloned, cases
from underlay.values import replace

pytest_plugins = ["ceph_fixtures"]
pytestmark = [pytest.mark.component("ceph"), pytest.mark.component("rbd-python"), pytest.mark.component("qemu-img")]


@pytest.mark.parametrize("case", cases(RbdStage), ids=str)
def test_the_backend_keeps_its_contract(case: Case, stage: RbdStage) -> None:
    case.run(stage)


@pytest.mark.parametrize("case", [case for case in cases(RbdStage) if Cloned in case.needs], ids=str)
def test_the_backend_keeps_its_contract_with_clones_of_the_newer_kind(case: Case, stage: RbdStage) -> None:
    case.run(replace(stage, clone_format="2"))


def test_every_case_is_run() -> None:
    assert list(CASES) == list(cases(RbdStage))
