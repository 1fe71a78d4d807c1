"""The libvirt driver keeps its contract: the shipped conformance suite over a real libvirtd and real guests."""

import pytest
from libvirt_stage import LibvirtStage

from underlay.testing.compute_suite import Case, cases

pytest_plugins = ["libvirt_fixtures"]
pytestmark = pytest.mark.component("libvirt", "libvirt-python", "root", "qemu-img", "qemu-system-x86_64", "ip")


@pytest.mark.parametrize("case", cases(LibvirtStage), ids=str)
def test_the_driver_keeps_its_contract(case: Case, shared_stage: LibvirtStage) -> None:
    case.run(shared_stage)
