"""Prune removes whatever it may, without any grace, while eight processes fetch images and make and remove disks of them."""

import os
import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from aging import assert_opens
from children import Child, start, tell, told
from machine import MIB, Machine
from underlay.errors import NotCached
from underlay.files import open_regular
from underlay.formats.backing import read_references
from underlay.host import Host
from underlay.model import InstanceDisk

PROCESSES, OPERATIONS = 8, 1250  # of each process
IMAGES = 24
LIMIT = 900.0  # seconds: a guard against hanging; 100 were seen on two cores that others used as well
GOING_ON = "."
NO_GRACE = (
    'remove_unused_original_minimum_age_seconds = 0\nkeep_recent = "0s"\nleftover_minimum_age = "0s"\nforce_raw_images = false'
)


def work(config: str, number: str, directory: str) -> None:
    """Fetch, make disks, look at them again before they are removed; tell how often each was done."""
    host, chance, done = Host.open(Path(config)), random.Random(f"worker {number}"), Counter[str]()
    refs = [f"file://{directory}/image-{image}" for image in range(IMAGES)]
    disks: list[InstanceDisk] = []
    while done.total() - done["again"] < OPERATIONS:
        deed = chance.choice(["fetch", "create", "create"]) if len(disks) < 2 else "remove"
        if deed == "fetch":
            host.ensure(chance.choice(refs))
        elif deed == "create":
            try:
                disk = host.create_disk(f"web-{number}-{done['create']}", chance.choice(refs))
            except NotCached:  # with no grace at all, an image may go between its fetch and its first disk
                deed = "again"
            else:
                assert_stands(disk)
                disks.append(disk)
        else:
            disk = disks.pop(chance.randrange(len(disks)))
            assert_stands(disk)
            host.remove_disk(disk.instance)
        done[deed] += 1
        if done.total() % 50 == 0:
            tell(GOING_ON)
    for disk in disks:
        assert_stands(disk)
    tell(f"{done.total() - done['again']} {done['again']}")
    told()


def assert_stands(disk: InstanceDisk) -> None:
    """The disk's base, read from its own header, is there and whole."""
    fd = open_regular(disk.path)
    try:
        (name,) = read_references(fd).names
    finally:
        os.close(fd)
    base = Path(name)
    assert base.read_bytes()[:8] == b"an image", f"{disk.path} has lost {base}"


def end_of(worker: Child) -> list[int]:
    """How many operations it did, and how many it had to begin again."""
    while (line := worker.hear()) == GOING_ON:
        pass
    return [int(number) for number in line.split()]


def prune(config: str) -> None:
    """Prune until told to stop; tell how many images went."""
    host, removed = Host.open(Path(config)), 0
    stop = Path(config).with_name("stop")
    while not stop.exists():
        report = host.apply(host.plan_prune(instances=()))
        removed += len(report.removed)
        failed = [problem for problem in report.problems if problem.code not in ("no-inventory", "clock-gap")]
        assert [] == failed, failed
    tell(f"{removed}")


@pytest.mark.component("qemu-img", "leases")
def test_no_disk_is_ever_without_its_base_while_all_that_is_unused_is_removed(tmp_path: Path) -> None:
    machine = Machine.make(tmp_path, options=NO_GRACE)
    for image in range(IMAGES):
        (tmp_path / f"image-{image}").write_bytes(b"an image" + os.urandom(MIB // 16 - 8))
    started = time.monotonic()
    with ExitStack() as stack:
        pruner = stack.enter_context(start(prune, machine.config))
        workers = [stack.enter_context(start(work, machine.config, number, tmp_path)) for number in range(PROCESSES)]
        done = [end_of(worker) for worker in workers]
        took = time.monotonic() - started
        (tmp_path / "stop").touch()
        removed = int(pruner.hear())
        for worker in workers:
            worker.say()
            worker.end()
    assert [OPERATIONS] * PROCESSES == [number for number, _ in done]
    assert took < LIMIT
    assert removed > 10 * IMAGES  # else nothing was ever in danger
    for disk in machine.host().disks():
        assert_opens(disk.path)
