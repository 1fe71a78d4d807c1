"""What is left of a disk when a call fails while it is flattened, rebased or written out, or who does it is killed there.

The calls are those of qemu-img too. Whatever happens, the disk reads as before, what it reads from is kept, nothing half is
left, and the same request does the rest.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from machine import MIB, PATIENCE, Machine
from underlay.host import Host
from underlay.model import BaseImage
from underlay.testing.disk_suite import guest_bytes, guest_writes

pytestmark = [pytest.mark.component("strace"), pytest.mark.component("qemu-img"), pytest.mark.component("qemu-io")]

_MOST = 4  # times that one call is made to fail; the later ones are like these
_TOOL_FAILED, _NO_ROOM, _STORAGE = 71, 47, 48

_CHANGE = """
import sys
from pathlib import Path
from underlay.errors import UnderlayError
from underlay.host import Host
host, what, path = Host.open(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
try:
    match what:
        case "flatten":
            host.flatten_disk("web-1", path=path)
        case "rebase":
            host.rebase_disk("web-1", sys.argv[4], path=path)
        case "extract":
            host.extract_disk("web-1", path.with_name("extracted"), format="raw", path=path)
        case "swap":
            host.create_swap("web-2", "1MiB", backend="flat")
except UnderlayError as error:
    sys.exit(error.exit_code)
"""

CASES = [
    *(("flatten", call) for call in ("fsync", "fdatasync", "pwrite64")),
    *(("rebase", call) for call in ("fsync", "fdatasync", "pwrite64", "fsetxattr", "symlink", "unlink")),
    *(("extract", call) for call in ("mkdir", "fsync", "pwrite64", "renameat2", "fchmod")),
    *(("swap", call) for call in ("mkdir", "fsync", "write", "fsetxattr", "renameat2", "ftruncate")),
]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine.make(tmp_path)


def prepared(machine: Machine) -> tuple[Host, Path, bytes, BaseImage]:
    """A disk outside the instances path that its guest has written to, what it sees, and another base for it."""
    host = machine.host()
    base = host.ensure(machine.raw_image(size=4 * MIB))
    other = host.ensure(machine.raw_image("other.raw", size=4 * MIB, message="another"))
    directory = machine.root / "elsewhere"
    directory.mkdir()
    disk = host.create_disk("web-1", base, path=directory / "disk.img")
    guest_writes(disk, 2 * MIB, b"\x05" * 4096)
    return host, disk.path, guest_bytes(disk), other


def run_with(fault: str, machine: Machine, what: str, path: Path, other: BaseImage) -> tuple[int, bool]:
    """How the change ended, and whether anything was injected at all: where it was, a tool may have got over it."""
    call, log = fault.partition(":")[0], machine.root / "strace.log"
    strace = ["strace", "-f", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={fault}"]
    child = [sys.executable, "-B", "-c", _CHANGE, str(machine.config), what, str(path), other.name]
    ended = subprocess.run([*strace, *child], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "Traceback" not in ended.stderr, ended.stderr
    said = log.read_text(errors="replace")
    return ended.returncode, "(INJECTED)" in said or "killed by SIGKILL" in said


def check(host: Host, path: Path, before: bytes) -> None:
    """The disk reads as before, and what it reads from would outlive a prune."""
    disk = host.disk("web-1", path=path)
    assert before == guest_bytes(disk)
    checked = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", path], capture_output=True, check=False)
    assert checked.returncode in (0, 3), checked.stdout  # 3: clusters that nothing needs any more, which cost room
    if disk.base_path is not None and disk.base_path.exists():
        verdicts = host.plan_prune(now=datetime.now(UTC) + timedelta(days=30)).verdicts
        removed = {verdict.path for verdict in verdicts if verdict.removes}
        assert disk.base_path not in removed or not reads_from(path, disk.base_path)


def reads_from(path: Path, base: Path) -> bool:
    told = subprocess.run(["qemu-img", "info", "-f", "qcow2", path], capture_output=True, text=True, check=True)
    return str(base) in told.stdout


def check_nothing_half(machine: Machine, host: Host, before: bytes) -> None:
    """No file that was extracted in part, no swap image or disk that is not whole."""
    extracted = machine.root / "elsewhere" / "extracted"
    assert not extracted.exists() or before == extracted.read_bytes()
    extracted.unlink(missing_ok=True)
    swap = machine.instances / "web-2" / "disk.swap"
    assert not swap.exists() or MIB == host.disk("web-2", name="disk.swap").size
    for image in host.images()[0]:
        assert image.size == image.path.stat().st_size


@pytest.mark.parametrize(("what", "call"), CASES)
@pytest.mark.parametrize("fault", ["error=ENOSPC", "signal=KILL"])
def test_a_call_that_fails_or_is_the_last_loses_nothing(machine: Machine, what: str, call: str, fault: str) -> None:
    host, path, before, other = prepared(machine)
    faults = 0
    for number in range(1, _MOST):
        status, injected = run_with(f"{call}:{fault}:when={number}", machine, what, path, other)
        check(host, path, before)
        if not injected:
            break
        faults += 1
        endings = (-9, _TOOL_FAILED) if "KILL" in fault else (0, _NO_ROOM, _STORAGE, _TOOL_FAILED)
        assert status in endings, f"{call} {number}"
        check_nothing_half(machine, host, before)
    assert faults, f"{what} never calls {call}"
    finish(host, what, path, other, before)


def finish(host: Host, what: str, path: Path, other: BaseImage, before: bytes) -> None:
    """The same request, undisturbed."""
    match what:
        case "flatten":
            host.flatten_disk("web-1", path=path)
            assert not reads_from(path, path.parents[1] / "base")
        case "rebase":
            assert other.name == host.rebase_disk("web-1", other, path=path).base
        case "extract":
            target = path.with_name("extracted")
            target.unlink(missing_ok=True)
            host.extract_disk("web-1", target, format="raw", path=path)
            assert before == target.read_bytes()
            assert {path.name, target.name} == set(os.listdir(path.parent))
        case _:
            assert MIB == host.create_swap("web-2", "1MiB", backend="flat").size
    check(host, path, before)
