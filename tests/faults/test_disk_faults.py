"""What is left of a disk when a system call fails while it is made, or the process is killed there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from machine import GIB, PATIENCE, Machine, qemu_img_json
from underlay.errors import DiskNotFound
from underlay.host import Host
from underlay.model import BaseImage, InstanceDisk
from underlay.values import replace

pytestmark = [pytest.mark.component("strace"), pytest.mark.component("qemu-img")]

_MOST = 20  # times that one system call is made at most; only a broken test comes so far

_CREATE = """
import sys
from pathlib import Path
from underlay.errors import UnderlayError
from underlay.host import Host
host = Host.open(sys.argv[1])
(base,) = host.find(sys.argv[2])
path = Path(sys.argv[4]) if sys.argv[4] else None
try:
    host.create_disk("web-1", base, size="1GiB", backend=sys.argv[3], path=path)
except UnderlayError as error:
    sys.exit(error.exit_code)
"""

_REMOVE = """
import sys
from underlay.host import Host
Host.open(sys.argv[1]).remove_disk("web-1")
"""
_CHANGE = """
import sys
from underlay.errors import UnderlayError
from underlay.host import Host
try:
    Host.open(sys.argv[1]).resize_disk("web-1", "600GiB")
except UnderlayError as error:
    sys.exit(error.exit_code)
"""

EVERYWHERE = ["fsync", "fchmod", "linkat", "renameat2", "fsetxattr", "utimensat"]
SCANNED = ["mkdir", "write", "rename"]
ELSEWHERE = ["mkdir", "symlink"]
COPYING = ["ftruncate", "copy_file_range"]
OF_A_DIRECTORY = ["fsync", "linkat", "renameat2", "fsetxattr", "mkdir", "copy_file_range"]
CASES = [
    *(("flat", False, call) for call in EVERYWHERE + SCANNED + COPYING),
    *(("qcow2", False, call) for call in EVERYWHERE + SCANNED),
    *(("qcow2", True, call) for call in EVERYWHERE + ELSEWHERE),
    *(("ploop", False, call) for call in OF_A_DIRECTORY),
    *(("ploop", True, call) for call in ("symlink", "mkdir", "renameat2")),
]


def run_with(faults: list[str], machine: Machine, base: BaseImage, backend: str, path: Path | None) -> int:
    """The exit status of a process that makes the disk while strace does this to its system calls."""
    traced = ",".join(fault.partition(":")[0] for fault in faults)
    strace = [
        "strace",
        "-o",
        os.devnull,
        "-e",
        f"trace={traced}",
        *(part for one in faults for part in ("-e", f"inject={one}")),
    ]
    child = [sys.executable, "-B", "-c", _CREATE, str(machine.config), base.name, backend, str(path or "")]
    ended = subprocess.run([*strace, *child], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.returncode


def left_of_the_disk(machine: Machine, path: Path | None) -> list[Path]:
    """Files, directories, records, roots."""
    roots = (path for path in (machine.base / ".underlay" / "disks").rglob("*") if path.is_symlink())
    elsewhere = path.parent.iterdir() if path else ()
    return [*machine.instances.rglob("*"), *roots, *elsewhere]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


@pytest.fixture
def base(machine: Machine) -> BaseImage:
    return machine.host().ensure(machine.raw_image())


@pytest.mark.parametrize(("backend", "elsewhere", "call"), CASES)
def test_a_call_that_fails_leaves_nothing(
    machine: Machine, base: BaseImage, backend: str, *, elsewhere: bool, call: str
) -> None:
    path = elsewhere_of(machine) if elsewhere else None
    for number in range(1, _MOST):
        status = run_with([f"{call}:error=EIO:when={number}"], machine, base, backend, path)
        if status == 0:
            break
        assert 48 == status, f"{call} {number}"  # StorageFailed
        assert [] == left_of_the_disk(machine, path), f"{call} {number}"
        as_never_used(machine)
    assert 1 < number < _MOST
    check(machine.host(), machine.host().disk("web-1", path=path))


@pytest.mark.parametrize(("backend", "elsewhere", "call"), CASES)
def test_a_process_killed_there_leaves_the_whole_disk_or_none(
    machine: Machine, base: BaseImage, backend: str, *, elsewhere: bool, call: str
) -> None:
    path = elsewhere_of(machine) if elsewhere else None
    disk = path or machine.instances / "web-1" / "disk"
    for number in range(1, _MOST):
        status = run_with([f"{call}:signal=KILL:when={number}"], machine, base, backend, path)
        if status == 0:
            break
        assert -9 == status, f"{call} {number}"
        if disk.exists():
            check(machine.host(), machine.host().disk("web-1", path=path))
            machine.host().remove_disk("web-1", path=path)
        elif path and backend == "ploop":  # otherwise the next maker takes away what is left
            with pytest.raises(DiskNotFound):
                machine.host().remove_disk("web-1", path=path)
            assert [] == os.listdir(path.parent), f"{call} {number}"
        assert [] == machine.host().disks()
        as_never_used(machine)
    assert 1 < number < _MOST
    check(machine.host(), machine.host().disk("web-1", path=path))
    assert left_by_a_success(disk, elsewhere=elsewhere) == sorted(disk.parent.iterdir())


def test_a_directory_that_cannot_be_made_to_last_goes_under_another_name(machine: Machine, base: BaseImage) -> None:
    """So that who is killed even then leaves no half of a disk under the disk's name."""
    disk = machine.instances / "web-1" / "disk"
    for number in range(1, _MOST):
        faults = [f"fsync:error=EIO:when={number}", "unlinkat:signal=KILL:when=2"]
        status = run_with(faults, machine, base, "ploop", None)
        if status == 0:
            break
        assert status in (-9, 48)
        assert not disk.exists(), f"fsync {number}"
        shutil.rmtree(disk.parent, ignore_errors=True)
        as_never_used(machine)
    assert 1 < number < _MOST


