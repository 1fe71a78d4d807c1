"""What the host is doing: its processors' time, and how long it has been up."""

import time
from pathlib import Path

from underlay.compute.libvirt.site import Site

_KINDS = ("kernel", "idle", "user", "iowait")
_DAY, _HOUR, _MINUTE = 86400, 3600, 60
_MEGAHERTZ = 3  # in virNodeInfo


def cpu_stats(site: Site) -> dict[str, int]:
    """Nanoseconds that its processors spent since it was started, all together, by kind; and their frequency in MHz now.

    Raises:
        OperationFailed, HypervisorUnavailable
    """
    all_of_them = -1
    told, node = site.connection.ask(lambda handle: (handle.getCPUStats(all_of_them, 0), handle.getInfo()))
    return {**{kind: int(told.get(kind, 0)) for kind in _KINDS}, "frequency": int(node[_MEGAHERTZ])}


def uptime() -> str:
    """How long the host is up and how busy it is, as ``uptime`` has it (proc(5), uptime and loadavg)."""
    seconds = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    load = Path("/proc/loadavg").read_text(encoding="ascii").split()[:3]
    return f"{time.strftime('%H:%M:%S')} up {spoken(seconds)}, load average: {', '.join(load)}"


def spoken(seconds: float) -> str:
    """A time, such as ``2 days, 3:07``."""
    days, rest = divmod(int(seconds), _DAY)
    clock = f"{rest // _HOUR}:{rest % _HOUR // _MINUTE:02d}"
    return f"{days} day{'s' if days > 1 else ''}, {clock}" if days else clock
