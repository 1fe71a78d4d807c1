"""A compute driver whose hypervisor is in memory, and records of instances, images and interfaces to call one with.

It does what the contract says: instances come, run, are moved and go, and what is wrong is refused with the contract's errors.
A program that calls compute drivers can be tested with it.
"""

from underlay.testing.fakedriver.driver import FakeDriver
from underlay.testing.fakedriver.hypervisor import FakeHypervisor, FakeMachine, FakeSite
from underlay.testing.fakedriver.records import FakeFlavor, FakeImage, FakeInstance, FakeMigration, fake_vif

__all__ = [
    "FakeDriver",
    "FakeFlavor",
    "FakeHypervisor",
    "FakeImage",
    "FakeInstance",
    "FakeMachine",
    "FakeMigration",
    "FakeSite",
    "fake_vif",
]
