"""A small Linux for guests: Debian's kernel for clouds, QEMU's guest agent and busybox, out of their packages.

``python guest_environment.py`` fetches the packages with apt, unpacks them below the cache of the tests, and says where they
are. Nothing is installed: what a package does when it is configured would be done to this machine.
"""

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_KERNEL = "linux-image-cloud-amd64"  # a package that is nothing but a dependency on the kernel of today
_PACKAGES = ("qemu-guest-agent", "busybox-static")
_LIMIT = 600.0  # seconds


def place() -> Path:
    """Where they are, or are to be."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "underlay-tests" / "linux-guest"


def unpacked() -> Path:
    """The root of what the packages hold. It is made unless it is there: one process makes it, the others wait."""
    root = place()
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _unpack(root)
    return root


def _unpack(root: Path) -> None:
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".linux-guest-") as directory:
        whole = Path(directory) / "root"
        kernel = _kernel_package()
        _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", kernel, *_PACKAGES, cwd=directory)
        for package in Path(directory).glob("*.deb"):
            _run("dpkg", "-x", os.fspath(package), os.fspath(whole), cwd=directory)
        _run("depmod", "-b", os.fspath(whole), kernel.removeprefix("linux-image-"), cwd=directory)
        whole.rename(root)


def _kernel_package() -> str:
    told = _run("apt-cache", "depends", _KERNEL, cwd="/")
    if not re.search(r"Depends: linux-image-\d", told):
        _run("apt-get", "-q", "update", cwd="/")
        told = _run("apt-cache", "depends", _KERNEL, cwd="/")
    found = re.search(r"Depends: (linux-image-\d\S+)", told)
    if found is None:
        sys.exit(f"{_KERNEL} is in no package list of apt")
    return found[1]


def _run(*argv: str, cwd: str) -> str:
    return subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True, timeout=_LIMIT).stdout


def main() -> None:
    try:
        sys.stdout.write(f"{unpacked()}\n")
    except subprocess.CalledProcessError as error:
        sys.exit(f"the packages of a small Linux could not be fetched: {error.stderr[-400:]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"the packages of a small Linux could not be fetched: {error}")


if __name__ == "__main__":
    main()
