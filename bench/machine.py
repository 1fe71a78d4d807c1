"""What the figures are measured on."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from bench.results import Machine

_LIBRARIES = ("deflate", "isal", "msgspec", "urllib3", "zstandard")
_PROGRAMS = ("curl", "qemu-img", "sha256sum", "find", "openssl")


def machine(directory: Path) -> Machine:
    """This machine; ``directory`` is what is worked in."""
    return Machine(
        cpu=_after("model name", Path("/proc/cpuinfo")),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=os.uname().release,
        system=platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        file_system=_file_system(directory),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        libraries={name: version(name) for name in _LIBRARIES},
        programs=dict(_programs()),
    )


def load() -> float:
    """Processes that ran or waited to run, over the last minute."""
    return round(os.getloadavg()[0], 1)


def _after(key: str, path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "unknown")


def _file_system(directory: Path) -> str:
    """The kind, by the mount that has the longest path of those above the directory."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    above = [mount for mount in mounts if directory.resolve().is_relative_to(mount[1])]
    device, _, kind, *_ = max(above, key=lambda mount: len(mount[1]))
    return f"{kind} on {device}" if device.startswith("/dev/") else kind


def _programs() -> Mapping[str, str]:
    found = {}
    for name in _PROGRAMS:
        try:
            said = subprocess.run([name, "version" if name == "openssl" else "--version"], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        found[name] = said.stdout.partition("\n")[0].partition(" (Debian")[0].strip()
    return found