def change_with(fault: str, machine: Machine, script: str) -> int:
    """The exit status of a process that changes the disk while strace does this to its system calls."""
    call = fault.partition(":")[0]
    strace = ["strace", "-o", os.devnull, "-e", f"trace={call}", "-e", f"inject={fault}"]
    child = [sys.executable, "-B", "-c", script, str(machine.config)]
    return subprocess.run([*strace, *child], capture_output=True, timeout=PATIENCE, check=False).returncode


@pytest.mark.parametrize("call", ["unlinkat", "rmdir", "fsync"])
def test_a_process_killed_while_it_removes_a_directory_leaves_the_whole_disk_or_none(
    machine: Machine, base: BaseImage, call: str
) -> None:
    host = machine.host()
    for number in range(1, _MOST):
        disk = host.create_disk("web-1", base, size="1GiB", backend="ploop")
        status = change_with(f"{call}:signal=KILL:when={number}", machine, _REMOVE)
        if status == 0:
            break
        assert -9 == status, f"{call} {number}"
        if disk.path.exists():
            check(host, host.disk("web-1"))
            host.remove_disk("web-1")
        else:
            with pytest.raises(DiskNotFound):
                host.remove_disk("web-1")  # and takes away what is left, but for an empty directory, which is any instance's
        assert {machine.instances / "web-1"} >= set(left_of_the_disk(machine, None)), f"{call} {number}"
    assert 1 < number < _MOST


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        *((call, fault) for call in ("pwrite64", "fsync") for fault in ("signal=KILL", "error=EIO")),
        *((call, "error=EIO") for call in ("write", "rename")),  # a kill there is one between two calls of those
    ],
)
def test_a_directory_whose_growth_was_stopped_is_a_whole_disk(machine: Machine, base: BaseImage, call: str, fault: str) -> None:
    host = machine.host()
    for number in range(1, _MOST):
        host.create_disk("web-1", base, size="1GiB", backend="ploop")
        status = change_with(f"{call}:{fault}:when={number}", machine, _CHANGE)
        if status == 0:
            break
        assert status in (-9, 48), f"{call} {number}"
        found = host.disk("web-1")
        assert found.size in (GIB, 600 * GIB), f"{call} {number}"
        assert 600 * GIB == host.resize_disk("web-1", 600 * GIB).size
        check(host, replace(found, size=GIB))
        host.remove_disk("web-1")
    assert 600 * GIB == host.disk("web-1").size
    assert {"DiskDescriptor.xml", "root.hds"} == set(os.listdir(host.disk("web-1").path))
    assert 1 < number < _MOST


def as_never_used(machine: Machine) -> None:
    """Take away what making a disk leaves for good, so that the next process makes the same calls."""
    private = machine.base / ".underlay"
    for lock in (private / "locks").glob("v*"):
        lock.unlink()
    for directory in (private / "disks").iterdir():
        for root in directory.iterdir():
            root.unlink()
        directory.rmdir()


def elsewhere_of(machine: Machine) -> Path:
    directory = machine.root / "elsewhere"
    directory.mkdir()
    return directory / "root.img"


def left_by_a_success(disk: Path, *, elsewhere: bool) -> list[Path]:
    return [disk] if elsewhere else [disk, disk.parent / "disk.info"]


def check(host: Host, disk: InstanceDisk) -> None:
    """The disk is whole, and recorded."""
    assert GIB == disk.size
    assert disk.base_path is not None
    assert disk.base_path.exists()
    if disk.format == "qcow2":
        assert 0 == qemu_img_json("check", "-f", "qcow2", disk.path)["check-errors"]
        assert str(disk.base_path) == qemu_img_json("info", "-f", "qcow2", disk.path)["backing-filename"]
    elif disk.backend == "ploop":
        assert ["DiskDescriptor.xml", "root.hds"] == sorted(path.name for path in disk.path.iterdir())
        compare = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "parallels", str(disk.base_path), f"{disk.path}/root.hds"]
        subprocess.run(compare, check=True, timeout=PATIENCE)
    else:
        with disk.path.open("rb") as file:
            assert disk.base_path.read_bytes() == file.read(disk.base_path.stat().st_size)
    if disk.path.parent.parent == host.config.instances:
        noted = {"parallels": "ploop"}.get(disk.format or "", disk.format)
        assert {str(disk.path): noted} == json.loads((disk.path.parent / "disk.info").read_text())
    else:
        roots = (disk.base_path.parent / ".underlay" / "disks" / disk.base_path.name).iterdir()
        assert [str(disk.path)] == [os.readlink(root) for root in roots]
