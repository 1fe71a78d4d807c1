"""Components that tests need, and what a missing one means: a skip with its reason, or a failure where they are required."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from signing import Keys, made_in
from thorough import LONG
from underlay import locks

# How long an example takes to be made says more of the machine than of the test.
settings.register_profile(
    "underlay", deadline=None, derandomize=bool(os.environ.get("CI")), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("underlay")

# A shell that starts the tests in its background lets them, and every program that they start, ignore the interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

REQUIRE = "UNDERLAY_REQUIRE_COMPONENTS"


def _program(name: str, package: str) -> Callable[[], str | None]:
    return lambda: None if shutil.which(name) else f"{name} is not installed (apt-get install {package})"


def _module(name: str, package: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"{name} is not installed (pip install {package})"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _mountable(kind: str, mkfs: str, package: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        if _root():
            return _root()
        return _program(mkfs, package)() if mkfs else _in_kernel(kind)

    return missing


def _in_kernel(kind: str) -> str | None:
    known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    return None if kind in known else f"the kernel has no {kind}"


@cache
def _strace() -> str | None:
    if missing := _program("strace", "strace")():
        return missing
    traced = subprocess.run(["strace", "-e", "inject=getppid:error=EPERM", "true"], capture_output=True, check=False)
    return None if traced.returncode == 0 else "strace may not trace here"


def _fuse2fs() -> str | None:
    missing = _mountable("fuse", "fuse2fs", "fuse2fs")()
    return missing or (None if Path("/dev/fuse").exists() else "there is no /dev/fuse")


@cache
def _leases() -> str | None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "file"
        file.touch()
        told = locks.opened_elsewhere(file) is False
    return None if told else "nothing tells who has a file open on the file system of temporary files (set TMPDIR)"


def _service(program: str) -> Callable[[], str | None]:
    """A real service lives in a virtual environment of its own, which the first test that wants it makes."""

    @cache
    def missing() -> str | None:
        environment = Path(__file__).parent / "components" / program
        made = subprocess.run([sys.executable, environment], capture_output=True, text=True, check=False)
        return None if made.returncode == 0 else made.stderr.strip()

    return missing


def _ceph() -> str | None:
    missing = [name for name in ("ceph-mon", "ceph-osd", "ceph-mgr", "ceph", "rbd") if not shutil.which(name)]
    return f"{missing[0]} is not installed (apt-get install ceph-mon ceph-osd ceph-mgr ceph-common)" if missing else None


def _qemu_rbd() -> str | None:
    there = next(Path("/usr/lib").glob("*/qemu/block-rbd.so"), None)
    return None if there else "QEMU's driver for Ceph is not installed (apt-get install qemu-block-extra)"


def _microvm() -> str | None:
    programs = {"linux.uml": "user-mode-linux", "lvs": "lvm2", "cryptsetup": "cryptsetup-bin", "dmsetup": "dmsetup"}
    programs |= {"thin_check": "thin-provisioning-tools", "modprobe": "kmod", "mkfs.ext4": "e2fsprogs"}
    missing = next((name for name in programs if not shutil.which(name)), None)
    return f"{missing} is not installed (apt-get install {programs[missing]})" if missing else _root()


COMPONENTS: Mapping[str, Callable[[], str | None]] = {
    "root": _root,
    "strace": _strace,
    "leases": _leases,
    "glance": _service("glance/glance_environment.py"),
    "ironic": _service("ironic/ironic_environment.py"),
    "nova": _service("nova/nova_environment.py"),
    "docker-registry": _program("docker-registry", "docker-registry"),
    "oras": _service("oci/oras_environment.py"),
    "moto": _service("objects/moto_environment.py"),
    "fake-gcs-server": _service("objects/gcs_environment.py"),
    "azurite": _service("objects/azurite_environment.py"),
    "qemu-img": _program("qemu-img", "qemu-utils"),
    "gpg": _program("gpg", "gnupg"),
    "gpgv": _program("gpgv", "gpgv"),
    "sha256sum": _program("sha256sum", "coreutils"),
    "systemd-analyze": _program("systemd-analyze", "systemd"),
    "qemu-io": _program("qemu-io", "qemu-utils"),
    "qemu-storage-daemon": _program("qemu-storage-daemon", "qemu-system-common"),
    "qemu-system-x86_64": _program("qemu-system-x86_64", "qemu-system-x86"),
    "qemu-rbd": _qemu_rbd,
    "linux-guest": _service("libvirtd/guest_environment.py"),
    "libvirt": _program("libvirtd", "libvirt-daemon libvirt-daemon-driver-qemu"),
    "ip": _program("ip", "iproute2"),
    "virsh": _program("virsh", "libvirt-clients"),
    "ceph": _ceph,
    "lvm2": _program("lvs", "lvm2"),
    "microvm": _microvm,
    "ploop": _program("ploop", "ploop"),
    "rbd-python": _module("rbd", "nothing: apt-get install python3-rbd python3-rados, see scripts/lib.sh"),
    "libvirt-python": _module("libvirt", "libvirt-python"),
    "openstacksdk": _module("openstack", "openstacksdk"),
    "gzip": _program("gzip", "gzip"),
    "pigz": _program("pigz", "pigz"),
    "xz": _program("xz", "xz-utils"),
    "pixz": _program("pixz", "pixz"),
    "zstd": _program("zstd", "zstd"),
    "pzstd": _program("pzstd", "zstd"),
    "bzip2": _program("bzip2", "bzip2"),
    "pbzip2": _program("pbzip2", "pbzip2"),
    "xfs": _mountable("xfs", "mkfs.xfs", "xfsprogs"),
    "btrfs": _mountable("btrfs", "mkfs.btrfs", "btrfs-progs"),
    "ext4": _mountable("ext4", "mkfs.ext4", "e2fsprogs"),
    "tmpfs": _mountable("tmpfs", "", ""),
    "ramfs": _mountable("ramfs", "", ""),
    "mqueue": _mountable("mqueue", "", ""),
    "overlay": _mountable("overlay", "", ""),
    "mkfs.ext4": _program("mkfs.ext4", "e2fsprogs"),
    "mkfs.xfs": _program("mkfs.xfs", "xfsprogs"),
    "mkfs.vfat": _program("mkfs.vfat", "dosfstools"),
    "mkfs.ntfs": _program("mkfs.ntfs", "ntfs-3g"),
    "fuse2fs": _fuse2fs,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long and shows the like of others, unless it was asked for; pytest tells how many those are."""
    if os.environ.get(LONG):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("component"):
        for name in mark.args:
            reason = COMPONENTS[name]()
            if reason is None:
                continue
            if os.environ.get(REQUIRE):
                pytest.fail(f"{REQUIRE} is set and {reason}", pytrace=False)
            pytest.skip(reason)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a new file system of a kind and size (bytes) and returns where; unmounted after the test."""
    mounts: list[Path] = []

    def mount(kind: str, size: int = 512 << 20) -> Path:
        target = tmp_path / f"{kind}-{len(mounts)}"
        target.mkdir()
        if kind in ("tmpfs", "ramfs"):
            argv = ["mount", "-t", kind, "-o", f"size={size}" if kind == "tmpfs" else "mode=0755", kind, os.fspath(target)]
        else:
            image = tmp_path / f"{kind}-{len(mounts)}.img"
            with image.open("wb") as file:
                file.truncate(size)
            maker = "ext4" if kind == "fuse2fs" else kind
            subprocess.run([f"mkfs.{maker}", "-q", os.fspath(image)], check=True, capture_output=True)
            argv = ["mount", "-o", "loop", os.fspath(image), os.fspath(target)]
            if kind == "fuse2fs":  # knows neither unnamed files nor a rename that replaces nothing
                argv = ["fuse2fs", "-o", "fakeroot", os.fspath(image), os.fspath(target)]
        subprocess.run(argv, check=True, capture_output=True)
        mounts.append(target)
        return target

    yield mount
    for target in reversed(mounts):
        subprocess.run(["umount", "-l", os.fspath(target)], check=True, capture_output=True)


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory with a short path, for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="ul-") as directory:
        yield Path(directory)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are the test's user's alone."""
    with tempfile.TemporaryDirectory(prefix="ul-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def keys() -> Iterator[Keys]:
    """Keys that sign, made once for all tests."""
    with tempfile.TemporaryDirectory(prefix="ul-") as directory, made_in(Path(directory)) as made:
        yield made


@pytest.fixture
def umask_077() -> Iterator[None]:
    """The umask of a careful administrator."""
    before = os.umask(0o077)
    yield
    os.umask(before)
