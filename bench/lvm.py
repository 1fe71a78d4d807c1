"""Rows about disks in a volume group: against lvcreate and qemu-img. All of it is measured in a micro virtual machine."""

import os
import sys

import msgspec

from bench.components import component
from bench.measure import Things
from bench.results import Measured
from bench.setting import CannotRun, Setting

_LIMIT = 3600.0  # seconds


def lvm_disks(setting: Setting) -> Things:
    """The kernel of the machine runs as a process, so a program takes longer in it than elsewhere, ours and theirs alike."""
    microvm, job = component("lvm", "microvm"), setting.directory / "job"
    job.mkdir()
    command = [sys.executable, "-m", "bench.lvm_side", str(setting.rounds)]
    variables = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    done = microvm.run_inside(command, job, variables=variables, limit=_LIMIT)
    if done.status != 0:
        raise CannotRun(f"the machine ended with status {done.status}: {done.output[-200:]}")
    yield from msgspec.json.decode((job / "measured").read_bytes(), type=list[Measured])
