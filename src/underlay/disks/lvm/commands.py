"""The programs of lvm2: asked within bounded time, their reports read as JSON, their errors translated.

A program of LVM that waits for a volume group's lock waits without end, and one that is killed later may leave devices
suspended, for which whoever opens them waits without end. So each is told not to wait (``global/wait_for_locks``, lvm.conf(5)),
and asked again until the time is over; and none is killed, with us or by us: what one has begun it ends, and the next one waits
for it.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from underlay.errors import (
    BackendUnavailable,
    DiskExists,
    DiskInUse,
    DiskNotFound,
    InsufficientSpace,
    ToolFailed,
    ToolTimedOut,
    UnderlayError,
)
from underlay.run import PLAIN_ENVIRONMENT, Ended, Limits, failed, run_to_end

_LIMITS = Limits(seconds=600, is_left_to_end=True)  # of what is not waiting for a lock: only a device that hangs takes so long
_PAUSE = 0.1
_ENVIRONMENT: Mapping[str, str] = MappingProxyType({**PLAIN_ENVIRONMENT, "LVM_SUPPRESS_FD_WARNINGS": "1"})
# What of lvm.conf(5) decides how reports look: whoever set it had other readers in mind.
_REPORTS = (
    'report/binary_values_as_numeric=0 report/list_item_separator="," report/compact_output=0 report/compact_output_cols=""'
)
_CONFIG = ("--config", f"global/wait_for_locks=0 {_REPORTS}")
_LOCKED = re.compile(r"Can't get lock for|flock failed: Resource temporarily unavailable")
_GONE = re.compile(
    r"Volume group \"[^\"]*\" not found|Cannot process volume group|PVs are missing|missing PVs|Couldn't find device with uuid"
    r"|[Tt]hin pool .*not found|No such device|is exported"
)
_NO_ROOM = re.compile(
    r"insufficient (free )?space|free space in thin pool|insufficient suitable|not enough free|No space left", re.IGNORECASE
)
_BUSY = re.compile(r" in use|used by another device|is busy|still in use", re.IGNORECASE)
_NOTHING = re.compile(r"Failed to find logical volume|not found in volume group")
_THERE = re.compile(r"already exists in volume group")


class _Report(msgspec.Struct):
    """What ``--reportformat json`` prints (lvmreport(7)): rows by the kind of what they are about."""

    report: list[dict[str, list[dict[str, str]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A volume group.

    Attributes:
        patience: seconds to wait for its lock.
    """

    name: str
    patience: float

    @property
    def spoken(self) -> str:
        """As messages call it."""
        return f"the volume group {self.name}"

    def change(self, program: str, *arguments: str, of: str) -> str:
        """Have a program change something, without a question; what it printed.

        Args:
            of: the volume that it is about, as messages call it.

        Raises:
            DiskNotFound, DiskExists, DiskInUse; BackendUnavailable, InsufficientSpace, ToolMissing, ToolFailed
        """
        return self._ask([program, *_CONFIG, "--yes", *arguments], of=of).decode(errors="replace")

    def report(self, program: str, *arguments: str, fields: Sequence[str]) -> list[dict[str, str]]:
        """The rows of a report; every value is a text, sizes are bytes.

        Raises:
            as `change`
        """
        words = [program, *_CONFIG, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", ",".join(fields)]
        return _rows(self._ask([*words, *arguments, self.name], of=self.spoken))

    def free(self) -> int:
        """Bytes that no volume has."""
        return int(self.report("vgs", fields=["vg_free"])[0]["vg_free"])

    def _ask(self, argv: Sequence[str], *, of: str) -> bytes:
        ended = self._ended(argv)
        if ended.status != 0:
            raise self._translated(argv[0], ended, of)
        return ended.output

    def _ended(self, argv: Sequence[str]) -> Ended:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                ended = run_to_end(argv, limits=_LIMITS, environment=_ENVIRONMENT)
            except ToolTimedOut as error:
                hint = "see the kernel's log for a device that hangs"
                raise BackendUnavailable(f"{self.spoken} does not answer: {error}", hint=hint) from error
            if ended.status == 0 or not _LOCKED.search(_said(ended)):
                return ended
            if time.monotonic() >= deadline:
                what = f"{self.spoken} does not answer: its lock was held for {self.patience:g} s"
                raise BackendUnavailable(what, hint=f"see who holds it: lsof /run/lock/lvm/V_{self.name}")
            time.sleep(_PAUSE)

    def _translated(self, program: str, ended: Ended, of: str) -> UnderlayError:
        said = _said(ended)
        if _GONE.search(said):
            what = f"{self.spoken} is not there or not whole: {_first_line(said)}"
            return BackendUnavailable(what, hint="see vgs, pvs and [disks.lvm] in the configuration")
        if _NOTHING.search(said):
            return DiskNotFound(f"there is no {of}")
        if _THERE.search(said):
            return DiskExists(f"{of} is there", hint="remove it, or choose another name")
        if _BUSY.search(said):
            return DiskInUse(f"{of} is in use", hint="stop who uses it: lvs -o +lv_device_open, lsof")
        if _NO_ROOM.search(said):
            return InsufficientSpace(self.spoken, needed=None, free=self.free(), reclaimable={})
        return failed(program, ended)


def _rows(output: bytes) -> list[dict[str, str]]:
    try:
        parts = msgspec.json.decode(output, type=_Report).report
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ToolFailed(f"LVM's report cannot be read: {error}") from error
    return [row for part in parts for rows in part.values() for row in rows]


def _said(ended: Ended) -> str:
    return ended.errors.decode(errors="replace")


def _first_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and "WARNING" not in line]
    return lines[0] if lines else "nothing was said"
