"""Does one step of a resize in a process that kills itself at a moment of that step, as a power cut would.

Its arguments: ROOT, URI, UUID, the STEP, and the moment: an event of Python's audit
(https://docs.python.org/3/library/audit_events.html), a pattern that one of its arguments has, and how
often that is to have come.
"""

import os
import re
import signal
import sys
from pathlib import Path

from libvirt_stage import CONFIG
from resized import Resized, record_of

from underlay.compute.libvirt import LibvirtDriver
from underlay.config import parse_config
from underlay.host import Host


def main() -> None:
    root, uri, uuid, step, event, pattern, times = sys.argv[1:]
    text = CONFIG.format(root=root, uri=uri, instances="", more="", virt_type="qemu")
    driver = LibvirtDriver(None, host=Host.open(parse_config(text, origin=Path(root, "underlay.toml"))))
    driver.init_host("node1")
    image, instance = record_of(f"file://{root}/guest.qcow2", uuid=uuid)
    die_at(event, pattern, int(times))
    STEPS[step](Resized(Path(root, "instances"), driver, image, instance))
    os.kill(os.getpid(), signal.SIGUSR1)  # the moment never came


def begin(one: Resized) -> None:
    one.begin()


def finish(one: Resized) -> None:
    one.take()
    one.finish("[]")


def confirm(one: Resized) -> None:
    one.take()
    one.confirm()


def revert(one: Resized) -> None:
    one.revert(power_on=True)


STEPS = {"begin": begin, "finish": finish, "confirm": confirm, "revert": revert}


def die_at(event: str, pattern: str, times: int) -> None:
    left = iter(range(times - 1))

    def look(name: str, arguments: tuple[object, ...]) -> None:
        if name == event and any(re.search(pattern, _text(one)) for one in arguments) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def _text(argument: object) -> str:
    if isinstance(argument, list | tuple):
        return " ".join(map(_text, argument))
    return os.fspath(argument) if isinstance(argument, str | Path) else ""


if __name__ == "__main__":
    main()
