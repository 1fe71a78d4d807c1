"""A real QEMU that reads a base keeps it, though no disk that stands on it can be found any more."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aging import DAY, aged, original, outcome, overlay, plan, pruned, put
from machine import MIB, Machine
from underlay.host import Host

pytestmark = [pytest.mark.component("qemu-img"), pytest.mark.component("leases")]

BASE, MIDDLE, UNUSED = original("base"), f"{original('middle')}.qcow2", original("unused")
PROGRAMS = [
    pytest.param("qemu-system-x86_64", marks=pytest.mark.component("qemu-system-x86_64")),
    pytest.param("qemu-storage-daemon", marks=pytest.mark.component("qemu-storage-daemon")),
]


@contextmanager
def qemu_with(disk: Path, program: str, *, locking: str = "auto") -> Iterator[None]:
    """A QEMU that has the disk and everything beneath it open, and runs nothing."""
    file = {"driver": "file", "filename": os.fspath(disk), "locking": locking}
    node = json.dumps({"driver": "qcow2", "node-name": "disk", "file": file})
    if program == "qemu-system-x86_64":
        options = ["-S", "-accel", "tcg", "-M", "pc", "-m", "64M", "-nodefaults", "-no-user-config", "-display", "none"]
        options += ["-qmp", "stdio", "-blockdev", node, "-device", "virtio-blk-pci,drive=disk"]
    else:
        options = ["--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor", "--blockdev", node]
    with subprocess.Popen([program, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        try:
            assert qemu.stdin is not None
            assert qemu.stdout is not None
            qemu.stdin.write('{"execute": "qmp_capabilities"}\n{"execute": "query-named-block-nodes"}\n')
            qemu.stdin.flush()
            while '"disk"' not in (line := qemu.stdout.readline()):  # it answers once it has opened what it was told to
                assert line, "QEMU ended"
            yield
        finally:
            qemu.kill()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def host(machine: Machine) -> Host:
    """A chain of two old images in the cache, and a third that nobody uses."""
    put(machine, BASE, content=bytes(MIB))
    aged(overlay(machine.base / MIDDLE, machine.base / BASE), 2 * DAY)
    put(machine, UNUSED)
    return machine.host()


@pytest.mark.parametrize("locking", ["auto", "off"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_base_beneath_a_disk_outside_all_roots_stays_while_qemu_runs(
    machine: Machine, host: Host, program: str, locking: str
) -> None:
    disk = overlay(machine.root / "far away" / "disk", machine.base / MIDDLE, backing_format="qcow2")

    with qemu_with(disk, program, locking=locking):
        assert {BASE: "open", MIDDLE: "open", UNUSED: "removed"} == pruned(host)
        assert [{BASE: "open"}, {MIDDLE: "open"}] == [
            outcome(host.apply(host.plan_evict(name))) for name in (BASE, MIDDLE)
        ]  # fmt: skip

    assert {BASE: "removed", MIDDLE: "removed"} == pruned(host, ahead=2 * DAY)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_base_beneath_a_disk_that_was_unlinked_stays_while_qemu_runs(machine: Machine, host: Host, program: str) -> None:
    disk = overlay(machine.instances / "web-1" / "disk", machine.base / MIDDLE, backing_format="qcow2")

    with qemu_with(disk, program):
        disk.unlink()
        disk.parent.rmdir()
        assert {BASE: "open", MIDDLE: "open", UNUSED: "removed"} == pruned(host)

    assert {BASE: "removed", MIDDLE: "removed"} == pruned(host, ahead=2 * DAY)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_base_that_qemu_opens_after_the_plan_stays(machine: Machine, host: Host, program: str) -> None:
    disk = overlay(machine.root / "far away" / "disk", machine.base / MIDDLE, backing_format="qcow2")
    made = plan(host)
    assert {BASE, MIDDLE, UNUSED} == {one.file.name for one in made.verdicts if one.removes}

    with qemu_with(disk, program):
        assert {BASE: "open", MIDDLE: "open", UNUSED: "removed"} == outcome(host.apply(made))


@pytest.mark.component("qemu-io")
def test_a_rebase_and_a_flatten_decide_what_stays(machine: Machine, host: Host) -> None:
    disk = overlay(machine.instances / "web-1" / "disk", machine.base / MIDDLE, backing_format="qcow2")
    assert {BASE: "backing-file", MIDDLE: "backing-file", UNUSED: "removed"} == pruned(host)
    subprocess.run(["qemu-img", "rebase", "-f", "qcow2", "-F", "raw", "-b", machine.base / BASE, disk], check=True)
    assert {BASE: "backing-file", MIDDLE: "removed"} == pruned(host, ahead=2 * DAY)
    subprocess.run(["qemu-img", "rebase", "-f", "qcow2", "-b", "", disk], check=True)

    assert {BASE: "removed"} == pruned(host, ahead=5 * DAY)

    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "read 0 1M", disk], check=True, capture_output=True)
